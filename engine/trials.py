"""Several annealings of one job, one after the other, of which particles held out choose: numbers of classes, starts.

All trials but the one that is kept end with their cooling. What has been tried is all that the next trial depends on,
so that a run can be ended between two of them, or within one, and goes on to the same result.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.annealing import State, state_arrays, state_from_arrays
from vitrea.engine.selection import next_size

LEAST_MEMBERS, MOST_CLASSES = 20, 1000   # particles a class, where the number of classes is to be found
USUAL_STARTS, AFFORDED = 3, 2_000_000    # starts, where particles × classes are at most so many


@dataclass(frozen=True)
class Trials:
    """What has been tried: numbers of classes, numbers of the starts, and judgements [nats a particle], in order; best:
    the State of the best at the end of its cooling, None before there is one; iterations of all of them."""

    sizes: tuple = ()
    starts: tuple = ()
    judged: tuple = ()
    best: State = None
    iterations: int = 0

    def after(self, size, number, state):
        """The same, and one more."""
        judgement = state.best_held_out if np.isfinite(state.best_held_out) else -np.inf
        better = self.best is None or judgement > max(self.judged)
        return replace(self, sizes=(*self.sizes, size), starts=(*self.starts, number),
                       judged=(*self.judged, judgement), best=state if better else self.best,
                       iterations=state.iteration)

    def next(self, n_classes, n_starts, least, most):
        """(number of classes, number of the start) to try next; None if there is no more.

        n_classes None: a number from least to most is found with start 0 (engine/selection.py), and then tried with the
        other starts. One start of a given number of classes is no trial.
        """
        if n_classes is None:
            first = {size: value for size, number, value in zip(self.sizes, self.starts, self.judged) if not number}
            size = next_size(first, least, most)
            if size is not None:
                return size, 0
            n_classes = max(first, key=lambda size: (first[size], -size))
        elif n_starts == 1:
            return None
        tried = {number for size, number in zip(self.sizes, self.starts) if size == n_classes}
        return next(((n_classes, number) for number in range(n_starts) if number not in tried), None)

    def arrays(self):
        """dict of arrays, for a checkpoint."""
        found = {"trial_sizes": np.array(self.sizes, np.int64), "trial_starts": np.array(self.starts, np.int64),
                 "trial_judged": np.array(self.judged, np.float64), "trial_iterations": np.array(self.iterations)}
        return found if self.best is None else found | {
            f"trial_best_{name}": value for name, value in state_arrays(self.best).items()}

    @classmethod
    def from_arrays(cls, arrays):
        """The Trials that `arrays` took apart."""
        own = {name.removeprefix("trial_best_"): arrays[name] for name in arrays if name.startswith("trial_best_")}
        return cls(*(tuple(np.asarray(arrays[name]).tolist()) for name in (
            "trial_sizes", "trial_starts", "trial_judged")), state_from_arrays(own) if own else None,
            int(arrays["trial_iterations"]))


def most_classes(n_particles):
    """The largest number of classes that is tried where it is to be found."""
    return int(np.clip(n_particles // LEAST_MEMBERS, 3, MOST_CLASSES))


def usual_starts(n_particles, n_classes):
    """Starts where the job does not say."""
    return USUAL_STARTS if n_particles * n_classes <= AFFORDED else 1

"""Several annealings of one job, one after the other, of which particles held out choose: numbers of classes, starts.

All trials but the one that is kept end with their cooling. What has been tried is all that the next trial depends on,
so that a run can be ended between two of them, or within one, and goes on to the same result.

The last trial begins with classes that were found and merged (engine/merging.py): of a number that is to be found the
best ones, for as long as the evidence rises; of a given number half as many again, until so many are left.
"""
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.annealing import State, state_arrays, state_from_arrays
from vitrea.engine.merging import wider
from vitrea.engine.selection import next_size

LEAST_MEMBERS, MOST_CLASSES = 20, 1000   # particles a class, where the number of classes is to be found
USUAL_STARTS, AFFORDED = 4, 2_000_000    # starts, where particles × classes are at most so many
MERGED, WIDE = -1, -2     # numbers of the start from merged classes, and of that of the classes to be merged
MERGEABLE = ("chain", "closed_chain", "none")   # latent grids of any number of nodes
USUAL_SIZES = 10          # trials that finding a number takes, for the time that is left


@dataclass(frozen=True)
class Trials:
    """What has been tried: numbers of classes, numbers of the starts, and judgements [nats a particle], in order; best:
    the State of the best at the end of its cooling, None before there is one, and wide that of the classes that are to
    be merged; iterations of all of them."""

    sizes: tuple = ()
    starts: tuple = ()
    judged: tuple = ()
    best: State = None
    wide: State = None
    iterations: int = 0

    def after(self, size, number, state):
        """The same, and one more; state None: there was nothing to merge."""
        judgement = -np.inf if state is None or not np.isfinite(state.best_held_out) else state.best_held_out
        told = replace(self, sizes=(*self.sizes, size), starts=(*self.starts, number),
                       judged=(*self.judged, judgement),
                       iterations=self.iterations if state is None else state.iteration)
        if number == WIDE:
            return replace(told, wide=state)
        counted = [value for value, start in zip(self.judged, self.starts) if start != WIDE]
        better = state is not None and (self.best is None or judgement > max(counted))
        return replace(told, best=state if better else self.best, wide=None)

    def next(self, n_classes, n_starts, least, most, merging):
        """(number of classes, number of the start) to try next; None if there is no more.

        n_classes None: a number from least to most is found with start 0 (engine/selection.py), then tried with the
        other starts, then merged: (None, MERGED), as only the classes know how many they will be. Of a given number
        one start is no trial. merging: whether the lattice can do with any number of nodes.
        """
        if n_classes is None:
            first = {size: value for size, number, value in zip(self.sizes, self.starts, self.judged) if not number}
            size = next_size(first, least, most)
            if size is not None:
                return size, 0
            planned = [(max(first, key=lambda size: (first[size], -size)), number) for number in range(n_starts)]
            planned += [(None, MERGED)] * merging
        elif n_starts == 1:
            return None
        else:
            planned = [(n_classes, number) for number in range(n_starts - merging)]
            planned += [(wider(n_classes), WIDE), (n_classes, MERGED)] * merging
        tried = {*zip(self.sizes, self.starts), *((None, number) for number in self.starts if number == MERGED)}
        return next((trial for trial in planned if trial not in tried), None)

    def left(self, n_classes, n_starts, merging):
        """How many trials come after the next one, about, if the number is to be found."""
        if n_classes is None:
            return max(USUAL_SIZES + n_starts - 1 + merging - len(self.sizes) - 1, 0)
        return 0 if n_starts == 1 else max(n_starts + merging - len(self.sizes) - 1, 0)

    def arrays(self):
        """dict of arrays, for a checkpoint."""
        found = {"trial_sizes": np.array(self.sizes, np.int64), "trial_starts": np.array(self.starts, np.int64),
                 "trial_judged": np.array(self.judged, np.float64), "trial_iterations": np.array(self.iterations)}
        for part in ("best", "wide"):
            if getattr(self, part) is not None:
                found |= {f"trial_{part}_{name}": value for name, value in state_arrays(getattr(self, part)).items()}
        return found

    @classmethod
    def from_arrays(cls, arrays):
        """The Trials that `arrays` took apart."""
        told = (tuple(np.asarray(arrays[name]).tolist()) for name in ("trial_sizes", "trial_starts", "trial_judged"))
        return cls(*told, *(_state(arrays, f"trial_{part}_") for part in ("best", "wide")),
                   int(arrays["trial_iterations"]))


def _state(arrays, prefix):
    own = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    return state_from_arrays(own) if own else None


def most_classes(n_particles):
    """The largest number of classes that is tried where it is to be found."""
    return int(np.clip(n_particles // LEAST_MEMBERS, 3, MOST_CLASSES))


def n_starts(options, n_particles):
    """How many starts a cluster job makes: its own number, or what is usual if there is anything to choose by."""
    if options.starts:
        return options.starts
    can_choose = options.held_out > 0 and options.start != "classes"
    wanted = options.n_classes or most_classes(n_particles)
    return USUAL_STARTS if can_choose and n_particles * wanted <= AFFORDED else 1


def can_merge(options):
    """Whether the job's latent grid can be made of any number of nodes."""
    return options.latent in MERGEABLE


def widest(options, n_particles):
    """The most classes of any trial of a cluster job."""
    if options.n_classes is None:
        return most_classes(n_particles)
    several = can_merge(options) and n_starts(options, n_particles) > 1
    return wider(options.n_classes) if several else options.n_classes

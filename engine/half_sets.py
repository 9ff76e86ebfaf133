"""How sure a finished classification is of its classes: two halves of the particles, learned apart, are asked again.

The particles are dealt to two halves by lot, and from the final classes each half goes on alone for some passes of EM,
so that the classes of the halves keep their numbers but hold noise of their own. Then every particle is compared with
the classes of all and with those of either half: p(k), p₁(k), p₂(k), the posterior probability of each class summed
over angles and shifts.

* Stability of a particle: Σ_k p₁(k) p₂(k), the probability that either half gives it the same class; of a class, the
  mean over its particles. Two classes that show one view share their particles, and are both unstable.
* Calibrated probability of a particle's class: σ(a·logit p + b), where a and b make it the best prediction of the
  stability (logistic regression, as Platt 1999 for classifiers). p alone is too sure of itself: the class averages
  hold the noise of the very particle that is judged by them.

Both come from the data alone. How far they are frequencies is measured on simulated particles, where classes are known
(benchmarks/confidence.py, docs/people.md).
"""
import json
import time
from dataclasses import dataclass, replace

import numpy as np

from vitrea.engine.comm import gather_rows
from vitrea.engine.files import written_beside
from vitrea.engine.finished import read_finished
from vitrea.engine.levels import make_search
from vitrea.engine.log import format_clock
from vitrea.engine.model import Settings, maximise
from vitrea.engine.probabilities import logistic_fit, logit, reliability, sigmoid
from vitrea.engine.stability import HALVES_NAME, HALVES_STAR_NAME
from vitrea.engine.star import write_star
from vitrea.engine.storage import pieces

PASSES = 3             # of each half alone: more bring probabilities nearer to frequencies, and cost a pass each
KEPT_CLASSES = 8       # of the posterior of the first half: what is left over is counted as disagreement
BINS = np.linspace(0.0, 1.0, 11)
JUDGED = np.dtype([("row", np.int64), ("class_number", np.int32), ("other", np.int32), ("probability", np.float32),
                   ("stability", np.float32)])


@dataclass(frozen=True)
class HalfSets:
    """What the halves said of n particles in K classes.

    row int64[n]: in the particles' file; class_number int32[n], from 0; probability float64[n]: p of that class,
    calibrated float64[n]; stability float64[n]; classes float64[K]: mean stability, NaN without particles; shared
    int64[K]: the other class that the halves give most of its particles to, −1 without any, and share float64[K]: of
    how many of them; chance: the stability of classes dealt by lot; slope, offset: of the calibration.
    """

    row: np.ndarray
    class_number: np.ndarray
    probability: np.ndarray
    calibrated: np.ndarray
    stability: np.ndarray
    classes: np.ndarray
    shared: np.ndarray
    share: np.ndarray
    chance: float
    slope: float
    offset: float


def judge(run, model, passes=PASSES):
    """HalfSets on rank 0, True elsewhere, of a Run of classify2d with its final Model; None on all ranks if the run
    was asked to stop. Collective. What run.passes knows of the particles is lost."""
    judged = _empty(run)
    clock = _Clock(run, 2 * passes + 3)
    halves = _deal(run)
    models = [model]
    for half in (0, 1):
        learned = model
        for _ in range(passes):
            learned = _learn(run, learned, halves, half, clock)
            if learned is None:
                return None
        models.append(learned)
    first = _FirstHalf(len(run.passes.shard), model.n_classes, run.passes.shard.space)
    listeners = (_note_probability(judged), first.note, _note_stability(judged, first))
    for asked, listener in zip(models, listeners):
        if not _ask(run, asked, listener, clock):
            return None
    return _gathered(run, judged, model.n_classes)


def summarise(judged, n_classes):
    """HalfSets of JUDGED[n] in the order of the particles' file; those without a class are left out."""
    judged = judged[judged["class_number"] >= 0]
    k, stability = judged["class_number"], judged["stability"].astype(np.float64)
    probability = judged["probability"].astype(np.float64)
    slope, offset = logistic_fit(logit(probability), stability)
    sizes = np.bincount(k, minlength=n_classes)
    with np.errstate(invalid="ignore"):
        classes = np.bincount(k, weights=stability, minlength=n_classes) / sizes
    shared, share = _shared(k, judged["other"], stability, n_classes)
    chance = float(np.sum((sizes / max(sizes.sum(), 1)) ** 2))
    return HalfSets(judged["row"], k, probability, sigmoid(slope * logit(probability) + offset), stability, classes,
                    shared, share, chance, slope, offset)


def write(run, model, passes=PASSES):
    """Judge a Run of classify2d whose results are written, and write what was found beside them: HalfSets on rank 0,
    True elsewhere, None if the run was asked to stop. Collective."""
    found = judge(run, model, passes)
    if found is None:
        return None
    if run.comm.rank == 0:
        write_files(read_finished(run.options.output), found)
    return found


def write_files(run, found):
    """Write half_sets.star and half_sets.json into the folder of a FinishedRun."""
    write_star(run.folder / HALVES_STAR_NAME, {
        "classes": {"rlnClassNumber": np.arange(1, run.n_classes + 1), "vitreaStability": np.nan_to_num(found.classes),
                    "vitreaSharesWith": found.shared + 1, "vitreaShare": found.share},
        "particles": {"rlnImageName": run.particles["rlnImageName"][:], "rlnClassNumber": found.class_number + 1,
                      "vitreaStability": found.stability, "vitreaClassProbability": found.calibrated,
                      "vitreaUncalibratedProbability": found.probability}})
    told = {"classes": [None if np.isnan(value) else round(float(value), 5) for value in found.classes],
            "shares_with": (found.shared + 1).tolist(), "share": np.round(found.share, 5).tolist(),
            "chance": round(found.chance, 5), "slope": round(found.slope, 6), "offset": round(found.offset, 6),
            "stability": round(float(found.stability.mean()), 5),
            "reliability": reliability(found.calibrated, found.stability, BINS),
            "uncalibrated": reliability(found.probability, found.stability, BINS)}
    with written_beside(run.folder / HALVES_NAME) as beside:
        beside.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _deal(run):
    """int8[N]: the half of every particle of the table."""
    key = np.random.SeedSequence([run.options.seed, 7])
    return np.random.Generator(np.random.Philox(key)).integers(0, 2, len(run.table), dtype=np.int8)


def _learn(run, model, halves, half, clock):
    """The Model after a pass of EM over one half, its rings kept; None if the run was asked to stop."""
    shard = run.passes.shard

    def choose(i):
        local = shard.of_block(i)
        return local[halves[shard.rows[local]] == half]

    search = make_search(model, run.geometry, run.options, refined=False)
    totals = run.passes.run(model, search, choose, clock.on_block)
    if totals is None:
        return None
    clock.passed()
    run.passes.normalise_scale(totals)
    settings = Settings(run.options.tau2_fudge, run.operators)
    learned = maximise(model, totals, search.fine.level.grid, run.geometry, settings)
    return replace(learned, rings=model.rings, rings_before=model.rings_before)


def _ask(run, model, listener, clock):
    """Tell listener(local, posterior) of all particles; False if the run was asked to stop."""
    search = replace(make_search(model, run.geometry, run.options, refined=False), by_class=True)
    if run.passes.run(model, search, on_block=clock.on_block, on_classes=listener) is None:
        return False
    clock.passed()
    return True


def _empty(run):
    """JUDGED of this rank's particles, with what the run decided."""
    shard = run.passes.shard
    judged = shard.space.zeros(len(shard), JUDGED)
    for part in pieces(len(shard)):
        judged["row"][part] = shard.rows[part]
        judged["class_number"][part] = run.passes.poses.class_number[part]
        shard.space.release()
    return judged


def _note_probability(judged):
    """A listener that keeps the probability of each particle's class."""
    def note(local, posterior):
        judged["probability"][local] = posterior[np.arange(len(local)), judged["class_number"][local]]

    return note


def _note_stability(judged, first):
    """A listener to the second half's posterior that keeps Σ p₁ p₂, and the class that both halves together find
    likeliest besides the particle's own."""
    def note(local, posterior):
        rows, likeliest = np.arange(len(local)), first.classes[local].astype(np.int64)
        p = np.take_along_axis(posterior, likeliest, axis=1)
        judged["stability"][local] = np.minimum((p * first.posterior[local]).sum(axis=1), 1.0)
        together = posterior.copy()
        np.put_along_axis(together, likeliest, p + first.posterior[local], axis=1)
        together[rows, judged["class_number"][local]] = -1.0
        judged["other"][local] = together.argmax(axis=1)

    return note


class _FirstHalf:
    """The likeliest classes int32[n, C] of each particle by the first half, and their probability float32[n, C]."""

    def __init__(self, n, n_classes, space):
        shape = (n, min(KEPT_CLASSES, n_classes))
        self.classes, self.posterior = space.zeros(shape, np.int32), space.zeros(shape, np.float32)

    def note(self, local, posterior):
        likeliest = np.argsort(-posterior, axis=1, kind="stable")[:, :self.classes.shape[1]]
        self.classes[local] = likeliest
        self.posterior[local] = np.take_along_axis(posterior, likeliest, axis=1)


class _Clock:
    """Tells the log of passes that are done and the time left."""

    def __init__(self, run, of):
        self._run, self._of, self._done, self._begin = run, of, 0, time.perf_counter()
        run.log.line(f"half-sets: {of} passes, {of - 3} of them over one half of the particles")

    def on_block(self, _fraction):
        return self._run.stop.asked()

    def passed(self):
        self._done += 1
        left = (time.perf_counter() - self._begin) * (self._of / self._done - 1.0)
        self._run.log.line(f"half-sets: pass {self._done} of {self._of} done, about {format_clock(left)} left")


def _gathered(run, judged, n_classes):
    """HalfSets on rank 0, True elsewhere, in the order of the table. Collective."""
    space = run.passes.shard.space
    together = space.zeros(len(run.table), JUDGED) if run.comm.rank == 0 else None
    if together is not None:
        for part in pieces(len(together)):
            together["class_number"][part] = -1   # those that were set aside stay so
            space.release()
    for part in pieces(run.passes.largest_shard):
        found = gather_rows(judged[part], comm=run.comm)
        if together is not None:
            together[found["row"]] = found
        space.release()
    return summarise(together, n_classes) if together is not None else True


def _shared(class_number, other, stability, n_classes):
    """(the other class that takes most of what each class is not sure of int64[K], its share of the class
    float64[K]); −1 and 0 for classes without particles."""
    shared, share = np.full(n_classes, -1), np.zeros(n_classes)
    order = np.argsort(class_number, kind="stable")
    ends = np.searchsorted(class_number[order], np.arange(n_classes + 1))
    for k in range(n_classes):
        mine = order[ends[k]:ends[k + 1]]
        if len(mine):
            unsure = np.bincount(other[mine], weights=1.0 - stability[mine], minlength=n_classes)
            shared[k] = unsure.argmax()
            share[k] = unsure[shared[k]] / len(mine)
    return shared, share

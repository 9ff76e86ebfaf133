"""Experiments on networks: what noise does to where descents end, and when the valley they end in is decided.

`noise_table`: from one start, repeats for each cell (learning rate, batch size) run for the same learning time, are
cooled to matched losses, and are compared: accuracy, curvature, barriers and distances between repeats. `branching`:
from states along parents, children go on with fresh noise, all over the same horizon, and are cooled; where no barrier
is left between them the valley had been decided. Members of an ensemble are dealt to ranks, one at a time; each is
computed by one rank from random draws of its own, so that the result has the same bits on any number of ranks.
"""
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from vitrea.engine.anneal import LEAST_BARRIER, freezing_time, noise_strength
from vitrea.engine.comm import sum_over_ranks
from vitrea.engine.dynamics_intervals import (
    difference_interval,
    jackknife_interval,
    mean_interval,
    pair_interval,
    ratio_interval,
)
from vitrea.engine.valleys import (
    Landscape,
    barrier,
    batches,
    cool,
    descend,
    invariant_sharpness,
    jaccard,
    sharpness,
    states_at,
)

START, HOT, PARENT, CHILD = range(4)   # streams of random draws
MICRO = 1_000_000                      # learning rates enter a stream's key in millionths


@dataclass(frozen=True)
class Cell:
    """A learning rate and a batch size; fresh: every repeat begins at a start of its own."""

    rate: float
    batch: int
    fresh: bool = False

    @property
    def noise_strength(self):
        return noise_strength(self.rate, self.batch)

    def steps(self, learning_time):
        """Steps that take a learning time (learning rate × steps)."""
        return round(learning_time / self.rate)

    @property
    def words(self):
        return f"({self.rate:g}, {self.batch}{', own starts' if self.fresh else ''})"


@dataclass(frozen=True)
class Study:
    """What all members of an ensemble share: the landscape, the seed, the learning time of a descent, the training
    losses [nats] to which endpoints are cooled, falling, and whether batches are drawn with replacement."""

    landscape: Landscape
    seed: int
    learning_time: float = 100.0
    losses: tuple[float, ...] = (0.005, 0.001)
    replacement: bool = False

    def random(self, *key):
        return np.random.default_rng((self.seed, *key))

    def start(self, cell, number):
        """θ where repeat `number` of a cell begins."""
        return self.landscape.initial(self.random(START, 1 + number if cell.fresh else 0))

    def path(self, cell, theta, *key):
        """Generator of the states of a descent from θ with the noise of a cell."""
        random = self.random(*key, cell.batch, round(MICRO * cell.rate))
        rows = batches(self.landscape.n_samples, cell.batch, random, replacement=self.replacement)
        return descend(self.landscape, theta, cell.rate, rows)


def dealt(laboratory, n, work, shapes, words):
    """{name: float64[n, ...]} of what work(i) gives for every member of an ensemble, or None if it was asked to stop.

    work(i) -> {name: array of shapes[name]}. Ranks take members in turn, one a round; what was done is in the
    checkpoint, and is not done again. Collective.
    """
    comm, kept = laboratory.comm, laboratory.restored()
    names, widths = list(shapes), [int(np.prod(shape)) for shape in shapes.values()]
    rows = kept["members"].copy() if kept else np.zeros((n, sum(widths)))
    done = kept["done"].astype(bool) if kept else np.zeros(n, dtype=bool)
    laboratory.plan(laboratory.round - (-np.count_nonzero(~done) // comm.size))
    while not done.all():
        waiting = np.flatnonzero(~done)[:comm.size]
        found = np.zeros((len(waiting), sum(widths)))
        if comm.rank < len(waiting):
            member = work(int(waiting[comm.rank]))
            found[comm.rank] = np.concatenate([np.ravel(member[name]) for name in names]) + 0.0   # −0 + 0 is 0
        rows[waiting], done[waiting] = sum_over_ranks(found, comm=comm), True
        if not laboratory.end_round(lambda: {"members": rows, "done": done.astype(np.uint8)}, words(int(waiting[0]))):
            return None
    parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
    return {name: part.reshape(n, *shapes[name]) for name, part in zip(names, parts)}


# ---- what noise does to the endpoints

def noise_table(laboratory, study, cells, repeats):
    """Rows of the table, one for each Cell and matched loss (`_row`), or None if it was asked to stop. Collective."""
    members = [(cell, number) for cell in cells for number in range(repeats)]
    n_losses, n_test = len(study.losses), len(study.landscape.wrong(study.start(cells[0], 0)))
    shapes = {"hot_loss": (), "theta": (n_losses, study.landscape.n_parameters), "wrong": (n_losses, n_test)}
    shapes |= dict.fromkeys(("loss", "steps", "sharpness", "invariant_sharpness"), (n_losses,))
    found = dealt(laboratory, len(members), lambda i: _member(study, *members[i]), shapes,
                  lambda i: f"η {members[i][0].rate:g}   batch {members[i][0].batch}   repeat {members[i][1] + 1}")
    if found is None:
        return None
    rows = []
    for number, cell in enumerate(cells):
        own = {name: values[number * repeats:(number + 1) * repeats] for name, values in found.items()}
        for place, loss in enumerate(study.losses):
            at = {name: values if name == "hot_loss" else values[:, place] for name, values in own.items()}
            rows.append(_row(study, cell, loss, at, laboratory.comm))
    return rows


def _member(study, cell, number):
    """One descent of a cell, cooled to every matched loss in turn."""
    landscape, hot = study.landscape, hot_state(study, cell, number)
    ends, theta = [], hot
    for loss in study.losses:
        ends.append(cool(landscape, theta, loss))
        theta = ends[-1].theta
    return {"hot_loss": landscape.loss(hot), "theta": [each.theta for each in ends],
            "wrong": [each.wrong for each in ends], "loss": [each.loss for each in ends],
            "steps": np.cumsum([each.steps for each in ends]),
            "sharpness": [sharpness(landscape, each.theta)[0] for each in ends],
            "invariant_sharpness": [invariant_sharpness(landscape, each.theta) for each in ends]}


def hot_state(study, cell, number):
    """θ of repeat `number` of a cell after the learning time of the study."""
    start = study.start(cell, number)
    return states_at(study.path(cell, start, HOT, number), [cell.steps(study.learning_time)], start)[0]


def _row(study, cell, loss, at, comm):
    """A row of the table: intervals over the repeats of a cell at one matched loss, and the repeats' own values."""
    wrong = at["wrong"] > 0.5
    pairs = _pairs(study.landscape, at["theta"], wrong, comm)
    accuracy = 1.0 - wrong.mean(axis=1)
    return {
        "learning_rate": cell.rate, "batch_size": cell.batch, "own_starts": cell.fresh,
        "noise_strength": cell.noise_strength, "matched_loss": loss, "repeats": len(wrong),
        "reached": int(np.count_nonzero((at["loss"] <= loss) & (at["steps"] > 0))),
        "accuracy": mean_interval(accuracy).as_dict(),
        **{name: mean_interval(at[name]).as_dict() for name in ("hot_loss", "sharpness", "invariant_sharpness")},
        **{name: pair_interval(matrix).as_dict() for name, matrix in pairs.items()},
        "largest_barrier": float(pairs["barrier"].max()),
        "values": {"accuracy": accuracy, "sharpness": at["sharpness"], "loss": at["loss"], "cooling_steps": at["steps"],
                   "invariant_sharpness": at["invariant_sharpness"], "jaccard": pairs["jaccard"]},
    }


def _pairs(landscape, thetas, wrong, comm):
    """{"barrier", "jaccard", "distance": float64[n, n]} between repeats, symmetric; pairs are dealt to the ranks."""
    n = len(thetas)
    found = {name: np.zeros((n, n)) for name in ("barrier", "jaccard", "distance")}
    for i, j in list(combinations(range(n), 2))[comm.rank::comm.size]:
        found["barrier"][i, j] = barrier(landscape, thetas[i], thetas[j])
        found["jaccard"][i, j] = jaccard(wrong[i], wrong[j])
        found["distance"][i, j] = np.linalg.norm(thetas[i] - thetas[j])
    summed = {name: sum_over_ranks(matrix, comm=comm) for name, matrix in found.items()}
    return {name: matrix + matrix.T for name, matrix in summed.items()}


# ---- when the valley is decided

@dataclass(frozen=True)
class Branches:
    """Where parents branch (learning times), how many children each state has, and their learning time before they are
    cooled, the same for all: children that only ran to a common end would look the more frozen the later they began."""

    times: tuple[float, ...]
    children: int
    horizon: float


def branching(laboratory, study, cells, parents, branches):
    """Rows, one for each Cell: barriers by learning time and parent, and freezing times; None if stopped. Collective.

    Two definitions: barriers between children ("twin"), and between the state cooled at once and the parent's own end
    ("continued", the full-batch continuation of Yang et al.).
    """
    members = [(cell, number, place) for cell in cells for number in range(parents)
               for place in range(len(branches.times))]
    found = dealt(laboratory, len(members), lambda i: _branch(study, branches, *members[i]),
                  dict.fromkeys(("twin_barrier", "twin_jaccard", "continued_barrier", "continued_jaccard"), ()),
                  lambda i: f"η {members[i][0].rate:g}   batch {members[i][0].batch}   parent {members[i][1] + 1}   "
                            f"time {branches.times[members[i][2]]:g}")
    if found is None:
        return None
    shape = (len(cells), parents, len(branches.times))
    found = {name: values.reshape(shape) for name, values in found.items()}
    return [_branch_row(cell, branches, {name: values[i] for name, values in found.items()})
            for i, cell in enumerate(cells)]


def _branch(study, branches, cell, number, place):
    """Barriers and Jaccard similarities of what becomes of one state of a parent."""
    landscape, loss = study.landscape, study.losses[0]
    start = study.start(cell, 0)
    end = branches.times[-1] + branches.horizon
    marks = [cell.steps(time) for time in (branches.times[place], end)]
    state, final = states_at(study.path(cell, start, PARENT, number), marks, start)
    children = []
    for child in range(branches.children):
        path = study.path(cell, state, CHILD, number, place, child)
        hot, = states_at(path, [cell.steps(branches.horizon)], state)
        children.append(cool(landscape, hot, loss))
    twins = list(combinations(children, 2))
    continued = cool(landscape, state, loss), cool(landscape, final, loss)
    return {"twin_barrier": np.mean([barrier(landscape, a.theta, b.theta) for a, b in twins]),
            "twin_jaccard": np.mean([jaccard(a.wrong, b.wrong) for a, b in twins]),
            "continued_barrier": barrier(landscape, *(each.theta for each in continued)),
            "continued_jaccard": jaccard(*(each.wrong for each in continued))}


def _branch_row(cell, branches, found):
    """A row of the branching table, its freezing times one for each parent [learning time], infinite if never."""
    row = {"learning_rate": cell.rate, "batch_size": cell.batch, "noise_strength": cell.noise_strength,
           "times": branches.times, "parents": len(found["twin_barrier"])}
    for name, values in found.items():
        row[name] = [mean_interval(column).as_dict() for column in values.T]
    for kind in ("twin", "continued"):
        row[f"{kind}_freezing_times"] = [freezing_time(branches.times, each, LEAST_BARRIER)
                                         for each in found[f"{kind}_barrier"]]
    row["values"] = {"twin_barrier": found["twin_barrier"], "continued_barrier": found["continued_barrier"]}
    return row


# ---- what the design expects, and what was found

@dataclass(frozen=True)
class Expected:
    """The cells that the claims compare, as (learning rate, batch size): hardly any noise, what noise should do good,
    too much of it; and for branching the one that should freeze early and the one that should freeze late."""

    quiet: tuple[float, int]
    good: tuple[float, int]
    loud: tuple[float, int]
    early: tuple[float, int]
    late: tuple[float, int]


def noise_claims(rows, expected, *, flatter=1.8, worse=0.02):
    """Claims about one matched loss: [{"name", "claim", "found": Interval, "holds"}]; those whose cells are missing are
    left out. flatter: how many times; worse: by how much accuracy."""
    shared = [row for row in rows if not row["own_starts"]]
    cells = {(row["learning_rate"], row["batch_size"]): row["values"] for row in shared}
    claims = []
    if len(shared) > 5:
        rank = _rank_of_jaccard(shared)
        claims.append(_claim("N1", "rank correlation of noise strength and Jaccard similarity at most -0.8", rank,
                             rank.mean <= -0.8))
    if expected.quiet in cells and expected.good in cells:
        for name in ("sharpness", "invariant_sharpness"):
            ratio = ratio_interval(cells[expected.quiet][name], cells[expected.good][name])
            claims.append(_claim("N2", f"{name.replace('_', ' ')} {expected.quiet} / {expected.good} at least "
                                 f"{flatter:g}", ratio, ratio.mean >= flatter))
        gain = difference_interval(cells[expected.good]["accuracy"], cells[expected.quiet]["accuracy"])
        claims.append(_claim("N3", f"accuracy {expected.good} - {expected.quiet} above 0 by 3 standard errors", gain,
                             gain.mean > 3 * gain.error))
    if expected.loud in cells and expected.good in cells:
        loss = difference_interval(cells[expected.good]["accuracy"], cells[expected.loud]["accuracy"])
        claims.append(_claim("N5", f"accuracy {expected.good} - {expected.loud} at least {worse:g}", loss,
                             loss.mean >= worse))
    for row in rows:
        if row["own_starts"]:
            claims.append(_claim("N6", "barrier between descents from starts of their own above 0.5", row["barrier"],
                                 row["barrier"]["mean"] > 0.5))
    return claims


def _rank_of_jaccard(rows):
    """Interval of Spearman's ρ between noise strength and the mean Jaccard similarity of a cell's repeats."""
    noise = [row["noise_strength"] for row in rows]
    matrices = [np.asarray(row["values"]["jaccard"]) for row in rows]

    def rank(kept):
        pairs = np.triu_indices(len(kept), 1)
        return spearmanr(noise, [matrix[np.ix_(kept, kept)][pairs].mean() for matrix in matrices]).statistic

    found = jackknife_interval(rank, len(matrices[0]))
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))


def branch_claims(rows, expected):
    """N4 by both definitions: in how many parents the loud cell freezes later than the quiet one."""
    cells = {(row["learning_rate"], row["batch_size"]): row for row in rows}
    if expected.early not in cells or expected.late not in cells:
        return []
    claims = []
    for kind in ("twin", "continued"):
        early, late = (np.asarray(cells[cell][f"{kind}_freezing_times"]) for cell in (expected.early, expected.late))
        later = float(np.mean(late > early))
        claims.append(_claim("N4", f"{expected.late} freezes later than {expected.early} in 3 of 4 parents "
                             f"({kind} barriers)", {"mean": later, "n": len(late)}, later >= 0.75))
    return claims


def _claim(name, words, found, holds):
    found = found if isinstance(found, dict) else found.as_dict()
    return {"name": name, "claim": words, "found": found, "holds": bool(holds)}


def verdict(claims):
    """Lines for people: how many claims hold, and each with its figures."""
    if not claims:
        return ["nothing was claimed: the claims are about other learning rates and batch sizes"]
    lines = [f"{sum(claim['holds'] for claim in claims)} of {len(claims)} claims hold"]
    for claim in claims:
        found = claim["found"]
        within = f" ({found['low']:.3g} to {found['high']:.3g})" if "low" in found else ""
        lines.append(f"{'holds' if claim['holds'] else 'fails':<6} {claim['name']}   {claim['claim']}: "
                     f"{found['mean']:.3g}{within}   n {found['n']}")
    return lines

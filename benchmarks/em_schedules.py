"""Schedules of mini-batch EM on equal terms: one number of E steps, the same particles and random starts, in pairs.

    python -m vitrea.benchmarks.em_schedules --json

What is compared, and the rule it is judged by, was written down before the runs (docs/em-schedules.md). Views of a
specimen are turned and shifted at random, without a CTF; there are as many classes as views. Every arm is classify2d
with another schedule and sees PASSES times all particles, what its probes see included. Then particles that no arm has
seen tell how well the classes explain them. Every run is a line of the file --runs as soon as it has ended; those that
are there are not made again, so that the command goes on where it was stopped.
"""
import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.benchmarks.measure import RESULTS, append_line, environment, made_folder, read_lines
from vitrea.benchmarks.measure import table as text_table
from vitrea.benchmarks.progress import Progress
from vitrea.engine import classify2d, shards
from vitrea.engine.comm import StopRequest, alone
from vitrea.engine.compare import adjusted_rand_index
from vitrea.engine.levels import make_search
from vitrea.engine.log import NullLog
from vitrea.engine.minibatches import PROBE_SHARE, Schedule, schedule_of
from vitrea.engine.options import Classify2dOptions
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.engine.star import read_star, write_star

WIDTH, DIAMETER, RESOLUTION = 192.0, 150.0, 21.0   # Å: of the box, of the mask, of the finest ring
SHIFT, SEARCHED = 4.2, 6.0     # Å: largest true shift along each axis, and what is searched in one step
UNSEEN = 500                   # particles that judge
BLOCKS = 2                     # of the particles: so few pay less for the sums of a block
PARTICLES = {(20, 0.1): 1000, (20, 0.03): 1500, (50, 0.1): 1600,
             (50, 0.03): 2000}   # of (classes, SNR): the conditions
BOX = {0.1: 32, 0.03: 48}      # px by SNR: the same box in Å, with more of the signal in the larger one
OFTEN, SELDOM = ((20, 0.1), (20, 0.03)), ((50, 0.1), (50, 0.03))   # of these only every second start is made
SCANNED_AT = OFTEN[0]
DATA_SETS = 2
PASSES, NOISY = 12, 8          # E steps of all particles: in all, and with mini-batches at most
BATCHES = 8                    # mini-batches for all particles
STEP, HOTTEST = 0.2, 1.3       # of the arms with a constant step, of the annealed one: by a pilot on another seed
EVERY = 21                     # mini-batches from probe to probe of the measured arm: 15 % of PASSES pay for two
SCANNED = (4, 8, 16, 32, 48)   # mini-batches before the switch, of the scan
BOOTSTRAPS, CONFIDENCE = 4000, (2.5, 97.5)
LEAST_GAIN = 0.15              # of P(best basin): the claim


@dataclass(frozen=True)
class Plain(Schedule):
    """Probes may take their share of all that an arm sees."""

    @property
    def allowance(self):
        """Of all that an arm may take."""
        return PROBE_SHARE * PASSES * self.particles


@dataclass(frozen=True)
class Vdam(Plain):
    """A fixed clock like that of RELION's VDAM: phases of 30, 50 and 20 %, batches that grow through the second, a step
    that falls from 0.9 to 0.3 after the first. Without its momentum and preconditioner."""

    @cached_property
    def _batches(self):
        least, most = self.batch // 2, 2 * self.batch
        total, n = self.length * self.batch, self.length
        while sum(self._ramp(n, least, most)) > total:
            n -= 1
        return self._ramp(n, least, most)

    @staticmethod
    def _ramp(n, least, most):
        return [round(least + (most - least) * min(max((t / n - 0.3) / 0.5, 0.0), 1.0)) for t in range(n)]

    def batch_of(self, t):
        return self._batches[min(t, len(self._batches) - 1)]

    def step_of(self, t):
        at = t / len(self._batches)
        return 1.0 if t == 0 else 0.3 + 0.6 / (1.0 + 10.0 ** ((at - 0.55) / 0.1))

    def used_up(self, t, probed):
        return t >= len(self._batches)


def arm_options(arm, n_classes, particles, start):
    """Keys of classify2d that make an arm."""
    length = NOISY * BATCHES
    batches = {"algorithm": "minibatch", "minibatch_size": particles // BATCHES, "minibatch_iterations": length,
               "minibatch_step": None, "max_iterations": PASSES + 1}
    constant = batches | {"minibatch_step": STEP}
    if arm.startswith("switch "):
        return constant | {"minibatch_iterations": int(arm.split()[1])}
    drawn = int(np.random.default_rng([start, n_classes, 77]).integers(length // 10, length + 1))
    return {"full": {"algorithm": "full", "max_iterations": PASSES}, "online": constant, "Robbins-Monro": batches,
            "VDAM-like clock": batches, "annealed": batches | {"start_temperature": HOTTEST},
            "measured": constant | {"schedule": "measured"},
            "random switch": constant | {"minibatch_iterations": drawn},
            "today": batches, "one class": {"algorithm": "full", "max_iterations": PASSES}}[arm]


ARMS = ("full", "online", "Robbins-Monro", "VDAM-like clock", "annealed", "measured", "random switch", "today")
CLOCK, MEASURED, TODAY = "VDAM-like clock", "measured", "today"


def arm_schedule(arm, options, particles):
    """The Schedule of an arm."""
    plain = schedule_of(options, classify2d.batch_size(options, particles), particles)
    if arm in ("full", "one class"):
        return plain
    if arm == TODAY:
        return replace(plain, renews=False, settles=True)
    every = EVERY if arm == MEASURED else 0
    return (Vdam if arm == CLOCK else Plain)(**vars(plain) | {"every": every})


@dataclass(frozen=True)
class Case:
    """One run: an arm on a data set from a random start."""

    n_classes: int
    snr: float
    start: int
    arm: str

    @property
    def data(self):
        return self.start % DATA_SETS

    @property
    def key(self):
        return [self.n_classes, self.snr, PARTICLES[self.n_classes, self.snr], self.start, self.arm]


def cases(starts, scanned):
    """All cases, starts outermost, so that what is cut short is balanced; of SELDOM every second start."""
    found = []
    for start in range(starts):
        found += [case for condition in OFTEN for case in _all_arms(condition, start)]
        if start % 2:
            found += [case for condition in SELDOM for case in _all_arms(condition, start // 2)]
    scans = [Case(*SCANNED_AT, start, f"switch {length}") for start in range(scanned) for length in SCANNED]
    return found + scans


def _all_arms(condition, start):
    once = ("one class",) if start < DATA_SETS else ()
    return [Case(*condition, start, arm) for arm in (*once, *ARMS)]


class Stage:
    """Particles that are read once for all arms: of one data set, those that teach and those that judge."""

    def __init__(self, folder, n_classes, snr, data):
        self.pixel_size = WIDTH / BOX[snr]
        self.n, self.snr, self.data = PARTICLES[n_classes, snr], snr, data
        self.folder = Path(folder) / f"k{n_classes}_snr{snr:g}_n{self.n}_d{data}"
        if not (self.folder / "unseen.star").exists():
            self._simulate(n_classes)
        truth = read_star(self.folder / "truth.star")["particles"]["rlnClassNumber"]
        self.truth = np.array(truth).astype(float).astype(int)[:self.n]

    def _simulate(self, n_classes):
        self.folder.mkdir(parents=True, exist_ok=True)
        simulate_particles(ParticleSimulation(
            n=self.n + UNSEEN, views=n_classes, box_size=BOX[self.snr], pixel_size=self.pixel_size, snr=self.snr,
            seed=100 + self.data, max_shift=SHIFT / self.pixel_size, ctf=False), self.folder)
        blocks = read_star(self.folder / "particles.star")
        for name, part in (("seen", slice(0, self.n)), ("unseen", slice(self.n, None))):
            columns = {label: np.asarray(values)[part] for label, values in blocks["particles"].items()}
            write_star(self.folder / f"{name}.star", blocks | {"particles": columns})

    def prepared(self, name, stop, **keys):
        """A Run of classify2d on the particles of one part."""
        options = Classify2dOptions(input=self.folder / f"{name}.star", output=self.folder, ctf="none", psi_step=15,
                                    particle_diameter=DIAMETER, offset_range=SEARCHED / self.pixel_size,
                                    offset_step=SEARCHED / self.pixel_size,
                                    max_resolution=RESOLUTION, **keys)
        return classify2d.prepare(options, stop, NullLog(), alone())


def measure(case, stage, stop):
    """The record of one run, and its classes int32[n]."""
    n_classes = 1 if case.arm == "one class" else case.n_classes
    keys = arm_options(case.arm, case.n_classes, stage.n, case.start)
    run = stage.prepared("seen", stop, n_classes=n_classes, seed=case.start, **keys)
    run = replace(run, schedule=arm_schedule(case.arm, run.options, stage.n))
    begin, state, seen, switched = time.process_time(), classify2d.start(run), 0.0, None
    while seen < PASSES * stage.n:
        probed = classify2d.probe(run, state)
        seen += probed.probed - state.probed
        state, report = classify2d.iterate(run, probed)
        seen += report["totals"].particles
        if switched is None and state.stage == "full":
            switched = probed.iteration if probed.stage == "full" else state.iteration
    spent = time.process_time() - begin
    judge = stage.prepared("unseen", stop, n_classes=n_classes)
    search = make_search(state.model, run.geometry, run.options, refined=False)
    judged, _ = judge.passes.look(state.model, search, judge.passes.shard.of_block, None)
    number = run.passes.poses.class_number[np.argsort(run.passes.shard.rows)]
    return {"benchmark": "em_schedules", "n_classes": case.n_classes, "snr": case.snr, "start": case.start,
            "arm": case.arm, "data": case.data, "particles": stage.n, "passes": round(seen / stage.n, 3),
            "probed": round(state.probed / seen, 4), "switched": switched,
            "held_out": judged.log_likelihood / judged.particles, "ari": adjusted_rand_index(stage.truth, number),
            "occupied": len(np.unique(number)), "mobility": state.mobility, "cpu_seconds": round(spent, 2)}, number


def run_all(arguments, folder):
    """Make the runs that are not yet in the file: all records."""
    records = read_lines(arguments.runs) if Path(arguments.runs).exists() else []
    names = ("n_classes", "snr", "particles", "start", "arm")
    done = {json.dumps([each[name] for name in names]) for each in records}
    left = [case for case in cases(arguments.starts, arguments.scanned) if json.dumps(case.key) not in done]
    progress, surroundings, stages = Progress(), environment(), {}
    progress.step("runs", len(left))
    shards.BLOCKS_WANTED = BLOCKS
    with threadpool_limits(1), StopRequest(comm=alone()) as stop:
        for case in left:
            place = (case.n_classes, case.snr, case.data)
            if place not in stages:
                stages[place] = Stage(folder, *place)
            record, number = measure(case, stages[place], stop)
            np.save(_labels(folder, case), number)
            record["agreement"] = _agreement(folder, case, number)
            append_line(arguments.runs, record | surroundings)
            records.append(record)
            progress.done()
    progress.clear()
    return records


def _labels(folder, case):
    return Path(folder) / f"{case.arm.replace(' ', '_')}_k{case.n_classes}_snr{case.snr:g}_s{case.start}.npy"


def _agreement(folder, case, number):
    """ARI with the run of the same arm and particles from the start before, None for the first."""
    before = _labels(folder, replace(case, start=case.start - DATA_SETS))
    return adjusted_rand_index(np.load(before), number) if before.exists() else None


# ---- the judgement

def basins(records):
    """{(classes, SNR, data): (best, tolerance)}: the best held-out log-likelihood of any run, and half of what a view
    is worth, (best − that of one class) / 2K [nats a particle]. A run within it is in the best basin. Where no run does
    better than one class, there is none."""
    found = {}
    for place in {_place(each) for each in records}:
        values = {name: [each["held_out"] for each in records if _place(each) == place
                         and (each["arm"] == "one class") == (name == "one")] for name in ("one", "arms")}
        if values["one"] and values["arms"] and max(values["arms"]) > values["one"][0]:
            found[place] = max(values["arms"]), (max(values["arms"]) - values["one"][0]) / (2.0 * place[0])
    return found


def _place(record):
    return record["n_classes"], record["snr"], record["data"]


def scored(records):
    """The records of arms with `best` (whether in the best basin) and `lost` (held-out log-likelihood below the best,
    in views' worths); those of starts that all arms have."""
    known = basins(records)
    arms = {}
    for each in records:
        if each["arm"] in ARMS and _place(each) in known:
            best, tolerance = known[_place(each)]
            lost = (best - each["held_out"]) / (2.0 * tolerance)
            arms.setdefault((each["n_classes"], each["snr"], each["start"]), {})[each["arm"]] = each | {
                "best": bool(lost <= 0.5), "lost": lost}
    return {key: of for key, of in arms.items() if len(of) == len(ARMS)}


def judged(records):
    """What the runs of the present conditions say: {conditions: {(classes, SNR): {arm: figures}}, pooled: {arm:
    figures}, verdicts, scan}. Intervals are 95 % bootstrap intervals over starts, drawn within conditions, the same for
    all arms."""
    records = [each for each in records if PARTICLES.get((each["n_classes"], each["snr"])) == each["particles"]]
    runs, conditions = scored(records), {}
    for (n_classes, snr, _), of in sorted(runs.items(), key=lambda item: (item[0][0], -item[0][1], item[0][2])):
        conditions.setdefault((n_classes, snr), []).append(of)
    random = np.random.default_rng(0)
    drawn = {place: random.integers(len(starts), size=(BOOTSTRAPS, len(starts)))
             for place, starts in conditions.items()}
    told = {place: _figures({place: starts}, drawn) for place, starts in conditions.items()}
    pooled = _figures(conditions, drawn)
    return {"conditions": told, "pooled": pooled, "verdicts": verdicts(pooled), "scan": scan(records)}


def _figures(conditions, drawn):
    """{arm: means, intervals, and differences to the clock and to today's default} over conditions of equal weight."""
    found = {}
    for arm in ARMS:
        figures = {"n": sum(map(len, conditions.values()))}
        for name in ("best", "lost", "ari", "occupied", "agreement", "probed", "cpu_seconds"):
            figures[name] = _mean_of(conditions, drawn, arm, name)
        for other in (CLOCK, TODAY):
            for name in ("best", "lost"):
                figures[f"{name} above {other}"] = _mean_of(conditions, drawn, arm, name, other)
        found[arm] = figures
    return found


def _mean_of(conditions, drawn, arm, name, other=None):
    """(mean, low, high) of a figure of an arm, or of its difference to another arm in pairs."""
    means, draws = [], []
    for place, starts in conditions.items():
        values = np.array([np.nan if of[arm][name] is None else float(of[arm][name]) for of in starts])
        if other is not None:
            values = values - np.array([float(of[other][name]) for of in starts])
        if np.isfinite(values).any():
            means.append(np.nanmean(values))
            draws.append(_nanmean(values[drawn[place]]))
    if not means:
        return None
    low, high = np.nanpercentile(np.mean(draws, axis=0), CONFIDENCE)
    return round(float(np.mean(means)), 4), round(float(low), 4), round(float(high), 4)


def _nanmean(values):
    """float64[n]: means of rows without their NaN; NaN for rows of nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    return np.divide(np.where(known, values, 0.0).sum(axis=1), count, out=np.full(len(values), np.nan),
                     where=count > 0)


def verdicts(pooled):
    """The claim, and the arm that becomes the default (docs/em-schedules.md, the rule)."""
    gain, low, high = pooled[MEASURED][f"best above {CLOCK}"]
    better = [arm for arm in ARMS if pooled[arm][f"best above {TODAY}"][1] > 0 > pooled[arm][f"lost above {TODAY}"][2]]
    ranked = sorted(better, key=lambda arm: -pooled[arm]["best"][0])
    winner = next((arm for arm in SIMPLEST if arm in better and
                   pooled[arm]["best"][2] >= pooled[ranked[0]]["best"][0]), TODAY) if better else TODAY
    return {"claim": bool(gain >= LEAST_GAIN and low > 0), "gain": [gain, low, high], "default": winner}


SIMPLEST = ("full", "Robbins-Monro", "online", CLOCK, "annealed", MEASURED)


def scan(records):
    """[(mini-batches before the switch, n, mean views lost, P(best basin))] of the scan at 20 classes and the higher
    SNR; the longest is the arm `online`."""
    known, rows = basins(records), []
    for length in (*SCANNED, NOISY * BATCHES):
        name = "online" if length == NOISY * BATCHES else f"switch {length}"
        starts = {each["start"] for each in records if each["arm"] == f"switch {SCANNED[0]}"}
        lost = [(known[_place(each)][0] - each["held_out"]) / (2.0 * known[_place(each)][1]) for each in records
                if each["arm"] == name and (each["n_classes"], each["snr"]) == SCANNED_AT
                and each["start"] in starts and _place(each) in known]
        if lost:
            near = np.less_equal(lost, 0.5)
            rows.append((length, len(lost), round(float(np.mean(lost)), 2), round(float(np.mean(near)), 3)))
    return rows


COLUMNS = ("arm", "n", "P(best basin)", "views lost", "ARI", "occupied", "agreement", "P above clock", "P above today")


def shown(found):
    """The tables as text."""
    parts = []
    for name, figures in [*((f"{n} classes, SNR {snr:g}", each) for (n, snr), each in found["conditions"].items()),
                          ("all conditions", found["pooled"])]:
        rows = [(arm, of["n"], *(_with_interval(of[key]) for key in (
            "best", "lost", "ari", "occupied", "agreement", f"best above {CLOCK}", f"best above {TODAY}")))
            for arm, of in figures.items()]
        parts.append(f"{name}\n\n{text_table(COLUMNS, rows)}\n")
    if found["scan"]:
        columns = ("mini-batches", "n", "views lost", "P(best basin)")
        parts.append(f"switch after\n\n{text_table(columns, found['scan'])}\n")
    return "\n".join([*parts, json.dumps(found["verdicts"])])


def _with_interval(value):
    return "–" if value is None else "{:.2f} [{:.2f}, {:.2f}]".format(*value).replace("-", "−")


def main():
    """The command line."""
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="vitrea-em-") as temporary:
        records = run_all(arguments, made_folder(arguments.keep or temporary, "--keep"))
    found = judged(records)
    if arguments.json:
        found["conditions"] = {f"{n} classes, SNR {snr:g}": each for (n, snr), each in found["conditions"].items()}
        print(json.dumps(found))
    else:
        print(shown(found))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--starts", type=int, default=12, metavar="N", help="random starts, half of them with 50 classes (default 12)")
    add("--scanned", type=int, default=6, metavar="N", help="starts of the scan of switch times (default 6)")
    add("--runs", default=RESULTS / "em_schedules.jsonl", metavar="FILE", help="JSON lines (default %(default)s)")
    add("--keep", metavar="DIR", help="keep particles and classes here (default: a temporary folder); needed "
                                      "for agreements, if a run is to be continued")
    add("--json", action="store_true", help="the judgement as JSON instead of tables")
    return parser.parse_args()


if __name__ == "__main__":
    main()

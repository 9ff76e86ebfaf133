"""What a round of `job: recurse` gains: F1 on micrographs never seen, before and after learning from its own picks.

    python -m vitrea.benchmarks.recursion --set apoferritin --labels 25 --seeds 0 1 2 --steps 100

Of a set, the first micrograph decides in the job whether a round helps, of the second a part with so many labels is
trained on, the last TESTED are tested, and all others are handed over without their labels. The models of all rounds
pick those that are tested, each at its own threshold.
"""
import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path

from vitrea.benchmarks.labels import KINDS, link, take_labels
from vitrea.benchmarks.picking import SETS, Training, listed, pick_and_score, prepare, run_job, training_options
from vitrea.benchmarks.records import DEFAULT, keep, surroundings
from vitrea.engine.comm import world
from vitrea.engine.errors import JobError
from vitrea.picker import recurse
from vitrea.picker.options import SORT_CHOICES, RecurseOptions

TESTED = {"klh": 3, "apoferritin": 4, "betagal": 2}


def main(argv=None):
    """Measure every seed, print a table, and keep the records; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.recursion",
                                     description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--set", choices=sorted(TESTED), default="apoferritin", help="real images of VITREA_DATA (default %(default)s)")
    add("--labels", type=int, default=25, metavar="N", help="labels that are trained on (default 25)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="seeds (default 0 1 2)")
    add("--steps", type=int, metavar="N", help="steps of each training (default: the recipe's)")
    add("--rounds", type=int, default=2, metavar="N", help="trainings at most (default 2: one round of recursion)")
    add("--sort", choices=sorted(SORT_CHOICES), default="scores", help="how picks are sorted (default %(default)s)")
    add("--records", type=Path, default=DEFAULT, metavar="FILE", help="JSON lines (default %(default)s)")
    add("--json", action="store_true", help="print the records, not the table")
    given = parser.parse_args(argv)
    try:
        records = [_one_seed(given, seed) for seed in given.seeds]
    except JobError as mistake:
        print(f"vitrea: {mistake}", file=sys.stderr)
        return 2
    if not given.json:
        print(table(records))
    return 0


def _one_seed(given, seed):
    """The record of one seed, kept and, with --json, printed."""
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        folder, parts = _arranged(given, Path(temporary), seed)
        labelled, unlabelled, tested = parts
        specimen, how = SETS[given.set], Training(seed=seed, steps=given.steps)
        options = RecurseOptions(**training_options(folder, labelled, specimen, how) | {
            "output": folder / "recursion", "holdout": 0.5, "rounds": given.rounds, "sort": given.sort,
            "unlabelled": listed(folder, "unlabelled", unlabelled)})
        seconds = run_job(recurse.run, options, world())
        with (folder / "recursion" / recurse.ROUNDS_NAME).open() as file:
            rounds = list(csv.DictReader(file))
        for row in rounds:
            model = folder / "recursion" / recurse.ROUND.format(number=row["number"]) / "model.npz"
            row["tested"] = pick_and_score(folder, tested, specimen, model, world())
        record = {"benchmark": "recursion", "name": given.set, "labels": given.labels, "seed": seed,
                  "steps": given.steps, "sort": given.sort, "labelled": labelled, "unlabelled": unlabelled,
                  "tested": tested, "rounds": rounds, "cpu_seconds": seconds, **surroundings()}
    keep(given.records, record)
    if given.json:
        print(json.dumps(record), flush=True)
    return record


def _arranged(given, temporary, seed):
    """(folder of a set with few labels, (labelled, unlabelled, tested) micrographs); JobError if it has too few."""
    prepare(given.set, temporary)
    whole, folder = temporary / given.set, temporary / "few"
    stems = sorted(path.stem for path in (whole / "coordinates").glob("*.star"))
    every = sorted(path.stem for path in (whole / "micrographs").glob("*.mrc"))
    judge, pool, tested = stems[0], stems[1:2], stems[-TESTED[given.set]:]
    if take_labels(whole, folder, pool, (given.labels, KINDS[0], seed)) is None:
        raise JobError(f"{given.set}: {pool[0]} has fewer than {given.labels} labels; expected as many as --labels "
                       "says; ask for fewer")
    link(whole, folder, [stem for stem in every if stem not in pool])
    return folder, ([judge, *pool], [stem for stem in every if stem not in (judge, *pool, *tested)], tested)


def table(records):
    """F1 by round: of each seed on the micrographs tested and, in brackets, on the one that decides; and the median."""
    n = max(len(record["rounds"]) for record in records)
    lines = ["| seed | " + " | ".join(f"round {number}" for number in range(1, n + 1)) + " |", "|---" * (n + 1) + "|"]
    for record in records:
        cells = [f"{row['tested']['f1']:.3f} ({float(row['f']):.3f}), {row['labels']} labels"
                 for row in record["rounds"]]
        lines.append(f"| {record['seed']} | " + " | ".join(cells + ["–"] * (n - len(cells))) + " |")
    medians = [statistics.median(record["rounds"][k]["tested"]["f1"] for record in records
                                 if len(record["rounds"]) > k) for k in range(n)]
    return "\n".join([*lines, "| median | " + " | ".join(f"{median:.3f}" for median in medians) + " |"])


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Put the tables of the latest results into docs/performance.md, between its `<!-- table: NAME -->` marks.

Of each run (benchmark, program, set, sizes, seed) the last record in results/*.jsonl counts. The text around the tables
is written by hand.

example:  python benchmarks/accuracy.py && python benchmarks/tables.py
"""
import argparse
import re
import statistics
from pathlib import Path

from vitrea.benchmarks import accuracy, real, relion
from vitrea.benchmarks.measure import HERE, RESULTS, read_lines, table

KEYS = ("benchmark", "program", "version", "flags", "set", "views", "snr", "n_classes", "seed", "particles", "box",
        "psi_step")
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, default=HERE.parent / "docs" / "performance.md", metavar="FILE",
                        help="the document whose tables are renewed (default %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help="folder of accuracy.jsonl, relion.jsonl and real.jsonl (default %(default)s)")
    arguments = parser.parse_args()
    made = {"accuracy": accuracy_section(latest(arguments.results / "accuracy.jsonl")),
            "relion": relion_section(latest(arguments.results / "relion.jsonl")),
            "real": real_section(latest(arguments.results / "real.jsonl"))}
    text = arguments.document.read_text()
    arguments.document.write_text(MARK.sub(lambda mark: f"{mark[1]}{made[mark[2]]}\n{mark[3]}", text))
    print(f"{arguments.document}: tables of {', '.join(mark[2] for mark in MARK.finditer(text))} renewed")


def latest(path):
    """The last record of every run in a JSON-lines file, sorted as a reader expects."""
    found = {}
    for record in read_lines(path):
        found[tuple(str(record.get(name)) for name in KEYS)] = record
    return sorted(found.values(), key=lambda record: (
        record.get("views", 0), -record.get("snr", 0.0), -record["n_classes"], record.get("seed", 0),
        record.get("program", "") != "vitrea"))


def provenance(records):
    """When and on what the records were measured, in one line."""
    if not records:
        return "Not measured yet."
    dates = sorted(record["date"][:10] for record in records)
    commits = sorted({record["commit"] for record in records})
    loads = [record["load"][0] for record in records]
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    one = records[-1]
    return (f"{len(records)} runs, {days}, commit {', '.join(commits)}; {one['cpu']}, {one['cores']} cores, load "
            f"{min(loads):.1f}–{max(loads):.1f} (median {statistics.median(loads):.1f}); Python {one['python']}, NumPy "
            f"{one['versions']['numpy']}, numba {one['versions']['numba']}.")


def accuracy_section(records):
    missed = [f"- {record['views']} views, K = {record['n_classes']}, SNR {record['snr']:g}, seed {record['seed']}: "
              + "; ".join(record["misses"]) for record in records if record["misses"]]
    rows = table(accuracy.COLUMNS, [accuracy.row(record) for record in records])
    heading = "Missed targets:\n" if missed else "Missed targets: none."
    return "\n".join([rows, "", provenance(records), "", heading, *missed])


def relion_section(records):
    return "\n".join([relion.report(records), "", provenance(records)])


def real_section(records):
    order = list(real.PREPARED) + list(real.SMALL)
    records = sorted(records, key=lambda record: order.index(record["set"]))
    return "\n".join([table(real.COLUMNS, [real.row(record) for record in records]), "", provenance(records)])


if __name__ == "__main__":
    main()

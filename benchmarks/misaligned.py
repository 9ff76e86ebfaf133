#!/usr/bin/env python3
"""cluster on particles whose poses are a little wrong, with and without looking at poses nearby.

The motion of endtoend.py with its true poses, and with normal errors added to angles and, along each axis, to shifts.
`exact` and `given` take the poses at their word; `window` sums over 45 poses about the given one (psi_error,
offset_error). ARI: adjusted Rand index between ten classes and ten true stages; the angle and shift errors left are
those within each class, as `vitrea compare` finds them. One JSON line a run, then a table.

example:  python benchmarks/misaligned.py --snr 0.1 --angle 3 --shift 1
"""
import argparse

import numpy as np

from vitrea.benchmarks.endtoend import DIAMETER, PIXEL_SIZE, STAGES, measure, run_job
from vitrea.benchmarks.measure import RESULTS, compared, environment
from vitrea.engine.star import read_star, write_star

COLUMNS = ("SNR", "seed", "poses", "ARI", "purity", "angle [°]", "shift [px]", "CPU s")
WAYS = ("exact", "given", "window")


def main():
    measure(parse(), one_stack, COLUMNS, row, lambda each: (-each["snr"], WAYS.index(each["poses"]), each["seed"]))


def one_stack(arguments, folder, stack, snr, seed):
    """The records of the three ways on one stack."""
    wrong = f"{stack}/wrong.star"
    write_star(folder / wrong, misaligned(read_star(folder / stack / "truth.star"), arguments, seed))
    near = {"psi_error": arguments.angle, "offset_error": arguments.shift}
    for way, star, more in (("exact", f"{stack}/truth.star", {}), ("given", wrong, {}), ("window", wrong, near)):
        keys = {"input": star, "n_classes": STAGES, "particle_diameter": DIAMETER, "seed": seed, **more}
        cpu_seconds, found = run_job(folder, "cluster", f"{way}_{stack}", stack, keys)
        scores = compared(folder, f"{stack}/truth.star", found)
        record = {"benchmark": "misaligned", "poses": way, "snr": snr, "seed": seed, "particles": arguments.particles,
                  "angle": arguments.angle, "shift": arguments.shift, "cpu_seconds": round(cpu_seconds, 1)}
        record |= {name: scores[name] for name in ("ari", "purity", "angle_error_median", "shift_error_median_px")}
        yield record | environment()


def misaligned(blocks, arguments, seed):
    """The blocks of a truth with normal errors added to its poses."""
    particles, random = dict(blocks["particles"]), np.random.default_rng([seed, 1])
    for label, error in (("rlnAnglePsi", arguments.angle), ("rlnOriginXAngst", arguments.shift * PIXEL_SIZE),
                         ("rlnOriginYAngst", arguments.shift * PIXEL_SIZE)):
        values = particles[label].astype(float)
        particles[label] = (values + random.normal(0.0, error, len(values))).astype(str)
    return blocks | {"particles": particles}


def row(record):
    return (f"{record['snr']:g}", record["seed"], record["poses"], f"{record['ari']:.3f}", f"{record['purity']:.3f}",
            f"{record['angle_error_median']:.2f}", f"{record['shift_error_median_px']:.2f}",
            f"{record['cpu_seconds']:.0f}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--snr", type=float, nargs="+", default=[0.1], metavar="S",
        help="signal variance over noise variance, whole box (default 0.1)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="of stack and runs (default 0 1 2)")
    add("--particles", type=int, default=1000, metavar="N", help="particles of a stack (default 1000)")
    add("--angle", type=float, default=3.0, metavar="DEG", help="error of the angles [degrees] (default 3)")
    add("--shift", type=float, default=1.0, metavar="PX", help="error of the shifts along each axis [px] (default 1)")
    add("--keep", metavar="DIR", help="keep stacks and runs here (default: a temporary folder, removed)")
    add("--output", default=RESULTS / "misaligned.jsonl", metavar="FILE", help="JSON lines (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()

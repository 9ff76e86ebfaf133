"""Converted particles beside their stacks: room, reading speed, and what float16 changes in a classification.

    python -m vitrea.benchmarks.converted --particles 1000 --seeds 0 1 2

For each seed a stack is simulated and converted to float32 and float16. All three are read whole, in turns, as a run
reads them (blocks, runs of neighbours), from the kernel's cache: images a second of CPU time. The particles of the
float32 and of the float16 file are then classified with the same keys: the adjusted Rand index of either with the
truth, and of the two with one another, beside that of two runs of the same file with another seed.
"""
import argparse
import sys
import time

import numpy as np

from vitrea.benchmarks.measure import table, vitrea
from vitrea.benchmarks.records import of_seeds, surroundings
from vitrea.engine.compare import adjusted_rand_index
from vitrea.engine.converted import write_converted
from vitrea.engine.errors import JobError
from vitrea.engine.particles import read_particles
from vitrea.engine.shards import BATCH, make_blocks
from vitrea.engine.stacks import StackReader
from vitrea.engine.star import read_star

READINGS = 5
KEYS = {"n_classes": 10, "particle_diameter": 180, "max_iterations": 8, "psi_step": 10, "offset_range": 4}
SIMULATION = ("--views", 10, "--box", 64, "--pixel-size", 4.0, "--snr", 0.015)
FILES = {"MRC, float32": "sim/particles.star", "HDF5, float32": "f4.h5", "HDF5, float16": "f2.h5"}


def measure(folder, particles, seed):
    """The record of one seed."""
    vitrea("simulate", "particles", "--out", "sim", "--n", particles, *SIMULATION, "--seed", seed, folder=folder)
    source = read_particles(folder / FILES["MRC, float32"], input_root=folder)
    rounding = [write_converted(folder / name, source, dtype)["rounding"]
                for name, dtype in (("f4.h5", "float32"), ("f2.h5", "float16"))]
    speed = {name: [] for name in FILES}
    for _ in range(READINGS):
        for name, path in FILES.items():
            speed[name].append(_images_a_second(read_particles(folder / path, input_root=folder)))
    truth = _classes(folder / "sim" / "truth.star")
    runs = {"float32": ("f4.h5", seed), "float16": ("f2.h5", seed), "another seed": ("f4.h5", seed + 1000)}
    found = {name: _classified(folder, name.replace(" ", "-"), path, number) for name, (path, number) in runs.items()}
    return {"bench": "converted", "particles": particles, "seed": seed, "rounding": rounding[1],
            "bytes": {name: _size(folder / path) for name, path in FILES.items()},
            "images_a_cpu_second": {name: float(np.median(values)) for name, values in speed.items()},
            "readings": READINGS, "truth": {name: adjusted_rand_index(truth, each) for name, each in found.items()},
            "beside_float32": {name: adjusted_rand_index(found["float32"], found[name])
                               for name in ("float16", "another seed")}, **surroundings()}


def _size(path):
    return path.with_suffix(".mrcs").stat().st_size if path.suffix == ".star" else path.stat().st_size


def _images_a_second(particles):
    begun = time.process_time()
    with StackReader(particles) as reader:
        for block in make_blocks(particles.optics_index):
            for first in range(0, len(block.rows), BATCH):
                reader.read(block.rows[first:first + BATCH])
    return len(particles) / (time.process_time() - begun)


def _classified(folder, output, path, seed):
    (folder / "job.yaml").write_text(f"job: classify2d\ninput: {path}\noutput: {output}\nseed: {seed}\n" + "".join(
        f"{name}: {value}\n" for name, value in KEYS.items()))
    vitrea("run", "job.yaml", folder=folder)
    return _classes(folder / output / "run_data.star")


def _classes(path):
    return read_star(path)["particles"]["rlnClassNumber"].astype(int)


def told(records):
    """Tables of all records, for people."""
    rows = [[name, f"{records[0]['bytes'][name] / 1e6:.1f}",
             f"{np.median([each['images_a_cpu_second'][name] for each in records]):,.0f}"] for name in FILES]
    lines = [table(("file", "MB", "images / CPU s"), rows), ""]
    rows = [[each["seed"], *(f"{each['truth'][name]:.3f}" for name in ("float32", "float16", "another seed")),
             *(f"{each['beside_float32'][name]:.3f}" for name in ("float16", "another seed")),
             f"{each['rounding']:.1e}"] for each in records]
    head = ("seed", "float32, truth", "float16, truth", "other seed, truth", "float16, float32", "other seed, float32",
            "rounding")
    return "\n".join([*lines, table(head, rows)])


def main(argv=None):
    """Measure, print, keep the records; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.converted",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--particles", type=int, default=1000, metavar="N", help="of a stack (default %(default)s)")
    try:
        records = of_seeds(parser, argv, lambda folder, given, seed: measure(folder, given.particles, seed))
    except JobError as mistake:
        print(f"vitrea: {mistake}", file=sys.stderr)
        return 2
    print(told(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())

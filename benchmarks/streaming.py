"""Particles in scratch: memory that does not grow with their number, the disk that takes their place, and the time.

For each N a stack in shards is simulated (the first N particles of one specimen: sizes differ in nothing else) and
classified twice with the same iterations, its particles in memory and in scratch; both must give the same
run_data.star, bit for bit. Memory is the kernel's high-water mark of the whole program, on one rank. Disk is what the
run announced. Rates are by CPU time, which counts what the kernel does for reading, but no waiting for a disk; e_step
in the record is the wall time.

For mini-batches a few particles of many are wanted at a time. Three ways to get them are timed: records scattered over
the scratch file; the same after the kernel was told to forget the file; and images read and transformed once more.

    vitrea bench streaming --sizes 20000 80000
"""
import json
import os
import tempfile
import time

import numpy as np

from vitrea.benchmarks.launching import observe
from vitrea.benchmarks.measure import iterations_done, iterations_of, made_folder, table, vitrea
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.benchmarks.whole import DIAMETER, warm_up

BOX, PIXEL_SIZE, SNR, VIEWS, STACK_SIZE = 64, 4.0, 0.1, 50, 5000
JOB = {"n_classes": 5, "algorithm": "full", "max_iterations": 2, "particle_diameter": DIAMETER * BOX * PIXEL_SIZE}
FETCHED = 2000           # particles of a mini-batch
STORAGES = ("memory", "scratch")
COLUMNS = ("particles", "storage", "peak memory [MB]", "said [MB]", "at most [MB]", "scratch file [MB]",
           "particles·iterations / CPU s", "CPU s, whole program")
WAYS = {"from scratch, in the kernel's cache": "warm", "from scratch, on the disk": "cold",
        "images read and transformed again": "again", "the same, CPU time": "again_cpu"}


def measure(folder, sizes, progress=SILENCE):
    """One record by size and storage, and one of the three ways to a mini-batch, of the largest stack."""
    warm_up(progress)
    records = [record for n in sizes for record in _both(folder, _simulated(folder, n, progress), n, progress)]
    progress.step("ways to a mini-batch")
    fetched = {"benchmark": "streaming", "name": "fetch", "particles": max(sizes),
               **fetch_times(folder / _name(max(sizes)) / "particles.star")}
    return [record | surroundings() for record in (*records, fetched)]


def _name(n):
    return f"stack_n{n}"


def _simulated(folder, n, progress):
    """Simulate the stack unless it is there; its name in `folder`."""
    if not (folder / _name(n) / "particles.star").exists():
        progress.step(f"simulating {n:,} particles of {BOX} px")
        vitrea("simulate", "particles", "--out", _name(n), "--n", n, "--views", VIEWS, "--box", BOX, "--pixel-size",
               PIXEL_SIZE, "--snr", SNR, "--stack-size", STACK_SIZE, folder=folder,
               look=progress.tick)
    return _name(n)


def _both(folder, stack, n, progress=SILENCE):
    """Records of a run with its particles in memory and of one with them in scratch."""
    results = []
    for storage in STORAGES:
        name = f"{stack}_{storage}"
        keys = {"input": f"{stack}/particles.star", "storage": storage, **JOB}
        progress.step(f"{n:,} particles in {storage}: iterations", JOB["max_iterations"],
                      iterations_done(folder / name))
        measured, seen, lines = observe(folder, name, keys, progress=progress)
        start = next(line for line in lines if line["kind"] == "start")
        iterations = iterations_of(lines)
        cpu = seen[0]["cpu_iterating"]
        results.append((folder / name / "run_data.star").read_bytes())
        yield {"benchmark": "streaming", "name": "run", "particles": n, "storage": storage, "memory": measured.memory,
               "said": start["memory_per_rank"], "at_most": start["memory_at_most"], "disk": start["scratch_per_rank"],
               "iterations": len(iterations), "e_step": sum(line["e_step"] for line in iterations),
               "cpu_iterating": cpu, "rate": n * len(iterations) / cpu, "cpu_seconds": measured.cpu_seconds,
               "checkpoint": max(line["checkpoint"] for line in iterations)}
    if results[0] != results[1]:
        raise SystemExit(f"{stack}: run_data.star differs between particles in memory and in scratch")


def fetch_times(star):
    """{way: ms a particle}, wall time and (`again_cpu`) CPU time, for FETCHED scattered particles of a STAR file, or
    all of them if they are fewer; how many were `fetched`."""
    from vitrea.engine.comm import world
    from vitrea.engine.geometry import make_geometry
    from vitrea.engine.load import read_table
    from vitrea.engine.options import Classify2dOptions
    from vitrea.engine.shards import Block, Loader, Shard
    from vitrea.engine.stacks import StackReader
    from vitrea.engine.storage import InScratch, record_type

    options = Classify2dOptions(input=star, output=star.parent / "unused", n_classes=JOB["n_classes"],
                                particle_diameter=JOB["particle_diameter"])
    particles = read_table(options, comm=world())
    geometry = make_geometry(particles, options)
    n, count = len(particles), min(FETCHED, len(particles))
    rows = np.sort(np.random.default_rng(0).permutation(n)[:count])
    some = Shard.allocate([Block(0, 0, rows)], geometry)
    with StackReader(particles) as reader:
        loader = Loader(particles, options, geometry, reader)
        loader.load(some, 0)
        wall, cpu = time.perf_counter(), time.process_time()
        loader.load(some, 0)
        again = {"again": time.perf_counter() - wall, "again_cpu": time.process_time() - cpu}
    scratch = InScratch(len(particles), geometry, star.parent)
    for first in range(0, n, count):
        part = np.arange(first, min(first + count, n))
        scratch.put(part, some.take(np.arange(len(part))))
    found = again | {"warm": _timed(scratch, rows)}
    os.fsync(scratch.file)
    os.posix_fadvise(scratch.file, 0, 0, os.POSIX_FADV_DONTNEED)
    found["cold"] = _timed(scratch, rows)
    return {"record_bytes": record_type(geometry).itemsize, "fetched": count} | {
        way: 1e3 * t / count for way, t in found.items()}


def _timed(scratch, rows):
    begin = time.perf_counter()
    scratch.take(rows)
    return time.perf_counter() - begin


def told(records):
    """The tables, for people."""
    runs = [record for record in records if record["name"] == "run"]
    rows = [[f"{run['particles']:,}", run["storage"], *(f"{run[key] / 1e6:.0f}" for key in
             ("memory", "said", "at_most", "disk")), f"{run['rate']:,.0f}", f"{run['cpu_seconds']:.0f}"]
            for run in runs]
    lines = [table(COLUMNS, rows), ""]
    for first, second in zip(runs[::2], runs[1::2]):
        lines.append(f"{first['particles']:,} particles: an iteration from scratch takes "
                     f"{first['rate'] / second['rate']:.3f} times the CPU time of one from memory, the whole program "
                     f"{second['cpu_seconds'] / first['cpu_seconds']:.3f} times; same run_data.star")
    for record in (record for record in records if record["name"] == "fetch"):
        lines += ["", table(["a scattered particle", "ms"], [[words, f"{record[way]:.3f}"]
                                                             for words, way in WAYS.items()])]
    return "\n".join(lines)


def command(arguments):
    """Measure, keep and print what `vitrea bench streaming` was asked for; 0."""
    with tempfile.TemporaryDirectory(prefix="vitrea-streaming-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        records = measure(folder, arguments.sizes, arguments.progress)
    for record in records:
        keep(arguments.records, record)
    arguments.progress.result("\n".join(map(json.dumps, records)) if arguments.json else told(records))
    return 0

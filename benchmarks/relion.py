#!/usr/bin/env python3
"""Vitrea beside RELION: the same simulated stack, K, sampling, iterations and one core each, in the same run.

Both programs search in-plane angles at --psi-step and shifts at --offset-step, and again at half of each around the
best (RELION: --oversampling 1). CPU time is that of the whole program over particles and iterations, start-up included;
that of the iterations alone is beside it: for Vitrea what its log counts, for RELION all since its first files
(run_it000) were there. Vitrea reads and transforms the particles before its iterations, RELION in each of them.
Class averages are compared with the noise-free views by Fourier ring correlation (frc.py). One JSON line a program and
seed, then a table for people.

example:  python benchmarks/relion.py --classes 10 --iterations 15 --seeds 0 1 2
          python benchmarks/relion.py --relion /opt/relion-5/bin/relion_refine --relion-flags "--cpu"
"""
import argparse
import math
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import mrcfile

from vitrea.benchmarks.frc import class_curves, summary
from vitrea.benchmarks.launching import observe
from vitrea.benchmarks.measure import (
    RESULTS,
    Measured,
    append_line,
    compared,
    ended_by_signals,
    environment,
    iterations_done,
    iterations_of,
    made_folder,
    run_measured,
    simulate,
    table,
)
from vitrea.benchmarks.progress import Progress

COLUMNS = ("program", "K", "seed", "n", "ms/particle·it", "CPU s", "of it iterating", "wall s", "of it iterating", "MB",
           "purity", "ARI", "views", "most views", "angle [°]", "shift [px]", "FRC=0.5 [Å]", "mean FRC", "by view [Å]",
           "by-view FRC")


@dataclass(frozen=True)
class Run:
    """A finished run: program, version and flags; Measured; its iterations and their CPU and wall time [s]; the prefix
    of its files."""

    about: dict
    measured: Measured
    iterations: int
    cpu_iterating: float
    wall_iterating: float
    prefix: str


def main():
    arguments = parse()
    arguments.progress = Progress()
    with ended_by_signals():
        compare_programs(arguments)


def compare_programs(arguments):
    """Every number of classes and seed: a line for each program, then the table."""
    relion = shutil.which(arguments.relion)
    if relion is None:
        print(f"{arguments.relion} is not installed: RELION is left out (Debian: apt-get install relion)")
    records = []
    with tempfile.TemporaryDirectory(prefix="vitrea-relion-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        for n_classes in arguments.classes:
            for seed in arguments.seeds:
                for record in one_stack(arguments, relion, folder, n_classes, seed):
                    records.append(record)
                    append_line(arguments.output, record)
                    arguments.progress.result(table(COLUMNS, [row(record)]).splitlines()[-1])
    arguments.progress.result("\n" + report(records))


def one_stack(arguments, relion, folder, n_classes, seed):
    """Records of Vitrea and, if it is there, RELION on the stack of one seed."""
    stack = f"stack_v{arguments.views}_n{arguments.particles}_snr{arguments.snr:g}_s{seed}"
    if not (folder / stack / "truth.star").exists():
        simulate(folder / stack, n=arguments.particles, views=arguments.views, snr=arguments.snr, seed=seed,
                 box=arguments.box, pixel_size=arguments.pixel_size, progress=arguments.progress)
    yield score(arguments, folder, stack, n_classes, seed, runs_of_vitrea(arguments, folder, stack, n_classes, seed))
    if relion:
        run = run_relion(arguments, relion, folder, stack, n_classes, seed)
        if run:
            yield score(arguments, folder, stack, n_classes, seed, [run])


def runs_of_vitrea(arguments, folder, stack, n_classes, seed):
    """`arguments.n` Runs, one after the other, which differ in nothing but their times."""
    return [run_vitrea(arguments, folder, stack, n_classes, seed) for _ in range(arguments.n)]


def run_vitrea(arguments, folder, stack, n_classes, seed):
    """classify2d, all iterations full passes: Run."""
    name = f"vitrea_k{n_classes}_{stack}"
    keys = {"input": f"{stack}/particles.star", "n_classes": n_classes, "seed": seed,
            "particle_diameter": arguments.diameter, "psi_step": arguments.psi_step,
            "offset_range": arguments.offset_range, "offset_step": arguments.offset_step, "algorithm": "full",
            "max_iterations": arguments.iterations, "convergence_change": 0}
    arguments.progress.step(f"vitrea, K = {n_classes}: iterations", arguments.iterations,
                            iterations_done(folder / name))
    measured, seen, records = observe(folder, name, keys, progress=arguments.progress)
    version = next(record["version"] for record in records if record["kind"] == "start")
    done = iterations_of(records)
    return Run({"program": "vitrea", "version": version, "flags": ""}, measured, len(done), seen[0]["cpu_iterating"],
               sum(record["seconds"] for record in done), f"{name}/run")


def run_relion(arguments, relion, folder, stack, n_classes, seed):
    """The same for relion_refine: Run, or None with a line if it fails."""
    name = f"relion_k{n_classes}_{stack}"
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()                # RELION does not make its output folder
    command = [relion, "--i", f"{stack}/particles.star", "--o", f"{name}/run", "--ctf", "--zero_mask", "--norm",
               "--scale", "--oversampling", 1, "--psi_step", arguments.psi_step, "--offset_range",
               arguments.offset_range, "--offset_step", arguments.offset_step, "--tau2_fudge", 2,
               "--particle_diameter", arguments.diameter, "--K", n_classes, "--iter", arguments.iterations,
               "--random_seed", seed + 1, "--j", 1, *shlex.split(arguments.relion_flags)]
    version = relion_version(relion)
    arguments.progress.step(f"{f'relion {version} {arguments.relion_flags}'.strip()}, K = {n_classes}: iterations",
                            arguments.iterations, lambda: len(list((folder / name).glob("run_it*_data.star"))) - 1)
    measured = run_measured(command, folder, arguments.progress.tick, mark=f"{name}/run_it000_model.star")
    prefix = f"{name}/run_it{arguments.iterations:03d}"
    if measured.exit_code or not (folder / f"{prefix}_data.star").exists():
        arguments.progress.clear()
        print(f"{relion} ended with exit code {measured.exit_code} and is left out:\n{measured.output[-2000:]}",
              file=sys.stderr)
        return None
    about = {"program": "relion", "version": version, "flags": arguments.relion_flags,
             "command": " ".join(map(str, command))}
    cpu, wall = measured.marked or (0.0, 0.0)
    return Run(about, measured, arguments.iterations, measured.cpu_seconds - cpu, measured.wall_seconds - wall, prefix)


def relion_version(relion):
    found = subprocess.run([relion, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return found[found.index("version:") + 1] if "version:" in found else "unknown"


def score(arguments, folder, stack, n_classes, seed, runs):
    """The record of one program on one stack: costs are medians over its runs, the rest is that of the last."""
    last = runs[-1]
    scores = compared(folder, f"{stack}/truth.star", f"{last.prefix}_data.star")
    averages, views = (mrcfile.read(folder / path) for path in (f"{last.prefix}_classes.mrcs", f"{stack}/views.mrcs"))
    curves = class_curves(averages, views, scores["classes"], arguments.pixel_size, arguments.diameter)
    record = {"benchmark": "relion", **last.about, "n_classes": n_classes, "seed": seed, "iterations": last.iterations}
    record |= {name: getattr(arguments, name) for name in ("particles", "views", "snr", "box", "pixel_size", "diameter",
                                                            "psi_step", "offset_range", "offset_step")}
    record |= costs(runs, scores["n"]) | {"ranks": 1, "threads": 1}
    record |= {name: scores[name] for name in ("purity", "ari", "views_found", "most_views_in_one_class",
                                               "angle_error_median", "shift_error_median_px")}
    record["class_sizes"] = [each["size"] for each in scores["classes"]]
    record["frc"] = summary(curves, arguments.views, arguments.box, arguments.pixel_size)
    return record | environment()


def costs(runs, particles):
    """Medians over the runs of one program: times [s], memory [bytes], CPU time of the whole program per particle and
    iteration [ms] and its samples."""
    samples = [round(1e3 * run.measured.cpu_seconds / (particles * run.iterations), 4) for run in runs]

    def median(value):
        return round(statistics.median(value(run) for run in runs), 2)

    return {"cpu_seconds": median(lambda run: run.measured.cpu_seconds), "cpu_iterating": median(
        lambda run: run.cpu_iterating), "wall_seconds": median(lambda run: run.measured.wall_seconds),
        "wall_iterating": median(lambda run: run.wall_iterating), "memory": max(run.measured.memory for run in runs),
        "ms_per_particle_iteration": statistics.median(samples), "n": len(runs), "samples": samples}


def row(record):
    def number(value, digits):
        return "–" if value is None else f"{value:.{digits}f}"

    name = f"{record['program']} {record['version']} {record['flags']}".strip()
    found = record["frc"]
    return (name, record["n_classes"], record["seed"], record.get("n", 1),
            number(record["ms_per_particle_iteration"], 2), number(record["cpu_seconds"], 1),
            number(record.get("cpu_iterating"), 1), number(record["wall_seconds"], 1),
            number(record.get("wall_iterating"), 1), f"{record['memory'] / 1e6:.0f}",
            number(record["purity"], 3), number(record["ari"], 3), record["views_found"],
            record["most_views_in_one_class"], number(record["angle_error_median"], 2),
            number(record["shift_error_median_px"], 2), number(found["resolution"], 1), number(found["mean_frc"], 3),
            number(found["by_view_resolution"], 1), number(found["by_view_mean_frc"], 3))


def report(records):
    """The table, and below it per stack what Vitrea gains or loses."""
    rows = table(COLUMNS, [row(record) for record in records])
    return "\n".join([rows, "", *versus(records)])


def versus(records):
    """One line per stack on which both ran: the ratio of CPU times and the differences in accuracy."""
    pairs = {}
    for record in records:
        key = record["n_classes"], record["seed"]
        pairs.setdefault(key, {})[record["program"]] = record
    lines = []
    for (n_classes, seed), pair in sorted(pairs.items()):
        if len(pair) < 2:
            continue
        ours, theirs = pair["vitrea"], pair["relion"]
        ratio = theirs["ms_per_particle_iteration"] / ours["ms_per_particle_iteration"]
        gain = {name: ours[name] - theirs[name] for name in ("purity", "ari")}
        frc = [ours["frc"][name] - (theirs["frc"][name] or 0.0) for name in ("mean_frc", "by_view_mean_frc")]
        lines.append(f"- K = {n_classes}, seed {seed}: {ratio:.1f} × less CPU time; purity {gain['purity']:+.3f}, ARI "
                     f"{gain['ari']:+.3f}, mean FRC {frc[0]:+.3f}, by view {frc[1]:+.3f}")
    return lines


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--relion", default="relion_refine", metavar="PATH", help="the relion_refine that is run (default: on PATH)")
    add("--relion-flags", default="", metavar="'...'", help="further flags for it, in one quoted text")
    add("--classes", type=int, nargs="+", default=[10, 20], metavar="K", help="numbers of classes (default 10 20)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S",
        help="of the stack and of both programs (default 0 1 2; RELION is given S + 1)")
    add("--particles", type=int, default=1000, metavar="N", help="particles of a stack (default 1000)")
    add("--views", type=int, default=10, metavar="V", help="views of a stack (default 10)")
    add("--snr", type=float, default=0.1, help="signal variance over noise variance, whole box (default 0.1)")
    add("--box", type=int, default=64, metavar="L", help="box [px] (default 64)")
    add("--pixel-size", type=float, default=4.0, metavar="A", help="[Å/px] (default 4)")
    add("--diameter", type=float, default=200.0, metavar="A", help="particle diameter [Å] (default 200)")
    add("--n", type=int, default=1, metavar="N", help="runs of Vitrea, for medians (default 1); RELION runs once")
    add("--iterations", type=int, default=15, metavar="I", help="iterations of both (default 15)")
    add("--psi-step", type=float, default=12.0, metavar="DEG", help="coarse angular step [degrees] (default 12)")
    add("--offset-range", type=float, default=5.0, metavar="PX", help="shifts searched [px] (default 5)")
    add("--offset-step", type=float, default=2.0, metavar="PX", help="coarse step of shifts [px] (default 2)")
    add("--keep", metavar="DIR", help="keep stacks and runs here (default: a temporary folder, removed)")
    add("--output", default=RESULTS / "relion.jsonl", metavar="FILE", help="JSON lines (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.n < 1:
        parser.error("--n is at least 1")
    if not all(math.isfinite(value) and value > 0 for value in (arguments.snr, arguments.diameter)):
        parser.error("--snr and --diameter are above 0")
    return arguments


if __name__ == "__main__":
    main()

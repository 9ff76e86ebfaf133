#!/usr/bin/env python3
"""How well classify2d finds simulated views: classes, in-plane angles and shifts against the truth.

Asymmetric particles, 64 px, 4 Å/px, random in-plane rotation, ±3 px shifts, CTF 1.0–2.5 µm, 200 a view; as many classes
as views, and twice as many; seeds 0 1 2. One JSON line a run, then a table for people with the targets that are missed.

example:  python benchmarks/accuracy.py                                  all of it: some hours on one core
          python benchmarks/accuracy.py --views 10 --snr 0.1 --classes 2 a few minutes
"""
import argparse
import itertools
import shutil
import tempfile

from vitrea.benchmarks.measure import (
    RESULTS,
    append_line,
    classify,
    compared,
    ended_by_signals,
    environment,
    iterations_done,
    iterations_of,
    made_folder,
    simulate,
    table,
)
from vitrea.benchmarks.progress import Progress

BOX, PIXEL_SIZE, DIAMETER, PARTICLES_A_VIEW = 64, 4.0, 200.0, 200      # px, Å/px, Å
COLUMNS = ("views", "K", "SNR", "seed", "purity", "ARI", "views found", "most views in one class", "angle [°]",
           "half a step [°]", "shift [px]", "empty", "iterations", "CPU s", "ms/particle·it", "MB (said)", "misses")


def main():
    arguments = parse()
    records, arguments.progress = [], Progress()
    with tempfile.TemporaryDirectory(prefix="vitrea-accuracy-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        for views, snr, ratio, seed in itertools.product(arguments.views, arguments.snr, arguments.classes,
                                                         arguments.seeds):
            record = one_run(arguments, folder, views, snr, round(ratio * views), seed)
            records.append(record)
            append_line(arguments.output, record)
            arguments.progress.result(table(COLUMNS, [row(record)]).splitlines()[-1])
            if not arguments.keep:
                clear(folder)
    print("\n" + table(COLUMNS, [row(record) for record in records]))


def one_run(arguments, folder, views, snr, n_classes, seed):
    """The record of one stack and one run on it, made where they are not there yet."""
    stack = f"stack_v{views}_snr{snr:g}_s{seed}"
    if not (folder / stack / "truth.star").exists():
        simulate(folder / stack, n=PARTICLES_A_VIEW * views, views=views, snr=snr, seed=seed, box=BOX,
                 pixel_size=PIXEL_SIZE, progress=arguments.progress)
    name = f"run_v{views}_snr{snr:g}_k{n_classes}_s{seed}"
    shutil.rmtree(folder / name, ignore_errors=True)
    keys = {"input": f"{stack}/particles.star", "n_classes": n_classes, "particle_diameter": DIAMETER, "seed": seed}
    keys |= dict(pair.split("=", 1) for pair in arguments.set)
    arguments.progress.step(f"{views} views, K = {n_classes}, SNR {snr:g}, seed {seed}: iterations",
                            count=iterations_done(folder / name))
    measured, records = classify(folder, keys, name, arguments.progress)
    scores = compared(folder, f"{stack}/truth.star", f"{name}/run_data.star")
    return record_of(views, snr, n_classes, seed, arguments.set, measured, records, scores) | environment()


def record_of(views, snr, n_classes, seed, changed, measured, records, scores):
    """What one run is worth: scores, costs and where the time went."""
    started = next(record for record in records if record["kind"] == "start")
    iterations = iterations_of(records)
    passes = sum(record["stage"] == "full" for record in iterations)
    record = {"benchmark": "accuracy", "views": views, "snr": snr, "n_classes": n_classes, "seed": seed,
              "particles": scores["n"], "box": BOX, "pixel_size": PIXEL_SIZE, "set": changed,
              "fine_psi_step": 0.5 * started["options"]["psi_step"], "iterations": len(iterations),
              "full_passes": passes}
    record |= {name: scores[name] for name in (
        "purity", "ari", "views_found", "most_views_in_one_class", "angle_error_median", "angle_error_p90",
        "shift_error_median_px", "shift_error_p90_px")}
    sizes = [each["size"] for each in scores["classes"]]
    record |= {"empty_classes": n_classes - sum(size > 0 for size in sizes), "largest_class": max(sizes),
               "resolution": iterations[-1]["resolution"], "log_likelihood": iterations[-1]["log_likelihood"],
               "reseeded": sum(len(each["map"]) for each in records if each["kind"] == "reseed")}
    record |= {"cpu_seconds": round(measured.cpu_seconds, 2), "wall_seconds": round(measured.wall_seconds, 2),
               "ms_per_particle_iteration": round(1e3 * measured.cpu_seconds / (scores["n"] * len(iterations)), 4),
               "memory": measured.memory, "memory_said": started["memory_per_rank"], "ranks": started["ranks"],
               "threads": started["threads"], "mpi": started["mpi"]}
    record |= {name: round(sum(each[name] for each in iterations), 2) for name in ("e_step", "m_step", "reduce")}
    return record | {"misses": misses(record)}


def misses(record):
    """The targets this run does not reach, in words; [] if it reaches all that are set for it."""
    found = []
    purity = target_purity(record)
    if purity and record["purity"] < purity:
        found.append(f"purity < {purity:g}")
    if purity and record["snr"] >= 0.1 and record["most_views_in_one_class"] > 3:
        found.append("a class of more than 3 views")
    if record["angle_error_median"] is None or record["angle_error_median"] >= 0.5 * record["fine_psi_step"]:
        found.append("angle")
    if record["shift_error_median_px"] is None or record["shift_error_median_px"] >= 0.5:
        found.append("shift")
    return found


def target_purity(record):
    """The purity asked for, or None: twice as many classes as views, and below SNR 0.1 ten views only."""
    if record["n_classes"] != 2 * record["views"]:
        return None
    if record["snr"] >= 0.1:
        return 0.99
    return 0.90 if record["snr"] >= 0.03 and record["views"] == 10 else None


def row(record):
    def number(value, digits):
        return "–" if value is None else f"{value:.{digits}f}"

    return (record["views"], record["n_classes"], f"{record['snr']:g}", record["seed"], number(record["purity"], 4),
            number(record["ari"], 3), record["views_found"], record["most_views_in_one_class"],
            number(record["angle_error_median"], 2), number(0.5 * record["fine_psi_step"], 2),
            number(record["shift_error_median_px"], 2), record["empty_classes"], record["iterations"],
            number(record["cpu_seconds"], 0), number(record["ms_per_particle_iteration"], 2),
            f"{record['memory'] / 1e6:.0f} ({record['memory_said'] / 1e6:.0f})", "; ".join(record["misses"]) or "none")


def clear(folder):
    """Empty the temporary folder between runs: all stacks together are some gigabytes."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--views", type=int, nargs="+", default=[10, 50], metavar="V", help="views of a stack (default 10 50)")
    add("--snr", type=float, nargs="+", default=[0.1, 0.03], metavar="S",
        help="signal variance over noise variance, whole box (default 0.1 0.03)")
    add("--classes", type=float, nargs="+", default=[2, 1], metavar="R", help="classes a view (default 2 1)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="K", help="of stack and run (default 0 1 2)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the job other than the defaults")
    add("--keep", metavar="DIR", help="keep stacks and runs here (default: a temporary folder, removed)")
    add("--output", default=RESULTS / "accuracy.jsonl", metavar="FILE", help="JSON lines (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    with ended_by_signals():
        main()

#!/usr/bin/env python3
"""From turned and shifted particles of a motion to its stages: classify2d then manifold learning, beside classify2d
alone and RELION with as many classes.

An arm of the simulated specimen turns by 90° in ten stages, 100 particles a stage, 64 px, 4 Å/px, random in-plane
rotation, ±3 px shifts, CTF 1.0–2.5 µm. `cluster` learns ten classes from particles aligned to one average by
classify2d, `near` the same and looks at poses nearby, `deep2d` splits that average for as long as it pays (it finds the
number itself), `classify2d` and RELION find poses and ten classes at once; `refined` goes on from the ten classes of
classify2d, looking at poses nearby. ARI: adjusted Rand index between classes and true stages. CPU time is that of all
steps. One JSON line a run, then a table.

example:  python benchmarks/endtoend.py --snr 0.05 --seeds 0
          python benchmarks/endtoend.py --methods relion --seeds 0
"""
import argparse
import itertools
import shutil
import tempfile

from vitrea.benchmarks.measure import (
    RESULTS,
    append_line,
    compared,
    environment,
    made_folder,
    run_measured,
    table,
    vitrea,
)

STAGES, BOX, PIXEL_SIZE, DIAMETER, DEGREES = 10, 64, 4.0, 200.0, 90.0
SEARCH = {"psi_step": 12, "offset_range": 5, "offset_step": 2, "particle_diameter": DIAMETER}   # of all methods
NEAR = {"psi_error": 3, "offset_error": 0.5}   # [degrees], [px]: half of the alignment's fine steps
RELION_FLAGS = ("--ctf", "--zero_mask", "--norm", "--scale", "--oversampling", 1, "--tau2_fudge", 2, "--j", 1)
COLUMNS = ("SNR", "seed", "method", "classes", "ARI", "purity", "angle [°]", "shift [px]", "CPU s")
METHODS = ("cluster", "near", "deep2d", "classify2d", "refined", "relion")


def main():
    measure(parse(), one_stack, COLUMNS, row, lambda each: (-each["snr"], METHODS.index(each["method"]), each["seed"]))


def measure(arguments, records_of, columns, row, order):
    """Records and table of every SNR and seed: records_of(arguments, folder, stack, snr, seed) are those of one stack,
    row(record) one in the table, order(record) its place there."""
    records = []
    with tempfile.TemporaryDirectory(prefix="vitrea-motion-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        for snr, seed in itertools.product(arguments.snr, arguments.seeds):
            stack = moving_stack(folder, arguments.particles, snr, seed)
            for record in records_of(arguments, folder, stack, snr, seed):
                records.append(record)
                append_line(arguments.output, record)
                print(table(columns, [row(record)]).splitlines()[-1], flush=True)
    print("\n" + table(columns, map(row, sorted(records, key=order))))


def moving_stack(folder, particles, snr, seed):
    """Simulate stages of a motion unless they are there; the stack's name in `folder`."""
    stack = f"stack_snr{snr:g}_s{seed}"
    if not (folder / stack / "truth.star").exists():
        vitrea("simulate", "particles", "--out", stack, "--n", particles, "--views", STAGES, "--motion", DEGREES,
               "--box", BOX, "--pixel-size", PIXEL_SIZE, "--snr", snr, "--seed", seed, folder=folder)
    return stack


def one_stack(arguments, folder, stack, snr, seed):
    """The records of the methods on one stack."""
    for method in arguments.methods:
        found = RUNS[method](arguments, folder, stack, seed)
        if found is None:
            continue
        cpu_seconds, star = found
        scores = compared(folder, f"{stack}/truth.star", star)
        record = {"benchmark": "endtoend", "method": method, "snr": snr, "seed": seed, "stages": STAGES,
                  "particles": arguments.particles, "n_classes": len(scores["classes"])}
        record |= {name: scores[name] for name in ("ari", "purity", "angle_error_median", "shift_error_median_px")}
        yield record | {"cpu_seconds": round(cpu_seconds, 1), "iterations": arguments.relion_iterations
                        if method == "relion" else None} | environment()


def run_deep2d(_, folder, stack, seed):
    return run_job(folder, "deep2d", f"deep2d_{stack}", stack, SEARCH | {"n_classes": 1, "seed": seed})


def run_cluster(_, folder, stack, seed):
    """One average from classify2d, ten from its aligned particles."""
    return _two_steps(folder, stack, seed, "cluster", 1, {})


def run_near(_, folder, stack, seed):
    """The same, looking at poses nearby too, from one start, as each costs 45 times as much."""
    return _two_steps(folder, stack, seed, "near", 1, NEAR | {"starts": 1})


def run_refined(_, folder, stack, seed):
    """Ten classes from classify2d, and from these ten classes that do not take poses at their word."""
    return _two_steps(folder, stack, seed, "refined", STAGES, NEAR | {"start": "classes"})


def _two_steps(folder, stack, seed, name, n_aligned, more):
    search = SEARCH | {"n_classes": n_aligned, "seed": seed}
    aligned, star = run_job(folder, "classify2d", f"aligned{n_aligned}_{stack}", stack, search)
    keys = {"particle_diameter": DIAMETER, "n_classes": STAGES, "seed": seed, "input": star, **more}
    learnt, star = run_job(folder, "cluster", f"{name}_{stack}", stack, keys)
    return aligned + learnt, star


def run_classify2d(_, folder, stack, seed):
    return run_job(folder, "classify2d", f"classify2d_{stack}", stack, SEARCH | {"n_classes": STAGES, "seed": seed})


def run_relion(arguments, folder, stack, seed):
    """The same for relion_refine, or None with a line if it fails."""
    name, relion = f"relion_{stack}", shutil.which(arguments.relion)
    if relion is None:
        print(f"{arguments.relion} is not installed: RELION is left out (Debian: apt-get install relion)")
        return None
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()                # RELION does not make its output folder
    options = [word for key, value in (SEARCH | {"K": STAGES, "iter": arguments.relion_iterations,
                                                 "random_seed": seed + 1}).items() for word in (f"--{key}", value)]
    measured = run_measured([relion, "--i", f"{stack}/particles.star", "--o", f"{name}/run", *RELION_FLAGS, *options],
                            folder)
    star = f"{name}/run_it{arguments.relion_iterations:03d}_data.star"
    if measured.exit_code or not (folder / star).exists():
        print(f"RELION ended with exit code {measured.exit_code} and is left out:\n{measured.output[-2000:]}")
        return None
    return measured.cpu_seconds, star


RUNS = {"cluster": run_cluster, "near": run_near, "deep2d": run_deep2d, "classify2d": run_classify2d,
        "refined": run_refined, "relion": run_relion}


def run_job(folder, job, name, stack, keys):
    """Run a job in `folder`: (CPU seconds, its STAR file)."""
    shutil.rmtree(folder / name, ignore_errors=True)
    keys = {"job": job, "input": f"{stack}/particles.star", "output": name} | keys
    (folder / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return vitrea("run", f"{name}.yaml", folder=folder).cpu_seconds, f"{name}/run_data.star"


def row(record):
    return (f"{record['snr']:g}", record["seed"], record["method"], record["n_classes"], f"{record['ari']:.3f}",
            f"{record['purity']:.3f}", f"{record['angle_error_median']:.1f}", f"{record['shift_error_median_px']:.2f}",
            f"{record['cpu_seconds']:.0f}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--snr", type=float, nargs="+", default=[0.05, 0.02, 0.01], metavar="S",
        help="signal variance over noise variance, whole box (default 0.05 0.02 0.01)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="of stack and runs (default 0 1 2)")
    add("--particles", type=int, default=1000, metavar="N", help="particles of a stack (default 1000)")
    add("--methods", nargs="+", choices=METHODS, default=METHODS[:-1], metavar="M",
        help=f"which of {', '.join(METHODS)} (default all but relion, which is slow)")
    add("--relion", default="relion_refine", metavar="PATH", help="the relion_refine that is run (default: on PATH)")
    add("--relion-iterations", type=int, default=15, metavar="I", help="its iterations (default 15)")
    add("--keep", metavar="DIR", help="keep stacks and runs here (default: a temporary folder, removed)")
    add("--output", default=RESULTS / "endtoend.jsonl", metavar="FILE", help="JSON lines (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()

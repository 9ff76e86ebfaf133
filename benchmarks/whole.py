"""`vitrea bench run`: classify2d from the STAR file to its results, and where the time went."""
import shutil
import statistics
import tempfile

from vitrea.benchmarks.launching import observe, worth
from vitrea.benchmarks.measure import compared, iterations_done, made_folder, simulate
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import surroundings
from vitrea.benchmarks.study import check_job_keys

DIAMETER = 0.78       # of the box
SHOWN = {"read": "read", "transform": "transform", "coarse": "coarse pass", "gather": "gather", "score": "score",
         "posterior": "posterior", "accumulate": "accumulate", "other": "E step, other", "reduce": "reduce",
         "m_step": "M step", "templates": "templates", "write": "write", "compile": "compile"}
SIZES = ("particles", "views", "box", "pixel_size", "snr", "seed", "classes", "iterations", "ranks", "threads", "set")


def measure(arguments, progress=SILENCE):
    """The record of `arguments.n` runs on one simulated stack."""
    check_job_keys("--set", dict(arguments.set))
    with tempfile.TemporaryDirectory(prefix="vitrea-bench-") as temporary:
        folder = made_folder(arguments.keep or temporary, "--keep")
        stack = make_stack(folder, arguments, progress)
        warm_up(progress)
        runs = [_one_run(folder, stack, i, arguments, progress) for i in range(arguments.n)]
        scores = compared(folder, f"{stack}/truth.star", "run0/run_data.star")
    record = {"benchmark": "run", "name": "classify2d", **{name: getattr(arguments, name) for name in SIZES}}
    return record | figures(runs) | {name: scores[name] for name in ("purity", "ari", "views_found")} | surroundings()


def _one_run(folder, stack, number, arguments, progress):
    """The worth of one run."""
    name = f"run{number}"
    progress.step(f"classify2d, run {number + 1} of {arguments.n}: iterations", arguments.iterations,
                  iterations_done(folder / name))
    return worth(*observe(folder, name, _keys(arguments, stack), arguments.ranks, progress=progress))


def warm_up(progress=SILENCE):
    """Compile the kernels, where that has not been done: once a machine, and nothing that a run's time should hold."""
    from vitrea.engine.warmup import tiny_expectation

    progress.step("kernels compiled, where this machine has not done so before")
    tiny_expectation()


def make_stack(folder, sizes, progress=SILENCE):
    """Simulate the stack unless it is there; its name in `folder`."""
    name = f"stack_n{sizes.particles}_v{sizes.views}_b{sizes.box}_a{sizes.pixel_size:g}_snr{sizes.snr:g}_s{sizes.seed}"
    if not (folder / name / "truth.star").exists():
        shutil.rmtree(folder / name, ignore_errors=True)   # what an interrupted benchmark left behind
        simulate(folder / name, n=sizes.particles, views=sizes.views, snr=sizes.snr, seed=sizes.seed, box=sizes.box,
                 pixel_size=sizes.pixel_size, progress=progress)
    return name


def figures(runs):
    """One record of several `worth`s: the CPU time per particle·iteration by run, the rest from the middle run."""
    times = [run["cpu_ms_per_particle_iteration"] for run in runs]
    middle = min(runs, key=lambda run: abs(run["cpu_ms_per_particle_iteration"] - statistics.median(times)))
    return {"unit": "particle·iteration", "n": len(runs), "min": min(times), "median": statistics.median(times),
            "samples": times, **middle}


def _keys(arguments, stack):
    keys = {"input": f"{stack}/particles.star", "n_classes": arguments.classes, "seed": arguments.seed,
            "particle_diameter": DIAMETER * arguments.box * arguments.pixel_size, "algorithm": "full",
            "max_iterations": arguments.iterations, "convergence_change": 0, "threads": arguments.threads}
    return keys | dict(arguments.set)


def told(record):
    """The record for people."""
    lines = [
        f"classify2d   {record['particles']:,} particles   box {record['box']} px   K {record['classes']}   "
        f"{record['iterations']} iterations   {record['ranks']} × {record['threads']} (ranks × threads)",
        f"  speed     {record['poses_per_core_second']:.3g} poses / core·s   "
        f"{record['particle_iterations_per_core_second']:,.4g} particles·iterations / core·s",
        f"  CPU       {record['median']:.3g} ms / particle·iteration   least {record['min']:.3g}   n {record['n']}   "
        f"(whole program {record['cpu_seconds']:.1f} s)",
        f"  wall      {record['wall_seconds']:.1f} s, of which iterating {record['iterating_seconds']:.1f} s: E "
        f"{record['e_step']:.1f}  M {record['m_step']:.1f}  reduce {record['reduce']:.1f}",
    ]
    whole = sum(record["phases"].values())
    split = [f"{words} {record['phases'][phase]:.2f}" for phase, words in SHOWN.items() if phase in record["phases"]]
    lines += [f"  {'' if i else 'split':<10}{'   '.join(split[i:i + 5])}" for i in range(0, len(split), 5)]
    lines[-1] += "   s a rank"
    lines.append(f"            {whole:.2f} s a rank of {record['wall_seconds']:.2f} s lie in clocked functions"
                 + (", threads added up" if record["threads"] > 1 else ""))
    if record["clocks_missing"]:
        lines.append(f"            no longer in the engine: {', '.join(record['clocks_missing'])}")
    lines.append(f"  answer    purity {record['purity']:.4f}   ARI {record['ari']:.4f}   "
                 f"{record['views_found']} of {record['views']} views")
    return "\n".join(lines)

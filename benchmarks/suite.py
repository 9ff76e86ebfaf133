"""`vitrea bench NAME` for a kernel: check, warm up, measure, and set beside the machine's limit of the same run."""
import time
from dataclasses import dataclass

from threadpoolctl import threadpool_limits

from vitrea.benchmarks.clocks import E_STEP, Clocks
from vitrea.benchmarks.estep import Adaptive, EStep, Marginal
from vitrea.benchmarks.kernels import KERNELS
from vitrea.benchmarks.machine import SGEMM_SIZE, TRIAD_FLOATS, measure_limits
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import surroundings
from vitrea.benchmarks.scan import Scan
from vitrea.benchmarks.timing import LEAST_SECONDS, clock

BENCHMARKS = {**KERNELS, "marginal": Marginal, "estep": EStep, "adaptive": Adaptive, "scan": Scan}
QUICK = {"least_seconds": 1e-3, "sgemm_size": 200, "triad_floats": 2**18}   # of an Effort, for tests
NOT_COUNTED = "accumulate"   # what expect does after the weights are known


@dataclass(frozen=True)
class Effort:
    """How long to measure: `n` runs, none shorter than `least_seconds`; sizes of what the machine's limits are."""

    n: int = 5
    least_seconds: float = LEAST_SECONDS
    sgemm_size: int = SGEMM_SIZE
    triad_floats: int = TRIAD_FLOATS


def measure(name, sizes, effort, progress=SILENCE):
    """The record of one kernel benchmark; raises WrongAnswerError if its answer is wrong, before any clock starts."""
    with threadpool_limits(1):
        progress.step(f"{name}: made ready, compiled and checked")
        benchmark = BENCHMARKS[name](sizes)
        error = benchmark.check()
        what = (sizes.rotations, effort.sgemm_size, effort.triad_floats, progress)
        before = measure_limits(*what)
        phases, timing = _timed(name, benchmark, effort, progress)
        limits = measure_limits(*what).best(before)
    record = {"benchmark": "kernel", "name": name, **sizes.as_dict(), "check": error, "twin": benchmark.twin}
    record |= _figures(benchmark, timing, limits)
    record |= _split(phases, benchmark, effort.n)
    if hasattr(benchmark, "found"):
        record["found"] = benchmark.found()
    return record | surroundings()


def _timed(name, benchmark, effort, progress):
    """(Clocks, Timing); of the E step the sums for the M step are not counted."""
    progress.step(f"{name}: warm-up, then runs under the clock", effort.n)
    if not isinstance(benchmark, EStep):
        return None, clock(benchmark.run, effort.n, effort.least_seconds, between=progress.done)
    with Clocks(E_STEP, timer=time.process_time) as phases:
        timing = clock(benchmark.run, effort.n, 0.0, excluded=lambda: phases.seconds[NOT_COUNTED],
                       between=progress.done)
    return phases, timing


def _figures(benchmark, timing, limits):
    """Times by unit in ms, rates, and the place under the roofline."""
    work, milli = benchmark.work, 1e3 / benchmark.units
    limit = limits.seconds(work)
    times = timing.as_dict()
    figures = {"unit": benchmark.unit, "units": benchmark.units, f"ms_per_{benchmark.unit}": timing.median * milli,
               "limit_ms": limit * milli, "fraction_of_limit": limit / timing.median, "n": times["n"],
               "min": times["min"] * milli, "median": times["median"] * milli,
               "samples": [sample * milli for sample in times["samples"]], "wall_median": times["wall_median"] * milli,
               "warm_up_seconds": times["warm_up"]}
    return figures | {"flops": work.flops, "bytes": work.bytes, "flops_per_second": work.flops / timing.median,
                      "limits": limits.as_dict()}


def _split(phases, benchmark, n):
    """ms by phase and unit, over all runs the clocks saw; the places that are no longer in the engine."""
    if phases is None:
        return {}
    runs = phases.calls["other"] or n
    split = {phase: 1e3 * seconds / runs / benchmark.units for phase, seconds in phases.seconds.items()}
    return {"phases_ms": split, "not_counted": NOT_COUNTED, "clocks_missing": phases.missing}


def told(record):
    """A record for people, a few lines."""
    unit = record["unit"]
    rate = 1e3 / record["median"]
    lines = [
        f"{record['name']:<10} K {record['classes']} × {record['rotations']} rotations × {record['shifts']} shifts   "
        f"{record['rings']} rings of a box of {record['box']} px   {record['units']:,} {_plural(unit)} a run",
        f"  check    {record['check']:.1e} away from its twin: {record['twin']}",
        f"  time     {_ms(record['median'])} / {unit}   least {_ms(record['min'])}   n {record['n']}   "
        f"{rate:,.4g} {_plural(unit)} / core·s   warm-up {record['warm_up_seconds']:.1f} s",
        f"  limit    {_ms(record['limit_ms'])} / {unit}   {100 * record['fraction_of_limit']:.0f} % of it reached   "
        f"{_limits_told(record['limits'])}",
    ]
    if "phases_ms" in record:
        parts = "   ".join(f"{phase} {value:.3g}" for phase, value in record["phases_ms"].items()
                           if phase != record["not_counted"])
        lines.append(f"  split    {parts} ms   (not counted: {record['not_counted']} "
                     f"{record['phases_ms'][record['not_counted']]:.3g})")
    if "found" in record:
        lines.append("  found    " + "   ".join(f"{name} {value:.4g}" for name, value in record["found"].items()))
    return "\n".join(lines)


def _limits_told(limits):
    return (f"sgemm {limits['sgemm'] / 1e9:.1f} GFLOP/s   FFTW({limits['n_angles']}) {limits['fftw'] / 1e9:.1f} GFLOP/s"
            f"   memory {limits['bandwidth'] / 1e9:.1f} GB/s")


def _plural(unit):
    return unit + ("es" if unit.endswith("s") else "s")


def _ms(value):
    return f"{value:.4g} ms" if value >= 0.01 else f"{1e3 * value:.4g} µs" if value >= 1e-5 else f"{1e6 * value:.4g} ns"

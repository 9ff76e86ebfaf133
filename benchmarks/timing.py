"""The clock of the kernel benchmarks: warm-up apart, then `n` runs, CPU time for the figures and wall time beside it.

A kernel runs on one thread, and what it costs a core is its CPU time; on an idle machine wall time is the same, on a
shared one it also holds the time that others had. A run that is over too soon to be measured is repeated until it
lasts LEAST_SECONDS, and its time divided.
"""
import statistics
import time
from dataclasses import dataclass

LEAST_SECONDS = 0.05
MOST_REPEATS = 100_000


@dataclass(frozen=True)
class Timing:
    """CPU and wall times [s] of n ≥ 1 runs, one after the other, and of the first call, which compiled and planned."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    warm_up: float

    @property
    def median(self):
        """Median CPU time [s]."""
        return statistics.median(self.cpu)

    @property
    def least(self):
        """Least CPU time [s]: what the machine can do when nothing disturbs it."""
        return min(self.cpu)

    def as_dict(self):
        """`n`, `min`, `median`, `samples` [s of CPU], `wall_median` and `warm_up` [s]."""
        return {"n": len(self.cpu), "min": self.least, "median": self.median, "samples": list(self.cpu),
                "wall_median": statistics.median(self.wall), "warm_up": self.warm_up}


def clock(run, n, least_seconds=LEAST_SECONDS, excluded=lambda: 0.0, between=lambda: None):
    """Timing of `n` runs of `run()`, after one call that is not counted.

    excluded() tells the CPU time [s] spent so far on what is not to be counted; between() is called after each run,
    off the clock.
    """
    begin = time.perf_counter()
    run()
    warm_up = time.perf_counter() - begin
    begin = time.process_time()
    run()
    once = max(time.process_time() - begin, 1e-9)
    repeats = min(max(1, int(least_seconds / once)), MOST_REPEATS)
    cpu, wall = [], []
    for _ in range(n):
        cpu_begin, wall_begin = time.process_time() - excluded(), time.perf_counter()
        for _ in range(repeats):
            run()
        cpu.append((time.process_time() - excluded() - cpu_begin) / repeats)
        wall.append((time.perf_counter() - wall_begin) / repeats)
        between()
    return Timing(tuple(cpu), tuple(wall), warm_up)

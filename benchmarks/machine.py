"""What one core of this machine can do, measured in the run that is judged by it: products, transforms, memory.

Each rate is the best of a few runs, because it is to be a limit: the product of two square float32 matrices through
NumPy's BLAS, batches of real transforms with the plans of kernels/fourier.py, and the triad a = b + s·c of the STREAM
benchmark (McCalpin 1995), counted as it counts, three arrays moved.
"""
from dataclasses import asdict, dataclass

import numba
import numpy as np

from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.timing import clock
from vitrea.kernels.fourier import LinesToAngles

SGEMM_SIZE = 1500
TRIAD_FLOATS = 2**24         # three arrays of 64 MB: far more than a cache holds
BATCH_LINES = 128            # lines of angles transformed at once: they stay in the L2 cache
RUNS = 5


@dataclass(frozen=True)
class Limits:
    """Rates of one core: sgemm and fftw [flop/s], bandwidth [byte/s], transforms [lines of n_angles a second]."""

    sgemm: float
    fftw: float
    bandwidth: float
    transforms: float
    n_angles: int

    def best(self, other):
        """The larger of each rate of two measurements: a slow moment of the machine must not flatter a kernel."""
        return Limits(*(max(mine, its) for mine, its in zip(asdict(self).values(), asdict(other).values())))

    def seconds(self, work):
        """The least time [s] for a Work: its products and transforms one after the other, or its memory traffic."""
        return max(self.compute_seconds(work), work.bytes / self.bandwidth)

    def compute_seconds(self, work):
        """Time [s] of the arithmetic alone, products and the rest at the measured sgemm rate, transforms at FFTW's."""
        return (work.product_flops + work.other_flops) / self.sgemm + work.transform_flops / self.fftw

    def as_dict(self):
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What a run must do at the least: operations by kind, and bytes that come from or go to memory."""

    product_flops: float = 0.0
    transform_flops: float = 0.0
    other_flops: float = 0.0
    bytes: float = 0.0

    @property
    def flops(self):
        return self.product_flops + self.transform_flops + self.other_flops


def transform_flops(n):
    """Operations of one real transform of length n, counted as FFTW's authors do: 2.5 n log2 n."""
    return 2.5 * n * np.log2(n)


def measure_limits(n_angles, size=SGEMM_SIZE, floats=TRIAD_FLOATS, progress=SILENCE):
    """Limits of this machine for lines of `n_angles`; `size` of the matrices, `floats` of the triad's arrays."""
    progress.step("limits of this machine: sgemm, FFTW, memory")
    transforms = _transforms_a_second(n_angles)
    return Limits(_sgemm_rate(size), transforms * transform_flops(n_angles), _triad_rate(floats), transforms, n_angles)


def _sgemm_rate(size):
    random = np.random.default_rng(0)
    a, b = (random.random((size, size), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2.0 * size**3 / clock(lambda: np.matmul(a, b, out=out), RUNS).least


def _transforms_a_second(n_angles):
    plan = LinesToAngles(BATCH_LINES, n_angles)
    return BATCH_LINES / clock(plan.execute, RUNS).least


def _triad_rate(floats):
    a, b, c = (np.full(floats, value, dtype=np.float32) for value in (0.0, 1.0, 2.0))
    return 3 * a.nbytes / clock(lambda: triad(b, c, np.float32(0.5), a), RUNS).least


@numba.njit(cache=True)
def triad(b, c, s, out):
    """out = b + s·c, float32[n]."""
    for i in range(out.size):
        out[i] = b[i] + s * c[i]

"""Fourier plans: made once, owned by an object, executed on the arrays they own.

The only module that imports pyfftw and finufft. Every plan is single-threaded and may be used by one thread at a
time; threads own plans of their own. Planning is FFTW_ESTIMATE, because a plan chosen by the clock would make the
last bits depend on the machine's mood.
"""
import finufft
import numpy as np
import pyfftw

FLAGS = ("FFTW_ESTIMATE", "FFTW_DESTROY_INPUT")
NUFFT_TOLERANCE = 1e-5  # relative; the images are float32 with noise of order one
MOVING_TOLERANCE = 1e-6


def fast_length(n):
    """The smallest even length ≥ `n` whose prime factors are 2, 3 and 5."""
    length = max(2, n + n % 2)
    while not _is_smooth(length):
        length += 2
    return length


def _is_smooth(n):
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


class LinesToAngles:
    """`lines` inverse real transforms: harmonics m ≥ 0 complex64[lines, n/2+1] → values at n angles float32[lines, n].

    values(ψ_j) = Σ_{m=−n/2}^{n/2} h(m) e^{+i m ψ_j}, unnormalised, ψ_j = 2πj/n, with h(−m) = conj h(m).
    """

    def __init__(self, lines, n_angles):
        self.harmonics = pyfftw.zeros_aligned((lines, n_angles // 2 + 1), dtype=np.complex64)
        self.values = pyfftw.zeros_aligned((lines, n_angles), dtype=np.float32)
        self._plan = pyfftw.FFTW(self.harmonics, self.values, axes=(1,), direction="FFTW_BACKWARD", flags=FLAGS)

    def execute(self):
        """Fill `values` from `harmonics`, which is overwritten."""
        self._plan.execute()


class LinesToHarmonics:
    """`lines` real transforms: float32[lines, n] → complex64[lines, n/2+1], h(m) = Σ_j values(ψ_j) e^{−i m ψ_j}."""

    def __init__(self, lines, n_angles):
        self.values = pyfftw.zeros_aligned((lines, n_angles), dtype=np.float32)
        self.harmonics = pyfftw.zeros_aligned((lines, n_angles // 2 + 1), dtype=np.complex64)
        self._plan = pyfftw.FFTW(self.values, self.harmonics, axes=(1,), flags=FLAGS)

    def execute(self):
        """Fill `harmonics` from `values`, which is overwritten."""
        self._plan.execute()


class RingTransform:
    """Complex transforms along the last axis of complex64[batch, rings, n]: samples on rings ↔ angular harmonics."""

    def __init__(self, batch, n_rings, n_angles):
        self.array = pyfftw.zeros_aligned((batch, n_rings, n_angles), dtype=np.complex64)
        self._forward = pyfftw.FFTW(self.array, self.array, axes=(2,), flags=("FFTW_ESTIMATE",))
        self._backward = pyfftw.FFTW(self.array, self.array, axes=(2,), direction="FFTW_BACKWARD",
                                     flags=("FFTW_ESTIMATE",))

    def to_harmonics(self):
        """In place: X(r, θ_j) → x(r, m) = (1/n) Σ_j X(r, θ_j) e^{−i m θ_j}."""
        self._forward.execute()
        self.array *= np.float32(1.0 / self.array.shape[2])

    def to_angles(self):
        """In place: x(r, m) → X(r, θ_j) = Σ_m x(r, m) e^{+i m θ_j}."""
        self._backward.execute()


class PointsToPixels:
    """Batched type-1 non-uniform transform: image(x) = Σ_q X(q) e^{+i q·x}; complex64[batch, L, L].

    x is counted from the box centre L//2, q = (q_y, q_x) in radians per pixel, |q| ≤ π.
    """

    def __init__(self, box_size, batch, frequency_y, frequency_x):
        self.points = np.zeros((batch, frequency_y.size), dtype=np.complex64)
        self.pixels = np.zeros((batch, box_size, box_size), dtype=np.complex64)
        self._plan = finufft.Plan(1, (box_size, box_size), n_trans=batch, eps=NUFFT_TOLERANCE, isign=1,
                                  dtype="complex64", nthreads=1)
        self._plan.setpts(frequency_y.astype(np.float32), frequency_x.astype(np.float32))

    def execute(self):
        """Fill `pixels` from `points`."""
        self._plan.execute(self.points, out=self.pixels)


class PixelsToMovingPoints:
    """One image at points that are new each time: double precision, because every image is transformed only once.

    X(q) = Σ_x image(x) e^{−i q·x}, x counted from the box centre L//2, q = (q_y, q_x) in radians per pixel, |q| ≤ π.
    """

    def __init__(self, box_size):
        # 1.25: a fine grid barely larger than the image, which takes a third of the time of 2.0
        self._plan = finufft.Plan(2, (box_size, box_size), eps=MOVING_TOLERANCE, isign=-1, dtype="complex128",
                                  nthreads=1, upsampfac=1.25)

    def execute(self, image, frequency_y, frequency_x):
        """complex128[points] of image float[L, L] at float64[points] frequencies."""
        self._plan.setpts(frequency_y, frequency_x)
        return self._plan.execute(np.ascontiguousarray(image, dtype=np.complex128))

"""Images as real vectors: half of the Fourier plane, scaled so that length is kept.

The transform of a real image is Hermitian: half of the plane determines the other half. With an orthonormal transform,
the real and imaginary parts of one half, times √2, have the energy of the band-limited image, and white noise of
variance σ² in the pixels has variance σ² in every component. Components that share one value of C² form a group: a
ring, or a piece of one where the CTF is astigmatic; a shell (ring) shares one noise precision. Components are in the
order of groups, so that sums over groups are sums over runs.
"""
from dataclasses import dataclass, field

import numpy as np
from scipy import fft


@dataclass(frozen=True)
class HalfPlane:
    """The Fourier pixels 0 < |h| ≤ radius of one half of the plane of a box, cut into rings and groups.

    frequency int64[H, 2]: (ky, kx) [cycles a box]; group int64[D] of each component, D = 2H, ascending; shell
    int64[S] of each group; ring int64[R]: |h| of each shell. angular_bins: groups of a ring, over half a turn, after
    which C² repeats. Raises ValueError if the radius reaches the box's Nyquist frequency, where a pixel is its own
    conjugate.
    """

    box_size: int
    radius: int
    angular_bins: int = 1
    frequency: np.ndarray = field(init=False, repr=False)
    group: np.ndarray = field(init=False, repr=False)
    shell: np.ndarray = field(init=False, repr=False)
    ring: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if not 1 <= self.radius <= (self.box_size - 1) // 2:
            raise ValueError(f"radius {self.radius} of a box of {self.box_size}: expected 1 to "
                             f"{(self.box_size - 1) // 2}")
        ky, kx = np.meshgrid(np.arange(-self.radius, self.radius + 1), np.arange(self.radius + 1), indexing="ij")
        distance = np.round(np.hypot(ky, kx)).astype(np.int64)
        kept = (np.hypot(ky, kx) <= self.radius) & ((kx > 0) | (ky > 0))
        ky, kx, ring = ky[kept], kx[kept], distance[kept]
        piece = np.floor((np.arctan2(ky, kx) / np.pi + 0.5) * self.angular_bins).astype(np.int64)
        piece %= self.angular_bins   # the vertical axis is both ends of the half turn
        order = np.lexsort((kx, ky, piece, ring))
        number = (ring * self.angular_bins + piece)[order]
        present, group = np.unique(number, return_inverse=True)
        set_ = object.__setattr__
        set_(self, "frequency", np.stack([ky, kx], axis=1)[order])
        set_(self, "group", np.repeat(group, 2))
        set_(self, "shell", present // self.angular_bins - 1)
        set_(self, "ring", np.arange(1, self.radius + 1))

    @property
    def n_components(self):
        return len(self.group)

    @property
    def n_groups(self):
        return len(self.shell)

    def embed(self, spectra):
        """float32[n, D] from orthonormal transforms complex[n, H] at `frequency`, origin at the box's centre."""
        return np.ascontiguousarray(np.sqrt(np.float32(2)) * spectra, dtype=np.complex64).view(np.float32)

    def embed_images(self, images):
        """float32[n, D] from images float[n, L, L] whose centre is pixel L // 2."""
        spectra = fft.rfft2(fft.ifftshift(images, axes=(-2, -1)), norm="ortho")
        return self.embed(spectra[:, self.frequency[:, 0], self.frequency[:, 1]])

    def images(self, components):
        """float32[n, L, L]: the band-limited images of components float[n, D]."""
        size = self.box_size
        pairs = np.ascontiguousarray(components, dtype=np.float64).view(np.complex128) / np.sqrt(2.0)
        ky, kx = self.frequency.T
        spectra = np.zeros((len(pairs), size, size // 2 + 1), dtype=np.complex128)
        spectra[:, ky, kx] = pairs
        axis = kx == 0   # this column of a half spectrum must be Hermitian in itself
        spectra[:, -ky[axis], 0] = np.conj(pairs[:, axis])
        return fft.fftshift(fft.irfft2(spectra, s=(size, size), norm="ortho"), axes=(-2, -1)).astype(np.float32)

    def group_means(self, values):
        """float32[n, S]: means over groups of values float[n, H] at `frequency`, e.g. C² to one number a group."""
        start = np.flatnonzero(np.diff(self.group[::2], prepend=-1))
        count = np.diff(np.append(start, len(self.frequency)))
        return (np.add.reduceat(np.asarray(values, np.float64), start, axis=1) / count).astype(np.float32)


def shell_power(transformed, group, shell):
    """float64[n, R]: Σ t² over the components of each shell, of t float[n, D]."""
    start = np.flatnonzero(np.diff(shell[group], prepend=-1))
    return np.add.reduceat(transformed.astype(np.float64) ** 2, start, axis=1)

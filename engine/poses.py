"""The pose convention of RELION, stated once, with the two reference functions that turn a view into an image and back.

Vectors are measured in pixels from pixel L//2 (odd and even boxes L), x along columns and y along rows; arrays hold
them as (y, x). With ψ = rlnAnglePsi and o = (rlnOriginX, rlnOriginY) in pixels, a point v of the class average (the
view) lies in the particle image at

    u = R(ψ) v − o,    R(ψ) = [[cos ψ, sin ψ], [−sin ψ, cos ψ]]  acting on (x, y),

so that  image(u) = view(R(−ψ)(u + o))  and, in Fourier space,  F_image(k) = exp(+2πi k·o/L) F_view(R(−ψ) k),
which in polar coordinates (θ from x towards y) reads F_image(r, θ) = exp(+2πi k·o/L) F_view(r, θ + ψ).
In words: the image is brought onto its class average by shifting it by +o and *then* turning it by R(−ψ). A point on
the +x axis of the view appears in the image at angle −ψ (counter-clockwise for ψ > 0 where row 0 is drawn at the top).
Moving the class average by +c (centring) turns every o into o + R(ψ) c; turning it by R(α) turns every ψ into ψ − α.
Three-dimensional views are those of RELION: A = R_z(ψ) R_y(tilt) R_z(rot), and the image sums over the third axis.

Settled by experiment with RELION 3.1.3 (relion_project, relion_stack_create --apply_transformation; relion_refine finds
the same poses); the tests repeat it where RELION is installed. RELION's refinement takes even boxes only, and in odd
ones relion_project draws its images one pixel too far towards higher rows and columns.
"""
import finufft
import numpy as np

NUFFT_TOLERANCE = 1e-9


def place(view, psi, origin):
    """The noise-free particle image of `view` float[L, L] at `psi` [degrees] and `origin` (y, x) [px]: float64[L, L].

    Trigonometric interpolation, exact for a band-limited view; zero where the view's box ends.
    """
    u_yx = _pixel_vectors(np.shape(view)[-1])
    return _sample(view, rotate_offset(u_yx + np.asarray(origin, dtype=np.float64), -psi))


def apply_pose(image, psi, origin):
    """Bring `image` float[L, L] onto its class average: shift by +origin (y, x) [px], then turn by R(−psi).

    Returns float64[L, L]. The inverse of `place`; zero where the image's box ends.
    """
    v_yx = _pixel_vectors(np.shape(image)[-1])
    return _sample(image, rotate_offset(v_yx, psi) - np.asarray(origin, dtype=np.float64))


def rotate_offset(offset, psi):
    """R(psi) applied to vectors `offset` float[..., 2] as (y, x); psi [degrees] broadcasts over the leading axes."""
    offset = np.asarray(offset, dtype=np.float64)
    radians = np.deg2rad(psi)
    y, x = offset[..., 0], offset[..., 1]
    return np.stack([np.cos(radians) * y - np.sin(radians) * x, np.sin(radians) * y + np.cos(radians) * x], axis=-1)


def recentre(psi, origin, shift):
    """Origins float64[..., 2] after the class average moved by `shift` (y, x), in one unit: origin + R(psi) shift."""
    return np.asarray(origin, dtype=np.float64) + rotate_offset(shift, psi)


def wrap_degrees(angle):
    """The same angle [degrees] in [−180, 180)."""
    return np.mod(np.asarray(angle, dtype=np.float64) + 180.0, 360.0) - 180.0


def _pixel_vectors(box_size):
    """Vectors (y, x) from pixel L//2 to every pixel: float64[L, L, 2]."""
    axis = np.arange(box_size, dtype=np.float64) - box_size // 2
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)


def _sample(image, points):
    """Values of the trigonometric interpolant of `image` at `points` float64[L, L, 2] (y, x) from the centre."""
    box_size = np.shape(image)[-1]
    scale = 2.0 * np.pi / box_size
    y, x = np.ascontiguousarray(points.reshape(-1, 2).T)
    values = finufft.nufft2d2(scale * y, scale * x, _symmetric_modes(image), isign=1, eps=NUFFT_TOLERANCE, nthreads=1)
    first, last = -(box_size // 2) - 0.5, (box_size - 1) // 2 + 0.5
    inside = (np.minimum(y, x) >= first) & (np.maximum(y, x) <= last)
    return np.where(inside, values.real, 0.0).reshape(box_size, box_size)


def _symmetric_modes(image):
    """Fourier coefficients about pixel L//2 in an odd array with k = 0 in its middle, Nyquist shared by both sides."""
    box_size = np.shape(image)[-1]
    centred = np.fft.ifftshift(np.asarray(image, dtype=np.float64))
    modes = np.fft.fftshift(np.fft.fft2(centred)) / box_size**2
    if box_size % 2 == 0:
        modes[0, :] *= 0.5
        modes[:, 0] *= 0.5
        modes = np.pad(modes, ((0, 1), (0, 1)), mode="wrap")
    return np.ascontiguousarray(modes)

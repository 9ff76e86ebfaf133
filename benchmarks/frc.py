"""Fourier ring correlation of class averages with the noise-free views they show.

Both images are masked with the same soft disc, so that a program that masks its averages gains nothing over one that
does not. FRC does not change when a shell of either image is rescaled: differences in regularisation do not count, only
how much of each shell is signal (van Heel & Keegstra 1987).
"""
import numpy as np
from scipy.optimize import minimize

from vitrea.engine.poses import place
from vitrea.kernels.mask import disc_image

THRESHOLD = 0.5
MASK_EDGE = 5.0               # px
FIRST_STEP = (2.0, 0.3, 0.3)  # degrees, px, px: the first simplex of the search for a class's frame


def ring_correlation(a, b):
    """FRC of two images float[L, L]: float64[L//2 + 1] over the spectral index; 0 where either shell is empty."""
    box_size = a.shape[-1]
    fa, fb = np.fft.fft2(a), np.fft.fft2(b)
    frequency = np.fft.fftfreq(box_size, 1.0 / box_size)
    shell = np.rint(np.hypot(frequency[:, None], frequency)).astype(np.int64).ravel()

    def over_shells(values):
        return np.bincount(shell, values.ravel())[:box_size // 2 + 1]

    both = np.sqrt(over_shells(np.abs(fa) ** 2) * over_shells(np.abs(fb) ** 2))
    return np.divide(over_shells((fa * fb.conj()).real), both, out=np.zeros_like(both), where=both > 0.0)


def resolution_at(curve, box_size, pixel_size, threshold=THRESHOLD):
    """Resolution [Å] where `curve` first falls below `threshold`, interpolated linearly between shells.

    Nyquist if it never does; infinity if it never was above. Shell 0, the mean, has no say.
    """
    below = np.flatnonzero(curve[1:] < threshold) + 1
    if not len(below):
        return 2.0 * pixel_size
    i = int(below[0])
    if i == 1:
        return np.inf
    shell = i - 1 + (curve[i - 1] - threshold) / (curve[i - 1] - curve[i])
    return box_size * pixel_size / shell


def in_class_frame(view, average, angle, shift, mask):
    """`view` float[L, L] brought into the frame of a class average: turned by R(angle), then moved by `shift`.

    angle [degrees] and shift (y, x) [px] are where the search for the largest correlation with `average` starts: the
    frame found from the members' poses is good to a fraction of a degree, and that much must not cost a class its FRC.
    """
    target = mask * average
    target = target / np.linalg.norm(target)

    def moved(frame):
        return mask * place(view, frame[0], -frame[1:])

    def loss(frame):
        image = moved(frame)
        return -float(np.sum(image * target) / max(np.linalg.norm(image), 1e-30))

    start = np.array([angle, *shift], dtype=np.float64)
    simplex = np.vstack([start, start + np.diag(FIRST_STEP)])
    best = minimize(loss, start, method="Nelder-Mead",
                    options={"initial_simplex": simplex, "xatol": 0.01, "fatol": 1e-7, "maxiter": 300}).x
    return moved(best)


def class_curves(averages, views, reports, pixel_size, diameter):
    """FRC of every class that has a frame with its majority view: list of (report, float64[L//2 + 1]).

    averages float[K, L, L] and views float[V, L, L] as read; reports: the `classes` of `vitrea compare --json`, whose
    frames are in Å; diameter of the mask [Å]. Classes of fewer than five members have no frame and are left out.
    """
    mask = disc_image(views.shape[-1], 0.5 * diameter / pixel_size, MASK_EDGE)
    found = []
    for report in reports:
        if report["frame_angle"] is None:
            continue
        average, view = averages[report["number"] - 1], views[report["view"] - 1]
        shift = np.asarray(report["frame_shift"]) / pixel_size
        placed = in_class_frame(view, average, report["frame_angle"], shift, mask)
        found.append((report, ring_correlation(mask * average, placed)))
    return found


def summary(curves, n_views, box_size, pixel_size):
    """What the curves of a run's classes say together.

    resolution: where the mean curve of the populated classes falls below 0.5 [Å]; mean_frc: the mean over shells 1 to
    Nyquist of that curve, which also tells classes apart that reach Nyquist. by_view_*: the same over the views, each
    with its fullest class, and 0 for a view that no class shows: dropping a difficult view must not look like a gain.
    """
    if not curves:
        return {"classes": 0, "resolution": None, "mean_frc": None, "by_view_resolution": None, "by_view_mean_frc": 0.0}
    mean = np.mean([curve for _, curve in curves], axis=0)
    fullest = {}
    for report, curve in sorted(curves, key=lambda each: each[0]["size"] * each[0]["share"]):
        fullest[report["view"]] = curve
    by_view = np.sum(list(fullest.values()), axis=0) / n_views

    def finite(curve):
        value = resolution_at(curve, box_size, pixel_size)
        return round(float(value), 2) if np.isfinite(value) else None

    return {"classes": len(curves), "resolution": finite(mean), "mean_frc": round(float(mean[1:].mean()), 4),
            "by_view_resolution": finite(by_view), "by_view_mean_frc": round(float(by_view[1:].mean()), 4)}

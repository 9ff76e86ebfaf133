"""Micrographs before they are scanned: outliers, cropping in Fourier space, and background and contrast made even."""
import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter

OUTLIER = 6.0           # deviations beyond which a pixel is an outlier: dead pixels, X-rays
SAMPLED = 200_000       # pixels from which median and deviation are taken
NORMAL_MAD = 1.4826     # deviation of a normal distribution over its median absolute deviation
ROWS_AT_ONCE = 512
DEVIATION_SAMPLES = 16   # along the side of a square whose deviation is asked for
FLAT = 1e-3             # of the micrograph's deviation: a smaller local deviation is called empty and left alone


def clip_outliers(image):
    """float32[H, W] with pixels further than OUTLIER robust deviations from the median brought back to that limit.

    Median and median absolute deviation of about SAMPLED pixels on a grid; an image whose deviation is 0 is returned
    as it is.
    """
    step = max(1, int(np.sqrt(image.size / SAMPLED)))
    sample = image[::step, ::step].astype(np.float64)
    middle = np.median(sample)
    deviation = NORMAL_MAD * np.median(np.abs(sample - middle))
    if not deviation > 0:
        return np.asarray(image, dtype=np.float32)
    return np.clip(image, middle - OUTLIER * deviation, middle + OUTLIER * deviation, dtype=np.float32)


def fourier_crop(image, shape):
    """float32[h, w] with the frequencies of float32[H, W] that it can hold, h ≤ H, w ≤ W; the mean level stays.

    Rows are transformed first, and of them only the frequencies that are kept are transformed along the columns. Of
    an even side the highest frequency, which has no sign, is left out. ValueError for a larger shape.
    """
    (height, width), (rows, columns) = image.shape, shape
    if rows > height or columns > width:
        raise ValueError(f"cannot crop {height} × {width} px to {rows} × {columns} px")
    kept = (columns + 1) // 2
    half = np.empty((height, kept), dtype=np.complex64)
    for first in range(0, height, ROWS_AT_ONCE):
        part = np.asarray(image[first:first + ROWS_AT_ONCE], dtype=np.float32)
        half[first:first + ROWS_AT_ONCE] = fft.rfft(part, axis=1)[:, :kept]
    modes = fft.fft(half, axis=0, overwrite_x=True)
    positive, negative = (rows + 1) // 2, (rows - 1) // 2
    cropped = np.zeros((rows, columns // 2 + 1), dtype=np.complex64)
    cropped[:positive, :kept] = modes[:positive]
    cropped[rows - negative:, :kept] = modes[height - negative:]
    return fft.irfft2(cropped, shape) * np.float32(rows * columns / (height * width))


def reference_fourier_crop(image, shape):
    """NumPy twin of `fourier_crop`: the whole transform in double precision, cut around its centre."""
    modes = np.fft.fftshift(np.fft.fft2(image.astype(np.float64)))
    kept = [(n - 1) // 2 for n in shape]
    (y, x), (a, b) = (n // 2 for n in image.shape), kept
    inner = modes[y - a:y + a + 1, x - b:x + b + 1]
    cropped = np.zeros(shape, dtype=np.complex128)
    (y, x) = (n // 2 for n in shape)
    cropped[y - a:y + a + 1, x - b:x + b + 1] = inner
    return np.fft.ifft2(np.fft.ifftshift(cropped)).real * (np.prod(shape) / image.size)


def even_out(image, window):
    """(x − local mean) / local deviation over squares of `window` px, reflected at the edges: float32[H, W].

    A place whose deviation is below FLAT of the whole image's is empty and becomes 0.
    """
    # Rounding in the difference of two large sums is avoided by taking the overall level out first.
    level = np.asarray(image, dtype=np.float64)
    level = (level - level.mean()).astype(np.float32)
    mean = uniform_filter(level, window, mode="reflect")
    square = uniform_filter(np.square(level), window, mode="reflect") - np.square(mean)
    least = np.float32(FLAT * level.std(dtype=np.float64))
    deviation = np.sqrt(np.maximum(square, 0))
    empty = deviation <= least
    return np.where(empty, 0, (level - mean) / np.where(empty, 1, deviation)).astype(np.float32)


def reference_even_out(image, window):
    """NumPy twin of `even_out`, window by window."""
    before, after = window // 2, window - 1 - window // 2
    padded = np.pad(image.astype(np.float64), (before, after), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
    deviation = windows.std(axis=(2, 3))
    empty = deviation <= FLAT * image.std(dtype=np.float64)
    return np.where(empty, 0, (image - windows.mean(axis=(2, 3))) / np.where(empty, 1, deviation))


def deviation_ratios(image, places, side):
    """float64[n]: deviation of the grey values in a square of `side` [px] around places float[n, 2] (y, x), over the
    median of such deviations in the micrograph float32[H, W]; from a grid of about DEVIATION_SAMPLES by square.

    A flat place has a ratio near 0; an edge of carbon, ice or a contaminant one far above 1; a hot pixel, which is
    clipped first, none. NaN where all is flat.
    """
    step, window = _deviation_grid(side)
    sample = clip_outliers(image[::step, ::step]).astype(np.float64)
    sample -= sample.mean()
    variance = uniform_filter(np.square(sample), window) - np.square(uniform_filter(sample, window))
    deviation = np.sqrt(np.maximum(variance, 0))
    rows = np.minimum(np.rint(np.asarray(places).reshape(-1, 2) / step).astype(int), np.array(sample.shape) - 1)
    middle = np.median(deviation)
    return deviation[tuple(np.maximum(rows, 0).T)] / middle if middle > 0 else np.full(len(rows), np.nan)


def reference_deviation_ratios(image, places, side):
    """NumPy twin of `deviation_ratios`, window by window."""
    step, window = _deviation_grid(side)
    sample = clip_outliers(image[::step, ::step]).astype(np.float64)
    padded = np.pad(sample, (window // 2, window - 1 - window // 2), mode="symmetric")
    deviation = np.lib.stride_tricks.sliding_window_view(padded, (window, window)).std(axis=(2, 3))
    rows = [np.clip(np.rint(np.asarray(place) / step).astype(int), 0, np.array(sample.shape) - 1) for place in places]
    return np.array([deviation[tuple(row)] for row in rows]) / np.median(deviation)


def _deviation_grid(side):
    """(distance of the samples, side of the square in samples) for a square of `side` px."""
    step = max(1, int(side // DEVIATION_SAMPLES))
    return step, max(2, round(side / step))

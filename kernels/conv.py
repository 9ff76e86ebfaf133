"""Convolutions of a small network on a CPU: correlation, activation, mean pooling, normalisation, and their gradients.

    y[o, i, j] = b[o] + Σ_c Σ_u Σ_v w[o, c, u, v] x[c, i + u, j + v]          valid positions only

Three ways lead to it, and `plan_layer` takes the cheapest for a shape. Kernels of FIVE pixels a side run directly, two
maps and the five taps of a row at a time, which keeps both multiply-add units of a core busy. Others go through a
matrix product: the windows of some rows are gathered as columns that fit the L2 cache. Large ones go through Fourier
space. In the first two, bias, activation and pooling follow while some rows of the product are still in the cache, so
that no map is ever written at full resolution. Measured on one core (AMD EPYC, AVX2; products of large matrices run
at 83 GFLOP/s): 5 × 5 px, 8 to 16 maps, runs at 55 GFLOP/s directly, 22 through columns, 25 as plain loops; 7 × 7 px,
1 to 32 maps, at 38 through columns, 22 as plain loops; 21 × 21 px, 6 to 12 maps, takes 293 ms through columns and
15 ms in Fourier space for 400 × 400 px.

`y` is a correlation; a published "convolution" is the same network with its kernels turned by 180 degrees.
"""
import numba
import numpy as np
from scipy import fft

from vitrea.kernels.posterior import exp_line

FIVE = 5                    # px of the side that has a kernel of its own
# Measured costs [ns/px]: to gather a tap of a window, to multiply it once; to transform a map, to multiply its modes.
GATHER, MULTIPLY, TRANSFORM, MODES = 0.55, 0.04, 6.5, 0.8
COLUMN_BYTES = 512 * 1024   # of gathered windows at a time: the L2 cache of a core
LARGEST_EXPONENT = np.float32(80.0)
NORMALISE_EPSILON = 1e-5    # added to a variance, as everybody does (Ioffe & Szegedy 2015)
REASSOCIATE = {"reassoc", "contract", "nnan", "nsz"}


# ---- correlation through columns

@numba.njit(nogil=True, cache=True)
def gather_columns(maps, side, first_row, n_rows, columns):
    """Windows of output rows first_row … first_row + n_rows − 1 as columns.

    maps float32[C, H, W]; columns float32[C·side², ≥ n_rows·(W − side + 1)], overwritten: row (c, u, v) holds
    maps[c, i + u, j + v] for all output positions (i, j), j fastest.
    """
    width = maps.shape[2] - side + 1
    for c in range(maps.shape[0]):
        for u in range(side):
            for v in range(side):
                row = columns[(c * side + u) * side + v]
                for i in range(n_rows):
                    row[i * width:(i + 1) * width] = maps[c, first_row + i + u, v:v + width]


def reference_gather_columns(maps, side, first_row, n_rows, columns):
    """NumPy twin of `gather_columns`."""
    rows = maps[:, first_row:first_row + n_rows + side - 1]
    windows = np.lib.stride_tricks.sliding_window_view(rows, (side, side), axis=(1, 2))
    columns[:, :windows.shape[1] * windows.shape[2]] = windows.transpose(0, 3, 4, 1, 2).reshape(len(columns), -1)


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def correlate_five(maps, weights, first_row, n_rows, out):
    """Rows of a valid correlation with 5 × 5 px: out[o, i, j] = Σ_cuv w[o, c, u, v] maps[c, first_row + i + u, j + v].

    maps float32[C, H, W], weights float32[O, C, 5, 5], out float32[O, n_rows, W − 4], overwritten.
    """
    n, width = out.shape[0], out.shape[2]
    for i in range(n_rows):
        for o in range(0, n - 1, 2):
            one, two = out[o, i], out[o + 1, i]
            one[:] = 0
            two[:] = 0
            for c in range(maps.shape[0]):
                for u in range(5):
                    x, a, b = maps[c, first_row + i + u], weights[o, c, u], weights[o + 1, c, u]
                    a0, a1, a2, a3, a4 = a[0], a[1], a[2], a[3], a[4]
                    b0, b1, b2, b3, b4 = b[0], b[1], b[2], b[3], b[4]
                    for j in range(width):
                        x0, x1, x2, x3, x4 = x[j], x[j + 1], x[j + 2], x[j + 3], x[j + 4]
                        one[j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3 + a4 * x4
                        two[j] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3 + b4 * x4
        if n % 2:
            one = out[n - 1, i]
            one[:] = 0
            for c in range(maps.shape[0]):
                for u in range(5):
                    x, a = maps[c, first_row + i + u], weights[n - 1, c, u]
                    a0, a1, a2, a3, a4 = a[0], a[1], a[2], a[3], a[4]
                    for j in range(width):
                        one[j] += a0 * x[j] + a1 * x[j + 1] + a2 * x[j + 2] + a3 * x[j + 3] + a4 * x[j + 4]


def reference_correlate_five(maps, weights, first_row, n_rows, out):
    """NumPy twin of `correlate_five`."""
    rows = maps[:, first_row:first_row + n_rows + 4]
    windows = np.lib.stride_tricks.sliding_window_view(rows, (5, 5), axis=(1, 2))
    out[:] = np.einsum("cijuv,ocuv->oij", windows, weights, optimize=True)


@numba.njit(nogil=True, cache=True)
def scatter_columns(columns, side, first_row, n_rows, maps):
    """The adjoint of `gather_columns`: add each column back to where its window came from in maps float32[C, H, W]."""
    width = maps.shape[2] - side + 1
    for c in range(maps.shape[0]):
        for u in range(side):
            for v in range(side):
                row = columns[(c * side + u) * side + v]
                for i in range(n_rows):
                    target = maps[c, first_row + i + u]
                    for j in range(width):
                        target[v + j] += row[i * width + j]


def reference_scatter_columns(columns, side, first_row, n_rows, maps):
    """NumPy twin of `scatter_columns`."""
    width = maps.shape[2] - side + 1
    parts = columns[:, :n_rows * width].reshape(maps.shape[0], side, side, n_rows, width)
    for u in range(side):
        for v in range(side):
            maps[:, first_row + u:first_row + u + n_rows, v:v + width] += parts[:, u, v]


def correlate(images, weights, bias):
    """Valid correlation of a batch: images float[B, C, H, W], weights float[O, C, s, s], bias float[O].

    Returns [B, O, H − s + 1, W − s + 1] of the images' dtype. ValueError if a kernel is larger than the image.
    """
    side = weights.shape[-1]
    batch, _, height, width = images.shape
    if side > min(height, width):
        raise ValueError(f"a kernel of {side} px does not fit maps of {height} × {width} px")
    rows, columns = height - side + 1, width - side + 1
    out = np.empty((batch, len(weights), rows, columns), dtype=images.dtype)
    flat, matrix = out.reshape(batch, len(weights), -1), weights.reshape(len(weights), -1)
    for first, count, windows in _row_blocks(rows, columns, matrix.shape[1], images.dtype):
        for image, target in zip(images, flat):
            gather_columns(image, side, first, count, windows)
            np.matmul(matrix, windows, out=target[:, first * columns:(first + count) * columns])
    out += bias[:, None, None]
    return out


def correlate_gradient(images, weights, gradient, *, of_images=True):
    """Gradients of `correlate` for gradient [B, O, H', W'] of its result: (images or None, weights, bias)."""
    side = weights.shape[-1]
    rows, columns = gradient.shape[2:]
    matrix = weights.reshape(len(weights), -1)
    flat = np.ascontiguousarray(gradient).reshape(len(gradient), len(weights), -1)
    to_weights = np.zeros_like(matrix)
    to_images = np.zeros_like(images) if of_images else None
    for first, count, windows in _row_blocks(rows, columns, matrix.shape[1], images.dtype):
        for b, image in enumerate(images):
            part = flat[b, :, first * columns:(first + count) * columns]
            gather_columns(image, side, first, count, windows)
            to_weights += part @ windows.T
            if of_images:
                np.matmul(matrix.T, part, out=windows)
                scatter_columns(windows, side, first, count, to_images[b])
    return to_images, to_weights.reshape(weights.shape), gradient.sum(axis=(0, 2, 3))


def _row_blocks(rows, columns, taps, dtype, multiple=1):
    """(first, count, windows[taps, count·columns]) over all rows; a block's windows take about COLUMN_BYTES."""
    at_once = COLUMN_BYTES // (taps * columns * np.dtype(dtype).itemsize) // multiple * multiple
    at_once = min(max(at_once, multiple), rows)
    buffer = np.empty((taps, at_once * columns), dtype=dtype)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        yield first, count, buffer if count == at_once else np.empty((taps, count * columns), dtype=dtype)


def reference_correlate(images, weights, bias):
    """NumPy twin of `correlate`, in float64."""
    side = weights.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (side, side), axis=(2, 3))
    return np.einsum("bcijuv,ocuv->boij", windows, weights.astype(np.float64), optimize=True) + bias[:, None, None]


# ---- activation and pooling

@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def add_relu(maps, bias):
    """maps[c] = max(0, maps[c] + bias[c]), float[C, n] in place."""
    for c in range(maps.shape[0]):
        b, row = bias[c], maps[c]
        for j in range(row.size):
            value = row[j] + b
            row[j] = value if value > 0 else np.float32(0.0)


def reference_add_relu(maps, bias):
    """NumPy twin of `add_relu`."""
    maps[:] = np.maximum(maps + bias[:, None], 0)


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def add_sigmoid(maps, bias):
    """maps[c] = 1 / (1 + exp(−maps[c] − bias[c])), float32[C, n] in place."""
    length = 1024   # of a line that stays in the L1 cache
    negative, power = np.empty(length, dtype=np.float32), np.empty(length, dtype=np.float32)
    for c in range(maps.shape[0]):
        for first in range(0, maps.shape[1], length):
            row = maps[c, first:first + length]
            for j in range(row.size):
                negative[j] = min(-(row[j] + bias[c]), LARGEST_EXPONENT)
            exp_line(negative[:row.size], np.float32(0.0), power[:row.size])
            for j in range(row.size):
                row[j] = np.float32(1.0) / (np.float32(1.0) + power[j])


def reference_add_sigmoid(maps, bias):
    """NumPy twin of `add_sigmoid`."""
    maps[:] = 1.0 / (1.0 + np.exp(-np.minimum(np.maximum(maps + bias[:, None], -80.0), 80.0)))


def add_bias(maps, bias):
    """maps[c] += bias[c], float[C, n] in place: the activation of a layer without one."""
    maps += bias[:, None]


def activate(name, maps, bias):
    """Add bias[c] and activate float[C, n] in place; in double precision, for gradient checks, by NumPy."""
    twins = {"relu": reference_add_relu, "sigmoid": reference_add_sigmoid, "linear": add_bias}
    (ACTIVATIONS if maps.dtype == np.float32 else twins)[name](maps, bias)


ACTIVATIONS = {"relu": add_relu, "sigmoid": add_sigmoid, "linear": add_bias}


def activation_gradient(name, activated, gradient):
    """dL/d(before the activation), from what the activation gave and dL/d(that)."""
    if name == "relu":
        return gradient * (activated > 0)
    if name == "sigmoid":
        return gradient * activated * (1 - activated)
    return gradient


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def mean_pool(maps, size, out):
    """Means of squares of size × size px, side by side: maps float[C, H, W] → out float[C, H//size, W//size]."""
    scale = np.empty(1, dtype=maps.dtype)
    scale[0] = 1.0 / (size * size)
    for c in range(out.shape[0]):
        for i in range(out.shape[1]):
            row = out[c, i]
            row[:] = 0
            for u in range(size):
                source = maps[c, i * size + u]
                for v in range(size):
                    for j in range(row.size):
                        row[j] += source[j * size + v]
            for j in range(row.size):
                row[j] *= scale[0]


def reference_mean_pool(maps, size, out):
    """NumPy twin of `mean_pool`."""
    rows, columns = out.shape[1:]
    whole = maps[:, :rows * size, :columns * size].astype(np.float64)
    out[:] = whole.reshape(len(maps), rows, size, columns, size).mean(axis=(2, 4))


def pooled(maps, size):
    """`mean_pool` of a batch float[B, C, H, W] whose sides `size` divides."""
    if size == 1:
        return maps
    batch, n, height, width = maps.shape
    out = np.empty((batch, n, height // size, width // size), dtype=maps.dtype)
    mean_pool(maps.reshape(-1, height, width), size, out.reshape(-1, *out.shape[2:]))
    return out


def mean_pool_gradient(gradient, size):
    """The adjoint of `mean_pool` for gradient [..., h, w]: every pixel of a square gets its share."""
    return np.repeat(np.repeat(gradient, size, axis=-2), size, axis=-1) / gradient.dtype.type(size * size)


# ---- normalisation

def normalise(maps, gamma, beta):
    """γ (x − mean) / √(var + ε) + β by map, over batch and pixels (Ioffe & Szegedy 2015): maps float[B, C, H, W].

    Returns (normalised maps, what `normalise_gradient` needs, float64 mean[C], float64 variance[C]).
    """
    mean = maps.mean(axis=(0, 2, 3), dtype=np.float64)
    variance = np.square(maps - mean.astype(maps.dtype)[:, None, None]).mean(axis=(0, 2, 3), dtype=np.float64)
    inverse = (1.0 / np.sqrt(variance + NORMALISE_EPSILON)).astype(maps.dtype)
    standard = (maps - mean.astype(maps.dtype)[:, None, None]) * inverse[:, None, None]
    return standard * gamma[:, None, None] + beta[:, None, None], (standard, inverse), mean, variance


def normalise_gradient(kept, gamma, gradient):
    """Gradients of `normalise`: (maps, gamma, beta), for gradient [B, C, H, W] of its result and what it kept."""
    standard, inverse = kept
    n = gradient.size // gradient.shape[1]
    to_beta = gradient.sum(axis=(0, 2, 3), dtype=np.float64)
    to_gamma = (gradient * standard).sum(axis=(0, 2, 3), dtype=np.float64)
    centred = gradient - (to_beta / n).astype(gradient.dtype)[:, None, None]
    centred -= standard * (to_gamma / n).astype(gradient.dtype)[:, None, None]
    return centred * (gamma * inverse)[:, None, None], to_gamma.astype(gamma.dtype), to_beta.astype(gamma.dtype)


def fold_normalisation(weights, bias, gamma, beta, mean, variance):
    """(weights, bias) of the one correlation that does what a correlation and then fixed statistics do."""
    factor = gamma / np.sqrt(variance + NORMALISE_EPSILON)
    folded = weights * factor[:, None, None, None]
    return folded.astype(weights.dtype), ((bias - mean) * factor + beta).astype(bias.dtype)


# ---- layers planned for maps of one shape

class _RowLayer:
    """Correlation, activation and mean pooling of float32[C, H, W] for one shape of maps, some rows at a time.

    weights float32[O, C, s, s], bias float32[O]; pool divides both sides of the correlated map. `apply` returns a
    buffer of its own, float32[O, h, w], which the next call overwrites. product_flops and transform_flops are what a
    call must do at the least.
    """

    def __init__(self, weights, bias, activation, pool, shape):
        self.side, self.pool, self.bias = weights.shape[-1], pool, np.ascontiguousarray(bias, dtype=np.float32)
        self._weights = np.ascontiguousarray(weights, dtype=np.float32)
        self._activate = ACTIVATIONS[activation]
        self._rows, self._columns = _correlated_shape(shape, self.side, pool)
        at_once = COLUMN_BYTES // (4 * self._floats_a_pixel() * self._columns) // pool * pool
        self._at_once = min(max(at_once, pool), self._rows)
        self._product = np.empty(len(weights) * self._at_once * self._columns, dtype=np.float32)
        self.product_flops, self.transform_flops = 2.0 * weights.size * self._rows * self._columns, 0.0
        self.out = np.empty((len(weights), self._rows // pool, self._columns // pool), dtype=np.float32)

    def apply(self, maps):
        for first in range(0, self._rows, self._at_once):
            count = min(self._at_once, self._rows - first)
            product = self._product[:len(self.bias) * count * self._columns].reshape(len(self.bias), -1)
            rows = product.reshape(len(self.bias), count, self._columns)
            self._multiply(maps, first, count, rows)
            self._activate(product, self.bias)
            target = self.out[:, first // self.pool:(first + count) // self.pool]
            if self.pool > 1:
                mean_pool(rows, self.pool, target)
            else:
                target[:] = rows
        return self.out


class ColumnLayer(_RowLayer):
    """Through columns and a matrix product."""

    def __init__(self, weights, bias, activation, pool, shape):
        super().__init__(weights, bias, activation, pool, shape)
        self._matrix = self._weights.reshape(len(weights), -1)
        self._windows = np.empty(self._matrix.shape[1] * self._at_once * self._columns, dtype=np.float32)

    def _floats_a_pixel(self):
        return self._weights[0].size

    def _multiply(self, maps, first, count, rows):
        taps = self._matrix.shape[1]
        windows = self._windows[:taps * count * self._columns].reshape(taps, -1)
        gather_columns(maps, self.side, first, count, windows)
        np.matmul(self._matrix, windows, out=rows.reshape(len(rows), -1))


class FiveLayer(_RowLayer):
    """Directly, for kernels of 5 × 5 px."""

    def _floats_a_pixel(self):
        return 2 * len(self._weights)

    def _multiply(self, maps, first, count, rows):
        correlate_five(maps, self._weights, first, count, rows)


class FourierLayer:
    """As the others, through Fourier space: for large kernels."""

    def __init__(self, weights, bias, activation, pool, shape):
        self.pool, self.bias = pool, np.ascontiguousarray(bias, dtype=np.float32)
        self._activate = ACTIVATIONS[activation]
        self._rows, self._columns = _correlated_shape(shape, weights.shape[-1], pool)
        self._box = tuple(fft.next_fast_len(n, real=True) for n in shape)
        self._weights = np.conj(fft.rfft2(weights.astype(np.float32), self._box))
        self._sum = np.empty(self._weights.shape[2:], dtype=np.complex64)
        n_out, n_in = weights.shape[:2]
        pixels = self._box[0] * self._box[1]
        self.product_flops = 8.0 * self._weights.size
        self.transform_flops = (n_in + n_out) * 2.5 * pixels * np.log2(pixels)
        self.out = np.empty((len(weights), self._rows // pool, self._columns // pool), dtype=np.float32)

    def apply(self, maps):
        modes = fft.rfft2(maps, self._box)
        for o, weights in enumerate(self._weights):
            multiply_modes(modes, weights, self._sum)
            whole = fft.irfft2(self._sum, self._box)[:self._rows, :self._columns]
            line = np.ascontiguousarray(whole).reshape(1, -1)
            self._activate(line, self.bias[o:o + 1])
            rows = line.reshape(1, self._rows, self._columns)
            if self.pool > 1:
                mean_pool(rows, self.pool, self.out[o:o + 1])
            else:
                self.out[o] = rows[0]
        return self.out


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def multiply_modes(modes, weights, out):
    """out = Σ_c modes[c] · weights[c]: complex64[C, h, w] twice → complex64[h, w]."""
    for i in range(out.shape[0]):
        row = out[i]
        row[:] = 0
        for c in range(modes.shape[0]):
            a, b = modes[c, i], weights[c, i]
            for j in range(row.size):
                row[j] += a[j] * b[j]


def reference_multiply_modes(modes, weights, out):
    """NumPy twin of `multiply_modes`."""
    out[:] = (modes * weights).sum(axis=0)


def plan_layer(weights, bias, activation, pool, shape):
    """The cheapest layer for maps of `shape` (height, width), by a formula, so that equal shapes give equal bits."""
    n_out, n_in, side, _ = weights.shape
    columns = side**2 * n_in * (GATHER + MULTIPLY * n_out)
    fourier = TRANSFORM * (n_in + n_out) + MODES * n_in * n_out
    kind = FiveLayer if side == FIVE else ColumnLayer if columns < fourier else FourierLayer
    return kind(weights, bias, activation, pool, shape)


def _correlated_shape(shape, side, pool):
    rows, columns = shape[0] - side + 1, shape[1] - side + 1
    if rows < 1 or columns < 1 or rows % pool or columns % pool:
        raise ValueError(f"maps of {rows} × {columns} px after a kernel of {side} px; expected at least 1 px, and a "
                         f"multiple of the pool's {pool} px")
    return rows, columns

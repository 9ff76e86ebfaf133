"""Langevin steps of stochastic gradient descent in a landscape of two valleys, and the random numbers they take.

The landscape is that of Yang et al. 2026 (arXiv:2601.10962v2, "Noise-driven exploration and transient freezing select
flat minima in SGD"). Along y, the progress of training, the loss falls; x > 0 is a flat valley and x < 0 a sharp one:

    L(x, y) = L_d exp(-y/y_d) + |x| (|x| - g_i) / f_i + constant
    g_i(y)  = 2 x_i y / (y + y_b)                        the minimum is at |x| = g_i / 2
    f_i(y)  = f0 (x_i/x0)² (y + y_f)² / (y + y_b)²        H_xx = 2 / f_i

A step is θ' = θ - η (∇L + ξ) with ξ ~ N(0, 2 σ H^p). By Itô's rule, which is SGD's, H is taken where the step begins;
by the anti-Itô rule where it would end.

Random numbers are counted, not drawn from a state: Philox4x32-10 (Salmon et al. 2011, SC'11) of the key `seed` and the
counter (step, purpose, trajectory, cell) gives 128 bits, and these a pair of Gaussian numbers by Box and Muller (1958),
exact but for 52-bit uniforms (numbers beyond 8.5 standard deviations, one in 10^17, do not occur). So a trajectory has
the same noise on whatever rank and beside whatever others it is computed.

Loops are over steps outside and trajectories inside: LLVM turns the inner one into AVX instructions, four trajectories
at a time. It does so only if everything is inlined, nothing branches and nothing is looked up, which is why logarithm,
exponential, sine and cosine are polynomials here (each good to a few units in the last place). All operations are of
IEEE arithmetic, none are contracted, so a trajectory in a vector has the bits of one alone.
"""
import math

import numpy as np
from numba import njit

BLOCK = 256   # trajectories whose state stays in the L1 cache over all steps of a call
ROUNDS = 10   # of Philox
X, Y, CROSSED, CROSSED_Y = range(4)   # rows of the state of trajectories
MODEL = ("x_flat", "x_sharp", "curvature_flat", "curvature_sharp", "y_f", "y_b", "per_y_d", "loss_height",
         "learning_rate", "noise_strength", "noise_power")
IN_FLAT, SUM_FLAT, SQUARE_FLAT, SUM_SHARP, SQUARE_SHARP, PASSED = range(1, 7)   # rows of the state at frozen y, after X
FROZEN = ("minimum_flat", "minimum_sharp", "pull_flat", "pull_sharp", "noise_flat", "noise_sharp", "place", "target")
DRIFTING_NOISE, FROZEN_NOISE = np.uint64(0), np.uint64(1)   # second word of the counter

_M0, _M1, _W0, _W1 = map(np.uint64, (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))   # Philox's constants
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ONE, _MANTISSA, _INTEGER = map(np.uint64, (0x3FF0000000000000, 0xFFFFFFFFFFFFF, 0x4330000000000000))
_NONE, _BIT_0, _BIT_1, _BIT_2 = map(np.uint64, (0, 1, 2, 4))
_12, _20, _52, _61, _62 = map(np.uint64, (12, 20, 52, 61, 62))
_TWO_52, _ROUND = 2.0**52, 1.5 * 2.0**52
_LN2, _LN2_HIGH, _LN2_LOW = math.log(2.0), 6.93147180369123816490e-01, 1.90821492927058770002e-10
_PER_LN2 = 1 / _LN2
_EIGHTH = math.pi / 4
_SQRT2 = math.sqrt(2.0)

_inlined = njit(forceinline=True, error_model="numpy")
_compiled = njit(cache=True, error_model="numpy")


# ---- steps

@_compiled
def advance(state, streams, scales, model, key):
    """Steps of SGD with noise along the Hessian's diagonal, by Itô's rule: the fast path.

    state   float64[4, n]   overwritten: x, y, the number of the step that last changed the sign of x (0: none), y there
    streams uint64[n]       number of each trajectory, the third word of the counter; below 2^32
    scales  float64[steps]  what the noise's variance is multiplied by, of each step
    model   float64[11]     MODEL; the curvatures are (x0/x_i)²/f0, so that 1/f_i = curvature (y + y_b)²/(y + y_f)²;
                            per_y_d is 1/y_d; noise_power p is 0, 1 or 2
    key     uint64[4]       seed (low and high 32 bits), cell, number of steps made before
    """
    values = _values(model)
    k0, k1, cell = key[0], key[1], key[2]
    for begin in range(0, len(streams), BLOCK):
        xs, ys, crossings, crossing_ys, block = _rows(state, streams, begin)
        for step in range(len(scales)):
            variance, counter = 2.0 * model[9] * scales[step], key[3] + np.uint64(step)
            number = np.float64(counter) + 1.0
            for i in range(len(block)):
                x, y, crossing, crossing_y = xs[i], ys[i], crossings[i], crossing_ys[i]
                a, b = _normals(counter, DRIFTING_NOISE, block[i], cell, k0, k1)
                l_x, l_y, h_xx, _, h_yy = _derivatives(x, y, values)
                along_x, along_y = _deviations(h_xx, h_yy, variance, values)
                after, there = x - values[8] * (l_x + along_x * a), y - values[8] * (l_y + along_y * b)
                crossed = (after >= 0.0) != (x >= 0.0)
                crossings[i] = number if crossed else crossing
                crossing_ys[i] = there if crossed else crossing_y
                xs[i], ys[i] = after, there


@_compiled
def advance_general(state, streams, scales, model, key, choice):
    """As `advance`, with a choice float64[2] of (cross, place).

    cross 1: noise from the whole Hessian, its negative eigenvalues cut to 0; 0: from its diagonal. place: where in the
    step the noise is evaluated, 0 at its beginning (Itô), 1 where it would end with the noise of the beginning, which
    is the anti-Itô rule as the steps get small.
    """
    values = _values(model)
    k0, k1, cell = key[0], key[1], key[2]
    cross, place = choice[0], choice[1]
    for begin in range(0, len(streams), BLOCK):
        xs, ys, crossings, crossing_ys, block = _rows(state, streams, begin)
        for step in range(len(scales)):
            variance, counter = 2.0 * model[9] * scales[step], key[3] + np.uint64(step)
            number = np.float64(counter) + 1.0
            for i in range(len(block)):
                x, y, crossing, crossing_y = xs[i], ys[i], crossings[i], crossing_ys[i]
                a, b = _normals(counter, DRIFTING_NOISE, block[i], cell, k0, k1)
                l_x, l_y, h_xx, h_xy, h_yy = _derivatives(x, y, values)
                noise_x, noise_y = _correlated((h_xx, cross * h_xy, h_yy), variance, values[10], a, b)
                x_place = x - place * values[8] * (l_x + noise_x)
                y_place = y - place * values[8] * (l_y + noise_y)
                _, _, h_xx, h_xy, h_yy = _derivatives(x_place, y_place, values)
                noise_x, noise_y = _correlated((h_xx, cross * h_xy, h_yy), variance, values[10], a, b)
                after, there = x - values[8] * (l_x + noise_x), y - values[8] * (l_y + noise_y)
                crossed = (after >= 0.0) != (x >= 0.0)
                crossings[i] = number if crossed else crossing
                crossing_ys[i] = there if crossed else crossing_y
                xs[i], ys[i] = after, there


@_compiled
def advance_frozen(state, streams, steps, model, key):
    """Steps at a frozen y: x moves between two half parabolas. An even number of `steps` is made, at least as many.

    state   float64[7, n]  overwritten: x, and over all steps the number of those that end in the flat valley, the sums
                           of x and of x² over these, the same two sums over those in the sharp valley, and the number
                           of the step that first came to the target or beyond (0: none)
    streams uint64[n]      number of each trajectory
    model   float64[8]     FROZEN: where the minima are (|x|); η H_xx, what a step takes of the distance to them; the
                           deviation of a step's noise, η√(2 σ H_xx^p); place, as in `advance_general`; the target (x)
    key     uint64[4]      seed (low and high 32 bits), cell, number of steps made before, an even one
    """
    values = (model[0], model[1], model[2], model[3], model[4], model[5], model[6])
    k0, k1, cell, target = key[0], key[1], key[2], model[7]
    towards = 1.0 if target >= 0.0 else -1.0
    for begin in range(0, len(streams), BLOCK):
        end = begin + BLOCK
        rows = (state[0, begin:end], state[1, begin:end], state[2, begin:end], state[3, begin:end],
                state[4, begin:end], state[5, begin:end], state[6, begin:end])
        block = streams[begin:end]
        for pair in range((steps + 1) // 2):
            counter = (key[3] >> _BIT_0) + np.uint64(pair)
            number = 2.0 * np.float64(counter)
            for i in range(len(block)):
                was = (rows[0][i], rows[1][i], rows[2][i], rows[3][i], rows[4][i], rows[5][i], rows[6][i])
                a, b = _normals(counter, FROZEN_NOISE, block[i], cell, k0, k1)
                once = _frozen_step(was, a, values, towards, target, number + 1.0)
                now = _frozen_step(once, b, values, towards, target, number + 2.0)
                rows[0][i], rows[1][i], rows[2][i], rows[3][i] = now[0], now[1], now[2], now[3]
                rows[4][i], rows[5][i], rows[6][i] = now[4], now[5], now[6]


@_inlined
def _frozen_step(was, a, values, towards, target, number):
    x = was[0]
    flat = x >= 0.0
    minimum = values[0] if flat else -values[1]
    pull = values[2] if flat else values[3]
    trial = x - pull * (x - minimum) + (values[4] if flat else values[5]) * a
    there = x + values[6] * (trial - x)
    x = x - pull * (x - minimum) + (values[4] if there >= 0.0 else values[5]) * a
    in_flat = 1.0 if x >= 0.0 else 0.0
    first = (towards * (x - target) >= 0.0) & (was[6] == 0.0)
    part = in_flat * x
    return (x, was[1] + in_flat, was[2] + part, was[3] + part * x, was[4] + (x - part), was[5] + (x - part) * x,
            number if first else was[6])


@_inlined
def _values(model):
    return (model[0], model[1], model[2], model[3], model[4], model[5], model[6], model[7], model[8], model[9],
            model[10])


@_inlined
def _rows(state, streams, begin):
    end = begin + BLOCK   # a loop from 0 over slices: LLVM must see that no index is negative
    return state[X, begin:end], state[Y, begin:end], state[CROSSED, begin:end], state[CROSSED_Y, begin:end], \
        streams[begin:end]


@_inlined
def _deviations(h_xx, h_yy, variance, values):
    """Standard deviations of ξ along x and y."""
    power = values[10]
    return math.sqrt(variance * _power(h_xx, power)), math.sqrt(variance * _power(max(h_yy, 0.0), power))


@_inlined
def _power(value, power):
    return 1.0 if power == 0.0 else value if power == 1.0 else value * value


@_inlined
def _correlated(hessian, variance, power, a, b):
    """ξ with the covariance `variance` H^p, negative eigenvalues of H cut to 0: Cholesky's factor, times (a, b)."""
    h_xx, h_xy, h_yy = hessian
    half, mean = 0.5 * (h_xx - h_yy), 0.5 * (h_xx + h_yy)
    radius = math.sqrt(half * half + h_xy * h_xy) + 1e-300
    large = mean + radius                                      # above 0, since H_xx is
    small = max((h_xx * h_yy - h_xy * h_xy) / large, 0.0)
    large, small = _power(large, power), _power(small, power)
    turn = 0.5 * (large - small) / radius
    first = math.sqrt(0.5 * (large + small) + turn * half)
    second, third = turn * h_xy / first, math.sqrt(large * small) / first
    scale = math.sqrt(variance)
    return scale * (first * a), scale * (second * a + third * b)


@_inlined
def _derivatives(x, y, model):
    """(L_x, L_y, H_xx, H_xy, H_yy)."""
    flat = x >= 0.0
    x_i = model[0] if flat else model[1]
    curvature = model[2] if flat else model[3]
    sign = 1.0 if flat else -1.0
    y_f, y_b, per_y_d, height = model[4], model[5], model[6], model[7]
    a, b = y + y_b, y + y_f
    both = 1.0 / (a * b)
    per_a, per_b = b * both, a * both
    ratio = a * per_b
    h = curvature * ratio * ratio                      # 1/f, and its derivatives along y
    h_y = 2.0 * h * (per_a - per_b)
    h_yy = h_y * (per_a - 3.0 * per_b)
    g = 2.0 * x_i * y * per_a                          # g, and its derivatives along y
    g_y = 2.0 * x_i * y_b * per_a * per_a
    g_yy = -2.0 * g_y * per_a
    u = x * sign
    fall = height * per_y_d * _exp(-y * per_y_d)
    l_x = sign * (2.0 * u - g) * h
    l_y = -fall + u * ((u - g) * h_y - g_y * h)
    h_xy = sign * ((2.0 * u - g) * h_y - g_y * h)
    hessian_yy = fall * per_y_d + u * ((u - g) * h_yy - 2.0 * g_y * h_y - g_yy * h)
    return l_x, l_y, 2.0 * h, h_xy, hessian_yy


# ---- random numbers

@_inlined
def _normals(counter, purpose, stream, cell, k0, k1):
    w0, w1, w2, w3 = _philox(counter, purpose, stream, cell, k0, k1)
    return _box_muller(w0, w1, w2, w3)


@_inlined
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four words of 32 bits, of a counter and a key, each word in a uint64."""
    for _ in range(ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0 = (p1 >> _HALF) ^ c1 ^ k0
        c2 = (p0 >> _HALF) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@_inlined
def _box_muller(w0, w1, w2, w3):
    """Two Gaussian numbers: a radius of 52 bits, an angle within an eighth of the circle of 52, and the eighth of 3."""
    u = 2.0 - _as_float((w0 << _20) | (w1 >> _12) | _ONE)
    angle = _EIGHTH * (_as_float((w2 << _20) | (w3 >> _12) | _ONE) - 1.0)
    radius = math.sqrt(-2.0 * _log(u))
    sine, cosine = _sin_cos(angle)
    swap = (w3 & _BIT_0) != _NONE
    a, b = (sine, cosine) if swap else (cosine, sine)
    return _signed(radius * a, (w3 & _BIT_1) << _62), _signed(radius * b, (w3 & _BIT_2) << _61)


@_inlined
def _as_float(bits):
    return np.uint64(bits).view(np.float64)


@_inlined
def _as_bits(value):
    return np.float64(value).view(np.uint64)


@_inlined
def _signed(value, sign):
    return _as_float(_as_bits(value) ^ sign)


@_inlined
def _log(u):
    """ln u for 0 < u ≤ 1: exponent, and 2 artanh((m - 1)/(m + 1)) of the mantissa."""
    bits = _as_bits(u)
    exponent = _as_float((bits >> _52) | _INTEGER) - (_TWO_52 + 1023.0)
    m = _as_float((bits & _MANTISSA) | _ONE)
    above = m > _SQRT2
    m = 0.5 * m if above else m
    exponent = exponent + 1.0 if above else exponent
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    tail = 1 / 13 + z * (1 / 15 + z * (1 / 17 + z * (1 / 19)))
    tail = 1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z * tail))))
    return exponent * _LN2 + 2.0 * s * (1.0 + z * tail)


@_inlined
def _sin_cos(angle):
    """Sine and cosine of 0 ≤ angle ≤ π/4, by Taylor's series."""
    z = angle * angle
    sine = 1 / 362880 - z * (1 / 39916800 - z * (1 / 6227020800 - z * (1 / 1307674368000)))
    sine = 1.0 - z * (1 / 6 - z * (1 / 120 - z * (1 / 5040 - z * sine)))
    cosine = 1 / 40320 - z * (1 / 3628800 - z * (1 / 479001600 - z * (1 / 87178291200 - z * (1 / 20922789888000))))
    cosine = 1.0 - z * (1 / 2 - z * (1 / 24 - z * (1 / 720 - z * cosine)))
    return angle * sine, cosine


@_inlined
def _exp(value):
    """e^value for |value| < 700: 2^n by its bits, times Taylor's series."""
    shifted = value * _PER_LN2 + _ROUND
    n = shifted - _ROUND
    r = (value - n * _LN2_HIGH) - n * _LN2_LOW
    series = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800 + r / 479001600))))
    series = 1.0 + r * (1.0 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * series))))))
    return series * _as_float((_as_bits(shifted) << _52) + _ONE)


# ---- the same in NumPy

def reference_normals(counters, purpose, streams, key):
    """Pairs of Gaussian numbers float64[2, ...] of `counters` and `streams`, whole numbers of shapes that broadcast.

    purpose is DRIFTING_NOISE or FROZEN_NOISE; key uint64[4] as in `advance`, its last word not used.
    """
    words = reference_philox(np.broadcast_arrays(*(np.asarray(each, dtype=np.uint64)
                                                   for each in (counters, purpose, streams, key[2]))), key[:2])
    w0, w1, w2, w3 = words.astype(np.int64)
    radius = np.sqrt(-2.0 * np.log(1.0 - ((w0 << 20) | (w1 >> 12)) * 2.0**-52))
    angle = 0.25 * np.pi * ((w2 << 20) | (w3 >> 12)) * 2.0**-52
    sine, cosine = radius * np.sin(angle), radius * np.cos(angle)
    swap = (w3 & 1) == 1
    return np.stack([np.where(w3 & 2, -1.0, 1.0) * np.where(swap, sine, cosine),
                     np.where(w3 & 4, -1.0, 1.0) * np.where(swap, cosine, sine)])


def reference_philox(counter, key):
    """Philox4x32-10: uint64[4, ...], words of 32 bits, of a counter of four and a key of two words (Salmon et al.
    2011, figure 2 and table 2)."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack([c0, c1, c2, c3])


def reference_derivatives(x, y, model):
    """(L_x, L_y, H_xx, H_xy, H_yy) float64[...] at points x, y float64[...]; model as in `advance`."""
    x_flat, x_sharp, c_flat, c_sharp, y_f, y_b, per_y_d, height = model[:8]
    x_i, sign = np.where(x >= 0, x_flat, x_sharp), np.where(x >= 0, 1.0, -1.0)
    u, a, b = np.abs(x), y + y_b, y + y_f
    h = np.where(x >= 0, c_flat, c_sharp) * (a / b) ** 2
    h_y = h * (2 / a - 2 / b)
    h_yy = h * ((2 / a - 2 / b) ** 2 + 2 / b**2 - 2 / a**2)
    g, g_y, g_yy = 2 * x_i * y / a, 2 * x_i * y_b / a**2, -4 * x_i * y_b / a**3
    fall = height * per_y_d * np.exp(-y * per_y_d)
    return (sign * (2 * u - g) * h, -fall + u * (u - g) * h_y - u * g_y * h, 2 * h,
            sign * ((2 * u - g) * h_y - g_y * h),
            fall * per_y_d + u * (u - g) * h_yy - 2 * u * g_y * h_y - u * g_yy * h)


def reference_advance(state, streams, scales, model, key, choice=(0.0, 0.0)):
    """As `advance` and `advance_general`; NumPy, with numpy.linalg.eigh."""
    eta, strength, power = model[8:11]
    for step, scale in enumerate(scales):
        normals = reference_normals(int(key[3]) + step, DRIFTING_NOISE, streams, key)
        x, y = state[X].copy(), state[Y].copy()
        l_x, l_y, *hessian = reference_derivatives(x, y, model)
        noise = _reference_noise(hessian, choice[0], power, 2 * strength * scale, normals)
        if choice[1]:
            trial = (x - choice[1] * eta * (l_x + noise[0]), y - choice[1] * eta * (l_y + noise[1]))
            noise = _reference_noise(reference_derivatives(*trial, model)[2:], choice[0], power, 2 * strength * scale,
                                     normals)
        state[X], state[Y] = x - eta * (l_x + noise[0]), y - eta * (l_y + noise[1])
        crossed = (state[X] >= 0) != (x >= 0)
        state[CROSSED][crossed] = float(key[3]) + step + 1
        state[CROSSED_Y][crossed] = state[Y][crossed]


def _reference_noise(hessian, cross, power, variance, normals):
    h_xx, h_xy, h_yy = hessian
    matrices = np.stack([np.stack([h_xx, cross * h_xy], -1), np.stack([cross * h_xy, h_yy], -1)], -1)
    values, vectors = np.linalg.eigh(matrices)
    values = variance * np.maximum(values, 0) ** power
    covariance = np.einsum("nij,nj,nkj->nik", vectors, values, vectors)
    first = np.sqrt(covariance[:, 0, 0])
    second, third = covariance[:, 1, 0] / first, np.sqrt(values.prod(axis=1)) / first
    return first * normals[0], second * normals[0] + third * normals[1]


def reference_advance_frozen(state, streams, steps, model, key):
    """As `advance_frozen`."""
    minimum, pull, noise = (np.array(model[i:i + 2]) for i in (0, 2, 4))
    for step in range(2 * ((steps + 1) // 2)):
        normal = reference_normals((int(key[3]) + step) // 2, FROZEN_NOISE, streams, key)[step % 2]
        x = state[0].copy()
        side = (x < 0).astype(int)
        drift = -pull[side] * (x - np.where(side, -minimum[1], minimum[0]))
        trial = x + drift + noise[side] * normal
        x = x + drift + noise[((x + model[6] * (trial - x)) < 0).astype(int)] * normal
        flat, target = x >= 0, model[7]
        state[0] = x
        state[1:6] += [flat, flat * x, flat * x**2, ~flat * x, ~flat * x**2]
        first = ((x >= target) if target >= 0 else (x <= target)) & (state[6] == 0)
        state[6][first] = float(key[3]) + step + 1

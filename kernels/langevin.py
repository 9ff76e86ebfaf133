"""Langevin steps of stochastic gradient descent in a landscape of two valleys, and the random numbers they take.

The landscape is that of Yang et al. 2026 (arXiv:2601.10962v2, "Noise-driven exploration and transient freezing select
flat minima in SGD"). Along y, the progress of training, the loss falls; x > 0 is a flat valley and x < 0 a sharp one:

    L(x, y) = L_d exp(-y/y_d) + |x| (|x| - g_i) / f_i + constant
    g_i(y)  = 2 x_i y / (y + y_b)                        the minimum is at |x| = g_i / 2
    f_i(y)  = f0 (x_i/x0)² (y + y_f)² / (y + y_b)²        H_xx = 2 / f_i

A step is θ' = θ - η (∇L + ξ) with ξ ~ N(0, 2 σ H^p). By Itô's rule, which is SGD's, H is taken where the step begins;
by the anti-Itô rule where it would end.

Random numbers are counted, not drawn from a state: Philox4x32-10 (Salmon et al. 2011, SC'11) of the key `seed` and the
counter (step, 0, trajectory, cell) gives 128 bits, and these a pair of Gaussian numbers by Box and Muller (1958), exact
but for 52-bit uniforms (numbers beyond 8.5 standard deviations, one in 10^17, do not occur). So a trajectory has the
same noise on whatever rank and beside whatever others it is computed.

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
X, Y, CROSSED, CROSSED_Y = range(4)   # rows of `state`
MODEL = ("x_flat", "x_sharp", "curvature_flat", "curvature_sharp", "y_f", "y_b", "per_y_d", "loss_height",
         "learning_rate", "noise_strength", "noise_power")

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
    """Steps of SGD with noise along the Hessian's diagonal, by Itô's rule.

    state   float64[4, n]   overwritten: x, y, the number of the step that last changed the sign of x (0: none), y there
    streams uint64[n]       number of each trajectory, the third word of the counter
    scales  float64[steps]  what the noise's variance is multiplied by, of each step
    model   float64[11]     MODEL; the curvatures are (x0/x_i)²/f0, so that 1/f_i = curvature (y + y_b)²/(y + y_f)²;
                            per_y_d is 1/y_d
    key     uint64[4]       seed (low and high 32 bits), cell, number of steps made before
    """
    values = _values(model)
    k0, k1, cell = key[0], key[1], key[2]
    for begin in range(0, len(streams), BLOCK):
        xs, ys, crossings, crossing_ys, block = _rows(state, streams, begin)
        for step in range(len(scales)):
            scale, counter = scales[step], key[3] + np.uint64(step)
            number = np.float64(counter) + 1.0
            for i in range(len(block)):
                x, y, crossing, crossing_y = xs[i], ys[i], crossings[i], crossing_ys[i]
                a, b = _normals(counter, block[i], cell, k0, k1)
                force_x, force_y, along_x, along_y = _diagonal(x, y, values, scale)
                after = x - force_x + along_x * a
                there = y - force_y + along_y * b
                crossed = (after >= 0.0) != (x >= 0.0)
                crossings[i] = number if crossed else crossing
                crossing_ys[i] = there if crossed else crossing_y
                xs[i], ys[i] = after, there


@_inlined
def _rows(state, streams, begin):
    end = begin + BLOCK   # a loop from 0 over slices: LLVM must see that no index is negative
    return state[X, begin:end], state[Y, begin:end], state[CROSSED, begin:end], state[CROSSED_Y, begin:end], \
        streams[begin:end]


@_inlined
def _values(model):
    return (model[0], model[1], model[2], model[3], model[4], model[5], model[6], model[7], model[8], model[9],
            model[10])


@_inlined
def _diagonal(x, y, model, scale):
    """(η L_x, η L_y, standard deviations of the step's noise along x and y)."""
    l_x, l_y, h_xx, _, h_yy = _derivatives(x, y, model)
    eta, variance, power = model[8], 2.0 * model[9] * scale, model[10]
    return eta * l_x, eta * l_y, eta * math.sqrt(variance * _power(h_xx, power)), \
        eta * math.sqrt(variance * _power(max(h_yy, 0.0), power))


@_inlined
def _power(value, power):
    return 1.0 if power == 0.0 else value if power == 1.0 else value * value


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
def _normals(counter, stream, cell, k0, k1):
    w0, w1, w2, w3 = _philox(counter, _NONE, stream, cell, k0, k1)
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

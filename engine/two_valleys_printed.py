"""Formulas of the two-valley model as the paper prints them (Yang et al. 2026, arXiv:2601.10962v2), for comparison.

Every function says what it is that differs, if something does, from the formulas of two_valleys.py. The paper's own
simulations are of the Itô process and agree with ours; its qualitative conclusions do not depend on these factors.
"""
import numpy as np
from scipy.special import dawsn

from vitrea.engine.two_valleys import FLAT, LARGEST_EXPONENT, SHARP, Landscape, separation


def printed_kramers_time(landscape: Landscape, y, delta) -> np.ndarray:
    """float64[..., 2]: τ = (π/2) f_i erfi(√(ΔL f_i/2Δ)), as the time of escape from (flat, sharp).

    It is the mean time until the ridge is touched. A trajectory on the ridge goes to either side, so that from valley
    to valley it takes longer: by (z₊+z₋)/z₊ from the sharp and (z₊+z₋)/z₋ from the flat one where z is large.
    """
    z = separation(landscape, y, delta)
    exponent = np.minimum(z**2, LARGEST_EXPONENT)
    return np.pi / 2 * landscape.widths(y) * np.exp(exponent) * 2 / np.sqrt(np.pi) * dawsn(z)


def printed_occupancy(landscape: Landscape, y, delta) -> np.ndarray:
    """float64[...]: [1 + γ⁻¹ erfi(z₋)/erfi(z₊)]⁻¹, the quasi-steady fraction in the flat valley.

    It is the ratio of the rates of touching the ridge. It is near the stationary one, but does not become it for small
    steps: at Δ = 1e-3 and y = 4 it is lower by 0.035.
    """
    z = separation(landscape, y, delta)
    ratio = np.exp(np.clip(z[..., SHARP] ** 2 - z[..., FLAT] ** 2, -LARGEST_EXPONENT, LARGEST_EXPONENT))
    ratio = ratio * dawsn(z[..., SHARP]) / dawsn(z[..., FLAT])
    return 1 / (1 + ratio / landscape.gamma)


def printed_occupancy_asymptotic(landscape: Landscape, y, delta) -> np.ndarray:
    """float64[...]: [1 + γ^{-1/2} e^{ΔL(f₋-f₊)/2Δ}]⁻¹, where z is large.

    The power of γ is that of the Stratonovich rule; Itô's is γ⁻¹, anti-Itô's γ⁰.
    """
    exponent = landscape.barrier(y) * np.diff(landscape.widths(y))[..., 0] / (2 * np.asarray(delta))
    return 1 / (1 + landscape.gamma**-0.5 * np.exp(np.clip(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT)))


def printed_equilibrium(landscape: Landscape) -> float:
    """γ/(1+γ), called the equilibrium. Isotropic noise gives √γ/(1+√γ); γ/(1+γ) is Itô's limit at y → 0."""
    return landscape.gamma / (1 + landscape.gamma)


def printed_speed(landscape: Landscape) -> float:
    """Φ = 2(x_1²-x_2²)/(27 y_b) · (L_d/y_d + 8/(27 y_f)), the drive that hopping loses against."""
    difference = landscape.flat_minimum**2 - landscape.sharp_minimum**2
    drive = landscape.loss_height / landscape.y_d + 8 / (27 * landscape.y_f)
    return 2 * difference / (27 * landscape.y_b) * drive


def printed_freezing_y(landscape: Landscape, delta, epsilon: float) -> np.ndarray:
    """float64[...]: y_freeze = y_b √u/(x_2-√u) with u = Δ ln(Δ/(ε²Φ²)); NaN where it has no solution.

    ε is free; the plotted curve of the paper's repository amounts to ε = 30, which is no small number.
    """
    delta = np.asarray(delta, dtype=np.float64)
    root = np.sqrt(np.maximum(delta * np.log(delta / (epsilon * printed_speed(landscape)) ** 2), 0))
    with np.errstate(divide="ignore"):
        found = landscape.y_b * root / (landscape.sharp_minimum - root)
    return np.where((root > 0) & (root < landscape.sharp_minimum), found, np.nan)


def printed_transient_occupancy(landscape: Landscape, delta, epsilon: float) -> np.ndarray:
    """float64[...]: [1 + γ^{-1/2} (√Δ/(εΦ))^{1-γ}]⁻¹, the fraction in the flat valley after freezing.

    As a scaling law, P/(1-P) ~ (√Δ/Φ)^{γ-1}, it says what matters: more noise freezes later, with more in the flat
    valley. As a number it needs ε.
    """
    ratio = np.sqrt(np.asarray(delta, dtype=np.float64)) / (epsilon * printed_speed(landscape))
    return 1 / (1 + landscape.gamma**-0.5 * ratio ** (1 - landscape.gamma))

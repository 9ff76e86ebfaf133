"""The two-valley model of stochastic gradient descent, and the formulas that a simulation of it must obey.

The landscape is that of Yang et al. 2026 (arXiv:2601.10962v2); kernels/langevin.py writes it out. A step of size η with
noise of the covariance 2σ H^p diffuses with D_i = Δ (2/f_i)^p in valley i, Δ = ησ being the effective noise strength,
so that x has the variance a_i = f_i D_i / 2 about the minimum x_i*, and everything that follows depends on

    z_i² = x_i*² / (2 a_i),   the distance to the ridge over the fluctuations within the valley, squared.

With p = 1, a_i = Δ in both valleys: the barrier x_i*²/f_i is the same too, and cancels. Freezing is the growth of this
ratio along y. Valleys are numbered as in pairs (flat, sharp); arrays of pairs have them last.

Formulas come in two kinds. Those named F1 to F5 in docs/dynamics.md are derived for the process that is simulated,
Itô's unless `place` says otherwise, and for small steps; those named `printed_…` (two_valleys_printed.py) are the
paper's.
"""
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.special import dawsn, erf

FLAT, SHARP = 0, 1
ITO, STRATONOVICH, ANTI_ITO = 0.0, 0.5, 1.0   # where in a step the noise is evaluated
LARGEST_EXPONENT = 700.0   # e to this is still a float64


@dataclass(frozen=True)
class Landscape:
    """The parameters of the model; f0 and x0 are 1, which is a choice of units. Defaults: Table S1 of the paper."""

    flat_minimum: float = 0.8     # x_1
    sharp_minimum: float = 0.65   # x_2
    y_f: float = 20.0
    y_b: float = 30.0
    y_d: float = 100.0
    loss_height: float = 1.0      # L_d

    @classmethod
    def of(cls, options) -> "Landscape":
        """The landscape that a job asks for."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})

    @property
    def asymptotes(self) -> np.ndarray:
        """float64[2]: x_1 and x_2, where the minima go as y grows."""
        return np.array([self.flat_minimum, self.sharp_minimum])

    @property
    def gamma(self) -> float:
        """f_1/f_2, the ratio of the flat valley's width to the sharp one's; the same at every y."""
        return (self.flat_minimum / self.sharp_minimum) ** 2

    def minima(self, y) -> np.ndarray:
        """float64[..., 2]: distances x_i* of the minima from the ridge."""
        y = np.asarray(y, dtype=np.float64)[..., None]
        return self.asymptotes * y / (y + self.y_b)

    def widths(self, y) -> np.ndarray:
        """float64[..., 2]: f_i, two over the second derivative across the valley."""
        y = np.asarray(y, dtype=np.float64)[..., None]
        return (self.asymptotes * (y + self.y_f) / (y + self.y_b)) ** 2

    def barrier(self, y) -> np.ndarray:
        """float64[...]: height of the ridge above the minima, the same for both; x_i*²/f_i."""
        y = np.asarray(y, dtype=np.float64)
        return (y / (y + self.y_f)) ** 2

    def loss(self, x, y) -> np.ndarray:
        """float64[...]: L, with the paper's constant of one final barrier height."""
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        side = (x < 0).astype(int)
        f = np.take_along_axis(self.widths(y), side[..., None], -1)[..., 0]
        minimum = np.take_along_axis(self.minima(y), side[..., None], -1)[..., 0]
        return self.loss_height * np.exp(-y / self.y_d) + 1 + np.abs(x) * (np.abs(x) - 2 * minimum) / f

    def speed(self, y) -> np.ndarray:
        """float64[...]: dy/dt along the bottom of either valley, -dL/dy there."""
        y = np.asarray(y, dtype=np.float64)
        fall = self.loss_height / self.y_d * np.exp(-y / self.y_d)
        return fall + 2 * self.y_f * y / (y + self.y_f) ** 3

    def model(self, learning_rate: float, noise_strength: float, noise_power: int) -> np.ndarray:
        """float64[11]: what kernels/langevin.py takes."""
        return np.array([self.flat_minimum, self.sharp_minimum, self.flat_minimum**-2, self.sharp_minimum**-2,
                         self.y_f, self.y_b, 1 / self.y_d, self.loss_height, learning_rate, noise_strength,
                         noise_power], dtype=np.float64)

    def frozen_model(self, y: float, learning_rate: float, noise: tuple[float, int, float],
                     target: float = np.inf) -> np.ndarray:
        """float64[8]: what kernels/langevin.py takes at a frozen y. noise: (σ, power, place)."""
        strength, power, place = noise
        hessian = 2 / self.widths(y)
        deviations = learning_rate * np.sqrt(2 * strength * hessian**power)
        return np.array([*self.minima(y), *learning_rate * hessian, *deviations, place, target])


def diffusion(landscape: Landscape, y, delta, power: int = 1) -> np.ndarray:
    """float64[..., 2]: D_i = Δ (2/f_i)^p of the noise with covariance 2σ H^p, Δ = ησ float64[...]."""
    return np.asarray(delta, dtype=np.float64)[..., None] * (2 / landscape.widths(y)) ** power


def fluctuation(landscape: Landscape, y, delta, power: int = 1) -> np.ndarray:
    """float64[..., 2]: a_i = f_i D_i / 2, the variance of x within a valley for small steps."""
    return landscape.widths(y) * diffusion(landscape, y, delta, power) / 2


def separation(landscape: Landscape, y, delta, power: int = 1) -> np.ndarray:
    """float64[..., 2]: z_i = x_i*/√(2 a_i). Hopping has frozen where it is well above 1."""
    return landscape.minima(y) / np.sqrt(2 * fluctuation(landscape, y, delta, power))


def valley_variance(landscape: Landscape, y, learning_rate: float, delta, power: int = 1) -> np.ndarray:
    """F1, float64[..., 2]: Var(x) within a valley for steps of size η: a_i/(1 - η/f_i). Stable for η < f_i.

    For noise as the Hessian it is Δ in both valleys but for the step's size: the variance does not measure flatness
    here, and there is no Einstein relation.
    """
    return fluctuation(landscape, y, delta, power) / (1 - learning_rate / landscape.widths(y))


def occupancy(landscape: Landscape, y, delta, power: int = 1, place: float = ITO) -> np.ndarray:
    """F2, float64[...]: stationary probability of the flat valley at a frozen y, for small steps.

    P/(1-P) = γ^{(1+p)/2 - p·place} · e^{z₊²}(1 + erf z₊) / (e^{z₋²}(1 + erf z₋)): the density is e^{-Ψ}/D^{1-place}
    with Ψ' = L_x/D. SGD evaluates the noise where a step begins, place = ITO. With p = 0 it is √γ/(1+√γ) for every y
    and Δ.
    """
    z = separation(landscape, y, delta, power)
    odds = ((1 + power) / 2 - power * place) * np.log(landscape.gamma)
    odds = odds + (z**2 + np.log1p(erf(z)))[..., FLAT] - (z**2 + np.log1p(erf(z)))[..., SHARP]
    return 1 / (1 + np.exp(np.clip(-odds, -LARGEST_EXPONENT, LARGEST_EXPONENT)))


def hopping_rates(landscape: Landscape, y, delta, power: int = 1, place: float = ITO) -> np.ndarray:
    """F3, float64[..., 2]: rates of leaving (flat, sharp) for the other valley's minimum.

    By Itô's rule k_i = D_i / {√(πa_i/2) e^{z_i²}(1 + erf z_i) · [√(πa₋/2) F(z₋) + √(πa₊/2) F(z₊)]} with
    F(z) = e^{-z²} erfi(z): one over `passage_time` without what is not yet settled in the valley. Their ratio gives
    `occupancy`. The paper's rates are about twice as fast: its time is that until the ridge is touched, from where a
    trajectory may fall back.
    """
    z, a = separation(landscape, y, delta, power), fluctuation(landscape, y, delta, power)
    root, log_d = np.sqrt(np.pi * a / 2), np.log(diffusion(landscape, y, delta, power))
    over_ridge = (root * 2 / np.sqrt(np.pi) * dawsn(z) * np.exp(-place * log_d)).sum(axis=-1)[..., None]
    log_settled = np.log(root) + z**2 + np.log1p(erf(z)) - (1 - place) * log_d
    return np.exp(-log_settled - np.log(over_ridge))


def passage_time(landscape: Landscape, y: float, delta: float, power: int = 1, start: int = SHARP,
                 place: float = ITO) -> float:
    """F3, exactly: mean time from the minimum of valley `start` to the other minimum at a frozen y.

    ∫_a^b e^{Ψ(x)}/D(x)^place dx ∫_{-∞}^x e^{-Ψ(u)}/D(u)^{1-place} du, with the valley of the start at x < 0, Ψ(0) = 0
    and Ψ' = L_x/D; the inner integral of Gaussians in closed form, the outer by quadrature.
    """
    order = [start, 1 - start]
    a, d, z, minima = (function[order] for function in (
        fluctuation(landscape, y, delta, power), diffusion(landscape, y, delta, power),
        separation(landscape, y, delta, power), landscape.minima(y)))
    weights = np.sqrt(np.pi * a / 2) * np.exp(z**2) / d ** (1 - place)

    def settled(x):
        here = weights[0] * (1 + erf((min(x, 0.0) + minima[0]) / np.sqrt(2 * a[0])))
        return here + (weights[1] * (erf((x - minima[1]) / np.sqrt(2 * a[1])) + erf(z[1])) if x > 0 else 0.0)

    def climbed(x):
        side = int(x > 0)
        return np.exp(((abs(x) - minima[side]) ** 2 - minima[side] ** 2) / (2 * a[side])) / d[side] ** place

    return quad(lambda x: climbed(x) * settled(x), -minima[0], minima[1], points=[0.0], limit=200)[0]


def touching_rates(landscape: Landscape, y, delta, power: int = 1) -> np.ndarray:
    """float64[..., 2]: rates at which the ridge is touched from (flat, sharp), 2/(π f_i erfi z_i), where z is large.

    It is one over the printed Kramers time. A discrete step overshoots the ridge, so that simulated touching times are
    longer by O(√η).
    """
    z = separation(landscape, y, delta, power)
    return np.exp(-(z**2)) / (np.sqrt(np.pi) * dawsn(z) * landscape.widths(y))

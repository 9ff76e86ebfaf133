"""The words of annealing by noise, defined once for networks (picker training) and for mini-batch EM (classify2d).

A stochastic step moves parameters θ by η (the learning rate; for online EM α, the weight of the new batch's statistics)
along a mean over B samples. What it knows of the landscape it passes on with noise:

    noise strength  Δ = η / B      so that the diffusion of θ per unit of learning time (η × steps) is D = Δ C / 2,
                                   C the covariance of one sample's gradient (its statistics, in EM)
    temperature     T              of a posterior: weights ∝ exp(score / T). Another knob than Δ: Δ shakes parameters,
                                   T blurs assignments. T = 1 is the likelihood's own.
    mobility                       the share of decisions (a particle's class, a tile's label) that differ between two
                                   states the same learning time apart
    barrier                        what the loss rises by, above the straight line between its values at the ends,
                                   along the straight line between two states (Frankle et al. 2020)
    freezing of EM                 two children of one state, each with its own mini-batches and then cooled by EM over
                                   the same particles, put these into the same classes (FROZEN_ARI), twice in a row
    freezing                       two children of one state, each with fresh noise over the same horizon and then
                                   cooled without noise, end with no barrier between them: the valley is chosen

In a well of curvature h (for EM h = 1: its step is preconditioned by the information) the noise keeps the variance
η C / (B h (2 − η h)), exactly; for small steps Δ C / 2h. `engine/annealing.py` is something else: the schedule of
temperatures T of manifold learning, which has no batches' noise in it.

Motivated by the transient freezing of Yang, Zhang, Ouyang, Tang & Tu (arXiv 2601.10962); their theory is of SGD in two
valleys (engine/dynamics), and is not claimed for EM.
"""
import numpy as np

LEAST_BARRIER = 0.02     # nats a sample below which a barrier is none; Frankle et al. 2020 take 2 % of error
BARRIER_SHARE = 0.05     # of the loss, where that is more
CONFIRMED = 2            # probes one after the other that must find no barrier
FROZEN_ARI = 0.95        # adjusted Rand index of two children's classes from which on EM counts as frozen


def noise_strength(step, batch):
    """Δ = η / B of a learning rate (or an online EM weight) and a batch; ValueError unless both are positive."""
    if step <= 0 or batch <= 0:
        raise ValueError(f"step {step}, batch {batch}; expected positive numbers")
    return step / batch


def stationary_variance(step, batch, curvature=1.0, covariance=1.0):
    """Variance that batches of B keep up in a quadratic well, η C / (B h (2 − η h)); infinite where η h ≥ 2.

    Of θ ← θ − η (h θ + noise of variance C / B). With h = 1 it is online EM's α / (2 − α) · C / B.
    """
    left = 2.0 - step * curvature
    return np.inf if left <= 0 else noise_strength(step, batch) * covariance / (curvature * left)


def mobility(before, after):
    """Share of decisions that differ: two arrays [n] of classes; 0 for none."""
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape} decisions; expected the same ones twice")
    return float(np.mean(before != after)) if before.size else 0.0


def switch_rate(changed, met):
    """Mobility from counts: of `met` particles that had a class when they were met, those that `changed` it; NaN for
    none. In EM the learning time between is that from one visit of a particle to the next."""
    return changed / met if met else np.nan


def allowed_barrier(loss):
    """Barrier [nats a sample] that counts as none at a loss: the larger of LEAST_BARRIER and BARRIER_SHARE of it."""
    return max(LEAST_BARRIER, BARRIER_SHARE * loss)


def freezing_time(times, barriers, threshold=LEAST_BARRIER):
    """The first of the rising times from which on every barrier is below the threshold; infinite if none is."""
    above = np.flatnonzero(np.asarray(barriers) >= threshold)
    first = above[-1] + 1 if len(above) else 0
    return float(times[first]) if first < len(times) else np.inf


def separation_ratio(one, other, within):
    """ρ = ‖θ_A − θ_B‖² / 2 Σ Var(θ): how far two cooled children are apart in units of what each fluctuates by.

    within float64[P]: variance of every parameter while it was hot. 1 is what two draws of one cloud would show; in
    the two-valley model it is the z² of its escape rates (exp(−z²)) up to a factor. Infinite if nothing fluctuated.
    """
    fluctuation = 2.0 * float(np.sum(within))
    apart = float(np.sum((np.asarray(one) - other) ** 2))
    return apart / fluctuation if fluctuation else np.inf if apart else 0.0

"""Probabilities that are frequencies: a calibration by two numbers, σ(slope·logit(score) + offset) (Platt 1999), and
how far it got."""
import numpy as np
from scipy.optimize import minimize

CLIPPED = 1e-7            # scores nearer to 0 or 1 are taken for this
LEAST_SLOPE = 0.05        # keeps the order of the scores whatever the targets say


def logit(scores):
    """log(s / (1 − s)) float64[n] of scores float[n] in 0..1, clipped."""
    clipped = np.clip(np.asarray(scores, dtype=np.float64), CLIPPED, 1 - CLIPPED)
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(argument):
    """1 / (1 + e^−x), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * argument))


def logistic_fit(argument, target, slope_precision=0.0):
    """(slope > 0, offset) by maximum likelihood: σ(slope·argument + offset) for targets float[n] in 0..1.

    slope_precision: of a normal prior on the slope around 1, for few and separable data.
    """
    argument, target = np.asarray(argument, dtype=np.float64), np.asarray(target, dtype=np.float64)

    def loss(parameters):
        slope, offset = parameters
        linear = slope * argument + offset
        value = np.sum(np.logaddexp(0, linear) - target * linear) + slope_precision / 2 * (slope - 1) ** 2
        error = sigmoid(linear) - target
        return value, np.array([np.sum(error * argument) + slope_precision * (slope - 1), np.sum(error)])

    found = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=((LEAST_SLOPE, None), (None, None)))
    return float(found.x[0]), float(found.x[1])


def reliability(predicted, happened, bins):
    """[(mean prediction, mean of what happened, number)] of those in each bin of the prediction; both float[n] in
    0..1."""
    place = np.clip(np.digitize(predicted, bins) - 1, 0, len(bins) - 2)
    return [(float(predicted[place == i].mean()), float(happened[place == i].mean()), int((place == i).sum()))
            for i in np.unique(place)]


def calibration_error(rows):
    """Expected calibration error of the rows of `reliability`: mean |prediction − frequency|, weighted by number."""
    return sum(abs(mean - frequency) * n for mean, frequency, n in rows) / max(sum(n for *_, n in rows), 1)

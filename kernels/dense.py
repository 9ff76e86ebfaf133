"""A small dense network: logits, the mean cross-entropy, its gradient, and exact products with its Hessian.

    a_0 = inputs,   z_l = a_{l−1} W_lᵀ + b_l,   a_l = max(0, z_l) in between,   logits = z of the last layer

All parameters are one flat vector θ float64[P], layer after layer, the weights float[out, in] of a layer before its
bias float[out], so that lines between two networks, eigenvectors and steps of a descent are plain vector arithmetic.
Single precision works as well, where θ and the inputs have it.
"""
from itertools import pairwise

import numpy as np


def n_parameters(widths):
    """How many parameters a network with layers of `widths` (inputs first, classes last) has."""
    return sum((n_in + 1) * n_out for n_in, n_out in pairwise(widths))


def layers(widths, theta):
    """Views (weights float[out, in], bias float[out]) of θ, layer by layer. ValueError if θ has another length."""
    if len(theta) != n_parameters(widths):
        raise ValueError(f"{len(theta)} parameters for layers of {widths}; expected {n_parameters(widths)}")
    views, first = [], 0
    for n_in, n_out in pairwise(widths):
        weights = theta[first:first + n_in * n_out].reshape(n_out, n_in)
        first += (n_in + 1) * n_out
        views.append((weights, theta[first - n_out:first]))
    return views


def initial_dense(widths, random):
    """θ float64[P] with weights N(0, 2/inputs) (He et al. 2015) and no biases."""
    theta = np.zeros(n_parameters(widths))
    for weights, _ in layers(widths, theta):
        weights[:] = random.normal(scale=np.sqrt(2.0 / weights.shape[1]), size=weights.shape)
    return theta


def dense_logits(widths, theta, inputs):
    """Logits float64[n, classes] of inputs float64[n, widths[0]]."""
    return _forward(layers(widths, theta), inputs)[-1]


def dense_loss(widths, theta, inputs, labels):
    """Mean over the inputs of −log p(label) [nats]; labels int[n]."""
    return _cross_entropy(_forward(layers(widths, theta), inputs)[-1], labels)[0]


def dense_gradient(widths, theta, inputs, labels):
    """(loss, dL/dθ float64[P])."""
    chain = layers(widths, theta)
    active = _forward(chain, inputs)
    loss, down = _cross_entropy(active[-1], labels)
    down[np.arange(len(labels)), labels] -= 1
    down /= len(labels)
    gradient = np.empty_like(theta)
    slopes = layers(widths, gradient)
    for number in reversed(range(len(chain))):
        slopes[number][0][:] = down.T @ active[number]
        slopes[number][1][:] = down.sum(axis=0)
        if number:
            down = (down @ chain[number][0]) * (active[number] > 0)
    return loss, gradient


def dense_hessian_product(widths, theta, vector, inputs, labels):
    """H v float64[P] of the mean cross-entropy, exact: the derivative of backpropagation along v (Pearlmutter 1994).

    Forwards, R z_l = R a_{l−1} W_lᵀ + a_{l−1} V_lᵀ + v_l; backwards the same product rule; a rectified unit has no
    second derivative where it has a first.
    """
    chain, along = layers(widths, theta), layers(widths, vector)
    active = _forward(chain, inputs)
    moved = [np.zeros_like(inputs)]
    for (weights, _), (v_weights, v_bias), below, above in zip(chain, along, active, active[1:]):
        change = moved[-1] @ weights.T + below @ v_weights.T + v_bias
        moved.append(change * (above > 0) if len(moved) < len(chain) else change)
    _, p = _cross_entropy(active[-1], labels)
    turned = p * (moved[-1] - np.sum(p * moved[-1], axis=1, keepdims=True)) / len(labels)
    p[np.arange(len(labels)), labels] -= 1
    down, product = p / len(labels), np.empty_like(theta)
    slopes = layers(widths, product)
    for number in reversed(range(len(chain))):
        slopes[number][0][:] = turned.T @ active[number] + down.T @ moved[number]
        slopes[number][1][:] = turned.sum(axis=0)
        if number:
            on = active[number] > 0
            turned = (turned @ chain[number][0] + down @ along[number][0]) * on
            down = (down @ chain[number][0]) * on
    return product


def _forward(chain, inputs):
    """[inputs, activations …, logits]."""
    active = [inputs]
    for number, (weights, bias) in enumerate(chain, 1):
        z = active[-1] @ weights.T + bias
        active.append(np.maximum(z, 0, out=z) if number < len(chain) else z)
    return active


def _cross_entropy(logits, labels):
    """(mean of −log p(label), p float64[n, classes])."""
    p = logits - logits.max(axis=1, keepdims=True)
    chosen = p[np.arange(len(labels)), labels]
    np.exp(p, out=p)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    return float(np.mean(np.log(total[:, 0]) - chosen)), p

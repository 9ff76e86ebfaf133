"""The training loss of a picker's network over a fixed set of tiles: a Landscape of engine/valleys.py.

The tiles are drawn once. A sample of the landscape is a part: PART tiles that are normalised together, as in training
(picker/training.py); a batch of size b is b parts, and the whole loss is the mean over all parts. Since each part is
normalised by itself, the loss of a point on the line between two networks needs no running statistics. Losses and
gradients are computed in single precision, as in training. A product with the Hessian is a central difference of
double-precision gradients: rectified maps have no second derivative at their kinks, and a difference over a small step
sees the curvature between them, up to the few units that turn on or off within it.
"""
from dataclasses import replace

import numpy as np

from vitrea.picker.labels import Augmentation, Sampler
from vitrea.picker.network import backward, evaluate_box, forward, initial_parameters, stages
from vitrea.picker.training import PART, cross_entropy, loss_weights

# Step of a central difference, relative to the length of θ. At 1e-5 it crosses kinks of rectified units, whose jumps
# pass for curvature; from 1e-6 to 1e-8 eigenvalues agree to six digits, in double precision.
DIFFERENCE = 1e-7
TRAINING_DRAW, TESTING_DRAW = 0, 1
CENTRED = replace(Augmentation(), shift=2.0)   # px: a tile around a label shows its particle near the middle


class PickerLandscape:
    """Loss of a Network over tiles of one place each, and its errors on tiles of other micrographs.

    training, testing: LabelledMicrographs; diameter [px] of prepared images; parts: of PART tiles, to train on; tests:
    tiles to test on, of which those count that are labelled for certain. A tile is decided wrongly where its logit has
    the wrong sign, with the statistics of all parts in place of a part's own.
    """

    def __init__(self, network, training, testing, diameter, *, parts, tests, seed):
        sampler = Sampler(training, network, diameter, 1, CENTRED, seed)
        self.network, self.n_samples, self.n_parameters = network, parts, network.n_parameters
        self._weights = (*loss_weights(sampler)[:2], 0.0)
        tiles, target, weight = sampler.draws(TRAINING_DRAW, range(parts * PART))
        self._parts = [tuple(array[k * PART:(k + 1) * PART] for array in (tiles, target, weight)) for k in range(parts)]
        tiles, target, weight = Sampler(testing, network, diameter, 1, CENTRED, seed).draws(TESTING_DRAW, range(tests))
        certain = weight[:, 0, 0] > 0
        self._test_tiles, self._test_target = tiles[certain], target[certain, 0, 0] > 0.5

    def initial(self, random):
        return self._flat(initial_parameters(self.network, random))

    def loss(self, theta):
        tensors = self._tensors(theta, np.float32)
        return float(np.mean([self._of_part(tensors, part)[0] for part in self._parts]))

    def gradient(self, theta, rows=None):
        chosen = range(self.n_samples) if rows is None else rows
        return self._gradient(self._tensors(theta, np.float32), chosen)

    def hessian_product(self, theta, vector):
        step = DIFFERENCE * max(1.0, np.linalg.norm(theta)) / np.linalg.norm(vector)
        moved = (self._tensors(theta + sign * step * vector, np.float64) for sign in (1, -1))
        ahead, behind = (self._gradient(tensors, range(self.n_samples))[1] for tensors in moved)
        return (ahead - behind) / (2 * step)

    def wrong(self, theta):
        return (self.test_logits(theta) > 0) != self._test_target

    def test_logits(self, theta):
        """float64[n] of the tiles to test on."""
        tensors = self._tensors(theta, np.float32)
        found = [forward(self.network, tensors, part[0])[2] for part in self._parts]
        statistics = {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}
        chain = stages(self.network, tensors, statistics)
        return np.array([evaluate_box(chain, tile) for tile in self._test_tiles])

    def _gradient(self, tensors, chosen):
        loss, total = 0.0, np.zeros(self.n_parameters)
        for k in chosen:
            found, tape, slope = self._of_part(tensors, self._parts[k])
            loss += found
            total += self._flat(backward(self.network, tensors, tape, slope.astype(tensors["weights"].dtype)))
        return loss / len(chosen), total / len(chosen)

    def _of_part(self, tensors, part):
        """(loss, tape, dL/dlogits) of one part."""
        tiles, target, weight = part
        logits, tape, _ = forward(self.network, tensors, tiles.astype(tensors["weights"].dtype, copy=False))
        loss, slope = cross_entropy(logits.astype(np.float64), target, weight, self._weights)
        return loss, tape, slope

    def _tensors(self, theta, dtype):
        shapes = self.network.shapes()
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = np.split(theta.astype(dtype), ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts)}

    def _flat(self, tensors):
        return np.concatenate([np.ravel(tensors[name]) for name in self.network.shapes()]).astype(np.float64)

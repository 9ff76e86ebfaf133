"""A network applied to a whole micrograph: dense, in tiles, in four orientations; and box by box, as published.

The dense scan gives at (i, j) what the network gives for the box whose first pixel is (i, j)·step. It is exact: a map
below a pool is whole (picker/network.py), so what a box does not see never enters; a step finer than the network's
stride is scanned once for every offset and interleaved (shift and stitch). The four orientations are those of the
kernels, not of the image, so that their grids coincide; probabilities are averaged, not logits, as DeepEM does.

Tiles overlap by what a box sees beyond its step. All tiles of a micrograph have one shape, so that everything is
planned once; the last of a row is moved back into the image.
"""
import numpy as np

from vitrea.kernels import conv
from vitrea.picker.network import evaluate_box

TILE_SIDE, TILE_BOXES = 512, 4   # a tile's side [px] is about the larger of TILE_SIDE and TILE_BOXES boxes
ORIENTATIONS = (0, 1, 2, 3)      # quarter turns


class DenseScan:
    """A planned scan of images of one shape.

    chain is `network.stages(...)`; box and stride [px] are the network's; step [px] divides stride and is the distance
    of neighbouring scores. ValueError if the image is smaller than the box or step does not divide stride.
    """

    def __init__(self, chain, box, shape, *, step=None, orientations=ORIENTATIONS, tile_side=None):
        self.box, self.stride = box, int(np.prod([stage.pool for stage in chain]))
        self.step = step or self.stride
        if min(shape) < box:
            raise ValueError(f"an image of {shape[0]} × {shape[1]} px is smaller than the network's box of {box} px")
        if self.stride % self.step:
            raise ValueError(f"a step of {self.step} px does not divide the network's stride of {self.stride} px")
        self.shape, self.orientations = tuple(shape), tuple(orientations)
        self._offsets = range(0, self.stride, self.step)
        self._outputs = tuple((n - box) // self.stride + 1 for n in shape)   # of the offset 0, which has the most
        side = tile_side or max(TILE_SIDE, TILE_BOXES * box)
        self._tile = tuple(_balanced(n, max(1, (side - box) // self.stride + 1)) for n in self._outputs)
        self._layers = self._plan(chain)

    def _plan(self, chain):
        """(first layer, of all orientations at once; the further layers of each)."""
        shape = tuple(self.box + self.stride * (n - 1) for n in self._tile)
        turned = [[stage.turned(quarters) for stage in chain] for quarters in self.orientations]
        weights, bias = (np.concatenate([getattr(one[0], name) for one in turned]) for name in ("weights", "bias"))
        first = conv.plan_layer(weights, bias, chain[0].activation, chain[0].pool, shape)
        rest = []
        for stages in turned:
            below, layers = first.out.shape[1:], []
            for stage in stages[1:]:
                layers.append(conv.plan_layer(stage.weights, stage.bias, stage.activation, stage.pool, below))
                below = layers[-1].out.shape[1:]
            rest.append(layers)
        return first, rest

    def scores(self, image):
        """Mean probabilities float32[h, w] of an image float32[H, W]: (i, j) is the box from pixel (i, j)·step on."""
        if image.shape != self.shape:
            raise ValueError(f"planned for an image of {self.shape}, found {image.shape}")
        image = np.asarray(image, dtype=np.float32)
        whole = tuple((n - self.box) // self.step + 1 for n in self.shape)
        scores = np.zeros(whole, dtype=np.float32)
        fine = self.stride // self.step
        for i, y in enumerate(self._offsets):
            for j, x in enumerate(self._offsets):
                target = scores[i::fine, j::fine]
                if target.size:
                    self._fill(image[y:, x:], target)
        return scores

    def _fill(self, image, out):
        """Scores at the network's own stride into out float32[h, w], tile by tile."""
        tile = tuple(min(side, n) for side, n in zip(self._tile, out.shape))
        for i in _starts(out.shape[0], tile[0]):
            for j in _starts(out.shape[1], tile[1]):
                part = self._tile_at(image, i, j)
                out[i:i + tile[0], j:j + tile[1]] = part[:tile[0], :tile[1]]

    def _tile_at(self, image, i, j):
        first, rest = self._layers
        height, width = (self.box + self.stride * (n - 1) for n in self._tile)
        pixels = image[i * self.stride:i * self.stride + height, j * self.stride:j * self.stride + width]
        if pixels.shape != (height, width):
            # Where an offset leaves one output less than the plan has: what it lacks reaches no score that is kept.
            pixels = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1])))
        maps = first.apply(np.ascontiguousarray(pixels)[None])
        n, total = len(maps) // len(rest), 0.0
        for k, layers in enumerate(rest):
            part = maps[k * n:(k + 1) * n]
            for layer in layers:
                part = layer.apply(part)
            total = total + probability(part[0])
        return total / np.float32(len(rest))

    @property
    def _all_layers(self):
        first, rest = self._layers
        return [first, *(layer for layers in rest for layer in layers)]

    @property
    def bytes(self):
        """What the plan's buffers take, and `scores` itself."""
        arrays = (value for layer in self._all_layers for value in vars(layer).values()
                  if isinstance(value, np.ndarray) and value.base is None)
        return sum(array.nbytes for array in arrays) + 8 * int(np.prod([-(-n // self.step) for n in self.shape]))

    @property
    def work(self):
        """(operations in products, in transforms) of `scores` for as many tiles as the image's area holds."""
        layers = self._all_layers
        share = np.prod(self._outputs) / np.prod(self._tile) * len(self._offsets) ** 2
        return tuple(float(share * sum(getattr(layer, name) for layer in layers))
                     for name in ("product_flops", "transform_flops"))


def _balanced(outputs, most):
    """Outputs of one of the equal tiles that cover `outputs`, none with more than `most`."""
    return -(-outputs // -(-outputs // most))


def _starts(outputs, tile):
    return [min(first, outputs - tile) for first in range(0, outputs, tile)]


def probability(logits):
    """1 / (1 + e^−logit), without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)


def scan_boxes(chain, box, image, step, *, orientations=ORIENTATIONS, standardised=False):
    """Box by box, as published: crop each `step` px, turn the box, evaluate, average. float32[h, w].

    standardised: each box is brought to mean 0 and deviation 1 (n − 1) first, as DeepEM does.
    """
    shape = tuple((n - box) // step + 1 for n in image.shape)
    scores = np.empty(shape, dtype=np.float32)
    for i, j in np.ndindex(shape):
        crop = image[i * step:i * step + box, j * step:j * step + box].astype(np.float32)
        if standardised:
            mean, deviation = _moments(crop)
            crop = ((crop - mean) / deviation).astype(np.float32)
        turned = [evaluate_box(chain, np.ascontiguousarray(np.rot90(crop, quarters))) for quarters in orientations]
        scores[i, j] = probability(np.array(turned)).mean()
    return scores


def scan_standardised(chain, box, image, step, *, orientations=ORIENTATIONS):
    """What `scan_boxes(..., standardised=True)` gives, with the first layer's products shared by all boxes.

    The first layer is linear before its activation: for a box of mean m and deviation d, w ⋆ (x − m)/d + b equals
    (w ⋆ x − m Σw)/d + b, and w ⋆ x is the same for all boxes.
    """
    shape = tuple((n - box) // step + 1 for n in image.shape)
    image = np.asarray(image, dtype=np.float32)
    origin = np.float32(image.mean(dtype=np.float64))   # products of large common offsets would lose digits
    total = np.zeros(shape)
    for quarters in orientations:
        first, *rest = [stage.turned(quarters) for stage in chain]
        plan = conv.plan_layer(first.weights, np.zeros_like(first.bias), "linear", 1, image.shape)
        product = plan.apply((image - origin)[None])
        sums = first.weights.sum(axis=(1, 2, 3), dtype=np.float64)
        side = box - first.weights.shape[-1] + 1
        for i, j in np.ndindex(shape):
            y, x = i * step, j * step
            mean, deviation = _moments(image[y:y + box, x:x + box])
            maps = product[:, y:y + side, x:x + side] / np.float32(deviation)
            bias = first.bias - ((mean - origin) / deviation * sums)
            total[i, j] += probability(np.float64(_finish(maps, bias.astype(np.float32), first, rest)))
    return (total / len(orientations)).astype(np.float32)


def _finish(maps, bias, first, rest):
    """The logit from the first layer's product of one box."""
    flat = np.ascontiguousarray(maps).reshape(len(maps), -1)
    conv.activate(first.activation, flat, bias)
    maps = conv.pooled(flat.reshape(1, *maps.shape), first.pool)
    for stage in rest:
        maps = conv.correlate(maps, stage.weights, stage.bias)
        flat = maps.reshape(maps.shape[1], -1)
        conv.activate(stage.activation, flat, np.zeros(len(flat), dtype=np.float32))
        maps = conv.pooled(maps, stage.pool)
    return maps[0, 0, 0, 0]


def _moments(crop):
    """Mean and deviation (n − 1) of a box, in double precision: half floats overflow in their own."""
    crop = crop.astype(np.float64)
    return crop.mean(), crop.std(ddof=1)

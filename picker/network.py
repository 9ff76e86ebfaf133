"""The picker's networks: layers, presets, parameters, what they give for boxes, and the gradients training needs.

A network is a chain of layers (correlation, activation, mean pooling) that brings a box of B × B px down to one
number, the logit of "a particle stands in the middle". It is fully convolutional: larger images give a map of logits,
one each `stride` px, and since every pool divides its map exactly, each of them is what the box below it would give.

Presets `deepem-*` are the eight layers of DeepEM (Zhu, Ouyang & Mao 2017, BMC Bioinformatics 18:348; sizes as in the
package's Create_KLH.m and Create_19s.m): input, C1, S2, C3, S4, C5, S6, output, a sigmoid after each C. `vitrea` is
made for CPUs: rectified maps, a stride of 4 px, and normalisation that is folded into the kernels after training.
"""
from dataclasses import dataclass

import numpy as np

from vitrea.kernels import conv

FORGETTING = 0.05   # weight of a training step in the running statistics


@dataclass(frozen=True)
class Layer:
    """`maps` correlations with kernels of `side` px, an activation ("relu", "sigmoid"), means of `pool` × `pool` px."""

    side: int
    maps: int
    pool: int = 1
    activation: str = "relu"
    normalised: bool = False


@dataclass(frozen=True)
class Network:
    """A chain of layers for boxes of `box` px; the output is one linear unit over all that the last layer leaves.

    window: side of the squares over which micrographs are normalised for it [diameters of the particle].

    ValueError if a kernel does not fit or a pool does not divide its map, with the nearest kernels that would do.
    """

    name: str
    box: int
    layers: tuple[Layer, ...]
    window: float = 2.0

    def __post_init__(self):
        _check(self)

    @property
    def sizes(self):
        """((side after the correlation, side after the pool) by layer) [px]."""
        sizes, side = [], self.box
        for layer in self.layers:
            correlated = side - layer.side + 1
            side = correlated // layer.pool
            sizes.append((correlated, side))
        return tuple(sizes)

    @property
    def stride(self):
        """Distance of neighbouring outputs [px]: the product of the pools."""
        return int(np.prod([layer.pool for layer in self.layers]))

    @property
    def output_side(self):
        """Side [px] of the maps that the output unit sees."""
        return self.sizes[-1][1]

    def shapes(self):
        """{name: shape} of all parameters, in their order along the chain."""
        shapes, below = {}, 1
        for i, layer in enumerate(self.layers, 1):
            shapes[f"weights{i}"] = (layer.maps, below, layer.side, layer.side)
            shapes[f"bias{i}"] = (layer.maps,)
            if layer.normalised:
                shapes |= {f"gamma{i}": (layer.maps,), f"beta{i}": (layer.maps,)}
            below = layer.maps
        return shapes | {"weights": (1, below, self.output_side, self.output_side), "bias": (1,)}

    @property
    def n_parameters(self):
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    @property
    def flops(self):
        """Operations for one box: two for every weight at every place where it is used."""
        shapes = self.shapes()
        places = [correlated**2 for correlated, _ in self.sizes]
        used = [int(np.prod(shapes[f"weights{i}"])) * n for i, n in enumerate(places, 1)]
        return 2 * (sum(used) + int(np.prod(shapes["weights"])))


def _check(network):
    side = network.box
    for i, layer in enumerate(network.layers, 1):
        correlated = side - layer.side + 1
        if correlated < layer.pool:
            raise ValueError(f"{network.name}, layer {i}: a kernel of {layer.side} px leaves {correlated} of {side} "
                             f"px; expected at least the pool's {layer.pool} px; take a smaller kernel or larger box")
        if correlated % layer.pool:
            near = [layer.side + step for step in sorted(range(1 - layer.pool, layer.pool), key=abs)
                    if layer.side + step > 0 and (side - layer.side - step + 1) % layer.pool == 0]
            kernels = " or ".join(map(str, near))
            raise ValueError(f"{network.name}, layer {i}: a pool of {layer.pool} px does not divide the {correlated} "
                             f"px that a kernel of {layer.side} px leaves; take a kernel of {kernels}")
        side = correlated // layer.pool


def _deepem(name, box, sides, pools, maps):
    layers = (Layer(side, n, pool, "sigmoid") for side, pool, n in zip(sides, pools, maps))
    return Network(name, box, tuple(layers))


PRESETS = {
    network.name: network
    for network in (
        Network("vitrea", 48, (Layer(5, 8, 2, normalised=True), Layer(5, 16, 2, normalised=True),
                               Layer(5, 32, normalised=True)), window=4.0),
        _deepem("deepem-klh", 272, (51, 21, 10), (3, 2, 2), (6, 12, 12)),
        _deepem("deepem-19s", 160, (20, 10, 4), (3, 2, 2), (6, 12, 12)),
        _deepem("deepem-64", 64, (9, 5, 5), (2, 2, 2), (6, 12, 12)),
    )
}


def initial_parameters(network, random):
    """{name: float32 array}: DeepEM's own uniform start (Glorot & Bengio 2010), normal for rectified maps (He 2015).

    The kernels of a layer are U(−L, L), L² = 6/(fan in + fan out) with fans of all maps times the kernel, the output
    unit's L² = 6/(1 + inputs); of rectified maps N(0, 2/fan in). Biases are 0.
    """
    parameters = {}
    for name, shape in network.shapes().items():
        values = np.ones(shape) if name.startswith("gamma") else np.zeros(shape)
        if name.startswith("weights"):
            number = name.removeprefix("weights")
            rectified = number and network.layers[int(number) - 1].activation == "relu"
            fan_in, fan_out = (int(np.prod(shape[1:])), shape[0] * (shape[2] * shape[3] if number else 1))
            limit = np.sqrt(6.0 / (fan_in + fan_out))
            values = (random.normal(scale=np.sqrt(2.0 / fan_in), size=shape) if rectified
                      else random.uniform(-limit, limit, size=shape))
        parameters[name] = values.astype(np.float32)
    return parameters


def initial_statistics(network):
    """{"mean<i>", "variance<i>": float64[maps]} of the normalised layers, before any training."""
    normalised = [i for i, layer in enumerate(network.layers, 1) if layer.normalised]
    statistics = {f"mean{i}": np.zeros(network.layers[i - 1].maps) for i in normalised}
    return statistics | {f"variance{i}": np.ones(network.layers[i - 1].maps) for i in normalised}


def forward(network, parameters, images):
    """Logits [B, h, w] of images float[B, H, W] in training, where each batch is normalised by itself.

    Returns (logits, tape for `backward`, {"mean<i>", "variance<i>"} of this batch).
    """
    maps, tape, statistics = images[:, None], [], {}
    for i, layer in enumerate(network.layers, 1):
        step = {"below": maps}
        maps = conv.correlate(maps, parameters[f"weights{i}"], parameters[f"bias{i}"])
        if layer.normalised:
            maps, step["normalised"], statistics[f"mean{i}"], statistics[f"variance{i}"] = conv.normalise(
                maps, parameters[f"gamma{i}"], parameters[f"beta{i}"])
        step["active"] = maps = _activated(layer.activation, maps)
        maps = conv.pooled(maps, layer.pool)
        tape.append(step)
    tape.append({"below": maps})
    return conv.correlate(maps, parameters["weights"], parameters["bias"])[:, 0], tape, statistics


def backward(network, parameters, tape, gradient):
    """{name: dL/dparameter} for gradient [B, h, w] = dL/dlogits, from the tape of `forward`."""
    down, weights, bias = conv.correlate_gradient(tape[-1]["below"], parameters["weights"], gradient[:, None])
    found = {"weights": weights, "bias": bias}
    for i, layer in reversed(list(enumerate(network.layers, 1))):
        step = tape[i - 1]
        down = conv.mean_pool_gradient(down, layer.pool) if layer.pool > 1 else down
        down = conv.activation_gradient(layer.activation, step["active"], down)
        if layer.normalised:
            down, found[f"gamma{i}"], found[f"beta{i}"] = conv.normalise_gradient(
                step["normalised"], parameters[f"gamma{i}"], down)
        down, found[f"weights{i}"], found[f"bias{i}"] = conv.correlate_gradient(
            step["below"], parameters[f"weights{i}"], down, of_images=i > 1)
    return found


def _activated(name, maps):
    flat = maps.reshape(-1, maps[0, 0].size)
    conv.activate(name, flat, np.zeros(len(flat), dtype=maps.dtype))
    return maps


@dataclass(frozen=True)
class Stage:
    """One layer as it is used after training: float32 weights [O, C, s, s] and bias [O], activation, pool [px]."""

    weights: np.ndarray
    bias: np.ndarray
    activation: str
    pool: int

    def turned(self, quarters):
        """The stage for which an image is what the image turned by `quarters` × 90° (np.rot90) is for this one."""
        return Stage(np.ascontiguousarray(np.rot90(self.weights, -quarters, axes=(2, 3))), self.bias, self.activation,
                     self.pool)


def stages(network, parameters, statistics):
    """The chain as it is used after training, normalisation folded into the kernels; the last stage is the output."""
    chain = []
    for i, layer in enumerate(network.layers, 1):
        weights, bias = parameters[f"weights{i}"], parameters[f"bias{i}"]
        if layer.normalised:
            weights, bias = conv.fold_normalisation(
                weights, bias, parameters[f"gamma{i}"], parameters[f"beta{i}"], statistics[f"mean{i}"],
                statistics[f"variance{i}"])
        chain.append(Stage(weights, bias, layer.activation, layer.pool))
    return [*chain, Stage(parameters["weights"], parameters["bias"], "linear", 1)]


def evaluate_box(chain, box):
    """The logit of one box float32[B, B], stage by stage and box by box: what the dense scan must equal."""
    maps = box[None, None]
    for stage in chain:
        maps = conv.correlate(maps, stage.weights, stage.bias)
        maps = conv.pooled(_activated(stage.activation, maps), stage.pool)
    return float(maps[0, 0, 0, 0])

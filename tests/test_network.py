"""The picker's networks: the published chains to the last parameter, and gradients that are the gradients."""
import numpy as np
import pytest

from vitrea.picker.network import (
    PRESETS,
    Layer,
    Network,
    backward,
    evaluate_box,
    forward,
    initial_parameters,
    initial_statistics,
    stages,
)
from vitrea.picker.scan import probability

SMALL = Network("small", 18, (Layer(5, 3, 2, normalised=True), Layer(4, 4, 2, "sigmoid"), Layer(2, 5)))


@pytest.mark.parametrize(
    ("name", "sizes", "parameters", "flops", "stride"),
    [("deepem-klh", (222, 74, 54, 27, 18, 9), 62_761, 1.733e9, 12),
     ("deepem-19s", (141, 47, 38, 19, 16, 8), 12_703, 0.117e9, 12),
     ("deepem-64", (56, 28, 24, 12, 8, 4), 6_109, 5.58e6, 8)],
)
def test_the_published_chains(name, sizes, parameters, flops, stride):
    network = PRESETS[name]
    assert tuple(side for pair in network.sizes for side in pair) == sizes
    assert network.n_parameters == parameters
    assert network.flops == pytest.approx(flops, rel=5e-3)
    assert network.stride == stride
    assert {layer.activation for layer in network.layers} == {"sigmoid"}
    start = initial_parameters(network, np.random.default_rng(0))
    below = (1, 6, 12)
    for i, (layer, n_in) in enumerate(zip(network.layers, below), 1):
        limit = np.sqrt(6 / ((n_in + layer.maps) * layer.side**2))
        assert 0.95 * limit < np.abs(start[f"weights{i}"]).max() <= limit
        assert not start[f"bias{i}"].any()
    assert 0.9 < np.abs(start["weights"]).max() * np.sqrt((1 + start["weights"].size) / 6) <= 1


def test_a_pool_that_does_not_divide_names_the_layer_and_the_kernels_that_would_do():
    with pytest.raises(ValueError, match="tf, layer 2: a pool of 2 px does not divide the 55 px that a kernel of 20 "
                                         "px leaves; take a kernel of 19 or 21"):
        Network("tf", 272, (Layer(51, 6, 3), Layer(20, 12, 2)))
    with pytest.raises(ValueError, match="layer 2: a kernel of 30 px leaves -1 of 28 px"):
        Network("big", 60, (Layer(5, 1, 2), Layer(30, 1)))


@pytest.mark.parametrize("network", [SMALL, PRESETS["deepem-64"]], ids=["normalised", "deepem"])
def test_gradients_of_every_tensor(network):
    random = np.random.default_rng(1)
    side = network.box + network.stride   # two by two outputs
    single, images = initial_parameters(network, random), random.normal(size=(2, side, side))
    double = {name: values.astype(np.float64) for name, values in single.items()}
    targets = random.random((2, 2, 2))

    def loss():
        return 0.5 * np.sum((probability64(forward(network, double, images)[0]) - targets) ** 2)

    def gradients(parameters, images):
        logits, tape, _ = forward(network, parameters, images)
        assert logits.shape == (2, 2, 2)
        score = probability64(logits)
        return backward(network, parameters, tape, ((score - targets) * score * (1 - score)).astype(images.dtype))

    exact, found = gradients(double, images), gradients(single, images.astype(np.float32))
    assert set(found) == set(exact) == set(network.shapes())
    for name, gradient in exact.items():
        if np.abs(gradient).max() < 1e-12:   # a bias before a normalisation does nothing
            continue
        places = random.permutation(gradient.size)[:12]
        expected = [_difference(loss, double[name], place, 1e-5) for place in places]
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient.flat[places], expected, atol=1e-6 * scale, rtol=0, err_msg=name)
        np.testing.assert_allclose(found[name], gradient, atol=1e-3 * scale, rtol=0, err_msg=name)


def probability64(logits):
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _difference(loss, values, place, step):
    kept = values.flat[place]
    values.flat[place] = kept + step
    above, up = loss(), values.flat[place]
    values.flat[place] = kept - step
    below, down = loss(), values.flat[place]
    values.flat[place] = kept
    return (above - below) / (up - down)


def test_after_training_normalisation_is_in_the_kernels():
    random = np.random.default_rng(2)
    network, images = PRESETS["vitrea"], random.normal(size=(40, 48, 48)).astype(np.float32)
    parameters = initial_parameters(network, random)
    for name in list(parameters):
        if name.startswith(("gamma", "beta", "bias")):
            parameters[name] += random.normal(scale=0.3, size=parameters[name].shape).astype(np.float32)
    logits, _, statistics = forward(network, parameters, images)
    assert set(statistics) == set(initial_statistics(network))
    chain = stages(network, parameters, statistics)
    found = [evaluate_box(chain, image) for image in images]
    np.testing.assert_allclose(found, logits[:, 0, 0], atol=2e-5)


def test_an_image_turned_is_the_kernels_turned_back():
    random = np.random.default_rng(3)
    for network in PRESETS.values():
        if network.box > 64:
            continue
        chain = stages(network, initial_parameters(network, random), initial_statistics(network))
        box = random.normal(size=(network.box, network.box)).astype(np.float32)
        for quarters in range(4):
            turned = evaluate_box(chain, np.ascontiguousarray(np.rot90(box, quarters)))
            kernels = evaluate_box([stage.turned(quarters) for stage in chain], box)
            assert probability(np.array(kernels)) == pytest.approx(probability(np.array(turned)), abs=1e-6)
            if quarters:
                assert abs(turned - evaluate_box(chain, box)) > 1e-5

"""The convolution kernels against their NumPy twins, and every gradient against differences of what it belongs to."""
import numpy as np
import pytest

from vitrea.kernels import conv

SHAPES = [(1, 8, 5, 21, 26), (3, 5, 4, 16, 15), (6, 12, 5, 30, 23), (2, 1, 5, 9, 12), (4, 7, 9, 24, 24),
          (2, 3, 1, 6, 7)]   # maps in and out, side of the kernel, height, width


@pytest.fixture
def random():
    return np.random.default_rng(3)


@pytest.mark.parametrize(("maps", "n_out", "side", "height", "width"), SHAPES)
@pytest.mark.parametrize("layer", [conv.ColumnLayer, conv.FourierLayer, conv.FiveLayer])
def test_every_way_of_a_layer_gives_what_the_twins_give(random, layer, maps, n_out, side, height, width):
    if layer is conv.FiveLayer and side != 5:
        return
    image = random.normal(size=(maps, height, width)).astype(np.float32)
    weights = random.normal(size=(n_out, maps, side, side)).astype(np.float32)
    bias = random.normal(size=n_out).astype(np.float32)
    expected = conv.reference_correlate(image[None], weights, bias)[0]
    rows, columns = expected.shape[1:]
    for name, twin in (("relu", conv.reference_add_relu), ("sigmoid", conv.reference_add_sigmoid)):
        active = expected.reshape(n_out, -1).copy()
        twin(active, np.zeros(n_out))
        for pool in (1, 2, 3):
            if rows % pool or columns % pool:
                continue
            small = np.empty((n_out, rows // pool, columns // pool))
            conv.reference_mean_pool(active.reshape(expected.shape), pool, small)
            found = layer(weights, bias, name, pool, (height, width)).apply(image)
            np.testing.assert_allclose(found, small, atol=2e-5 * np.abs(expected).max())


def test_a_layer_of_several_blocks_of_rows_equals_one_of_one_block(random, monkeypatch):
    image = random.normal(size=(2, 44, 44)).astype(np.float32)
    weights, bias = random.normal(size=(4, 2, 5, 5)).astype(np.float32), np.zeros(4, np.float32)
    for layer in (conv.ColumnLayer, conv.FiveLayer):
        monkeypatch.setattr(conv, "COLUMN_BYTES", 1 << 24)
        whole = layer(weights, bias, "relu", 2, (44, 44)).apply(image)
        monkeypatch.setattr(conv, "COLUMN_BYTES", 1 << 14)
        parts = layer(weights, bias, "relu", 2, (44, 44))
        assert parts._at_once < 40
        np.testing.assert_allclose(parts.apply(image), whole, atol=1e-5)


def test_the_plan_takes_large_kernels_to_fourier_space_and_small_ones_not():
    def kind(n_in, n_out, side):
        weights = np.zeros((n_out, n_in, side, side), np.float32)
        return type(conv.plan_layer(weights, np.zeros(n_out, np.float32), "relu", 1, (80, 80)))

    assert kind(1, 6, 51) is kind(6, 12, 21) is conv.FourierLayer
    assert kind(1, 32, 7) is kind(16, 32, 3) is conv.ColumnLayer
    assert kind(8, 16, 5) is conv.FiveLayer


def test_columns_and_their_adjoint_are_those_of_the_twins(random):
    for dtype in (np.float32, np.float64):
        maps = random.normal(size=(3, 11, 14)).astype(dtype)
        found, twin = np.empty((3 * 16, 5 * 11), dtype), np.empty((3 * 16, 5 * 11), dtype)
        conv.gather_columns(maps, 4, 2, 5, found)
        conv.reference_gather_columns(maps, 4, 2, 5, twin)
        np.testing.assert_array_equal(found, twin)
        back, twin_back = np.zeros_like(maps), np.zeros_like(maps)
        conv.scatter_columns(found, 4, 2, 5, back)
        conv.reference_scatter_columns(found, 4, 2, 5, twin_back)
        np.testing.assert_allclose(back, twin_back, rtol=1e-5)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("n_out", [1, 2, 5])
def test_the_direct_kernel_is_its_twin(random, n_out, first):
    maps, weights = random.normal(size=(3, 15, 18)).astype(np.float32), random.normal(size=(n_out, 3, 5, 5))
    out, twin = np.empty((n_out, 7, 14), np.float32), np.empty((n_out, 7, 14))
    conv.correlate_five(maps, weights.astype(np.float32), first, 7, out)
    conv.reference_correlate_five(maps, weights, first, 7, twin)
    np.testing.assert_allclose(out, twin, atol=2e-5)


def test_products_of_modes_are_their_twin(random):
    modes, weights = ((random.normal(size=(4, 6, 9)) + 1j * random.normal(size=(4, 6, 9))).astype(np.complex64)
                      for _ in range(2))
    out, twin = np.empty((6, 9), np.complex64), np.empty((6, 9), np.complex64)
    conv.multiply_modes(modes, weights, out)
    conv.reference_multiply_modes(modes, weights, twin)
    np.testing.assert_allclose(out, twin, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "linear"])
def test_activations_are_their_twins_also_far_out(random, name):
    maps = (random.normal(size=(3, 2500)) * 40).astype(np.float32)
    maps[0, :4] = [-1e4, 1e4, -90, 90]
    bias = random.normal(size=3).astype(np.float32)
    twin = maps.astype(np.float64)
    conv.activate(name, twin, bias)
    conv.activate(name, maps, bias)
    np.testing.assert_allclose(maps, twin, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(("size", "side"), [(2, 12), (3, 13), (4, 8)])
def test_pools_are_their_twin_and_their_gradient_the_adjoint(random, size, side):
    maps = random.normal(size=(2, side, side))
    out, twin = (np.empty((2, side // size, side // size)) for _ in range(2))
    conv.mean_pool(maps, size, out)
    conv.reference_mean_pool(maps, size, twin)
    np.testing.assert_allclose(out, twin, rtol=1e-12)
    weight = random.normal(size=out.shape)
    whole = maps[:, :size * out.shape[1], :size * out.shape[2]]
    assert np.sum(out * weight) == pytest.approx(np.sum(whole * conv.mean_pool_gradient(weight, size)))


def differences(function, values, step):
    """dL/dvalue by central differences, for some of the values."""
    places = np.random.default_rng(0).permutation(values.size)[:40]
    found = np.empty(len(places))
    for k, place in enumerate(places):
        kept = values.flat[place]
        values.flat[place] = kept + step
        above = function()
        values.flat[place] = kept - step
        found[k] = (above - function()) / (2 * step)
        values.flat[place] = kept
    return places, found


def test_gradients_of_the_correlation_are_differences_of_it(random):
    images, weights = random.normal(size=(3, 2, 9, 11)), random.normal(size=(4, 2, 4, 4))
    bias, slope = random.normal(size=4), random.normal(size=(3, 4, 6, 8))

    def loss():
        return np.sum(slope * conv.correlate(images, weights, bias))

    gradients = conv.correlate_gradient(images, weights, slope)
    for values, gradient in zip((images, weights, bias), gradients):
        places, found = differences(loss, values, 1e-4)
        np.testing.assert_allclose(gradient.flat[places], found, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(conv.correlate(images, weights, bias), conv.reference_correlate(images, weights, bias))


def test_gradients_of_the_normalisation_are_differences_of_it(random):
    maps, gamma, beta = random.normal(2.0, 3.0, size=(3, 2, 4, 5)), random.normal(size=2), random.normal(size=2)
    slope = random.normal(size=maps.shape)

    def loss():
        return np.sum(slope * conv.normalise(maps, gamma, beta)[0])

    out, kept, mean, variance = conv.normalise(maps, gamma, beta)
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), beta)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), np.abs(gamma), rtol=1e-4)
    for values, gradient in zip((maps, gamma, beta), conv.normalise_gradient(kept, gamma, slope)):
        places, found = differences(loss, values, 1e-4)
        np.testing.assert_allclose(gradient.flat[places], found, rtol=1e-6, atol=1e-7)
    weights, bias = random.normal(size=(2, 1, 3, 3)), random.normal(size=2)
    images = random.normal(size=(2, 1, 8, 8))
    folded = conv.fold_normalisation(weights, bias, gamma, beta, mean, variance)
    kept = conv.correlate(images, weights, bias) - mean[:, None, None]
    kept = kept / np.sqrt(variance + conv.NORMALISE_EPSILON)[:, None, None]
    expected = kept * gamma[:, None, None] + beta[:, None, None]
    np.testing.assert_allclose(conv.correlate(images, *folded), expected)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a kernel of 9 px does not fit maps of 8 × 12 px"):
        conv.correlate(np.zeros((1, 1, 8, 12)), np.zeros((1, 1, 9, 9)), np.zeros(1))
    with pytest.raises(ValueError, match="multiple of the pool's 2 px"):
        conv.ColumnLayer(np.zeros((1, 1, 4, 4), np.float32), np.zeros(1, np.float32), "relu", 2, (12, 11))

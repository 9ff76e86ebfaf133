"""The dense scan equals the box-by-box scan, in every preset, orientation, step and tiling."""
from dataclasses import replace

import numpy as np
import pytest

from vitrea.kernels import conv
from vitrea.picker.network import PRESETS, initial_parameters, initial_statistics, stages
from vitrea.picker.scan import DenseScan, scan_boxes, scan_standardised


def chain_of(name, seed=0):
    """Stages of a preset as alive as a trained one: before each activation, maps of mean 0 and deviation 2.

    As drawn, a chain says nearly the same of every box.
    """
    network = PRESETS[name]
    chain, maps = [], np.stack([picture(network.box, network.box, seed)[None] for seed in range(4)])
    for stage in stages(network, initial_parameters(network, np.random.default_rng(seed)), initial_statistics(network)):
        drawn = conv.correlate(maps, stage.weights, stage.bias)
        scale = (2 / drawn.std(axis=(0, 2, 3))).astype(np.float32)
        bias = -drawn.mean(axis=(0, 2, 3)) * scale
        chain.append(replace(stage, weights=stage.weights * scale[:, None, None, None], bias=bias))
        maps = conv.correlate(maps, chain[-1].weights, bias)
        conv.activate(stage.activation, maps.reshape(-1, maps[0, 0].size), np.zeros(maps[:, :, 0, 0].size, np.float32))
        maps = conv.pooled(maps, stage.pool)
    return network, chain


def picture(height, width, seed=1):
    return np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)


@pytest.mark.parametrize("name", ["vitrea", "deepem-64", "deepem-19s"])
def test_dense_equals_box_by_box_on_an_image_that_is_not_square(name):
    network, chain = chain_of(name)
    box, stride = network.box, network.stride
    image = picture(box + 5 * stride + 3, box + 8 * stride + 1)
    for orientations in ((0,), (0, 1, 2, 3)):
        dense = DenseScan(chain, box, image.shape, orientations=orientations).scores(image)
        boxes = scan_boxes(chain, box, image, stride, orientations=orientations)
        assert dense.shape == boxes.shape == (6, 9)
        np.testing.assert_allclose(dense, boxes, atol=1e-5)
        assert boxes.std() > 0.02


def test_the_published_klh_network_dense_equals_box_by_box():
    _, chain = chain_of("deepem-klh")
    image = picture(292, 300)
    dense = DenseScan(chain, 272, image.shape, orientations=(0, 1)).scores(image)
    np.testing.assert_allclose(dense, scan_boxes(chain, 272, image, 12, orientations=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("step", [1, 2])
def test_finer_steps_are_exact_too(step):
    _, chain = chain_of("vitrea")
    image = picture(62, 57)
    fine = DenseScan(chain, 48, image.shape, step=step).scores(image)
    np.testing.assert_allclose(fine, scan_boxes(chain, 48, image, step), atol=1e-5)
    coarse = DenseScan(chain, 48, image.shape).scores(image)
    np.testing.assert_allclose(fine[::4 // step, ::4 // step], coarse, atol=1e-5)


def test_tiles_do_not_show():
    _, chain = chain_of("vitrea")
    image = picture(151, 133)
    whole = DenseScan(chain, 48, image.shape, tile_side=500).scores(image)
    for side in (60, 100, 120):
        tiled = DenseScan(chain, 48, image.shape, tile_side=side)
        np.testing.assert_allclose(tiled.scores(image), whole, atol=1e-5)
        np.testing.assert_array_equal(tiled.scores(image), tiled.scores(image))


def test_the_standardised_scan_shares_the_first_layer_and_equals_standardised_boxes():
    for name, step in (("deepem-64", 7), ("vitrea", 5)):
        network, chain = chain_of(name)
        image = 130 + 25 * picture(network.box + 3 * step, network.box + 2 * step + 1)
        exact = scan_standardised(chain, network.box, image, step)
        np.testing.assert_allclose(exact, scan_boxes(chain, network.box, image, step, standardised=True), atol=1e-5)
        plain = scan_boxes(chain, network.box, image, step)
        assert np.abs(plain - exact).max() > 0.02
        # Brightness and contrast do nothing to it.
        np.testing.assert_allclose(scan_standardised(chain, network.box, 3 * image + 50, step), exact, atol=1e-4)


def test_mistakes_of_a_caller_are_told():
    _, chain = chain_of("vitrea")
    with pytest.raises(ValueError, match="an image of 40 × 90 px is smaller than the network's box of 48 px"):
        DenseScan(chain, 48, (40, 90))
    with pytest.raises(ValueError, match="a step of 3 px does not divide the network's stride of 4 px"):
        DenseScan(chain, 48, (90, 90), step=3)
    with pytest.raises(ValueError, match="planned for"):
        DenseScan(chain, 48, (90, 90)).scores(picture(90, 91))

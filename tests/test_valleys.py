"""The laboratory of networks: exact slopes and curvature, and measures of valleys that mean what they say."""
import gzip
import struct

import numpy as np
import pytest

from vitrea.engine.digits import DenseLandscape, Split, mnist, read_idx, sklearn_digits
from vitrea.engine.errors import JobError
from vitrea.engine.valleys import (
    barrier,
    batches,
    cool,
    descend,
    invariant_sharpness,
    jaccard,
    leading_eigenvalues,
    sharpness,
    states_at,
)
from vitrea.kernels import dense

WIDTHS = (6, 5, 4, 3)


def clouds(n, seed=0, pixels=6, classes=3):
    """Split of `classes` overlapping normal clouds of `n` points each."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, pixels))
    labels = np.tile(np.arange(classes), n)
    draw = lambda: centres[labels] + 0.6 * random.normal(size=(len(labels), pixels))  # noqa: E731
    return Split(draw(), labels, draw(), labels)


@pytest.fixture(scope="module")
def small():
    landscape = DenseLandscape(clouds(20), (5, 4))
    theta = landscape.initial(np.random.default_rng(1))
    return landscape, cool(landscape, theta, 0.3).theta


def hessian(landscape, theta):
    return np.array([landscape.hessian_product(theta, unit) for unit in np.eye(landscape.n_parameters)])


def test_the_gradient_and_hessian_products_are_derivatives_of_the_loss():
    random = np.random.default_rng(2)
    inputs, labels = random.normal(size=(30, 6)), random.integers(0, 3, 30)
    theta, vector = dense.initial_dense(WIDTHS, random), random.normal(size=dense.n_parameters(WIDTHS))
    theta += 0.1 * random.normal(size=theta.size)   # biases too
    step = 1e-5
    ahead, behind = theta + step * vector, theta - step * vector
    loss, gradient = dense.dense_gradient(WIDTHS, theta, inputs, labels)
    assert loss == dense.dense_loss(WIDTHS, theta, inputs, labels)
    rise = dense.dense_loss(WIDTHS, ahead, inputs, labels) - dense.dense_loss(WIDTHS, behind, inputs, labels)
    assert rise / (2 * step) == pytest.approx(gradient @ vector, rel=1e-7)
    change = (dense.dense_gradient(WIDTHS, ahead, inputs, labels)[1]
              - dense.dense_gradient(WIDTHS, behind, inputs, labels)[1]) / (2 * step)
    product = dense.dense_hessian_product(WIDTHS, theta, vector, inputs, labels)
    np.testing.assert_allclose(product, change, atol=1e-7 * np.abs(change).max())


def test_a_wrong_number_of_parameters_is_told():
    with pytest.raises(ValueError, match=r"73 parameters for layers of \(6, 5, 4, 3\); expected 74"):
        dense.layers(WIDTHS, np.zeros(73))


def test_lanczos_finds_the_eigenvalues_of_the_whole_hessian(small):
    landscape, theta = small
    whole = hessian(landscape, theta + 0.05)   # not a minimum: the Hessian there has negative eigenvalues too
    np.testing.assert_allclose(whole, whole.T, atol=1e-12)
    expected = np.linalg.eigvalsh(whole)[::-1]
    assert expected[-1] < 0
    found = sharpness(landscape, theta + 0.05, k=3)
    np.testing.assert_allclose(found, expected[:3], rtol=1e-3)
    again = sharpness(landscape, theta + 0.05, k=3)
    assert np.array_equal(found, again)


def test_lanczos_takes_the_largest_and_not_the_largest_in_size():
    values = np.array([-9.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    np.testing.assert_allclose(leading_eigenvalues(lambda v: values * v.ravel(), 6, 2), [3.0, 2.0], rtol=1e-3)


def test_rescaling_layers_changes_the_hessian_and_not_the_invariant_sharpness(small):
    landscape, theta = small
    scaled = theta.copy()
    chain = dense.layers(landscape.widths, scaled)
    up = np.array([4.0, 1.0, 0.5, 2.0, 3.0])   # unit by unit: weights and bias before, the same down after
    chain[0][0][:] *= up[:, None]
    chain[0][1][:] *= up
    chain[1][0][:] /= up
    assert landscape.loss(scaled) == pytest.approx(landscape.loss(theta), rel=1e-12)
    assert sharpness(landscape, scaled)[0] > 1.5 * sharpness(landscape, theta)[0]
    assert invariant_sharpness(landscape, scaled) == pytest.approx(invariant_sharpness(landscape, theta), rel=1e-3)


def test_cooling_stops_at_the_first_state_at_the_matched_loss(small):
    landscape, theta = small
    end = cool(landscape, theta, 0.2)
    assert 0.19 < end.loss <= 0.2
    before = cool(landscape, theta, 0.2, most=end.steps - 1)
    assert before.loss > 0.2
    np.testing.assert_array_equal(before.theta - 0.1 * landscape.gradient(before.theta)[1], end.theta)
    assert end.accuracy == pytest.approx(1 - landscape.wrong(end.theta).mean())
    assert cool(landscape, end.theta, 0.2).steps == 0


def test_barriers():
    landscape = DenseLandscape(clouds(20), (8,))
    ends = [cool(landscape, landscape.initial(np.random.default_rng(seed)), 0.1).theta for seed in (1, 2)]
    assert barrier(landscape, ends[0], ends[0]) == 0
    apart = barrier(landscape, *ends)
    assert apart > 0.1   # two starts, two valleys
    assert barrier(landscape, ends[1], ends[0]) == pytest.approx(apart, rel=1e-9)
    on = ends[0] + 1e-3 * (ends[1] - ends[0])
    assert barrier(landscape, ends[0], on) == pytest.approx(0, abs=1e-6)
    # down the slope a little: a line along which the loss falls has none
    assert barrier(landscape, ends[0], ends[0] - 0.1 * landscape.gradient(ends[0])[1]) == pytest.approx(0, abs=1e-9)


def test_the_overlap_of_mistakes():
    a, b = np.array([1, 1, 0, 0], dtype=bool), np.array([0, 1, 1, 0], dtype=bool)
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a, a) == 1
    assert jaccard(a & False, b & False) == 1
    assert jaccard(a, b & False) == 0


def test_shuffled_batches_see_all_samples_once_an_epoch_and_drawn_ones_do_not():
    shuffled = batches(10, 4, np.random.default_rng(0))
    epochs = [np.concatenate([next(shuffled) for _ in range(3)]) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert list(epochs[0]) != list(epochs[1])
    drawn = batches(10, 4, np.random.default_rng(0), replacement=True)
    several = [next(drawn) for _ in range(200)]
    assert all(len(rows) == 4 for rows in several)
    assert any(len(set(rows)) < 4 for rows in several)


def test_a_path_is_left_at_its_marks(small):
    landscape, theta = small

    def path():
        return descend(landscape, theta, 0.05, batches(landscape.n_samples, 10, np.random.default_rng(3)))

    steps = [theta, *(state for state, _ in zip(path(), range(7)))]
    for found, mark in zip(states_at(path(), [0, 3, 7], theta), (0, 3, 7)):
        np.testing.assert_array_equal(found, steps[mark])


def test_scikit_learns_digits():
    pytest.importorskip("sklearn", reason='pip install "vitrea[digits]"')
    split = sklearn_digits(per_class=50, seed=0)
    assert split.inputs.shape == (500, 64)
    assert split.test_inputs.shape == (1297, 64)
    assert np.bincount(split.labels).tolist() == [50] * 10
    assert (split.inputs.min(), split.inputs.max()) == (-1.0, 1.0)
    assert not np.array_equal(split.inputs, sklearn_digits(per_class=50, seed=1).inputs)


def write_mnist(folder, n=40, side=28):
    random = np.random.default_rng(0)
    for prefix, zipped in (("train", True), ("t10k", False)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = random.integers(0, 256, (n, side, side), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            path = folder / f"{prefix}-{name}-ubyte"
            if zipped:
                path, content = path.with_name(path.name + ".gz"), gzip.compress(content)
            path.write_bytes(content)


def test_mnist_is_read_from_its_own_files(tmp_path):
    write_mnist(tmp_path)
    split = mnist(tmp_path, per_class=3, test_per_class=2)
    assert split.inputs.shape == (30, 784)
    assert split.test_labels.tolist() == [*range(10)] * 2
    raw = read_idx(tmp_path / "train-images-idx3-ubyte.gz", 3)[:30].reshape(30, -1)
    np.testing.assert_allclose(split.inputs, (raw / 255.0 - 0.5) / 0.5, atol=1e-12)   # as the paper has it


def test_what_is_wrong_with_mnist_files_is_told(tmp_path):
    with pytest.raises(JobError, match="train-images-idx3-ubyte is not there, nor train-images-idx3-ubyte"):
        mnist(tmp_path)
    write_mnist(tmp_path)
    with pytest.raises(JobError, match="train-labels-idx1-ubyte: holds 4 of digit 0; expected at least 5 of each"):
        mnist(tmp_path, per_class=5)
    short = tmp_path / "t10k-images-idx3-ubyte"
    short.write_bytes(short.read_bytes()[:-1])
    with pytest.raises(JobError, match="holds 31359 bytes of values; expected 40 × 28 × 28 of its header"):
        mnist(tmp_path, per_class=3, test_per_class=2)
    short.write_bytes(b"PNG???")
    with pytest.raises(JobError, match="begins with 50 4e 47 3f; expected 00 00 08 03, an IDX file of bytes in 3 "):
        mnist(tmp_path, per_class=3, test_per_class=2)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip at all")
    with pytest.raises(JobError, match="cannot be read"):
        mnist(tmp_path, per_class=3, test_per_class=2)
    write_mnist(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(JobError, match="40 labels up to 11 for 40 images; expected one label of 0 to 9 for each"):
        mnist(tmp_path, per_class=3, test_per_class=2)

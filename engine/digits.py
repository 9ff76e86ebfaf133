"""Written digits as a laboratory: scikit-learn's 8 × 8 px, or MNIST's 28 × 28 px from files, and a dense network.

As in Yang et al. (arXiv 2601.10962), few images train and others test, pixels brought to −1 … 1: of MNIST the first of
each class, as theirs; of scikit-learn's, whose order is that of their writers, some of each class at random.
scikit-learn is asked for its digits only where a job wants them (`pip install "vitrea[digits]"`).
"""
import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.kernels import dense

N_CLASSES = 10
MNIST_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
               "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}
IDX_BYTES = 8            # IDX element type 0x08: unsigned bytes


@dataclass(frozen=True)
class Split:
    """Images float64[n, pixels] of −1 … 1 and labels int[n], for training and for testing."""

    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


class DenseLandscape:
    """The mean cross-entropy of a rectified dense network on a Split (a Landscape of engine/valleys.py).

    hidden: units of the layers between the pixels and the classes. Gradients are computed in single precision, which
    takes a third of the time and leaves steps as exact as they need be; losses and products with the Hessian in double.
    """

    def __init__(self, split, hidden):
        self.split = split
        self.widths = (split.inputs.shape[1], *hidden, N_CLASSES)
        self.n_parameters, self.n_samples = dense.n_parameters(self.widths), len(split.labels)
        self._inputs = split.inputs.astype(np.float32)

    def initial(self, random):
        return dense.initial_dense(self.widths, random)

    def loss(self, theta):
        return dense.dense_loss(self.widths, theta, self.split.inputs, self.split.labels)

    def gradient(self, theta, rows=None):
        rows = slice(None) if rows is None else rows
        loss, gradient = dense.dense_gradient(self.widths, theta.astype(np.float32), self._inputs[rows],
                                              self.split.labels[rows])
        return loss, gradient.astype(np.float64)

    def hessian_product(self, theta, vector):
        return dense.dense_hessian_product(self.widths, theta, vector, self.split.inputs, self.split.labels)

    def wrong(self, theta):
        logits = dense.dense_logits(self.widths, theta, self.split.test_inputs)
        return logits.argmax(axis=1) != self.split.test_labels


def sklearn_digits(per_class=50, seed=0):
    """Split of scikit-learn's 1,797 digits: `per_class` of each class, drawn by `seed`, train, and all others test.

    JobError if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise JobError("source: digits are scikit-learn's, and scikit-learn is not installed; expected it beside "
                       "Vitrea; run 'pip install \"vitrea[digits]\"'") from error
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs, labels = pixels[order] / 8.0 - 1.0, labels[order]
    trains = first_of_each(labels, per_class)
    return Split(inputs[trains], labels[trains], inputs[~trains], labels[~trains])


def mnist(folder, per_class=100, test_per_class=20):
    """Split of the MNIST files (IDX, plain or .gz) in a folder: the first of each class of either pair of files.

    MNIST-1000 of Yang et al. with the defaults. JobError if a file is not there, or is not what its name says.
    """
    parts = []
    for which, count in (("train", per_class), ("test", test_per_class)):
        images, labels = _pair(Path(folder), which)
        rows = first_of_each(labels, count)
        found = np.bincount(labels[rows], minlength=N_CLASSES)
        if (found < count).any():
            raise JobError(f"{Path(folder) / MNIST_FILES[which][1]}: holds {found.min()} of digit {found.argmin()}; "
                           f"expected at least {count} of each; ask for fewer")
        parts += [images[rows].reshape(rows.sum(), -1) / 127.5 - 1.0, labels[rows].astype(np.int64)]
    return Split(*parts)


def first_of_each(labels, count):
    """bool[n]: whether a sample is among the first `count` of its label."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[:count]] = True
    return chosen


def _pair(folder, which):
    images, labels = (read_idx(_present(folder, name), dimensions)
                      for name, dimensions in zip(MNIST_FILES[which], (3, 1)))
    if len(images) != len(labels) or labels.max(initial=0) >= N_CLASSES:
        raise JobError(f"{folder / MNIST_FILES[which][1]}: {len(labels)} labels up to {labels.max(initial=0)} for "
                       f"{len(images)} images; expected one label of 0 to 9 for each; fetch both files again")
    return images, labels


def _present(folder, name):
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise JobError(f"{folder}: {name} is not there, nor {name}.gz; expected the four files of MNIST; put them there "
                   "under their own names")


def read_idx(path, dimensions):
    """uint8 array of an IDX file (magic 0 0 8 d, d big-endian sizes, bytes), plain or gzipped, of so many dimensions.

    JobError if it is another kind of file or shorter or longer than it says.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise JobError(f"{path}: cannot be read ({error}); expected an IDX file; fetch it again") from error
    start = 4 + 4 * dimensions
    if len(content) < start or tuple(content[:4]) != (0, 0, IDX_BYTES, dimensions):
        raise JobError(f"{path}: begins with {content[:4].hex(' ')}; expected 00 00 08 0{dimensions}, an IDX file of "
                       f"bytes in {dimensions} dimension{'s' if dimensions > 1 else ''}; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise JobError(f"{path}: holds {len(content) - start} bytes of values; expected {' × '.join(map(str, shape))} "
                       "of its header; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)

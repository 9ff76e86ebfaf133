"""Scores of all rotations and shifts as matrix products over rings and short Fourier transforms over angles.

A rotation by ψ multiplies a(r, m) by e^{−imψ}. With images y = harmonics of C·X and templates a_t = harmonics of the
shifted reference,
    score(ψ, t) = Σ_m e^{imψ} z_t(m),   z_t(m) = Σ_r w_r y(r, m) conj a_t(r, m),
the bracket being, for each m, a product (images × rings)·(rings × shifts), and the sum over m an inverse FFT
(Rangan et al. 2020; design: docs/theory.md).
"""
import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def harmonic_product(images, n, start, stop, templates, n_shifts, offset, out):
    """z(m; i, t) for images `start…stop` of `n`: one BLAS product a harmonic.

    images complex64[n·size] as written by `gather_by_harmonic` (kernels/packed.py); templates complex64[size·T],
    conjugated, per harmonic a matrix (rings × shifts); out complex64[M, ≥ (stop − start)·T].
    """
    count = stop - start
    for m in range(offset.size - 1):
        width = offset[m + 1] - offset[m]
        first = n * offset[m] + start * width
        left = images[first:first + count * width].reshape(count, width)
        right = templates[n_shifts * offset[m]:n_shifts * offset[m + 1]].reshape(width, n_shifts)
        np.dot(left, right, out[m, :count * n_shifts].reshape(count, n_shifts))


def reference_harmonic_product(images, n, start, stop, templates, n_shifts, offset, out):
    """NumPy twin of `harmonic_product`."""
    for m in range(offset.size - 1):
        left = images[n * offset[m]:n * offset[m + 1]].reshape(n, -1)[start:stop]
        right = templates[n_shifts * offset[m]:n_shifts * offset[m + 1]].reshape(-1, n_shifts)
        out[m, :(stop - start) * n_shifts] = (left @ right).ravel()


@numba.njit(nogil=True, cache=True)
def pack_lines(product, first, count, n_shifts, log_prior, ctf_term, out):
    """Lay lines `first…first+count` of a product side by side for the transform over angles, priors and CTF term added.

    product complex64[M, lines], a line being (image, shift); log_prior float32[T], added to m = 0; ctf_term
    complex64[images, J], the harmonics 0, 2, 4, … of −½ Σ_r w_r C²|A|², which no shift changes; out complex64[≥
    count, n/2+1]. Terms that n angles do not resolve, 2j ≥ n/2, are dropped.
    """
    n_harmonics, terms, block = product.shape[0], min(ctf_term.shape[1], out.shape[1] // 2), 8
    for begin in range(0, count, block):  # a small transpose, block by block
        end = min(begin + block, count)
        for m in range(n_harmonics):
            for line in range(begin, end):
                out[line, m] = product[m, first + line]
    for line in range(count):
        image, shift = divmod(first + line, n_shifts)
        out[line, n_harmonics:] = 0
        for j in range(terms):
            out[line, 2 * j] += ctf_term[image, j]
        out[line, 0] += log_prior[shift]


def reference_pack_lines(product, first, count, n_shifts, log_prior, ctf_term, out):
    """NumPy twin of `pack_lines`."""
    lines = np.arange(first, first + count)
    out[:count] = 0
    out[:count, :product.shape[0]] = product[:, first:first + count].T
    terms = min(ctf_term.shape[1], out.shape[1] // 2)
    out[:count, 0:2 * terms:2] += ctf_term[lines // n_shifts, :terms]
    out[:count, 0] += log_prior[lines % n_shifts]


@numba.njit(nogil=True, cache=True)
def accumulate_lines(harmonics, count, line_image, line_target, offset, images, out):
    """out[target] += Σ_ψ W(ψ) R_−ψ y: weighted sums of images turned back, one line of weights after the other.

    harmonics complex64[≥ count, n/2+1]: transform Σ_ψ W e^{−imψ} of the weights of each line; its conjugate turns the
    image back. (With the sign of m wrong, EM converges happily to blurred discs.) line_image, line_target int64[count];
    images complex64[n, size]; out complex64[targets, size].
    """
    for line in range(count):
        image, target = images[line_image[line]], out[line_target[line]]
        for m in range(offset.size - 1):
            weight = np.conj(harmonics[line, m])
            for c in range(offset[m], offset[m + 1]):
                target[c] += weight * image[c]


def reference_accumulate_lines(harmonics, count, line_image, line_target, offset, images, out):
    """NumPy twin of `accumulate_lines`."""
    for line in range(count):
        weight = np.repeat(np.conj(harmonics[line, :offset.size - 1]), np.diff(offset))
        out[line_target[line]] += weight * images[line_image[line]]

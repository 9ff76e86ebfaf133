"""`vitrea bench hinge`: aligned particles of a hinge in ten positions, at low signal, classified by five methods.

A body of 14 Gaussian blobs and an arm of 4 that turns from −45° to 45° in ten equal steps, 150 particles a step, box
64 at 4 Å/px; 300 kV, C_s 2.7 mm, amplitude contrast 0.1, 20 defoci from 1.0 to 2.5 µm; white noise, SNR = variance of
the CTF-filtered signal over the whole box ÷ variance of the noise; Fourier rings up to 16 are kept. Accuracy is the
share of particles in the class that stands for theirs under the best one-to-one match; chance is 0.1.

`oracle` assigns by likelihood with the true references: no method can do better, and it guards the simulation. Of the
others none sees the labels. Vitrea tries free classes and chains of several couplings from several starts, and keeps
what explains best the tenth of the particles that is held out.
"""
import json
import time
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.engine.annealing import Schedule
from vitrea.engine.comm import alone
from vitrea.engine.components import mean_image
from vitrea.engine.latent import chain, free
from vitrea.engine.manifold import (
    EmbeddedParticles,
    Expectation,
    Layout,
    Maximisation,
    Settings,
    assign,
    cut,
    hold_out,
    make_quanta,
)
from vitrea.engine.selection import best, ordered_beginnings, tried, usual_beginnings
from vitrea.engine.starts import analyse, from_references
from vitrea.kernels.ctf import ctf
from vitrea.kernels.embedding import HalfPlane, shell_power

BOX, PIXEL_SIZE, RADIUS = 64, 4.0, 16
N_CLASSES, CLASS_SIZE, N_DEFOCI = 10, 150, 20
BODY_BLOBS, BODY_RADIUS, BODY_SIGMA = 14, 15.0, 2.5         # px
ARM_BLOBS, ARM_START, ARM_STEP, ARM_SIGMA, ARM_HEIGHT = 4, 4.0, 4.0, 2.25, 1.18
HELD_OUT = 0.1
COMPONENTS = 10
PLAIN = Settings(learn_alpha=False, learn_prior=False)
METHODS = ("oracle", "vitrea", "pca_kmeans", "kmeans", "ml", "rome")


def hinge_views(seed):
    """float64[10, 64, 64]: the hinge in its ten positions; the body is drawn from `seed`."""
    random = np.random.default_rng([seed, 1])
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2

    def blob(centre, sigma):
        return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2.0 * sigma**2))

    points = random.uniform(-1, 1, (20 * BODY_BLOBS, 2))
    points = BODY_RADIUS * points[np.sum(points**2, axis=1) < 1][:BODY_BLOBS]
    body = sum(height * blob(point, BODY_SIGMA) for height, point in zip(random.uniform(0.5, 1.5, BODY_BLOBS), points))
    angles = np.deg2rad(np.linspace(-45, 45, N_CLASSES))
    reach = ARM_START + ARM_STEP * np.arange(1, ARM_BLOBS + 1)
    return np.stack([body + sum(ARM_HEIGHT * blob(r * np.array([np.sin(a), np.cos(a)]), ARM_SIGMA) for r in reach)
                     for a in angles])


@dataclass(frozen=True)
class Hinge:
    """Simulated particles: t, c float64[n, D], c2 float64[n, S], true class int64[n], and true references float64[10,
    D], noise of variance 1."""

    plane: HalfPlane
    t: np.ndarray
    c: np.ndarray
    c2: np.ndarray
    truth: np.ndarray
    references: np.ndarray

    @property
    def flipped(self):
        """float64[n, D]: particles with the phases the CTF turned turned back."""
        return self.t * np.sign(self.c)

    def particles(self, held_out=0.0, seed=0):
        """EmbeddedParticles of a single rank."""
        rows, starts = cut(len(self.t), rank=0, size=1)
        power = shell_power(self.t, self.plane.group, self.plane.shell)
        return EmbeddedParticles((self.c * self.t).astype(np.float32), self.c2.astype(np.float32), power, rows, starts,
                                 len(rows), Layout(self.plane.group, self.plane.shell),
                                 hold_out(rows, held_out, seed))


def simulate_hinge(snr, seed):
    """Hinge at a signal-to-noise ratio."""
    views, random = hinge_views(seed), np.random.default_rng([seed, 2])
    truth = np.repeat(np.arange(N_CLASSES), CLASS_SIZE)
    defocus = random.uniform(1.0e4, 2.5e4, N_DEFOCI)
    which = random.integers(N_DEFOCI, size=len(truth))
    frequency = np.hypot(fft.fftfreq(BOX)[:, None], fft.rfftfreq(BOX)) / PIXEL_SIZE
    transfer = np.stack([ctf(frequency, 0.0, defocus_u=z, defocus_v=z, defocus_angle=0.0, voltage=300.0, cs=2.7,
                             amplitude_contrast=0.1) for z in defocus])
    signal = fft.irfft2(fft.rfft2(views)[truth] * transfer[which], s=(BOX, BOX))
    sigma = np.sqrt(signal.var() / snr)
    images = signal / sigma + random.normal(size=signal.shape)
    plane = HalfPlane(BOX, RADIUS)
    c = transfer[:, plane.frequency[:, 0], plane.frequency[:, 1]]
    return Hinge(plane, plane.embed_images(images).astype(np.float64), np.repeat(c, 2, axis=1)[which],
                 plane.group_means(c**2)[which], truth, plane.embed_images(views / sigma).astype(np.float64))


def accuracy(truth, found):
    """Share of particles in the class matched to theirs, one to one, as well as can be (Hungarian)."""
    table = np.zeros((truth.max() + 1, max(truth.max(), found.max()) + 1))
    np.add.at(table, (truth, found), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def oracle(hinge, _):
    """Likelihood of the true references."""
    scores = (hinge.c * hinge.t) @ hinge.references.T - 0.5 * hinge.c**2 @ (hinge.references**2).T
    return scores.argmax(axis=1)


def kmeans(hinge, seed):
    """K-means of phase-flipped particles, the tightest of 3 starts."""
    return _kmeans(hinge.flipped, 3, seed)


def pca_kmeans(hinge, seed):
    """K-means, the tightest of 10 starts, of the ten leading principal components of phase-flipped particles."""
    u, s, _ = np.linalg.svd(hinge.flipped - hinge.flipped.mean(axis=0), full_matrices=False)
    return _kmeans(u[:, :COMPONENTS] * s[:COMPONENTS], 10, seed)


def _kmeans(points, n_starts, seed):
    tightest, kept = np.inf, None
    for start in range(n_starts):
        centres, found = kmeans2(points, N_CLASSES, iter=60, minit="++", missing="raise",
                                 rng=np.random.default_rng([seed, 3, start]))
        spread = np.sum((points - centres[found]) ** 2)
        if spread < tightest:
            tightest, kept = spread, found
    return kept


def ml(hinge, seed):
    """A maximum-likelihood mixture with CTF: T = 1, class weights learnt, each class begun by a tenth of the
    particles drawn at random, 40 iterations."""
    particles = hinge.particles()
    parts = np.random.default_rng([seed, 4]).permutation(len(hinge.t)) % N_CLASSES
    member = (parts == np.arange(N_CLASSES)[:, None]).astype(np.float64)
    start = member @ (hinge.c * hinge.t) / np.maximum(member @ hinge.c**2, 1e-30)
    return _iterated(particles, free(N_CLASSES), start, 40, 1.0, replace(PLAIN, learn_prior=True))


def rome(hinge, seed):
    """What ROME 1.1 does: a chain with 0.8 K basis functions, prior precision 0.01, all nodes begun alike, T = 2 (its
    noise precision is half the likeliest), 30 iterations. Rounding breaks the symmetry: a relative 2.5e-7, drawn."""
    particles = hinge.particles()
    mean = mean_image(particles, make_quanta(particles, comm=alone()), comm=alone())[0]
    noise = np.random.default_rng([seed, 5]).normal(size=(N_CLASSES, len(mean)))
    return _iterated(particles, chain(N_CLASSES), mean * (1.0 + 2.5e-7 * noise), 30, 2.0, PLAIN)


def _iterated(particles, lattice, references, iterations, temperature, settings):
    start = from_references(lattice, particles.layout, references, np.ones(RADIUS))
    model = replace(start, alpha=np.full(RADIUS, 0.01), temperature=temperature)
    em = Maximisation(particles, lattice, settings, comm=alone())
    for _ in range(iterations):
        model, _ = em.step(model)
    return _labels(particles, model)


def vitrea(hinge, seed):
    """Annealed classes with the prior of each shell found by its evidence; start and coupling by held-out particles."""
    return _labels(hinge.particles(), chosen(hinge, seed).state.manifold)


def chosen(hinge, seed):
    """The Candidate judged best of two lattices with six starts each, and of the best of these put in order."""
    particles = hinge.particles(HELD_OUT, seed)
    components, beta = analyse(particles, COMPONENTS, comm=alone())
    lattices = (free(N_CLASSES), chain(N_CLASSES, basis_fraction=1.0, width=0.7))
    settings, schedule = Settings(learn_prior=False), Schedule()
    begun = usual_beginnings(lattices, particles.layout, components, beta)
    first = best(tried(particles, begun, settings, schedule, comm=alone()))
    begun = ordered_beginnings(first, particles.layout)
    return best([first, *tried(particles, begun, settings, schedule, comm=alone())])


def _labels(particles, model):
    expectation = Expectation(particles, model)
    return np.concatenate([assign(expectation, block).class_number for block in particles.blocks])


_FOUND_BY = {"oracle": oracle, "vitrea": vitrea, "pca_kmeans": pca_kmeans, "kmeans": kmeans, "ml": ml, "rome": rome}


def measure(snrs, seeds, methods, progress=SILENCE):
    """Rows of a table: dicts of snr, seed, accuracy by method, and core-seconds by method."""
    with threadpool_limits(1):
        return [_row(snr, seed, methods, progress) for snr in snrs for seed in seeds]


def _row(snr, seed, methods, progress):
    progress.step(f"SNR {snr:g}, seed {seed}: methods", len(methods))
    hinge = simulate_hinge(snr, seed)
    row = {"snr": snr, "seed": seed, "accuracy": {}, "seconds": {}}
    for method in methods:
        begin = time.process_time()
        row["accuracy"][method] = accuracy(hinge.truth, _FOUND_BY[method](hinge, seed))
        row["seconds"][method] = time.process_time() - begin
        progress.done()
    return row


def means(rows):
    """Mean accuracy by SNR and method."""
    snrs = list(dict.fromkeys(row["snr"] for row in rows))
    return [{"snr": snr, **{method: float(np.mean([row["accuracy"][method] for row in rows if row["snr"] == snr]))
                            for method in rows[0]["accuracy"]}} for snr in snrs]


def command(arguments):
    """Run, keep and print what `vitrea bench hinge` was asked for; the exit code."""
    rows = measure(arguments.snr, arguments.seeds, METHODS, arguments.progress)
    record = {"benchmark": "hinge", "rows": rows, "means": means(rows)} | surroundings()
    keep(arguments.records, record)
    arguments.progress.result(json.dumps(record) if arguments.json else told(rows))
    return 0


def told(rows):
    """The table for people."""
    methods = list(rows[0]["accuracy"])
    lines = ["SNR     seed   " + "".join(f"{method:>12}" for method in methods)]
    lines += [f"{row['snr']:<8g}{row['seed']:<7}" + "".join(f"{row['accuracy'][method]:>12.3f}" for method in methods)
              for row in rows]
    lines += [f"{mean['snr']:<8g}mean   " + "".join(f"{mean[method]:>12.3f}" for method in methods)
              for mean in means(rows)]
    return "\n".join(lines)

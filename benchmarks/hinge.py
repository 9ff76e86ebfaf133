"""Aligned particles at low signal, classified by several methods: `vitrea bench hinge` and `vitrea bench unrelated`.

The specimens are those of benchmarks/aligned.py. Accuracy is the share of particles in the class that stands for theirs
under the best one-to-one match; chance is one over the number of classes.

`oracle` assigns by likelihood with the true references: no method can do better, and it guards the simulation. Of the
others none sees the labels. Vitrea tries free classes and chains of several couplings from several starts, and keeps
what explains best the tenth of the particles that is held out.
"""
import json
import time
from dataclasses import replace

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2
from threadpoolctl import threadpool_limits

from vitrea.benchmarks.aligned import RADIUS, accuracy, hinge_views, rotated_views, simulate, unrelated_views
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.engine.annealing import Schedule, begin, fit
from vitrea.engine.comm import alone
from vitrea.engine.components import mean_image
from vitrea.engine.latent import chain, free
from vitrea.engine.manifold import Expectation, Maximisation, Settings, assign, make_quanta
from vitrea.engine.selection import chosen
from vitrea.engine.starts import analyse, at_random, from_references

HELD_OUT = 0.1
COMPONENTS = 10
PLAIN = Settings(learn_alpha=False, learn_prior=False)
METHODS = {"hinge": ("oracle", "vitrea", "pca_kmeans", "kmeans", "ml", "rome"),
           "unrelated": ("oracle", "vitrea", "ml", "ml_annealed", "pca_kmeans")}
SETS = {"hinge": (hinge_views, 150), "disc": (unrelated_views, 150), "rot": (rotated_views, 60)}   # particles a view
SETS_OF = {"hinge": ("hinge",), "unrelated": ("disc", "rot")}


def simulated(name, snr, seed, junk=0.0):
    """Aligned particles of one of SETS."""
    views, per_view = SETS[name]
    return simulate(views(seed), per_view, snr, seed, junk)


def oracle(aligned, _):
    """Likelihood of the true references."""
    scores = (aligned.c * aligned.t) @ aligned.references.T - 0.5 * aligned.c**2 @ (aligned.references**2).T
    return scores.argmax(axis=1)


def kmeans(aligned, seed):
    """K-means of phase-flipped particles, the tightest of 3 starts."""
    return _kmeans(aligned.flipped, aligned.n_classes, 3, seed)


def pca_kmeans(aligned, seed):
    """K-means, the tightest of 10 starts, of the ten leading principal components of phase-flipped particles."""
    u, s, _ = np.linalg.svd(aligned.flipped - aligned.flipped.mean(axis=0), full_matrices=False)
    return _kmeans(u[:, :COMPONENTS] * s[:COMPONENTS], aligned.n_classes, 10, seed)


def _kmeans(points, n_classes, n_starts, seed):
    tightest, kept = np.inf, None
    for start in range(n_starts):
        try:
            centres, found = kmeans2(points, n_classes, iter=60, minit="++", missing="raise",
                                     rng=np.random.default_rng([seed, 3, start]))
        except ClusterError:   # a class has lost its last particle
            continue
        spread = np.sum((points - centres[found]) ** 2)
        if spread < tightest:
            tightest, kept = spread, found
    return kept


def ml(aligned, seed):
    """A maximum-likelihood mixture with CTF: T = 1, class weights learnt, each class begun by as many particles drawn
    at random, 40 iterations."""
    particles = aligned.particles()
    parts = np.random.default_rng([seed, 4]).permutation(len(aligned.t)) % aligned.n_classes
    member = (parts == np.arange(aligned.n_classes)[:, None]).astype(np.float64)
    start = member @ (aligned.c * aligned.t) / np.maximum(member @ aligned.c**2, 1e-30)
    return _iterated(particles, free(aligned.n_classes), start, 40, 1.0, replace(PLAIN, learn_prior=True))


def rome(aligned, seed):
    """What ROME 1.1 does: a chain with 0.8 K basis functions, prior precision 0.01, all nodes begun alike, T = 2 (its
    noise precision is half the likeliest), 30 iterations. Rounding breaks the symmetry: a relative 2.5e-7, drawn."""
    particles = aligned.particles()
    mean = mean_image(particles, make_quanta(particles, comm=alone()), comm=alone())[0]
    noise = np.random.default_rng([seed, 5]).normal(size=(aligned.n_classes, len(mean)))
    return _iterated(particles, chain(aligned.n_classes), mean * (1.0 + 2.5e-7 * noise), 30, 2.0, PLAIN)


def _iterated(particles, lattice, references, iterations, temperature, settings):
    start = from_references(lattice, particles.layout, references, np.ones(RADIUS))
    model = replace(start, alpha=np.full(RADIUS, 0.01), temperature=temperature)
    em = Maximisation(particles, lattice, settings, comm=alone())
    for _ in range(iterations):
        model, _ = em.step(model)
    return labels(particles, model)


def ml_annealed(aligned, seed):
    """The same mixture, cooled from where classes appear to T = 1, class weights equal and learnt at the end: the best
    maximum likelihood has to offer, without a prior and without a choice between starts."""
    particles = aligned.particles(HELD_OUT, seed)
    components, beta = analyse(particles, COMPONENTS, comm=alone())
    start = at_random(free(aligned.n_classes), particles.layout, components, beta, seed)
    start = replace(start, alpha=np.full(RADIUS, 0.01))
    state = begin(start, components.eigenvalues[0])
    state = fit(particles, state, Settings(learn_alpha=False), Schedule(), comm=alone())
    return labels(aligned.particles(), state.manifold)


def vitrea(aligned, seed):
    """Annealed classes with the prior of each shell found by its evidence; start and coupling by held-out particles."""
    particles = aligned.particles(HELD_OUT, seed)
    components, beta = analyse(particles, COMPONENTS, comm=alone())
    settings, schedule = Settings(learn_prior=False), Schedule()
    found = chosen(particles, components, beta, aligned.n_classes, settings, schedule, comm=alone())
    return labels(aligned.particles(), found.state.manifold)


def labels(particles, model):
    """int32[n]: the class of each particle, −1 for junk."""
    expectation = Expectation(particles, model)
    return np.concatenate([assign(expectation, block).class_number for block in particles.blocks])


_FOUND_BY = {"oracle": oracle, "vitrea": vitrea, "pca_kmeans": pca_kmeans, "kmeans": kmeans, "ml": ml,
             "ml_annealed": ml_annealed, "rome": rome}


def measure(snrs, seeds, methods, progress=SILENCE, sets=("hinge",)):
    """Rows of a table: dicts of set, snr, seed, accuracy by method, and core-seconds by method."""
    with threadpool_limits(1):
        return [_row(name, snr, seed, methods, progress) for name in sets for snr in snrs for seed in seeds]


def _row(name, snr, seed, methods, progress):
    progress.step(f"{name}, SNR {snr:g}, seed {seed}: methods", len(methods))
    aligned = simulated(name, snr, seed)
    row = {"set": name, "snr": snr, "seed": seed, "accuracy": {}, "seconds": {}}
    for method in methods:
        begin = time.process_time()
        row["accuracy"][method] = accuracy(aligned.truth, _FOUND_BY[method](aligned, seed))
        row["seconds"][method] = time.process_time() - begin
        progress.done()
    return row


def means(rows):
    """Mean accuracy by set, SNR and method."""
    kinds = dict.fromkeys((row["set"], row["snr"]) for row in rows)
    return [{"set": name, "snr": snr, **{
        method: float(np.mean([row["accuracy"][method] for row in rows if (row["set"], row["snr"]) == (name, snr)]))
        for method in rows[0]["accuracy"]}} for name, snr in kinds]


def command(arguments):
    """Run, keep and print what `vitrea bench hinge` or `unrelated` was asked for; the exit code."""
    table = arguments.table
    rows = measure(arguments.snr, arguments.seeds, METHODS[table], arguments.progress, SETS_OF[table])
    record = {"benchmark": table, "rows": rows, "means": means(rows)} | surroundings()
    keep(arguments.records, record)
    arguments.progress.result(json.dumps(record) if arguments.json else told(rows))
    return 0


def told(rows):
    """The table for people."""
    methods = list(rows[0]["accuracy"])
    lines = ["set     SNR     seed   " + "".join(f"{method:>12}" for method in methods)]
    lines += [f"{row['set']:<8}{row['snr']:<8g}{row['seed']:<7}"
              + "".join(f"{row['accuracy'][method]:>12.3f}" for method in methods) for row in rows]
    lines += [f"{mean['set']:<8}{mean['snr']:<8g}mean   "
              + "".join(f"{mean[method]:>12.3f}" for method in methods) for mean in means(rows)]
    return "\n".join(lines)

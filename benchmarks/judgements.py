"""`vitrea bench junk`, `order` and `sizes`: what `job: cluster` says of particles, beside what is true of them.

Every run is the job's own: a chain, its usual starts, its schedule, a tenth of the particles held out; the specimens
are those of benchmarks/aligned.py.

    junk   a share of 0.2 is junk, then none: precision and recall of what is set aside, recall by kind, and the share
           of good particles that is set aside where there is no junk
    order  1,500 particles of a motion, 20 nodes: Spearman's correlation of the latent coordinate with the true angle
    sizes  the number of classes that held-out particles choose
"""
import json
import time

import numpy as np
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from vitrea.benchmarks.aligned import CROWDED, GOOD, MOVED, NOISE, accuracy, simulate_motion
from vitrea.benchmarks.hinge import HELD_OUT, SETS, labels, simulated
from vitrea.benchmarks.progress import SILENCE
from vitrea.benchmarks.records import keep, surroundings
from vitrea.engine.annealing import Schedule, begin, fit
from vitrea.engine.cluster import COMPONENTS
from vitrea.engine.comm import alone
from vitrea.engine.latent import chain
from vitrea.engine.manifold import Expectation, Settings, assign
from vitrea.engine.merging import begin_merged
from vitrea.engine.starts import analyse, at_random, from_components
from vitrea.engine.trials import MERGED, USUAL_STARTS, Trials, most_classes

JUNK = 0.2
MOVING, NODES = 1500, 20
LEAST = 3   # classes
KINDS = {"noise": NOISE, "off_centre": MOVED, "neighbour": CROWDED}


def found_by_the_job(aligned, seed, n_classes, outliers=False):
    """(Trials, the Manifold that is kept) of as many starts as the job makes; n_classes None: to be found."""
    particles, settings, schedule = aligned.particles(HELD_OUT, seed), Settings(outliers=outliers), Schedule()
    components, beta = analyse(particles, COMPONENTS, comm=alone())

    def lattice(size):
        return chain(size, basis_fraction=1.0, width=0.5)

    def begun(size, number):
        if number == MERGED:
            return begin_merged(particles, trials.wide or trials.best, size, LEAST, lattice, settings, comm=alone())
        start = (at_random(lattice(size), particles.layout, components, beta, seed + abs(number)) if number else
                 from_components(lattice(size), particles.layout, components, beta))
        return begin(start, components.eigenvalues[0])

    trials = Trials()
    while (trial := trials.next(n_classes, USUAL_STARTS, LEAST, most_classes(len(particles)), True)) is not None:
        state = begun(*trial)
        if state is not None:
            state = fit(particles, state, settings, schedule, comm=alone(),
                        on_iteration=lambda state, _: state.stage == "settle")
        trials = trials.after(trial[0] or (state or trials.best).manifold.n_nodes, trial[1], state)
    return trials, fit(particles, trials.best, settings, schedule, comm=alone()).manifold


def junk(name, snr, seed):
    """Precision and recall of junk, recall by kind; what of it is found where there is none."""
    found = {}
    for share in (JUNK, 0.0):
        aligned = simulated(name, snr, seed, share)
        _, model = found_by_the_job(aligned, seed, aligned.n_classes, outliers=True)
        aside = labels(aligned.particles(), model) < 0
        true = aligned.kind != GOOD
        if share:
            found = {"precision": float(true[aside].mean()) if aside.any() else 0.0,
                     "recall": float(aside[true].mean())}
            found |= {f"recall_{kind}": float(aside[aligned.kind == number].mean()) for kind, number in KINDS.items()}
        else:
            found["false"] = float(aside.mean())
    return found


def order(_, snr, seed):
    """Spearman's correlation, its sign left out."""
    aligned, degrees = simulate_motion(MOVING, snr, seed)
    particles, (_, model) = aligned.particles(), found_by_the_job(aligned, seed, NODES)
    expectation = Expectation(particles, model)
    latent = np.concatenate([assign(expectation, block).latent[:, 0] for block in particles.blocks])
    return {"spearman": float(abs(spearmanr(latent, degrees).statistic))}


def sizes(name, snr, seed):
    """The number of classes found, the true one, how many annealings that took, and the accuracy of the classes."""
    aligned = simulated(name, snr, seed)
    trials, model = found_by_the_job(aligned, seed, None)
    return {"classes": model.n_nodes, "true": aligned.n_classes, "tried": len(trials.sizes),
            "accuracy": accuracy(aligned.truth, labels(aligned.particles(), model))}


MEASURE = {"junk": junk, "order": order, "sizes": sizes}
SETS_OF = {"junk": ("hinge", "disc"), "order": ("motion",), "sizes": tuple(SETS)}


def measure(table, snrs, seeds, progress=SILENCE):
    """Rows of a table: dicts of set, snr, seed, core-seconds and what was found."""
    rows = []
    cases = [(name, snr, seed) for name in SETS_OF[table] for snr in snrs for seed in seeds]
    progress.step(f"{table}: cases", len(cases))
    with threadpool_limits(1):
        for name, snr, seed in cases:
            start = time.process_time()
            found = MEASURE[table](name, snr, seed)
            rows.append({"set": name, "snr": snr, "seed": seed, **found, "seconds": time.process_time() - start})
            progress.done()
    return rows


def command(arguments):
    """Run, keep and print one of the tables; the exit code."""
    rows = measure(arguments.table, arguments.snr, arguments.seeds, arguments.progress)
    record = {"benchmark": arguments.table, "rows": rows} | surroundings()
    keep(arguments.records, record)
    arguments.progress.result(json.dumps(record) if arguments.json else told(rows))
    return 0


def told(rows):
    """The table for people."""
    columns = list(rows[0])
    return "\n".join(["".join(f"{column:>19}" for column in columns)] + [
        "".join(f"{_shown(row[column]):>19}" for column in columns) for row in rows])


def _shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)

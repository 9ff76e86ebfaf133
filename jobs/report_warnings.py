"""What a person should know before using the classes of a run, each in one sentence."""

from __future__ import annotations

import numpy as np

from vitrea.engine.log import LINES_NAME
from vitrea.engine.star import read_star
from vitrea.jobs.run import SKIPPED_NAME

NEARLY_NYQUIST = 1.05   # of the finest resolution that the pixels hold
LARGE_SHARE = 0.5       # of the particles in one class
FEW_MEMBERS = 5         # particles of a class in the mean
LOW_PMAX = 0.1


def warnings_of(folder, job, run, records):
    """Sentences about a run folder; run is its FinishedRun, None if it has no classes."""
    return [*_endings(folder, job, records), *_skipped(folder), *(_classes(run) if run else [])]


def _endings(folder, job, records):
    last = records[-1]["kind"] if records else None
    if last == "failed":
        yield f"The run failed: {records[-1].get('message')}"
    elif last == "stopped":
        yield f"The run was stopped ({records[-1].get('reason')}); 'vitrea resume {folder}' goes on with it."
    elif last != "done":
        yield f"The run is not done; 'vitrea resume {folder}' goes on with it if it was interrupted."
    for lines in (folder / LINES_NAME, folder / "align" / LINES_NAME):
        if lines.exists() and "not converged" in lines.read_text(encoding="utf-8", errors="replace"):
            yield ("The iterations ended at max_iterations while particles still changed class: "
                   f"'vitrea resume {folder} --set max_iterations={2 * job.options.max_iterations}' goes on.")
            return


def _skipped(folder):
    if (folder / SKIPPED_NAME).exists():
        n = len(read_star(folder / SKIPPED_NAME)["particles"]["rlnImageName"])
        yield f"{n:,} images were set aside; {SKIPPED_NAME} says which and why."


def _classes(run):
    particles, used = len(run.class_number), int((run.sizes > 0).sum())
    if used < run.n_classes:
        yield f"{run.n_classes - used} of {run.n_classes} classes are empty."
    if run.n_classes > 1 and run.sizes.max() > LARGE_SHARE * particles:
        yield (f"Class {int(run.sizes.argmax()) + 1} holds {100 * run.sizes.max() / particles:.0f} % of the particles: "
               "few distinct views, or too few classes.")
    if used and particles / used < FEW_MEMBERS:
        yield f"A class has {particles / used:.1f} particles in the mean: its average is mostly noise."
    if np.nanmin(run.resolution, initial=np.inf) < NEARLY_NYQUIST * 2 * run.pixel_size:
        yield ("The best resolution is that of the pixels: particles may have been scaled down too far, or noise is "
               "fitted.")
    pmax = run.numbers("rlnMaxValueProbDistribution")
    if pmax is not None and len(pmax) and pmax.mean() < LOW_PMAX:
        yield f"The best pose of a particle has a probability of {pmax.mean():.2f} in the mean: alignment is undecided."

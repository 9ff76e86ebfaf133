"""Scores of the classes of a run folder, whose job file tells how large the particles are."""

from __future__ import annotations

from vitrea.engine.class_scores import score_classes
from vitrea.engine.errors import JobError
from vitrea.jobs.jobfile import JOB_NAME, read_job


def scores_of(run):
    """ClassScores of a FinishedRun; None if its folder has no job file with a particle_diameter."""
    path = run.folder / JOB_NAME
    diameter = getattr(read_job(path).options, "particle_diameter", None) if path.exists() else None
    return score_classes(run, diameter) if diameter else None


def required_scores(run):
    """As `scores_of`; JobError where there are none."""
    found = scores_of(run)
    if found is None:
        raise JobError(f"{run.folder}: --score: found no {JOB_NAME} with a particle_diameter; expected the folder of a "
                       "run; leave --score out")
    return found

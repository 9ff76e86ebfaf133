"""Particles of chosen classes as STAR files, with what was chosen and why."""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.star import ROWS_WRITTEN, write_star

SELECTED, REJECTED, CHOICE, CHOICE_STAR = "selected.star", "rejected.star", "selection.json", "selection.star"


@dataclass(frozen=True)
class Choice:
    """kept bool[K]: classes whose particles go on; why: str of each class; criteria: what was asked for, in words."""

    kept: np.ndarray
    why: tuple
    criteria: tuple


def write_subset(folder, run, choice, score=None):
    """Write selected.star, rejected.star, selection.json and selection.star of a FinishedRun into a folder that is
    made; score float[K] is noted if there is one. (particles selected, rejected).

    JobError if the folder cannot be made. Rows and columns are those of run_data.star, text for text, so that nothing
    is rounded again.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{folder}: the folder cannot be made ({error.strerror}); expected a place with write "
                       "permission and free space; choose another --out") from error
    inside = choice.kept[run.class_number]
    for name, rows in ((SELECTED, inside), (REJECTED, ~inside)):
        _write_rows(folder / name, run, np.flatnonzero(rows))
    _write_json(folder / CHOICE, run, choice, score)
    _write_classes(folder / CHOICE_STAR, run, choice, score)
    return int(inside.sum()), int((~inside).sum())


def read_kept(folder, n_classes):
    """bool[K] of an earlier selection.json, None if there is none of so many classes."""
    try:
        classes = json.loads((Path(folder) / CHOICE).read_text(encoding="utf-8"))["classes"]
        kept = {int(one["class"]): bool(one["kept"]) for one in classes}
        return np.array([kept[k + 1] for k in range(n_classes)]) if len(kept) == n_classes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_rows(path, run, rows):
    def parts():
        for first in range(0, max(len(rows), 1), ROWS_WRITTEN):
            some = rows[first:first + ROWS_WRITTEN]
            yield {label: column[some] for label, column in run.particles.items()}

    others = {name: {label: column[:] for label, column in block.items()} for name, block in run.blocks.items()
              if name != "particles"}
    write_star(path, others | {"particles": parts()})


def _write_json(path, run, choice, score):
    classes = [{"class": k + 1, "kept": bool(choice.kept[k]), "why": choice.why[k], "particles": int(run.sizes[k]),
                "resolution": None if np.isnan(run.resolution[k]) else round(float(run.resolution[k]), 3),
                "score": None if score is None or not run.sizes[k] else round(float(score[k]), 4)}
               for k in range(run.n_classes)]
    inside = int(run.sizes[choice.kept].sum())
    found = {"run": str(run.folder), "criteria": list(choice.criteria), "particles_selected": inside,
             "particles_rejected": int(run.sizes.sum()) - inside, "classes_selected": int(choice.kept.sum()),
             "classes": classes}
    with written_beside(path) as beside:
        beside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_classes(path, run, choice, score):
    """The classes with RELION's rlnSelected, in the order of the stack."""
    columns = {
        "rlnReferenceImage": [f"{k + 1:06d}@{run.folder / 'run_classes.mrcs'}" for k in range(run.n_classes)],
        "rlnClassNumber": np.arange(1, run.n_classes + 1), "rlnSelected": choice.kept.astype(int),
        "vitreaParticles": run.sizes, "rlnEstimatedResolution": np.nan_to_num(run.resolution, nan=999.0),
        "vitreaReason": np.array(choice.why, dtype=str)}
    write_star(path, {"classes": columns if score is None else columns | {"vitreaClassScore": np.nan_to_num(score)}})

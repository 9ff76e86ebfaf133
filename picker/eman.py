"""EMAN2's coordinates: the boxes of an info file (info/mic_info.json) and the places in the headers of a particle stack
(.hdf).

Both hold centres in pixels of the micrograph, y counted from the first row that is stored (the documentation of EMAN2's
info files; `ptcl_source_coord` of its image headers).
"""
import json

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside

KIND = "manual"        # how EMAN2 names boxes that it shows and lets a person change
IMAGES, PLACE, SOURCE = "MDF/images", "EMAN.ptcl_source_coord", "EMAN.ptcl_source_image"


def read_info(path):
    """{"x", "y", "score": float64[n]} of the boxes of an info file; the score is NaN where a box has none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path}: could not be read ({error.strerror or error}); expected coordinates; check the path"
                       ) from error
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}: found no JSON ({error}); expected an info file of EMAN2; check the path") from error
    boxes = told.get("boxes") if isinstance(told, dict) else None
    if not isinstance(boxes, list):
        raise JobError(f"{path}: found no list called boxes; expected an info file of EMAN2 with boxes; check the path")
    rows = [_box(path, number, box) for number, box in enumerate(boxes, 1)]
    return dict(zip(("x", "y", "score"), np.array(rows, dtype=np.float64).reshape(-1, 3).T))


def write_info(path, x, y, score):
    """Write centres float[n] with scores as an info file, which EMAN2's e2boxer shows as boxes set by hand."""
    boxes = [[round(float(a), 2), round(float(b), 2), KIND, round(float(c), 6)] for a, b, c in zip(x, y, score)]
    with written_beside(path) as beside:
        beside.write_text(json.dumps({"boxes": boxes}) + "\n", encoding="utf-8")


def read_stack_places(path):
    """{"x", "y": float64[n]} of the particles of an EMAN2 stack, all of one micrograph."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            images = file[IMAGES]
            numbers = sorted((name for name in images if name.isdigit()), key=int)
            rows = [_place(path, images[number].attrs, number) for number in numbers]
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise JobError(f"{path}: found no images of EMAN2 ({error}); expected a particle stack with {IMAGES}; check "
                       "the path") from error
    sources = {source for *_, source in rows}
    if len(sources) > 1:
        raise JobError(f"{path}: found particles of {len(sources)} micrographs; expected those of one; give the stack "
                       "of each micrograph")
    table = np.array([row[:2] for row in rows], dtype=np.float64).reshape(-1, 2)
    return {"x": table[:, 0], "y": table[:, 1]}


def _box(path, number, box):
    """(x, y, score) of [x, y, kind, score …]."""
    try:
        x, y = (float(value) for value in box[:2])
        score = float(box[3]) if len(box) > 3 and isinstance(box[3], int | float) else np.nan
    except (TypeError, ValueError, KeyError) as error:
        raise JobError(f"{path}: box {number} is {json.dumps(box)[:60]}; expected [x, y, …]; correct it") from error
    if not (np.isfinite(x) and np.isfinite(y)):
        raise JobError(f"{path}: box {number} is at ({x:g}, {y:g}); expected numbers; correct it")
    return x, y, score


def _place(path, attributes, number):
    """(x, y, micrograph) of the header of an image."""
    if PLACE not in attributes:
        raise JobError(f"{path}: image {number} has no {PLACE}; expected the place of the particle in its micrograph; "
                       "extract the particles with EMAN2 again, or convert its info file")
    x, y = (float(value) for value in np.ravel(attributes[PLACE])[:2])
    if not (np.isfinite(x) and np.isfinite(y)):
        raise JobError(f"{path}: image {number} is at ({x:g}, {y:g}); expected numbers; check the stack")
    return x, y, str(attributes.get(SOURCE, ""))

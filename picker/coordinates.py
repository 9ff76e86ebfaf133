"""Coordinate files: RELION STAR, EMAN .box, .json and .hdf, crYOLO .cbox and CSV, read into centres and written from
them (but .hdf, which holds images).

A centre is (x, y) in pixels of the micrograph, counted from 0 at the middle of the first pixel that is stored, x along
a row, y from row to row: RELION's and EMAN's convention for MRC files, whatever a viewer shows. `.box` holds corners:
corner = centre − box // 2, for odd boxes too; `.cbox` holds them with fractions: corner = centre − box / 2. Files of
programs that count y upwards are read with the micrograph's height: y = height − 1 − y.
"""
import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.star import read_star, write_star
from vitrea.picker.eman import read_info, read_stack_places, write_info

SUFFIXES = (".star", ".box", ".cbox", ".csv", ".tsv")
EMAN_SUFFIXES = (".json", ".hdf")   # found in folders only by EMAN2's names: other programs use them for other things
STEM_ENDINGS = ("", "_autopick", "_manualpick", "_pick")   # what RELION adds to a micrograph's name
EMAN_ENDINGS = ("_info.json", "_ptcls.hdf")
X_NAMES, Y_NAMES = ("x", "x_coord", "X", "rlnCoordinateX"), ("y", "y_coord", "Y", "rlnCoordinateY")
SCORE_NAMES, RADIUS_NAMES = ("score", "rlnAutopickFigureOfMerit"), ("radius",)
CBOX = ("CoordinateX", "CoordinateY", "Width", "Height", "Confidence")   # of block `cryolo`, version 1.0
CBOX_BESIDES = {"CoordinateZ": "<NA>", "Depth": "1", "EstWidth": "<NA>", "EstHeight": "<NA>", "NumBoxes": "<NA>",
                "Angle": "<NA>"}   # what crYOLO expects and pictures of one layer without estimated sizes do not have


@dataclass(frozen=True)
class Coordinates:
    """Centres x, y float64[n] px; score float64[n], NaN where the file has none; radius float64[n] px, else NaN."""

    x: np.ndarray
    y: np.ndarray
    score: np.ndarray
    radius: np.ndarray

    def __len__(self):
        return len(self.x)

    @property
    def places(self):
        """float64[n, 2] (y, x)."""
        return np.stack([self.y, self.x], axis=1)

    def of(self, rows):
        """The Coordinates of some rows, bool[n] or int[k]."""
        return Coordinates(self.x[rows], self.y[rows], self.score[rows], self.radius[rows])


def read_coordinates(path, *, upwards=None):
    """Coordinates of one micrograph from a file with one of SUFFIXES or EMAN_SUFFIXES; upwards is the height [px] of a
    micrograph whose y is counted from the last row up. JobError with the row for what is not a number, or no
    coordinates."""
    path = Path(path)
    readers = {".star": _read_star, ".box": _read_box, ".cbox": _read_cbox, ".csv": _read_table, ".tsv": _read_table,
               ".json": read_info, ".hdf": read_stack_places}
    if path.suffix not in readers:
        raise JobError(f"{path}: coordinates end in '{path.suffix}'; expected one of "
                       f"{', '.join(SUFFIXES + EMAN_SUFFIXES)}; "
                       "convert them")
    found = _coordinates(readers[path.suffix](path))
    return found if upwards is None else replace(found, y=upwards - 1 - found.y)


def coordinates_of_table(path, columns):
    """Coordinates of the columns of a STAR table, {label: text[n]}; path is for the words of a JobError."""
    return _coordinates({name: _numbers(path, label, columns[label]) for name, label in _named(columns).items()})


def find_coordinates(folder, stem):
    """The coordinate file of a micrograph called `stem` in a folder, or None."""
    names = [ending + suffix for ending in STEM_ENDINGS for suffix in SUFFIXES]
    paths = (Path(folder) / f"{stem}{name}" for name in (*names, *EMAN_ENDINGS))
    return next((path for path in paths if path.exists()), None)


def write_coordinates(path, x, y, score, *, box=None, besides=None):
    """Write centres float[n] with scores in the format of the suffix, whole or not at all; no centres make a file
    without rows.

    box [px] is needed for .box and .cbox; besides {name: n texts} are more columns of a .csv.
    """
    path = Path(path)
    if path.suffix == ".star":
        nothing = np.zeros(len(x), dtype=int)   # as RELION's own picker writes of picks without a template
        write_star(path, {"": {"rlnCoordinateX": x, "rlnCoordinateY": y, "rlnClassNumber": nothing,
                               "rlnAnglePsi": nothing.astype(float), "rlnAutopickFigureOfMerit": score}})
    elif path.suffix == ".cbox":
        _write_cbox(path, x, y, score, box)
    elif path.suffix == ".json":
        write_info(path, x, y, score)
    elif path.suffix in (".box", ".csv"):
        with written_beside(path) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
            file.writelines(_box_lines(x, y, box) if path.suffix == ".box" else _csv_lines(x, y, score, besides or {}))
    else:
        raise ValueError(f"no coordinate format for {path.suffix}")


def _box_lines(x, y, box):
    corners = np.rint(np.stack([x, y], axis=1)).astype(int) - box // 2
    return [f"{left}\t{top}\t{box}\t{box}\n" for left, top in corners]


def _csv_lines(x, y, score, besides):
    rows = zip(x, y, score, *besides.values())
    return [",".join(("x", "y", "score", *besides)) + "\n",
            *(",".join((f"{a:.2f}", f"{b:.2f}", f"{c:.6f}", *more)) + "\n" for a, b, c, *more in rows)]


def _write_cbox(path, x, y, score, box):
    columns = dict(zip(CBOX, (np.asarray(x) - box / 2, np.asarray(y) - box / 2, np.full(len(x), float(box)),
                              np.full(len(x), float(box)), score)))
    columns |= {name: [text] * len(x) for name, text in CBOX_BESIDES.items()}
    write_star(path, {"global": {"cbox_format_version": "1.0"}, "cryolo": columns,
                      "cryolo_include": {"slice_index": np.zeros(0)}})


def _coordinates(columns):
    """Coordinates of {"x": float64[n], …}; what a file lacks is NaN."""
    missing = np.full(len(columns["x"]), np.nan)
    return Coordinates(*(columns.get(name, missing) for name in ("x", "y", "score", "radius")))


def _read_star(path):
    for columns in read_star(path).values():
        if "rlnCoordinateX" in columns and "rlnCoordinateY" in columns:
            return {name: _numbers(path, label, columns[label]) for name, label in _named(columns).items()}
    raise JobError(f"{path}: found no _rlnCoordinateX and _rlnCoordinateY; expected the coordinates of one micrograph; "
                   "check the path")


def _read_box(path):
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            left, top, width, height = (float(word) for word in words[:4])
        except ValueError as error:
            raise JobError(f"{path}:{number}: found '{line.strip()}'; expected 'x y width height' of an EMAN box; "
                           "correct the row") from error
        rows.append((left + width // 2, top + height // 2))
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return {"x": table[:, 0], "y": table[:, 1]}


def _read_cbox(path):
    columns = next((block for block in read_star(path).values() if set(CBOX[:4]) <= set(block)), None)
    if columns is None:
        raise JobError(f"{path}: found no _CoordinateX, _CoordinateY, _Width and _Height; expected the boxes of crYOLO "
                       "1.8 or later; export them again")
    known = {label: _numbers(path, label, columns[label]) for label in CBOX if label in columns}
    found = {"x": known["CoordinateX"] + known["Width"] / 2, "y": known["CoordinateY"] + known["Height"] / 2}
    return found | ({"score": known["Confidence"]} if "Confidence" in known else {})


def _read_table(path):
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows = list(csv.reader(_text(path).splitlines(), delimiter=delimiter, skipinitialspace=True))
    head, body = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    named = _named(head)
    if not {"x", "y"} <= set(named):
        raise JobError(f"{path}:1: found the columns '{', '.join(head)}'; expected a heading with x and y; add one")
    ragged = next((number for number, row in enumerate(body, 2) if len(row) != len(head)), None)
    if ragged:
        raise JobError(f"{path}:{ragged}: found {len(body[ragged - 2])} values; expected {len(head)}, as in the "
                       "heading; correct the row")
    columns = dict(zip(head, zip(*body))) if body else dict.fromkeys(head, ())
    return {name: _numbers(path, label, columns[label]) for name, label in named.items()}


def _named(labels):
    """{"x": label, …} of the columns that have a name we know."""
    known = {"x": X_NAMES, "y": Y_NAMES, "score": SCORE_NAMES, "radius": RADIUS_NAMES}
    return {name: next(label for label in labels if label in names)
            for name, names in known.items() if any(label in names for label in labels)}


def _numbers(path, label, texts):
    try:
        values = np.array([float(text) for text in texts], dtype=np.float64)
    except ValueError as error:
        raise JobError(f"{path}: {label} holds {str(error).rpartition(': ')[2]}; expected numbers; correct the row"
                       ) from error
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise JobError(f"{path} row {bad[0] + 1}: {label} is {texts[bad[0]]}; expected a number; correct the row")
    return values


def _text(path):
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(f"{path}: could not be read ({error.strerror or error}); expected coordinates; check the path"
                       ) from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: found bytes that are not text; expected coordinates; check the path") from error

"""The files that `job: pick` leaves, all made from candidates/ and a threshold, so that another needs no other scan.

candidates/<name>.csv keeps every pick above a low floor, with whether it is nearer than half a box to an edge, how far
the next candidate is [Å], and the grey values' deviation around it over the micrograph's; manifest-<rank>.jsonl keeps
what was met on the way. Made from them are coordinates/<name>.star, autopick.star (what RELION opens), summary.csv,
threshold.json and pictures.
"""
import csv
import json
import os
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.star import write_star
from vitrea.picker.coordinates import read_coordinates, write_coordinates
from vitrea.picker.review import look_first

CANDIDATES, COORDINATES = "candidates", "coordinates"
MANIFEST = "manifest-{rank}.jsonl"
INDEX_NAME, SUMMARY_NAME, SETTLED_NAME = "autopick.star", "summary.csv", "threshold.json"


def inside(name):
    """A micrograph's name as a path below a folder: without leading slashes and steps upwards."""
    return Path(*(part for part in Path(os.path.normpath(name)).parts if part not in ("..", os.sep)))


def candidates_path(folder, name):
    """Where the candidates of a micrograph are: its listed name below candidates/, so that equal file names in
    different folders do not meet."""
    return Path(folder) / CANDIDATES / inside(name).with_suffix(".csv")


def coordinates_path(folder, name):
    """Where the picks of a micrograph are."""
    return Path(folder) / COORDINATES / inside(name).with_suffix(".star")


def require_own_files(source, names):
    """JobError if two micrographs would have their results in one file."""
    places = {}
    for name in names:
        other = places.setdefault(inside(name).with_suffix(""), name)
        if other != name:
            raise JobError(f"{source}: {other} and {name} would have their results in one file; expected names that "
                           "differ in more than their ending and in steps upwards; rename or link one")


def add_to_manifest(folder, rank, result):
    """Append what came of a micrograph, a JSON line, to the manifest of a rank."""
    with open(Path(folder) / MANIFEST.format(rank=rank), "a+b", buffering=0) as file:
        torn = False   # by a kill: the next line must not be joined to what is left
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + (json.dumps(result) + "\n").encode())


def read_manifests(folder):
    """{name: last result} of all ranks of this run and those before; a line cut short by a kill is left out."""
    results = {}
    for path in sorted(Path(folder).glob(MANIFEST.format(rank="*"))):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("{") and line.endswith("}"):
                result = json.loads(line)
                results[result["micrograph"]] = result
    return results


def settled(folder):
    """(threshold, particle's diameter [Å], None if not known) of a finished run; JobError if the folder holds none."""
    try:
        found = json.loads((Path(folder) / SETTLED_NAME).read_text(encoding="utf-8"))
        return float(found["threshold"]), found.get("diameter")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{folder}: found no {SETTLED_NAME} that can be read; expected the folder of a pick job that is "
                       f"done; 'vitrea resume {folder}' finishes one") from error


def listed_micrographs(folder):
    """Names of all micrographs of a finished run, also those that were skipped, in the order of its input."""
    path = Path(folder) / SUMMARY_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row["micrograph"] for row in csv.DictReader(file)]
    except (OSError, KeyError) as error:
        raise JobError(f"{path}: found no list of micrographs; expected the summary of a pick job that is done; "
                       f"'vitrea resume {folder}' finishes one") from error


def expected_threshold(scores, n_micrographs, expected):
    """The threshold at which there are `expected` picks a micrograph in the mean; scores float[n] of all candidates."""
    wanted = round(expected * n_micrographs)
    return float(np.sort(scores)[::-1][min(wanted, len(scores)) - 1]) if len(scores) and wanted else 1.0


def write_picks(folder, name, threshold, formats=None, into=COORDINATES):
    """Write <into>/<name>.star, and files of other formats {suffix: box [px]}, from the candidates of a micrograph,
    those above the threshold.

    A micrograph that was skipped gets no file; one without picks gets a file without rows.
    """
    source = candidates_path(folder, name)
    target = Path(folder) / into / coordinates_path(folder, name).relative_to(Path(folder) / COORDINATES)
    if not source.exists():
        return
    found = read_coordinates(source)
    kept = found.score >= threshold
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix, box in {".star": None, **(formats or {})}.items():
        write_coordinates(target.with_suffix(suffix), found.x[kept], found.y[kept], found.score[kept], box=box)


def write_index(folder, names, results, settled, pictures):
    """Write autopick.star, summary.csv and threshold.json, the last at the end, for the micrographs `names` with their
    results from the manifests; settled is (threshold, diameter [Å]).

    Returns (number of picks, the Looks of the `pictures` micrographs to look at first).
    """
    folder = Path(folder)
    picked = [name for name in names if coordinates_path(folder, name).exists()]
    scores = {name: read_coordinates(coordinates_path(folder, name)).score for name in picked}
    looks = look_first(picked, scores, results, pictures)
    write_star(folder / INDEX_NAME, {"coordinate_files": {
        "rlnMicrographName": picked, "rlnMicrographCoordinates": [str(coordinates_path(folder, name))
                                                                  for name in picked]}})
    order = {look.name: (place, look.reason) for place, look in enumerate(looks, 1)}
    with written_beside(folder / SUMMARY_NAME) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("micrograph", "picks", "candidates", "median_score", "mean", "deviation", "look_first",
                         "reason", "problem"))
        for name in names:
            result, kept = results[name], scores.get(name, np.zeros(0))
            writer.writerow((name, len(kept), result.get("candidates", 0),
                             f"{np.median(kept):.3f}" if len(kept) else "",
                             *(_digits(result.get(key)) for key in ("mean", "deviation")),
                             *order.get(name, ("", "")), result.get("problem", "")))
    with written_beside(folder / SETTLED_NAME) as beside:
        beside.write_text(json.dumps(dict(zip(("threshold", "diameter"), settled))) + "\n", encoding="utf-8")
    return sum(map(len, scores.values())), looks


def _digits(value):
    return "" if value is None else f"{value:.5g}"

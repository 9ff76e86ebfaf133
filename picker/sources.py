"""The folders of coordinate files that a job is told: that they are there, and what in them is of which micrograph."""
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.picker.coordinates import STEM_ENDINGS, SUFFIXES, find_coordinates
from vitrea.picker.results import inside


def require_folders(options, *keys):
    """JobError if a key that is given names no folder."""
    for key in keys:
        folder = getattr(options, key)
        if folder is not None and not Path(folder).is_dir():
            found = "is no folder" if Path(folder).exists() else "there is no such folder"
            raise JobError(f"{folder}: {found}; expected the folder of coordinate files of {key}; check the path")


def coordinates_of_all(folder, names):
    """The coordinate file of each micrograph, or None: at its listed name below the folder, as `job: pick` writes it;
    by its file name there; or by its file name further below, where no other file is called so."""
    below = {}
    for path in coordinate_files(folder):
        below.setdefault(path.stem, []).append(path)
    return [_nested(folder, name) or find_coordinates(folder, Path(name).stem) or _only(below, Path(name).stem)
            for name in names]


def coordinate_files(folder):
    """All files below a folder that end as coordinate files do."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix in SUFFIXES)


def without_micrograph(folder, names):
    """A sentence on the coordinate files in a folder or below it whose micrograph is not among the names, or None."""
    known = {Path(name).stem + ending for name in names for ending in STEM_ENDINGS}
    strays = [path for path in coordinate_files(folder) if path.stem not in known]
    if not strays:
        return None
    return f"{len(strays):,} coordinate files belong to none of the {len(names):,} micrographs; the first: {strays[0]}"


def _nested(folder, name):
    path = Path(folder) / inside(name)
    return next((path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix).exists()), None)


def _only(below, stem):
    """The one file that is called so, of one place; it may be there in several formats."""
    found = [path for ending in STEM_ENDINGS for path in below.get(stem + ending, [])]
    if len({path.with_suffix("") for path in found}) != 1:
        return None
    return min(found, key=lambda path: SUFFIXES.index(path.suffix))

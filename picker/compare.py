"""`vitrea compare` for picks: coordinates against labelled centres, one to one within a radius.

Either side is a file of one micrograph, a folder of such files, a STAR file of particles with _rlnMicrographName, or
the folder of a `job: pick`: as result, its candidates give the whole curve of precision against recall; as truth, its
picks above the threshold count. Micrographs are brought together by their path below the folder, or else by their name.
"""
import dataclasses
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.star import read_star
from vitrea.picker.coordinates import STEM_ENDINGS, SUFFIXES, coordinates_of_table, read_coordinates
from vitrea.picker.evaluate import Counts, count, curve, match
from vitrea.picker.results import CANDIDATES, INDEX_NAME, settled

GATHERED = "rlnMicrographName"
HEAD_LINES = 5000   # of a STAR file, among which the labels of its last table begin


@dataclass(frozen=True)
class OfMicrograph:
    """The picks of one micrograph: true, false, and particles missed."""

    name: str
    true: int
    false: int
    missed: int


@dataclass(frozen=True)
class PickComparison:
    """Picks against labels over the micrographs that have both, within `radius` [px].

    left_out: labelled micrographs without a file of picks. threshold: of the scores, where the result is the folder of
    a job; what is counted reaches it. distance: median distance [px] of true picks from their labels, None without any.
    auprc and curve (score, precision, recall, each falling score) are None where the picks have no scores.
    """

    radius: float
    left_out: tuple[str, ...]
    threshold: float | None
    particles: int
    picks: int
    true: int
    false: int
    missed: int
    precision: float
    recall: float
    f1: float
    f2: float
    distance: float | None
    auprc: float | None
    curve: dict | None
    micrographs: tuple[OfMicrograph, ...]

    def as_dict(self):
        """Plain numbers, lists and dicts, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Side:
    """Coordinates by key (path below the folder, without ending) of one side, and the threshold of a job's folder."""

    source: Path
    found: dict
    threshold: float | None = None

    def taken(self):
        """The side with what its job has written: without the candidates below the threshold."""
        if self.threshold is None:
            return self
        return dataclasses.replace(self, found={key: each.of(each.score >= self.threshold)
                                                for key, each in self.found.items()})

    def of(self, key, alone):
        """The Coordinates for a key of the other side, by itself or by the name of its micrograph, or None; `alone`:
        each side is one file, which belong together whatever they are called."""
        if alone or key in self.found:
            return next(iter(self.found.values())) if alone else self.found[key]
        same = [each for each in self.found if Path(each).name == Path(key).name]
        if len(same) > 1:
            raise JobError(f"{self.source}: {same[0]} and {same[1]} are both called {Path(key).name}; expected one, or "
                           "the same folders on both sides; give folders whose paths agree")
        return self.found[same[0]] if same else None


def compare_picks(truth, result, radius, ignore=None):
    """PickComparison of coordinates `result` with labels `truth`, right within `radius` [px of the micrograph].

    ignore: discs (columns x, y, radius [px]) in which no pick or label counts. Raises JobError for a radius that is
    not above 0, for files without coordinates, and if no micrograph has both.
    """
    if not radius > 0:
        raise JobError(f"--radius {radius:g}: expected a distance in pixels above 0; change --radius")
    truth, result = _side(Path(truth)).taken(), _side(Path(result))
    discs = _side(Path(ignore)) if ignore else None
    alone = truth.source.is_file() and result.source.is_file() and len(truth.found) == len(result.found) == 1
    pairs = {key: result.of(key, alone) for key in truth.found}
    left_out = tuple(key for key, found in pairs.items() if found is None)
    names = [key for key in pairs if key not in left_out]
    if not names:
        raise JobError(f"{result.source}: found picks for none of the {len(pairs):,} micrographs of {truth.source}; "
                       "expected files with the micrographs' names, such as mic1.star for mic1.mrc; check both")
    scored = [(pairs[key].places, pairs[key].score, truth.found[key].places, _discs(discs, key)) for key in names]
    return _compared(names, scored, radius, (left_out, result.threshold))


def format_picks(comparison):
    """The comparison in lines for people."""
    c = comparison
    at = "" if c.threshold is None else f"   threshold {c.threshold:.3f}"
    lines = [f"{c.picks:,} picks compared with {c.particles:,} particles on {len(c.micrographs):,} micrographs, within "
             f"{c.radius:g} px{at}",
             f"precision {c.precision:.4f}   recall {c.recall:.4f}   F1 {c.f1:.4f}   F2 {c.f2:.4f}",
             f"true {c.true:,}   false {c.false:,}   missed {c.missed:,}"
             + ("" if c.distance is None else f"   median distance {c.distance:.1f} px")]
    if c.auprc is not None:
        lines.append(f"area under precision against recall {c.auprc:.4f}")
    if c.left_out:
        lines.append(f"{len(c.left_out):,} labelled micrographs without picks are left out: {', '.join(c.left_out[:5])}"
                     + (" and others" if len(c.left_out) > 5 else ""))
    if len(c.micrographs) > 1:
        worst = sorted(c.micrographs, key=lambda one: -(one.false + one.missed))[:5]
        lines += ["most mistakes"] + [f"  {one.name}   true {one.true:,}   false {one.false:,}   missed {one.missed:,}"
                                      for one in worst if one.false + one.missed]
    return "\n".join(line for line in lines if line != "most mistakes" or c.false + c.missed)


def are_picks(path):
    """Whether a file or folder is one of coordinates rather than a STAR file of classified particles."""
    path = Path(path)
    if path.is_dir() or path.suffix in SUFFIXES[1:]:
        return True
    if path.suffix != ".star" or not path.exists():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        labels = {line.split()[0] for line in islice(file, HEAD_LINES) if line.startswith("_rln")}
    return "_rlnCoordinateX" in labels and "_rlnImageName" not in labels


def _compared(names, scored, radius, told):
    left_out, threshold = told
    # Only what the job would write counts; the curve is of everything it found.
    taken = [scores >= threshold if threshold is not None else np.ones(len(scores), bool) for _, scores, _, _ in scored]
    counts = [count(picks[kept], truth, radius, ignored)
              for (picks, _, truth, ignored), kept in zip(scored, taken)]
    total = sum(counts, start=Counts(0, 0, 0))
    apart = [np.hypot(*(picks[kept][pairs[:, 0]] - truth[pairs[:, 1]]).T)
             for (picks, _, truth, _), kept in zip(scored, taken) for pairs in [match(picks[kept], truth, radius)]]
    apart = np.concatenate(apart)
    known = not any(np.isnan(scores).any() for _, scores, _, _ in scored) and any(len(one[1]) for one in scored)
    found = curve(scored, radius) if known else None
    return PickComparison(
        radius=radius, left_out=left_out, threshold=threshold, particles=total.true + total.missed,
        picks=total.true + total.false, **dataclasses.asdict(total), precision=total.precision, recall=total.recall,
        f1=total.f(), f2=total.f(2), distance=float(np.median(apart)) if len(apart) else None,
        auprc=found.auprc if known else None, curve={
            name: getattr(found, name).tolist() for name in ("score", "precision", "recall")} if known else None,
        micrographs=tuple(OfMicrograph(name, **dataclasses.asdict(one)) for name, one in zip(names, counts)))


def _discs(side, key):
    """float64[k, 3] (y, x, radius) [px] of a micrograph; none where the folder has no file for it."""
    found = side.of(key, False) if side else None
    if found is None:
        return np.zeros((0, 3))
    if np.isnan(found.radius).any():
        raise JobError(f"{side.source}: the discs of {key} have no radius; expected columns x, y, radius [px]; add it")
    return np.column_stack([found.places, found.radius])


def _side(path):
    """_Side of a file or folder."""
    if not path.exists():
        raise JobError(f"{path}: there is no such file or folder; expected coordinates; check the path")
    if path.is_dir():
        if (path / CANDIDATES).is_dir():
            return _Side(path, _in_folder(path / CANDIDATES), settled(path)[0])
        return _Side(path, _in_folder(path))
    gathered = _gathered(path) if path.suffix == ".star" else None
    return _Side(path, gathered if gathered is not None else {_key(Path(path.name)): read_coordinates(path)})


def _in_folder(folder):
    found = {}
    for suffix in reversed(SUFFIXES):   # of two formats of one micrograph the first counts
        found |= {_key(path.relative_to(folder)): path for path in sorted(folder.rglob(f"*{suffix}"))
                  if path.name != INDEX_NAME}
    if not found:
        raise JobError(f"{folder}: found no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; expected coordinates, a "
                       "file for each micrograph; check the folder")
    return {key: read_coordinates(path) for key, path in sorted(found.items())}


def _key(path):
    """A coordinate file's path without its ending, `_autopick` and the like."""
    stem = next(path.stem.removesuffix(ending) for ending in (*STEM_ENDINGS[1:], "") if path.stem.endswith(ending))
    return str(path.with_name(stem))


def _gathered(path):
    """{micrograph without ending: Coordinates} of a STAR file with the particles of many, or None."""
    for columns in read_star(path).values():
        if GATHERED in columns and "rlnCoordinateX" in columns:
            whole, names = coordinates_of_table(path, columns), columns[GATHERED]
            return {_key(Path(name)): whole.of(names == name) for name in dict.fromkeys(names.tolist())}
    return None

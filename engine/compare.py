"""How well a classification found the truth: agreement of classes, and pose errors less each class's own frame.

A class average may lie anyhow in its own frame. Let it be the true view turned by R(α) and then moved by c; the poses
of its members obey (engine/poses.py)

    psi_result = psi_true − α,    origin_result = origin_true + R(psi_true − α) c,

α is estimated as the circular median over the members of the class's majority view, c as the median of
R(α − psi_true)(origin_result − origin_true) over those whose angle agrees; what remains is the error.
"""
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.poses import rotate_offset, wrap_degrees
from vitrea.engine.star import read_star

SWALLOWED = 0.25        # a class that takes this share of a view's particles holds that view
FEWEST_MEMBERS = 5      # a frame has three unknowns: fewer members would fit it too well
TRUTH_LABEL, RESULT_LABEL = "vitreaJunk", "rlnMaxValueProbDistribution"
AGREEING = 15.0         # degrees from the frame's angle within which a member has a say in the frame's shift


@dataclass(frozen=True)
class ClassReport:
    """One result class: number (as in the STAR), size without junk, junk, majority view (1-based, 0 if only junk), its
    share of the size, and the frame against that view: angle [degrees], shift (y, x) [Å]; None where not determined.
    """
    number: int
    size: int
    junk: int
    view: int
    share: float
    frame_angle: float | None = None
    frame_shift: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """Agreement of a result with the truth over the n particles that are in both and are no junk.

    purity: Σ over classes of the largest view's count, over n. views_found: views that are the majority of some class.
    most_views_in_one_class: views with at least a quarter of their particles in the same class, at worst.
    Errors are over the n_posed members of the classes' majority views, angles [degrees]; None where there are no poses.
    junk_apart: share of the n_junk junk images that sit in classes where junk is the majority (None without junk).
    confusion[i][j]: particles of views[j] in classes[i].
    """
    n: int
    n_truth: int
    n_result: int
    n_views: int
    n_classes: int
    ari: float
    purity: float
    views_found: int
    most_views_in_one_class: int
    n_posed: int
    angle_error_median: float | None
    angle_error_p90: float | None
    shift_error_median_px: float | None
    shift_error_p90_px: float | None
    shift_error_median_angstrom: float | None
    shift_error_p90_angstrom: float | None
    n_junk: int
    junk_apart: float | None
    classes: tuple[ClassReport, ...]
    views: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self):
        """Plain numbers, lists and dicts, for JSON."""
        return dataclasses.asdict(self)


def compare(truth_star, result_star):
    """Compare the classes and poses in `result_star` with those in `truth_star`, particles matched by rlnImageName.

    rlnClassNumber 0 in the truth marks junk. Raises JobError when a file is no particle STAR with classes, when an
    image is listed twice, when the two have no image in common, or when they are plainly given the wrong way about.
    """
    truth, result = _read_table(truth_star), _read_table(result_star)
    _require_order(truth, result)
    in_truth, in_result = _matched(truth, result)
    truth, result = truth.take(in_truth), result.take(in_result)
    good = truth.class_number > 0
    if not good.any():
        raise JobError(f"{truth_star}: found only junk among the {len(good)} images that are also in {result_star}; "
                       "expected rlnClassNumber above 0; compare with the whole truth")
    return _compared(truth, result, good, sizes=(truth.n_listed, result.n_listed))


def adjusted_rand_index(a, b):
    """Agreement of two partitions of the same n things, labels int[n]: 1 if equal, 0 on average by chance.

        ARI = (Σ C(n_ij, 2) − E) / (½ [Σ C(a_i, 2) + Σ C(b_j, 2)] − E),  E = Σ C(a_i, 2) Σ C(b_j, 2) / C(n, 2)
                                                                               (Hubert & Arabie 1985, eq. 5)
    """
    table = contingency(a, b)[2].astype(np.float64)
    both, rows, columns = (float(np.sum(counts * (counts - 1.0) / 2.0))
                           for counts in (table, table.sum(axis=1), table.sum(axis=0)))
    pairs = table.sum() * (table.sum() - 1.0) / 2.0
    expected = rows * columns / pairs if pairs else 0.0
    largest = 0.5 * (rows + columns)
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


def contingency(a, b):
    """Distinct labels of a [I] and of b [J], and how often they meet: int64[I, J]."""
    a_labels, a_index = np.unique(a, return_inverse=True)
    b_labels, b_index = np.unique(b, return_inverse=True)
    counts = np.bincount(a_index * len(b_labels) + b_index, minlength=len(a_labels) * len(b_labels))
    return a_labels, b_labels, counts.reshape(len(a_labels), len(b_labels))


def class_frame(psi_true, origin_true, psi_result, origin_result):
    """The frame of a class, angle α [degrees] and shift c float64[2] (y, x), from its members' poses.

    Robust against a minority of wrong poses; see the module's head for the equations.
    """
    angle = _circular_median(psi_true - psi_result)
    agrees = np.abs(wrap_degrees(psi_true - psi_result - angle)) <= AGREEING
    shifts = rotate_offset(origin_result - origin_true, angle - psi_true)[agrees]
    centre = np.median(shifts, axis=0)
    for _ in range(5):   # the mean of the closer members is more precise than the median of all
        distance = np.linalg.norm(shifts - centre, axis=1)
        centre = np.mean(shifts[distance <= 2.5 * np.median(distance)], axis=0)
    return angle, centre


def format_comparison(comparison):
    """The comparison in lines for people."""
    c = comparison
    lines = [f"{c.n:,} particles compared ({c.n_truth:,} in the truth, {c.n_result:,} in the result), "
             f"{c.n_views} views, {c.n_classes} {'class' if c.n_classes == 1 else 'classes'}",
             f"ARI {c.ari:.4f}   purity {c.purity:.4f}   views found {c.views_found} of {c.n_views}   "
             f"most views in one class {c.most_views_in_one_class}"]
    if c.angle_error_median is None:
        lines.append("in-plane errors: not determined (no poses, or no class with five members of a view)")
    else:
        lines.append(f"in-plane angle error   median {c.angle_error_median:.2f}°   90th percentile "
                     f"{c.angle_error_p90:.2f}°   ({c.n_posed:,} particles)")
        lines.append(f"shift error   median {c.shift_error_median_px:.3f} px ({c.shift_error_median_angstrom:.2f} Å)   "
                     f"90th percentile {c.shift_error_p90_px:.3f} px ({c.shift_error_p90_angstrom:.2f} Å)")
    if c.n_junk:
        lines.append(f"junk   {c.n_junk:,} images, {100.0 * c.junk_apart:.0f} % of them in classes of mostly junk")
    lines += ["", "class     size     junk   view   share   frame angle   frame shift x, y [Å]"]
    lines += [_class_line(report) for report in sorted(c.classes, key=lambda report: (-report.size, report.number))]
    return "\n".join(lines)


# ---- the parts of a comparison

def _compared(truth, result, good, sizes):
    view, class_number = truth.class_number[good], result.class_number[good]
    class_labels, view_labels, confusion = contingency(class_number, view)
    reports, angle_errors, shift_errors = _class_reports(truth, result, good)
    return Comparison(
        n=int(good.sum()), n_truth=sizes[0], n_result=sizes[1], n_views=len(view_labels), n_classes=len(class_labels),
        ari=adjusted_rand_index(view, class_number), purity=float(confusion.max(axis=1).sum() / good.sum()),
        views_found=len(np.unique(confusion.argmax(axis=1))),
        most_views_in_one_class=int(np.sum(confusion >= SWALLOWED * confusion.sum(axis=0), axis=1).max()),
        n_posed=len(angle_errors), **_error_summary(angle_errors, shift_errors, truth.pixel_size),
        n_junk=int((~good).sum()), junk_apart=_junk_apart(reports),
        classes=tuple(reports), views=tuple(view_labels.tolist()), confusion=tuple(map(tuple, confusion.tolist())))


def _class_reports(truth, result, good):
    """A report of each class, and the angle [degrees] and shift [Å] errors of the majority views' members, together."""
    reports, angle_errors, shift_errors = [], [np.empty(0)], [np.empty(0)]
    posed = truth.psi is not None and result.psi is not None
    for number, members in _groups(result.class_number):
        report, of_view = _counted(number, truth.class_number[members], members)
        if posed and len(of_view) >= FEWEST_MEMBERS:
            poses = truth.psi[of_view], truth.origin[of_view], result.psi[of_view], result.origin[of_view]
            angle, shift = class_frame(*poses)
            angles, shifts = _pose_errors(poses, angle, shift)
            angle_errors.append(angles)
            shift_errors.append(shifts)
            report = dataclasses.replace(report, frame_angle=float(angle), frame_shift=tuple(shift.tolist()))
        reports.append(report)
    return reports, np.concatenate(angle_errors), np.concatenate(shift_errors)


def _groups(labels):
    """Pairs of label and the rows that carry it, in the order of labels."""
    order = np.argsort(labels, kind="stable")
    values, firsts = np.unique(labels[order], return_index=True)
    return zip(values.tolist(), np.split(order, firsts[1:]), strict=True)


def _counted(number, views, members):
    """The report of class `number` without a frame, and the members that show its majority view."""
    counts = np.bincount(views)
    size, junk = int(counts[1:].sum()), int(counts[0])
    view = int(counts[1:].argmax()) + 1 if size else 0
    share = float(counts[view] / size) if size else 0.0
    return ClassReport(number, size, junk, view, share), members[views == view] if size else members[:0]


def _pose_errors(poses, angle, shift):
    psi_true, origin_true, psi_result, origin_result = poses
    expected = origin_true + rotate_offset(shift, psi_true - angle)
    return np.abs(wrap_degrees(psi_true - psi_result - angle)), np.linalg.norm(origin_result - expected, axis=1)


def _error_summary(angles, shifts, pixel_size):
    angle, shift = ((float(np.median(errors)), float(np.quantile(errors, 0.9))) if len(errors) else (None, None)
                    for errors in (angles, shifts))
    in_px = [None if value is None or pixel_size is None else value / pixel_size for value in shift]
    return {"angle_error_median": angle[0], "angle_error_p90": angle[1], "shift_error_median_px": in_px[0],
            "shift_error_p90_px": in_px[1], "shift_error_median_angstrom": shift[0],
            "shift_error_p90_angstrom": shift[1]}


def _junk_apart(reports):
    junk = sum(report.junk for report in reports)
    apart = sum(report.junk for report in reports if report.junk > report.size)
    return apart / junk if junk else None


def _circular_median(angles):
    """The angle [degrees] nearest to all `angles` in the sense of absolute differences, started at the fullest 15°."""
    angles = wrap_degrees(angles)
    counts = np.bincount(((angles + 180.0) // 5.0).astype(np.int64), minlength=72)[:72]
    fullest = np.argmax(counts + np.roll(counts, 1) + np.roll(counts, -1))
    centre = -180.0 + 5.0 * fullest + 2.5
    for _ in range(10):
        near = wrap_degrees(angles - centre)
        centre += np.median(near[np.abs(near) <= 30.0])   # opposite clusters (pseudo-symmetry) must not pull
    return float(wrap_degrees(centre))


def _class_line(report):
    line = f"{report.number:5d}  {report.size:7,d}  {report.junk:7,d}  {report.view:5d}  {100.0 * report.share:5.1f} %"
    if report.frame_angle is None:
        return f"{line}          –"
    y, x = report.frame_shift
    return f"{line}   {report.frame_angle:9.1f}°   {x:8.2f}, {y:.2f}"


# ---- reading

@dataclass(frozen=True)
class _Table:
    """Classes int64[n] and poses: psi float64[n] [degrees] and origin float64[n, 2] (y, x) [Å], or None; whether a
    simulation or a classification wrote the file."""
    path: Path
    names: np.ndarray
    class_number: np.ndarray
    psi: np.ndarray | None
    origin: np.ndarray | None
    pixel_size: float | None
    n_listed: int
    simulated: bool
    classified: bool

    def take(self, rows):
        psi, origin = (None if column is None else column[rows] for column in (self.psi, self.origin))
        return dataclasses.replace(self, names=self.names[rows], class_number=self.class_number[rows], psi=psi,
                                   origin=origin)


def _read_table(path):
    path = Path(path)
    blocks = read_star(path)
    columns = blocks.get("particles") or next((block for block in blocks.values() if "rlnImageName" in block), {})
    for label in ("rlnImageName", "rlnClassNumber"):
        if label not in columns:
            raise JobError(f"{path}: found no column _{label}; expected a particle STAR with classes; "
                           "compare truth.star with run_data.star")
    names = columns["rlnImageName"]
    pixel_size = _pixel_size(path, blocks.get("optics", {}), columns)
    origin = _origin(path, columns, pixel_size)
    has_pose = origin is not None and "rlnAnglePsi" in columns
    psi = _numbers(path, columns, "rlnAnglePsi") if has_pose else None
    class_number = _numbers(path, columns, "rlnClassNumber").astype(np.int64)
    return _Table(path, names, class_number, psi, origin, pixel_size, n_listed=len(names),
                  simulated=TRUTH_LABEL in columns, classified=RESULT_LABEL in columns)


def _require_order(truth, result):
    """Only a simulation writes TRUTH_LABEL, only a classification RESULT_LABEL."""
    if (result.simulated and not truth.simulated) or (truth.classified and not result.classified):
        raise JobError(f"{truth.path} was given as the truth and {result.path} as the result, but "
                       f"{'the latter is the truth of a simulation' if result.simulated else 'the former is a result'}"
                       f"; expected the truth first; try 'vitrea compare {result.path} {truth.path}'")


def _pixel_size(path, optics, columns):
    """Of the first row [Å]: rlnImagePixelSize, or RELION 3.0's detector pixel over magnification; or None."""
    for block in (optics, columns):
        for label in ("rlnImagePixelSize", "rlnPixelSize"):
            if label in block:
                return float(_numbers(path, block, label)[0])
    if {"rlnDetectorPixelSize", "rlnMagnification"} <= columns.keys():
        detector, magnification = (_numbers(path, columns, label)[0]
                                   for label in ("rlnDetectorPixelSize", "rlnMagnification"))
        return float(1e4 * detector / magnification)
    return None


def _origin(path, columns, pixel_size):
    if {"rlnOriginXAngst", "rlnOriginYAngst"} <= columns.keys():
        return np.stack([_numbers(path, columns, f"rlnOrigin{axis}Angst") for axis in "YX"], axis=1)
    if {"rlnOriginX", "rlnOriginY"} <= columns.keys() and pixel_size is not None:
        return pixel_size * np.stack([_numbers(path, columns, f"rlnOrigin{axis}") for axis in "YX"], axis=1)
    return None


def _numbers(path, columns, label):
    try:
        return columns[label].astype(np.float64)
    except ValueError:
        wrong = next(text for text in columns[label].tolist() if not _is_number(text))
        raise JobError(f"{path}: found '{wrong}' in column _{label}; expected numbers; repair the file") from None


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _matched(truth, result):
    """Rows of both tables that are the same image: by name, or by section and file name if the folders differ."""
    for simplified in (_as_written, _without_folder):
        truth_names, result_names = simplified(truth.names), simplified(result.names)
        _, in_truth, in_result = np.intersect1d(truth_names, result_names, return_indices=True)
        if len(in_truth):
            for table, names in ((truth, truth_names), (result, result_names)):
                _require_distinct(table, names)
            order = np.argsort(in_truth)
            return in_truth[order], in_result[order]
    raise JobError(f"{result.path}: found no image of {truth.path} ({result.names[0]} is not in it); expected the same "
                   "images in both; compare with the truth of the same stack")


def _require_distinct(table, names):
    distinct, counts = np.unique(names, return_counts=True)
    if len(distinct) < len(names):
        raise JobError(f"{table.path}: found {distinct[counts.argmax()]} {counts.max()} times; expected each image "
                       "once; remove the copies")


def _as_written(names):
    """Section numbers without leading zeros."""
    return np.char.lstrip(names, "0")


def _without_folder(names):
    sections, _, paths = np.char.partition(_as_written(names), "@").T
    return np.array([f"{section}@{name.rsplit('/', 1)[-1]}" for section, name in zip(sections, paths, strict=True)])

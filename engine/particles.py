"""A particle STAR file as a table of numbers: which image, which optics, which CTF, which pose it came with.

RELION 3.0 files (one block, microscope settings on every row) and 3.1 files (data_optics and data_particles) end in the
same ParticleTable. Only the headers of the stacks are read here; every mistake is found before the run starts and is
told with its row, counted from 1 over the rows of the particle table.
"""
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from vitrea.engine.converted import is_converted, read_converted
from vitrea.engine.errors import JobError
from vitrea.engine.files import from_here
from vitrea.engine.stacks import StackHeader, read_header
from vitrea.engine.star import read_long_star
from vitrea.engine.storage import Memory, pieces

MICRON = 1e4   # Å; rlnDetectorPixelSize is in µm
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize")


@dataclass(frozen=True)
class OpticsGroup:
    """The settings that particles share; of a file without CTF voltage, cs and amplitude_contrast may be missing: 0."""

    number: int                # rlnOpticsGroup, as in the file
    name: str
    voltage: float             # [kV]
    cs: float                  # [mm]
    amplitude_contrast: float
    pixel_size: float          # [Å/px]
    box_size: int              # [px]


@dataclass(frozen=True)
class ParticleTable:
    """N particles, one row each; arrays are in the order of the file (or of the rows taken)."""

    path: Path
    star_version: str                 # "3.0" or "3.1"
    stacks: tuple[Path, ...]          # absolute paths
    stack_names: tuple[str, ...]      # the same stacks as the STAR file writes them
    headers: tuple[StackHeader, ...]
    optics: tuple[OpticsGroup, ...]
    optics_columns: dict              # label -> str[len(optics)]: further columns of data_optics, carried to outputs
    has_ctf: bool                     # False if the file has no defocus
    stack_index: np.ndarray           # int32[N] into stacks
    section: np.ndarray               # int32[N], 0-based image in the stack
    optics_index: np.ndarray          # int32[N] into optics
    row_number: np.ndarray            # int64[N], 1-based row in the file, for messages
    defocus_u: np.ndarray             # float64[N] [Å, underfocus positive]
    defocus_v: np.ndarray             # float64[N] [Å]
    defocus_angle: np.ndarray         # float64[N] [degrees]
    phase_shift: np.ndarray           # float64[N] [degrees]
    bfactor: np.ndarray               # float64[N] [Å²]
    origin: np.ndarray                # float64[N, 2] (y, x) [Å], 0 if absent
    psi: np.ndarray                   # float64[N] [degrees], 0 if absent
    columns: dict                     # label -> TextColumn of N (engine/star.py), everything as read

    def __len__(self):
        return len(self.section)

    def take(self, rows):
        """The table of these rows (int[n] or a mask), in that order; stacks and optics groups stay as they are."""
        parts = {f.name: getattr(self, f.name)[rows] for f in fields(self)
                 if isinstance(getattr(self, f.name), np.ndarray)}
        columns = {label: column[rows] for label, column in self.columns.items()}
        return replace(self, columns=columns, **parts)


def read_particles(path, input_root=None, space=None):
    """Read a particle STAR file of RELION 3.0 or 3.1 and check it against the headers of its stacks; or the particles
    of a file that was converted (engine/converted.py).

    The arrays of all particles are made in `space` (engine/storage.py; memory by default).
    Image paths are resolved as RELION does, relative to the working directory (or to `input_root`, if given), then
    relative to the folder of the STAR file and to each folder above it. Raises JobError, with file and row, for
    anything missing, not a number, not finite, beyond its stack, or at odds with the boxes and optics groups.
    """
    path, space = Path(path), space or Memory()
    converted = read_converted(path) if is_converted(path) else None
    blocks = read_long_star(path, space, converted and converted.star_lines())
    name = _particle_block(path, blocks)
    rows = _Rows(path, blocks[name], space)
    names, stack_index, section = _image_names(rows)
    if converted:
        headers = converted.headers
        stacks, names, stack_index, section = _of_converted(rows, converted, names, stack_index, section)
    else:
        stacks = _resolve(rows, names, stack_index, input_root)
        headers = _headers(rows, stacks, stack_index)
    _check_sections(rows, names, headers, stack_index, section)
    has_ctf = "rlnDefocusU" in rows
    old = "optics" not in blocks
    groups = _optics_by_row(rows, has_ctf) if old else _optics_by_group(rows, blocks["optics"], has_ctf)
    groups = _with_boxes(rows, groups, headers, stack_index)
    return ParticleTable(
        path=path, star_version="3.0" if old else "3.1", stacks=stacks, stack_names=names, headers=headers,
        optics=groups.optics, optics_columns=groups.columns, has_ctf=has_ctf, stack_index=stack_index, section=section,
        optics_index=groups.index, row_number=rows.filled(np.int64, lambda part: np.arange(part.start, part.stop) + 1),
        origin=_origin(rows, groups), psi=rows.numbers("rlnAnglePsi", 0.0), columns=rows.columns,
        **_ctf_columns(rows, has_ctf))


# ---- rows of numbers, with their place in the file

class _Rows:
    """Columns of text of one block, read as numbers with the row named where that fails."""

    def __init__(self, path, columns, space, kind="row"):
        self.path, self.columns, self.space, self.kind = path, columns, space, kind

    def __len__(self):
        return len(next(iter(self.columns.values()), ()))

    def __contains__(self, label):
        return label in self.columns

    def text(self, label, remedy="add the column"):
        if label not in self.columns:
            raise JobError(f"{self.path}: found no _{label} among the columns; expected it in every particle file "
                           f"like this; {remedy}")
        return self.columns[label]

    def filled(self, dtype, values, shape=()):
        """An array of all rows in the space, piece by piece: values(slice) are those of some rows."""
        out = self.space.zeros((len(self), *shape), dtype)
        for part in pieces(len(self)):
            out[part] = values(part)
            self.space.release()
        return out

    def numbers(self, label, default=None):
        """A column as float64[N]; `default` (if not None) fills a column that the file does not have."""
        if label not in self.columns and default is not None:
            return self.filled(np.float64, lambda part: default)
        out = self.space.zeros(len(self))
        for part, text in self.text(label).pieces():
            out[part] = _numbers(text)
            bad = np.flatnonzero(~np.isfinite(out[part]))
            if len(bad):
                self.fail(part.start + bad[0], f"_{label} is '{text[bad[0]]}'", "a finite number",
                          "correct or remove the row")
            self.space.release()
        return out

    def whole_numbers(self, label):
        """A column as float64[N] of whole numbers."""
        values = self.numbers(label)
        for part in pieces(len(self)):
            some = values[part]
            bad = np.flatnonzero((some != np.rint(some)) | (np.abs(some) > np.iinfo(np.int32).max))
            if len(bad):
                row = part.start + bad[0]
                self.fail(row, f"_{label} is '{self.columns[label][row]}'", "a whole number", "correct the row")
        return values

    def fail(self, row, found, expected, remedy, cause=None):
        raise JobError(f"{self.path} {self.kind} {row + 1}: {found}; expected {expected}; {remedy}") from cause


def _numbers(text):
    """float64[n] of words; NaN for those that are no numbers."""
    try:
        return text.astype(np.float64)
    except ValueError:
        return np.array([_number_or_nan(word) for word in text])


def _number_or_nan(word):
    try:
        return float(word)
    except ValueError:
        return np.nan


def _particle_block(path, blocks):
    """The block of the particles: data_particles, or the one that has image names, whatever 3.0 programs call it."""
    candidates = ["particles"] if "particles" in blocks else [n for n, c in blocks.items() if "rlnImageName" in c]
    if not candidates:
        raise JobError(f"{path}: found no table with _rlnImageName; expected a particle STAR file of RELION 3.0 or "
                       "3.1; give the particles.star of an Extract, Select or Refine job")
    if len(candidates) > 1:
        listed = ", ".join(f"data_{name}" for name in candidates)
        raise JobError(f"{path}: found {len(candidates)} tables with _rlnImageName ({listed}); expected one; "
                       "keep one of them")
    columns = blocks[candidates[0]]
    if not columns or not len(next(iter(columns.values()))):
        raise JobError(f"{path}: found zero particles; expected at least one row; give a file with particles")
    return candidates[0]


# ---- images

def _image_names(rows):
    """Split `000012@path/stack.mrcs` of every row: the distinct stacks, int32[N] into them, int32[N] sections."""
    stack_numbers = {}
    index, values = rows.space.zeros(len(rows), np.int32), rows.space.zeros(len(rows), np.int32)
    for part, names in rows.text("rlnImageName").pieces():
        split = [name.partition("@") if "@" in name else ("1", "@", name) for name in names.tolist()]
        index[part] = [stack_numbers.setdefault(stack, len(stack_numbers)) for _, _, stack in split]
        values[part] = _section_numbers(rows, part.start, [section for section, _, _ in split])
        rows.space.release()
    return tuple(stack_numbers), index, values


def _section_numbers(rows, first, sections):
    try:
        values = np.array(sections).astype(np.int64)
    except (ValueError, OverflowError):
        values = np.array([int(word) if word.isdecimal() and len(word) < 10 else 0 for word in sections])
    bad = np.flatnonzero((values < 1) | (values > np.iinfo(np.int32).max))
    if len(bad):
        row = first + bad[0]
        rows.fail(row, f"_rlnImageName is '{rows.columns['rlnImageName'][row]}'",
                  "a name like 000012@stack.mrcs, counted from 1", "correct the row")
    return (values - 1).astype(np.int32)


def _resolve(rows, names, stack_index, input_root):
    """Absolute path of each stack, at the first place where the file exists."""
    home = rows.path.absolute().parent
    roots = list(dict.fromkeys([Path(input_root or ".").absolute(), home, *home.parents]))
    stacks = []
    for number, name in enumerate(names):
        found = next((root / name for root in roots if name and os.path.isfile(root / name)), None)
        if found is None:
            tried = ", ".join(map(str, roots)) if not os.path.isabs(name) else "as an absolute path"
            rows.fail(_first_row(stack_index, number), f"the image file {name!r} does not exist (looked in: {tried})",
                      "a path relative to the project folder", "start Vitrea in the folder where RELION was started")
        stacks.append(Path(os.path.normpath(found)))
    return tuple(stacks)


def _of_converted(rows, converted, names, stack_index, section):
    """(stacks, names, stack_index, section) of the datasets of a converted file; the rows keep the names of the stacks
    that were converted, for other programs, as seen from here."""
    place = {each["named"]: each["name"] for each in converted.description["sources"]}
    if any(os.path.normpath(Path.cwd() / name) != place.get(name, name) for name in names):
        seen = [from_here(Path(place.get(name, name))) for name in names]
        rows.columns["rlnImageName"] = np.array([f"{number + 1:06d}@{seen[stack]}" for number, stack in zip(
            section.tolist(), stack_index.tolist())])
    stacks = tuple(header.path for header in converted.headers)
    dataset, image = converted.places(len(rows))
    return stacks, tuple(map(str, stacks)), dataset, image


def _headers(rows, stacks, stack_index):
    headers = []
    for number, stack in enumerate(stacks):
        try:
            header = read_header(stack)
        except JobError as error:
            raise JobError(f"{rows.path} row {_first_row(stack_index, number) + 1}: {error}") from error
        if header.width != header.height:
            rows.fail(_first_row(stack_index, number), f"{stack.name} has a box of {header.width} × {header.height} px",
                      "square boxes", "extract the particles again with a square box")
        headers.append(header)
    return tuple(headers)


def _check_sections(rows, names, headers, stack_index, section):
    n_images = np.array([header.n_images for header in headers])
    for part in pieces(len(rows)):
        beyond = np.flatnonzero(section[part] >= n_images[stack_index[part]])
        if len(beyond):
            row = part.start + beyond[0]
            stack, held = Path(names[stack_index[row]]).name, n_images[stack_index[row]]
            raise JobError(f"{rows.path} row {row + 1}: {section[row] + 1}@{stack}, but {stack} holds {held} "
                           f"images; expected a section of 1 to {held}; correct the row or extract the stack "
                           "again")
        rows.space.release()


def _first_row(index, number):
    return int(np.argmax(index == number))


# ---- optics groups

@dataclass(frozen=True)
class _Groups:
    """Optics groups, their further columns, and each particle's group; a pixel size or box of 0 is not yet known."""

    optics: tuple
    columns: dict
    index: np.ndarray   # int32[N]
    table: _Rows        # where their sizes were read, for messages


def _optics_by_group(rows, columns, has_ctf):
    """Optics groups of a RELION 3.1 file from its data_optics."""
    table = _Rows(rows.path, columns, Memory(), kind="data_optics row")
    if not len(table):
        raise JobError(f"{rows.path}: found data_optics without rows; expected one for each optics group; add them")
    n = len(table)
    given = "rlnOpticsGroup" in table or n > 1
    numbers = table.whole_numbers("rlnOpticsGroup").astype(np.int64) if given else np.array([1])
    if len(np.unique(numbers)) < n:
        raise JobError(f"{rows.path}: found an optics group twice in data_optics; expected each number once; renumber")
    names = columns.get("rlnOpticsGroupName", [f"opticsGroup{number}" for number in numbers])
    microscope = _microscope(table, has_ctf)
    pixel_size, box_size = _pixel_size(table), _image_size(table)
    optics = tuple(
        OpticsGroup(int(numbers[g]), str(names[g]), *(float(values[g]) for values in microscope),
                    float(pixel_size[g]), int(box_size[g]))
        for g in range(n))
    further = {label: column[:] for label, column in columns.items()}
    return _Groups(optics, further, _group_of_rows(rows, numbers), table)


def _group_of_rows(rows, numbers):
    if "rlnOpticsGroup" not in rows and len(numbers) == 1:
        return rows.space.zeros(len(rows), np.int32)
    wanted, order = rows.whole_numbers("rlnOpticsGroup"), np.argsort(numbers)

    def place(part):
        found = order[np.minimum(np.searchsorted(numbers[order], wanted[part]), len(numbers) - 1)]
        unknown = np.flatnonzero(numbers[found] != wanted[part])
        if len(unknown):
            row = part.start + unknown[0]
            rows.fail(row, f"optics group {wanted[row]:.0f} is not in data_optics",
                      f"one of {', '.join(map(str, sorted(numbers.tolist())))}", "add the group or correct the row")
        return found

    return rows.filled(np.int32, place)


def _optics_by_row(rows, has_ctf):
    """Optics groups of a RELION 3.0 file: one for each distinct set of microscope settings and box among its rows."""
    if "rlnOpticsGroup" in rows and "rlnVoltage" not in rows:
        raise JobError(f"{rows.path}: found _rlnOpticsGroup but no data_optics block; expected the table of the optics "
                       "groups; put it back, the file was probably cut out of a larger one")
    settings = [*_microscope(rows, has_ctf), _pixel_size(rows), _image_size(rows)]
    first = _first_of_each(settings, rows)
    code = {tuple(column[row] for column in settings): number for number, row in enumerate(first)}
    index = rows.filled(np.int32, lambda part: [code[each] for each in zip(*(c[part].tolist() for c in settings))])
    optics = tuple(
        OpticsGroup(number, f"opticsGroup{number}", *(float(column[row]) for column in settings[:4]),
                    int(settings[4][row])) for number, row in enumerate(first, 1))
    columns = {label: rows.columns[label][np.array(first)] for label in MICROSCOPE if label in rows}
    return _Groups(optics, columns, index, rows)


def _microscope(table, has_ctf):
    """[voltage [kV], cs [mm], amplitude contrast], float64[n] each; without CTF they may be missing."""
    values = [table.numbers(label, None if has_ctf else 0.0) for label in MICROSCOPE]
    bad = _first_where(values[0], lambda voltage: (voltage <= 0) & has_ctf)
    if bad is not None:
        table.fail(bad, f"_rlnVoltage is {values[0][bad]:g}", "kilovolts above 0", "correct it")
    return values


def _first_where(values, wrong):
    """The first row whose value is wrong, or None."""
    for part in pieces(len(values)):
        found = np.flatnonzero(wrong(values[part]))
        if len(found):
            return part.start + int(found[0])
    return None


def _pixel_size(table):
    """Pixel size [Å/px] by row, 0 if the file does not say."""
    label = next((label for label in PIXEL_SIZES if label in table), None)
    if label:
        values = table.numbers(label)
    elif "rlnDetectorPixelSize" in table and "rlnMagnification" in table:
        label, magnification = "rlnDetectorPixelSize", table.numbers("rlnMagnification")
        detector = table.numbers(label)
        with np.errstate(divide="ignore"):
            values = table.filled(np.float64, lambda part: np.where(
                magnification[part] > 0, detector[part] * MICRON / magnification[part], -1.0))
    else:
        return table.space.zeros(len(table))
    bad = _first_where(values, lambda pixel: pixel <= 0)
    if bad is not None:
        table.fail(bad, f"the pixel size from _{label} is not positive", "Å per pixel above 0", "correct it")
    return values


def _image_size(table):
    """rlnImageSize [px] by row, 0 if the file does not say; refuses particles that are volumes."""
    if "rlnImageDimensionality" in table:
        volume = _first_where(table.whole_numbers("rlnImageDimensionality"), lambda dimension: dimension != 2)
        if volume is not None:
            table.fail(volume, "_rlnImageDimensionality is not 2", "two-dimensional particle images",
                       "project or extract the particles as images")
    return table.whole_numbers("rlnImageSize") if "rlnImageSize" in table else table.space.zeros(len(table))


def _first_of_each(columns, rows):
    """The first row of each distinct set of values of some columns [N], in order of appearance: a list."""
    found = {}
    for part in pieces(len(rows)):
        some = np.array([column[part] for column in columns])
        values, first = np.unique(some, axis=1, return_index=True)
        for i in np.argsort(first):
            found.setdefault(tuple(values[:, i].tolist()), part.start + int(first[i]))
        rows.space.release()
    return list(found.values())


# ---- boxes and pixel sizes, from the stacks where the STAR file does not say

@dataclass(frozen=True)
class _Pairs:
    """The pairs of optics group and stack that occur, in order of appearance, with all that rows of a pair share.

    row: the first of each; group, box_size [px], pixel_size [Å, 0 if unknown], arrays of their number.
    """

    row: np.ndarray
    group: np.ndarray
    box_size: np.ndarray
    pixel_size: np.ndarray


def _with_boxes(rows, groups, headers, stack_index):
    """The groups with box and pixel size filled in; a 3.0 group that spans stacks of different boxes is split."""
    row = np.array(_first_of_each([groups.index, stack_index], rows))
    group, stack = groups.index[row], stack_index[row]
    stated = np.array([each.pixel_size for each in groups.optics])[group]
    header_pixel = np.array([headers[i].pixel_size for i in stack])
    pairs = _Pairs(row, group, np.array([headers[i].box_size for i in stack]),
                   np.where(stated > 0, stated, np.round(header_pixel, 5)))
    _check_boxes(rows, groups, pairs, [headers[i].path.name for i in stack])
    _check_pixel_sizes(rows, groups, pairs, [headers[i].path.name for i in stack])
    if groups.table is rows:
        return _split(rows, groups, pairs, stack_index)
    return _filled(rows, groups, pairs)


def _check_boxes(rows, groups, pairs, names):
    stated = np.array([group.box_size for group in groups.optics])[pairs.group]
    for i in np.flatnonzero((stated > 0) & (stated != pairs.box_size))[:1]:
        rows.fail(pairs.row[i], f"{names[i]} has a box of {pairs.box_size[i]} px, but _rlnImageSize "
                  f"of its optics group is {stated[i]}", "the same box in both", "correct _rlnImageSize or the stack")


def _check_pixel_sizes(rows, groups, pairs, names):
    for i in np.flatnonzero(pairs.pixel_size <= 0)[:1]:
        where = "each row" if groups.table is rows else "data_optics"
        rows.fail(pairs.row[i], f"no pixel size in the STAR file, and 0 in the header of {names[i]}",
                  "a pixel size in one of them", f"add _rlnImagePixelSize [Å/px] to {where}")


def _split(rows, groups, pairs, stack_index):
    kinds = list(zip(pairs.group.tolist(), pairs.box_size.tolist(), pairs.pixel_size.tolist()))
    distinct = list(dict.fromkeys(kinds))
    optics = tuple(replace(groups.optics[g], number=number, name=f"opticsGroup{number}", box_size=box, pixel_size=pixel)
                   for number, (g, box, pixel) in enumerate(distinct, 1))
    columns = {label: column[np.array([g for g, _, _ in distinct])] for label, column in groups.columns.items()}
    new = np.zeros((len(groups.optics), int(stack_index.max()) + 1), dtype=np.int32)
    new[pairs.group, stack_index[pairs.row]] = [distinct.index(kind) for kind in kinds]
    index = rows.filled(np.int32, lambda part: new[groups.index[part], stack_index[part]])
    return replace(groups, optics=optics, columns=columns, index=index)


def _filled(rows, groups, pairs):
    """Groups of a 3.1 file: what the file leaves open comes from the stacks, which must agree within a group."""
    optics = list(groups.optics)
    for g, group in enumerate(optics):
        members = np.flatnonzero(pairs.group == g)
        if not len(members):
            continue
        first = members[0]
        optics[g] = replace(group, box_size=int(pairs.box_size[first]), pixel_size=float(pairs.pixel_size[first]))
        for values, what in ((pairs.box_size, "boxes"), (pairs.pixel_size, "pixel sizes")):
            other = members[values[members] != values[first]]
            if len(other):
                rows.fail(pairs.row[other[0]], f"optics group {group.number} has {what} of {values[first]:g} and "
                          f"{values[other[0]]:g}", f"one of the {what} in a group", "give them different optics groups")
    return replace(groups, optics=tuple(optics))


# ---- CTF and pose columns

def _ctf_columns(rows, has_ctf):
    defocus_u = rows.numbers("rlnDefocusU", None if has_ctf else 0.0)
    defocus_v = rows.numbers("rlnDefocusV") if "rlnDefocusV" in rows else defocus_u
    return {"defocus_u": defocus_u, "defocus_v": defocus_v, "defocus_angle": rows.numbers("rlnDefocusAngle", 0.0),
            "phase_shift": rows.numbers("rlnPhaseShift", 0.0), "bfactor": rows.numbers("rlnCtfBfactor", 0.0)}


def _origin(rows, groups):
    """float64[N, 2] (y, x) [Å]; RELION 3.0 counts origins in pixels."""
    pixel_size = np.array([group.pixel_size for group in groups.optics])
    columns = [(rows.numbers(f"rlnOrigin{axis}Angst"), False) if f"rlnOrigin{axis}Angst" in rows
               else (rows.numbers(f"rlnOrigin{axis}", 0.0), True) for axis in "YX"]
    return rows.filled(np.float64, lambda part: np.stack([
        values[part] * pixel_size[groups.index[part]] if in_pixels else values[part]
        for values, in_pixels in columns], axis=1), shape=(2,))

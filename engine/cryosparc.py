"""Particles of cryoSPARC's .cs files: numpy arrays of records, read and written without pickle.

Conventions, as csparc2star.py of pyem and the examples of cryosparc-tools have them: indices count
from 0; blob/path is relative to the project folder and may begin with `>`; angles are radians; alignments2D/pose is
rlnAnglePsi and alignments2D/shift rlnOriginX, rlnOriginY in pixels of alignments2D/psize_A, with the same signs; a
particle's place is a fraction of the micrograph, whose shape is (rows, columns). No cryoSPARC was at hand: both
directions are tested against each other and against files laid out as cryosparc-tools documents them.
"""
import hashlib
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.starversions import Tables, numbers

COMPRESSED = b"\x94CSDAT"   # cryoSPARC's own stream format, which only its tools read
# .cs field -> (label, factor) of the particles
PARTICLES = {
    "ctf/df1_A": ("rlnDefocusU", 1.0), "ctf/df2_A": ("rlnDefocusV", 1.0),
    "ctf/df_angle_rad": ("rlnDefocusAngle", 180 / np.pi), "ctf/phase_shift_rad": ("rlnPhaseShift", 180 / np.pi),
    "ctf/bfactor": ("rlnCtfBfactor", 1.0), "alignments2D/pose": ("rlnAnglePsi", 180 / np.pi),
    "alignments2D/class_posterior": ("rlnMaxValueProbDistribution", 1.0)}
OPTICS = {"ctf/accel_kv": "rlnVoltage", "ctf/cs_mm": "rlnSphericalAberration",
          "ctf/amp_contrast": "rlnAmplitudeContrast", "blob/psize_A": "rlnImagePixelSize"}
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
PLACES = ("location/center_x_frac", "location/center_y_frac", "location/micrograph_shape")


def read_cs(path):
    """The records of a .cs file; JobError if it is none, or holds Python objects, which are not loaded."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(COMPRESSED))
        if start == COMPRESSED:
            raise JobError(f"{path}: found cryoSPARC's compressed format; expected a numpy file; load and "
                           "save it as one with cryosparc-tools")
        records = np.load(path, allow_pickle=False)
    except OSError as error:
        raise JobError(f"{path}: could not be read ({error.strerror or error}); expected a .cs file of cryoSPARC; "
                       "check the path") from error
    except ValueError as error:
        raise JobError(f"{path}: found no array of records ({error}); expected a .cs file of cryoSPARC without Python "
                       "objects; check the path") from error
    if records.dtype.names is None or "uid" not in records.dtype.names:
        raise JobError(f"{path}: found no field 'uid'; expected a .cs file of cryoSPARC; check the path")
    return records


def tables_of(paths, *, invert_y=False):
    """Tables (engine/starversions.py) of the particles of the first .cs file, with the fields of further ones, the
    passthrough files, joined by uid. invert_y: count micrograph coordinates from the other end.

    JobError for files that lack images, or particles of the first.
    """
    fields, path = _joined(paths), Path(paths[0])
    for name in ("blob/path", "blob/idx", "blob/psize_A"):
        if name not in fields:
            raise JobError(f"{path}: found no field '{name}'; expected the particles of a job; give the passthrough "
                           "file as well")
    names = [text.removeprefix(">") for text in _texts(fields["blob/path"])]
    found = {"rlnImageName": np.array([f"{i + 1:06d}@{name}" for i, name in zip(fields["blob/idx"].tolist(), names)])}
    found |= {label: factor * fields[name] for name, (label, factor) in PARTICLES.items() if name in fields}
    if "alignments2D/class" in fields:
        found["rlnClassNumber"] = fields["alignments2D/class"].astype(np.int64) + 1
    if "alignments2D/shift" in fields:
        pixel = fields.get("alignments2D/psize_A", fields["blob/psize_A"])
        found |= {label: fields["alignments2D/shift"][:, axis] * pixel for axis, label in enumerate(ORIGINS)}
    if "location/micrograph_path" in fields:
        found["rlnMicrographName"] = np.array([text.removeprefix(">") for text in _texts(
            fields["location/micrograph_path"])])
    if all(name in fields for name in PLACES):
        x, y, shape = (fields[name] for name in PLACES)
        found |= {"rlnCoordinateX": x * shape[:, 1], "rlnCoordinateY": (1 - y if invert_y else y) * shape[:, 0]}
    optics, group = _optics_of(fields)
    return Tables(path, optics, found | {"rlnOpticsGroup": group.astype(str)})


def write_cs(path, tables):
    """Write Tables as a .cs file: images, CTF, and, where they are known, classes and poses and places."""
    with written_beside(path) as beside, open(beside, "wb") as file:
        np.lib.format.write_array(file, records_of(tables), allow_pickle=False)


def write_class_cs(path, run):
    """Write the class averages of a FinishedRun as a .cs file of templates."""
    k = np.arange(run.n_classes)
    stack = str(run.folder / "run_classes.mrcs")
    fields = {"uid": _uids([f"{i + 1:06d}@{stack}" for i in k]), "blob/path": np.full(len(k), stack.encode()),
              "blob/idx": k.astype("u4"), "blob/shape": np.full((len(k), 2), run.box_size, "u4"),
              "blob/psize_A": np.full(len(k), run.pixel_size, "f4"),
              "blob/res_A": np.nan_to_num(run.resolution, nan=999.0).astype("f4"),
              "class2D/num_particles": run.sizes.astype("u4")}
    with written_beside(path) as beside, open(beside, "wb") as file:
        np.lib.format.write_array(file, _records(fields), allow_pickle=False)


def records_of(tables):
    """The records of a .cs file for Tables."""
    names = tables.particles["rlnImageName"].tolist()
    n, pixel = len(names), tables.of_optics("rlnImagePixelSize")
    section, stack = zip(*(_section_of(tables, i, name) for i, name in enumerate(names))) if n else ((), ())
    group = {text: i for i, text in enumerate(tables.optics["rlnOpticsGroup"].tolist())}
    box = np.nan_to_num(tables.of_optics("rlnImageSize"))
    fields = {"uid": _uids(names), "blob/path": np.array([text.encode() for text in stack]),
              "blob/idx": np.array(section, dtype="u4"),
              "blob/shape": np.repeat(box[:, None], 2, axis=1).astype("u4"), "blob/sign": np.ones(n, "f4"),
              "ctf/type": np.full(n, b"imported"),
              "ctf/exp_group_id": np.array([group[t] for t in tables.particles["rlnOpticsGroup"].tolist()], "u4")}
    fields |= {name: np.nan_to_num(tables.of_optics(label)).astype("f4") for name, label in OPTICS.items()}
    for name, (label, factor) in PARTICLES.items():
        if label in tables.particles:
            fields[name] = (_numbers(tables, label) / factor).astype("f4")
        elif name.startswith("ctf/"):
            fields[name] = np.zeros(n, "f4")
    return _records(fields | _alignments(tables, pixel) | _places(tables))


def _section_of(tables, row, name):
    """(section from 0, stack) of `000001@stack.mrcs`."""
    section, mark, stack = name.partition("@")
    if not (mark and section.isdigit() and int(section) > 0):
        raise JobError(f"{tables.path} row {row + 1}: _rlnImageName is '{name}'; expected a section of a stack like "
                       "000001@stack.mrcs; correct the row")
    return int(section) - 1, stack


def _alignments(tables, pixel):
    """Classes and shifts, where the tables have them."""
    found, n = {}, len(tables)
    if "rlnClassNumber" in tables.particles:
        found["alignments2D/class"] = (_numbers(tables, "rlnClassNumber") - 1).astype("u4")
    if all(label in tables.particles for label in ORIGINS):
        shift = np.stack([_numbers(tables, label) for label in ORIGINS], axis=1) / pixel[:, None]
        found |= {"alignments2D/shift": shift.astype("f4"), "alignments2D/psize_A": pixel.astype("f4"),
                  "alignments2D/split": np.zeros(n, "u4")}
    return found


def _places(tables):
    if "rlnMicrographName" not in tables.particles:
        return {}
    return {"location/micrograph_path": np.array([name.encode() for name in tables.particles["rlnMicrographName"]])}


def _numbers(tables, label):
    column = tables.particles[label]
    return column if column.dtype.kind in "fiu" else numbers(tables.path, tables.particles, label)


def _joined(paths):
    """{field: values} of the first file and of those of others that it lacks, in the order of its uids."""
    first = read_cs(paths[0])
    fields = {name: first[name] for name in first.dtype.names}
    for path in paths[1:]:
        more = read_cs(path)
        order = np.argsort(more["uid"])
        place = np.searchsorted(more["uid"], first["uid"], sorter=order)
        if len(more) == 0 or (more["uid"][order[np.minimum(place, len(more) - 1)]] != first["uid"]).any():
            raise JobError(f"{path}: particles of {paths[0]} are not in it; expected the passthrough file of the same "
                           "job; check the paths")
        fields = {name: more[name][order[place]] for name in more.dtype.names} | fields
    return fields


def _optics_of(fields):
    """(optics table, group number int64[n] of each particle): rows of one setting are a group."""
    labels = {name: label for name, label in OPTICS.items() if name in fields}
    columns = [fields[name].astype(np.float64) for name in labels]
    columns.append(fields.get("ctf/exp_group_id", np.zeros(len(columns[0]))).astype(np.float64))
    shape = fields.get("blob/shape")
    if shape is not None:
        columns.append(shape[:, 0].astype(np.float64))
    _, first, group = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
    number = np.arange(1, len(first) + 1)
    optics = {"rlnOpticsGroupName": np.array([f"opticsGroup{i}" for i in number]), "rlnOpticsGroup": number.astype(str)}
    optics |= {label: fields[name][first].astype(np.float64) for name, label in labels.items()}
    if shape is not None:
        optics["rlnImageSize"] = shape[first, 0].astype(np.int64)
    return optics | {"rlnImageDimensionality": np.full(len(first), 2)}, group.ravel() + 1


def _uids(names):
    """uint64 of each name: the same particle has the same number in every file."""
    return np.array([int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in names], "u8")


def _texts(values):
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _records(fields):
    """A structured array of {name: values[n, …]}."""
    made = np.zeros(len(fields["uid"]), [(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    for name, values in fields.items():
        made[name] = values
    return made

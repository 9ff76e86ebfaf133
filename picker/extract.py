"""`job: extract`: coordinates and micrographs to particle stacks and a RELION 3.1 STAR file.

One stack for each micrograph, written by the rank that cuts it. A particle is cut around the pixel nearest to its
centre, brought to mean 0 and deviation 1 outside the particle's circle, turned to bright on dark, and cropped in
Fourier space. Boxes that leave the micrograph are left out and counted.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog, RunLog
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import write_star
from vitrea.kernels.micrograph import fourier_crop
from vitrea.picker.coordinates import SUFFIXES, find_coordinates, read_coordinates
from vitrea.picker.micrographs import BadMicrographError, list_micrographs
from vitrea.picker.results import inside

STACKS, STAR_NAME = "particles", "particles.star"
CARRIED = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor",
           "rlnCtfMaxResolution", "rlnCtfFigureOfMerit")   # from a micrograph's row to its particles


@dataclass(frozen=True)
class Cut:
    """The particles of one micrograph: centres (y, x) px, scores, boxes that left it, pixel size [Å] after cropping;
    or a problem, for which it was skipped."""

    centres: np.ndarray
    scores: np.ndarray
    outside: int
    pixel_size: float
    problem: str = ""


def run(options, *, resume, comm):
    """Extract the particles of the job: "done" or "stopped". Collective. A run that is resumed begins anew.

    Raises JobError for a user's mistake, and if there are no particles at all.
    """
    folder = Path(options.output)
    with threadpool_limits(1), StopRequest(comm=comm) as stop, _open_log(options, comm) as log:
        listed = list_micrographs(options.input)
        log.record("start", job="extract", output=str(folder), input=str(options.input), ranks=comm.size,
                   options=options.as_dict())
        log.line(f"extract   {folder}   {len(listed):,} micrographs   box {options.box_size} px to "
                 f"{options.scaled_size or options.box_size} px")
        mine, mistake = {}, None
        for number in range(comm.rank, len(listed), comm.size):
            if stop.asked() or mistake:
                break
            try:
                mine[number] = _extract_one(options, listed, number)
            except JobError as error:
                mistake = str(error)
        mistakes = [each for each in comm.allgather(mistake) if each]
        if mistakes:
            raise JobError(mistakes[0])
        if stop.agreed():
            log.tell("stopped", reason=stop.reason)
            return "stopped"
        cuts = {number: cut for part in comm.allgather(mine) for number, cut in part.items() if cut is not None}
        _tell(cuts, listed, options, log)
        tables = _tables(options, listed, cuts)
        if comm.rank == 0:
            write_star(folder / STAR_NAME, tables)
        log.record("done", particles=sum(len(cut.centres) for cut in cuts.values()))
        return "done"


def check(options):
    """Lines for `vitrea check`."""
    listed = list_micrographs(options.input)
    found = sum(_coordinates_of(options, name) is not None for name in listed.names)
    return [f"micrographs {len(listed):,} in {options.input}, {found:,} with coordinates in {options.coordinates}"]


def _open_log(options, comm):
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def _extract_one(options, listed, number):
    """Cut of one micrograph, whose stack is written; None if it has no coordinates."""
    path = _coordinates_of(options, listed.names[number])
    if path is None:
        return None
    try:
        micrograph = listed.read(number, options.pixel_size)
    except BadMicrographError as problem:
        return Cut(np.zeros((0, 2)), np.zeros(0), 0, 0.0, str(problem))
    found = read_coordinates(path, upwards=micrograph.image.shape[0] if options.y_axis == "up" else None)
    wanted = np.ones(len(found), bool) if options.threshold is None else ~(found.score < options.threshold)
    centres, scores = found.places[wanted], found.score[wanted]
    corners = np.rint(centres).astype(int) - options.box_size // 2
    fits = (corners >= 0).all(axis=1) & (corners + options.box_size <= micrograph.image.shape).all(axis=1)
    size = options.scaled_size or options.box_size
    cut = Cut(centres[fits], scores[fits], int((~fits).sum()), micrograph.pixel_size * options.box_size / size)
    if fits.any():
        images = cut_particles(micrograph.image, corners[fits], options.box_size, size,
                               options.diameter / 2 / micrograph.pixel_size, options.invert_contrast)
        target = stack_path(options.output, listed.names[number])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_stack(target, images, cut.pixel_size)
    return cut


def cut_particles(image, corners, box_size, size, radius, invert):
    """float32[n, size, size]: boxes of `box_size` px at corners int[n, 2] (y, x), their background, further than
    `radius` [px] from the middle, at mean 0 and deviation 1, turned round if `invert`, cropped in Fourier space."""
    axis = np.arange(box_size) - box_size // 2
    background = np.hypot(axis[:, None], axis) > min(radius, box_size / 2 - 1)
    particles = np.empty((len(corners), size, size), dtype=np.float32)
    for particle, (y, x) in zip(particles, corners):
        box = image[y:y + box_size, x:x + box_size].astype(np.float64)
        box = box - box[background].mean()
        box *= (-1 if invert else 1) / (box[background].std() or 1.0)
        particle[:] = fourier_crop(box.astype(np.float32), (size, size)) if size < box_size else box
    if size < box_size:   # cropping takes noise away: the deviation is brought back to 1
        small = np.hypot(*np.meshgrid(*2 * [np.arange(size) - size // 2])) > min(radius * size / box_size, size / 2 - 1)
        particles -= particles[:, small].mean(axis=1)[:, None, None]
        deviation = particles[:, small].std(axis=1)
        particles /= np.where(deviation > 0, deviation, 1)[:, None, None]
    return particles


def stack_path(folder, name):
    """Where the particles of a micrograph are."""
    return Path(folder) / STACKS / inside(name).with_suffix(".mrcs")


def _coordinates_of(options, name):
    """The coordinate file of a micrograph: at its listed name below the folder, as `job: pick` writes it, or by its
    file name alone."""
    nested = Path(options.coordinates) / inside(name)
    for suffix in SUFFIXES:
        if nested.with_suffix(suffix).exists():
            return nested.with_suffix(suffix)
    return find_coordinates(options.coordinates, Path(name).stem)


def _tell(cuts, listed, options, log):
    """Lines about what was cut; JobError if it is nothing."""
    for cut in (cuts[number] for number in sorted(cuts)):
        if cut.problem:
            log.line(f"skipped   {cut.problem}")
    total, outside = (sum(values) for values in zip(*((len(cut.centres), cut.outside) for cut in cuts.values()))
                      ) if cuts else (0, 0)
    if not total:
        raise JobError(f"{options.coordinates}: found no particle whose box of {options.box_size} px lies on one of "
                       f"the {len(listed)} micrographs of {options.input}; expected coordinate files with the "
                       "micrographs' names; check the folder and box_size")
    log.line(f"done   {total:,} particles of {len(cuts)} micrographs   {outside:,} boxes left theirs")


def _tables(options, listed, cuts):
    """The blocks of particles.star: optics groups as the micrographs have them, and the particles in their order."""
    numbers = [number for number in sorted(cuts) if len(cuts[number].centres)]
    groups = listed.columns.get("rlnOpticsGroup", np.full(len(listed), "1"))
    used = list(dict.fromkeys(groups[number] for number in numbers))
    first = {group: next(number for number in numbers if groups[number] == group) for group in used}
    for number in numbers:
        group = groups[number]
        if abs(cuts[number].pixel_size - cuts[first[group]].pixel_size) > 1e-3 * cuts[number].pixel_size:
            raise JobError(f"{options.input}: {listed.names[number]} and {listed.names[first[group]]} have other pixel "
                           "sizes in one optics group; expected one for each; give them different rlnOpticsGroup")
    return {"optics": _optics(options, listed, used, [cuts[first[group]].pixel_size for group in used]),
            "particles": _particles(options, listed, cuts, numbers, groups)}


def _optics(options, listed, used, pixel_sizes):
    size = options.scaled_size or options.box_size
    rows = {group: i for i, group in enumerate(listed.optics.get("rlnOpticsGroup", []))}

    def known(label, default):
        column = listed.optics.get(label)
        return [column[rows[group]] if column is not None and group in rows else default for group in used]

    return {
        "rlnOpticsGroup": used, "rlnOpticsGroupName": known("rlnOpticsGroupName", "opticsGroup1"),
        "rlnVoltage": known("rlnVoltage", options.voltage),
        "rlnSphericalAberration": known("rlnSphericalAberration", options.cs),
        "rlnAmplitudeContrast": known("rlnAmplitudeContrast", options.amplitude_contrast),
        "rlnImagePixelSize": np.array(pixel_sizes), "rlnImageSize": [size] * len(used),
        "rlnImageDimensionality": [2] * len(used)}


def _particles(options, listed, cuts, numbers, groups):
    counts = [len(cuts[number].centres) for number in numbers]
    centres = np.concatenate([cuts[number].centres for number in numbers])
    scores = np.concatenate([cuts[number].scores for number in numbers])
    names = [f"{i:06d}@{stack_path(options.output, listed.names[number])}"
             for number, count in zip(numbers, counts) for i in range(1, count + 1)]
    table = {"rlnCoordinateX": centres[:, 1], "rlnCoordinateY": centres[:, 0], "rlnImageName": names,
             "rlnMicrographName": np.repeat([listed.names[number] for number in numbers], counts),
             "rlnOpticsGroup": np.repeat([groups[number] for number in numbers], counts)}
    if not np.isnan(scores).any():
        table["rlnAutopickFigureOfMerit"] = scores
    for label in CARRIED:
        if label in listed.columns:
            table[label] = np.repeat(listed.columns[label][numbers], counts)
    # Cutting is at whole pixels; what is left of the centre is the particle's origin [Å].
    left = (np.rint(centres) - centres) * np.repeat([cuts[number].pixel_size for number in numbers], counts)[:, None]
    scale = (options.scaled_size or options.box_size) / options.box_size
    table |= {"rlnOriginXAngst": left[:, 1] * scale, "rlnOriginYAngst": left[:, 0] * scale}
    return table

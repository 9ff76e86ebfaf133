"""`job: extract`: coordinates and micrographs to particle stacks and a RELION 3.1 STAR file.

One stack for each micrograph, written by the rank that cuts it, then a line in that rank's manifest, so that a run that
was stopped goes on by micrograph. A particle is cut around the pixel nearest to its centre, brought to mean 0 and
deviation 1 outside the particle's circle, turned to bright on dark, and cropped in Fourier space. Boxes that leave the
micrograph are left out and counted; micrographs that cannot be used, or have another pixel size than their optics
group, are told and left out.
"""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vitrea.engine.comm import StopRequest
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog, RunLog, format_bytes
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import write_star
from vitrea.kernels.micrograph import fourier_crop
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.dealing import agreed, deal_out, largest_first
from vitrea.picker.memory import extracting
from vitrea.picker.micrographs import BadMicrographError, header_of, list_micrographs
from vitrea.picker.progress import Progress, record_start
from vitrea.picker.results import add_to_manifest, inside, read_manifests, require_own_files
from vitrea.picker.sources import coordinates_of_all, require_folders, without_micrograph

STACKS, STAR_NAME = "particles", "particles.star"
CARRIED = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor",
           "rlnCtfMaxResolution", "rlnCtfFigureOfMerit")   # from a micrograph's row to its particles
# Keys that decide what is cut out; with another value, or other coordinates, a micrograph is cut again.
DECISIVE = ("pixel_size", "box_size", "scaled_size", "diameter", "invert_contrast", "y_axis", "threshold")
SAME_PIXEL = 1e-3   # of a pixel size: those of an optics group do not differ by more


@dataclass(frozen=True)
class Cut:
    """The particles of one micrograph: centres (y, x) px, scores, boxes that left it, pixel size [Å] after cropping."""

    centres: np.ndarray
    scores: np.ndarray
    outside: int
    pixel_size: float


def run(options, *, resume, comm):
    """Extract the particles of the job: "done" or "stopped". Collective; `resume` is not needed, the manifests tell.

    Raises JobError for a user's mistake, and if there are no particles at all.
    """
    folder = Path(options.output)
    with threadpool_limits(1), StopRequest(comm=comm) as stop, _open_log(options, comm) as log:
        listed, sources = agreed(lambda: _sources(options), comm)
        work, sizes = agreed(lambda: _open_work(options, listed, sources), comm)
        record_start(log, "extract", options, micrographs=len(listed), comm=comm)
        done = sum(source is not None for source in sources) - len(work)
        _announce(options, listed, sources, done, log)
        busy = deal_out(work, [sizes[number] for number in work],
                        lambda number: _extract_one(options, listed, number, comm.rank, sources[number]), folder,
                        stop=stop, comm=comm, progress=Progress(log, "extract", done + len(work), words="extracted",
                                                                earlier=done))
        if stop.agreed():
            log.tell("stopped", stage="extract", reason=stop.reason)
            return "stopped"
        log.record("extracted", micrographs=len(work), busy=busy)
        # Rank 0 writes the table, and has it from the manifests and coordinates, so that nobody else keeps anything.
        log.record("done", particles=agreed(lambda: _finished(options, listed, sources, log), comm))
        return "done"


def check(options):
    """Lines for `vitrea check`; JobError for what `run` will refuse, as far as headers and coordinates tell it."""
    listed, sources = _sources(options)
    found = [number for number, source in enumerate(sources) if source]
    problems, numbers = [], []
    for number in found:
        try:
            (height, width), pixel_size = header_of(listed, number, options.pixel_size)
        except BadMicrographError as problem:
            problems.append(str(problem))
            continue
        numbers.append(len(_cut(options, sources[number], {"height": height, "width": width,
                                                           "pixel_size": pixel_size}).centres))
        _require_background(options, listed.paths[number], pixel_size)
    _require_particles(options, listed, sum(numbers), problems)
    pixels = (options.scaled_size or options.box_size) ** 2
    doubts = [doubt for doubt in _doubts(options, listed, sources) if doubt]
    return [f"micrographs {len(listed):,} in {options.input}, {len(found):,} with coordinates in {options.coordinates}",
            *(f"doubtful    {doubt}" for doubt in doubts), *(f"skipped     {problem}" for problem in problems),
            f"particles   {sum(numbers):,} whose boxes lie inside",
            f"memory      {format_bytes(extracting(listed, pixels, max(numbers, default=0)))} a rank at most",
            f"disk        {format_bytes(4 * pixels * sum(numbers))}"]


def _sources(options):
    """(MicrographList, the coordinate file of each or None); JobError if no file is of a micrograph."""
    listed = list_micrographs(options.input)
    require_folders(options, "coordinates")
    sources = coordinates_of_all(options.coordinates, listed.names)
    if not any(sources):
        raise JobError(f"{options.coordinates}: no coordinate file belongs to one of the {len(listed):,} micrographs "
                       f"of {options.input}; expected files with the micrographs' names, such as "
                       f"{Path(listed.names[0]).stem}.star; check the folder")
    return listed, sources


def _announce(options, listed, sources, done, log):
    log.line(f"extract   {options.output}   {len(listed):,} micrographs, "
             f"{sum(source is not None for source in sources):,} with coordinates, {done:,} done before   box "
             f"{options.box_size} px to {options.scaled_size or options.box_size} px")
    for doubt in _doubts(options, listed, sources):
        if doubt:
            log.line(f"doubtful   {doubt}")


def _doubts(options, listed, sources):
    """Sentences, or None, on micrographs without coordinates and coordinates without a micrograph."""
    without = [name for name, source in zip(listed.names, sources) if source is None]
    yield f"{len(without):,} micrographs have no coordinates; the first: {without[0]}" if without else None
    yield without_micrograph(options.coordinates, listed.names)


def _require_background(options, path, pixel_size):
    """JobError if the particle is wider than its box, which leaves no background to judge it by."""
    side = options.box_size * pixel_size
    if options.diameter > side:
        raise JobError(f"{path}: a particle of {options.diameter:g} Å (diameter) does not fit into a box of "
                       f"{options.box_size} px, which is {side:.4g} Å; expected a box wider than the particle, with "
                       "background around it; make box_size larger, or check diameter and pixel size")


def _require_particles(options, listed, n, problems):
    """JobError if there is no particle; problems are why micrographs with coordinates cannot be used."""
    if n:
        return
    also = f"; {len(problems)} cannot be used, the first: {problems[0]}" if problems else ""
    raise JobError(f"{options.coordinates}: found no particle whose box of {options.box_size} px lies on one of "
                   f"the {len(listed)} micrographs of {options.input}{also}; expected centres in pixels of the "
                   "micrographs; check the folder, box_size and threshold")


def _open_log(options, comm):
    return RunLog(options.output, echo=True) if comm.rank == 0 else NullLog()


def _open_work(options, listed, sources):
    """(numbers of the micrographs with coordinates that are not done, the largest first; sizes of all [bytes])."""
    require_own_files(options.input, listed.names)
    order, sizes = largest_first(listed)
    results = read_manifests(options.output)

    def wanted(number):
        path, result = sources[number], results.get(listed.names[number], {})
        if path is None:
            return False
        done = result.get("bytes") == sizes[number] and result.get("settings") == _settings(options, path)
        return not (done and ("problem" in result or not result["particles"]
                              or stack_path(options.output, listed.names[number]).exists()))

    return [number for number in order if wanted(number)], sizes


def _settings(options, path):
    """A text that is another for other coordinates, or another value of what decides what is cut out."""
    digest = hashlib.sha256(Path(path).read_bytes())
    digest.update(repr([getattr(options, name) for name in DECISIVE]).encode())
    return digest.hexdigest()[:16]


def _extract_one(options, listed, number, rank, source):
    """Write the stack of one micrograph, and a line to the manifest of this rank."""
    name, path = listed.names[number], listed.paths[number]
    result = {"micrograph": name, "settings": _settings(options, source),
              "bytes": path.stat().st_size if path.exists() else 0}
    try:
        micrograph = listed.read(number, options.pixel_size)
    except BadMicrographError as problem:
        add_to_manifest(options.output, rank, result | {"problem": str(problem)})
        return
    result |= {"height": micrograph.image.shape[0], "width": micrograph.image.shape[1],
               "pixel_size": micrograph.pixel_size}
    _require_background(options, path, micrograph.pixel_size)
    cut = _cut(options, source, result)
    if len(cut.centres):
        images = cut_particles(micrograph.image, _corners(cut.centres, options.box_size), options.box_size,
                               options.scaled_size or options.box_size, options.diameter / 2 / micrograph.pixel_size,
                               options.invert_contrast)
        target = stack_path(options.output, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_stack(target, images, cut.pixel_size)
    add_to_manifest(options.output, rank, result | {"particles": len(cut.centres)})


def _cut(options, source, result):
    """The Cut of a micrograph, from its coordinate file and what the manifest says of its size."""
    found = read_coordinates(source, upwards=result["height"] if options.y_axis == "up" else None)
    wanted = np.ones(len(found), bool) if options.threshold is None else ~(found.score < options.threshold)
    centres, scores = found.places[wanted], found.score[wanted]
    corners = _corners(centres, options.box_size)
    shape = (result["height"], result["width"])
    fits = (corners >= 0).all(axis=1) & (corners + options.box_size <= shape).all(axis=1)
    scale = options.box_size / (options.scaled_size or options.box_size)
    return Cut(centres[fits], scores[fits], int((~fits).sum()), result["pixel_size"] * scale)


def _corners(centres, box_size):
    return np.rint(centres).astype(int) - box_size // 2


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


def _finished(options, listed, sources, log):
    """Write particles.star from the manifests and tell of it: the number of particles. JobError if there is none."""
    results, cuts, problems = read_manifests(options.output), {}, []
    for number, name in enumerate(listed.names):
        source, result = sources[number], results.get(name, {})
        if source is None or not result:
            continue
        if "problem" in result:
            log.line(f"skipped   {result['problem']}")
            problems.append(result["problem"])
        else:
            cuts[number] = _cut(options, source, result)
    _leave_out_other_pixels(listed, cuts, log)
    total, outside = sum(len(cut.centres) for cut in cuts.values()), sum(cut.outside for cut in cuts.values())
    _require_particles(options, listed, total, problems)
    write_star(Path(options.output) / STAR_NAME, _tables(options, listed, cuts))
    log.line(f"done   {total:,} particles of {len(cuts)} micrographs   {outside:,} boxes left theirs")
    return total


def _groups(listed):
    return listed.columns.get("rlnOpticsGroup", np.full(len(listed), "1"))


def _leave_out_other_pixels(listed, cuts, log):
    """Take the cuts out, and tell, whose pixel size is not the one that most of their optics group have."""
    groups = _groups(listed)
    for group in dict.fromkeys(groups[number] for number in cuts):
        sizes = {number: cut.pixel_size for number, cut in cuts.items() if groups[number] == group}
        usual = float(np.sort(list(sizes.values()))[len(sizes) // 2])
        for number, size in sizes.items():
            if abs(size / usual - 1) > SAME_PIXEL:
                log.line(f"skipped   {listed.paths[number]}: {size:.4g} Å/px after cropping; expected {usual:.4g}, as "
                         f"most of optics group {group} have; give it an rlnOpticsGroup of its own")
                del cuts[number]


def _tables(options, listed, cuts):
    """The blocks of particles.star: optics groups as the micrographs have them, and the particles in their order."""
    numbers, groups = [number for number in sorted(cuts) if len(cuts[number].centres)], _groups(listed)
    used = list(dict.fromkeys(groups[number] for number in numbers))
    first = {group: next(number for number in numbers if groups[number] == group) for group in used}
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
    # Cutting is at whole pixels; what is left of the centre is the particle's origin [Å], with the way from where
    # cropping brings the middle of an odd box, or of one that becomes odd, to the middle of the new one.
    size, pixels = options.scaled_size or options.box_size, np.array([cuts[number].pixel_size for number in numbers])
    scale = size / options.box_size
    left = (np.rint(centres) - centres) * scale + size // 2 - options.box_size // 2 * scale
    left *= np.repeat(pixels, counts)[:, None]
    table |= {"rlnOriginXAngst": left[:, 1], "rlnOriginYAngst": left[:, 0]}
    return table

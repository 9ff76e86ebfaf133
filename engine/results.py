"""What a run leaves behind: the particles' poses gathered in the order of the table, and the files of the run
folder."""
import math
from dataclasses import dataclass

import numpy as np

from vitrea.engine import classes
from vitrea.engine.checkpoint import PARTICLE
from vitrea.engine.comm import gather_rows
from vitrea.engine.log import RECORDS_NAME, read_records
from vitrea.engine.outputs import ModelResults, ParticleResults, write_long_data_star, write_model_star
from vitrea.engine.pictures import draw_convergence, draw_gallery
from vitrea.engine.poses import rotate_offset, wrap_degrees
from vitrea.engine.stacks import write_stack
from vitrea.engine.star import ROWS_WRITTEN
from vitrea.engine.storage import PIECE, pieces
from vitrea.kernels.polar import PolarSynthesis

POSE_FIELDS = ("class_number", "psi", "shift", "pmax", "n_significant", "log_likelihood")
LOG_LIKELIHOOD_LOST = -np.log(0.01)   # how much worse a turned class average must fit for 99 % certainty, as RELION


def gather_particles(run):
    """PARTICLE[N] in the order of the table on rank 0, in the shard's space; None elsewhere. Collective."""
    shard = run.passes.shard
    together = shard.space.zeros(len(run.table), PARTICLE) if run.comm.rank == 0 else None
    for part in pieces(run.passes.largest_shard):
        found = gather_rows(_records(run, part), comm=run.comm)
        if together is not None:
            together[found["row"]] = found
        shard.space.release()
    return together


def _records(run, part):
    """PARTICLE[n] of a slice of this rank's particles."""
    rows = run.passes.shard.rows[part]
    records = np.zeros(len(rows), dtype=PARTICLE)
    records["row"], records["scale"] = rows, run.passes.scale[part]
    for name in POSE_FIELDS:
        records[name] = getattr(run.passes.poses, name)[part]
    return records


def scatter_particles(run, records):
    """Take the entries of this rank's particles from PARTICLE[N] in the order of the table."""
    shard = run.passes.shard
    for part in pieces(len(shard)):
        mine = records[shard.rows[part]]
        run.passes.scale[part] = mine["scale"]
        for name in POSE_FIELDS:
            getattr(run.passes.poses, name)[part] = mine[name]
        shard.space.release()


def write(run, state):
    """Write the results of a finished run. Collective; rank 0 writes."""
    particles = gather_particles(run)
    if run.comm.rank != 0:
        return
    folder, model = run.options.output, state.model
    summary = _summary(run, particles, model.n_classes)
    counts = summary.counts
    resolution = np.array([run.geometry.resolution_of(rings) for rings in resolved_by_class(model)])
    averages = class_averages(run.geometry, model)
    write_stack(folder / "run_classes.mrcs", averages, run.geometry.pixel_size)
    found = ((some["row"], particle_results(run, some)) for some in _used(run, particles, ROWS_WRITTEN))
    write_long_data_star(folder / "run_data.star", run.table, found)
    write_model_star(folder / "run_model.star", model_results(run, model, summary, resolution))
    finite = np.where(np.isfinite(resolution), resolution, run.geometry.box_size * run.geometry.pixel_size)
    draw_gallery(folder / "classes.png", averages, counts, finite, str(folder))
    records = read_records(folder / RECORDS_NAME)
    if any(record["kind"] == "iteration" for record in records):   # a log that was lost leaves no course to draw
        draw_convergence(folder / "convergence.png", records)
    _finish_log(run, counts, records)


@dataclass(frozen=True)
class _Summary:
    """Of the particles that have a class: how many by class and by optics group int64, and sums over them."""

    counts: np.ndarray
    groups: np.ndarray
    log_likelihood: float
    pmax: float
    norm: float

    @property
    def particles(self):
        return int(self.counts.sum())


def _summary(run, particles, n_classes):
    counts, groups = np.zeros(n_classes, np.int64), np.zeros(len(run.table.optics), np.int64)
    sums = []
    for some in _used(run, particles, PIECE):
        counts += np.bincount(some["class_number"], minlength=n_classes)
        groups += np.bincount(run.table.optics_index[some["row"]], minlength=len(groups))
        sums.append([math.fsum(values) for values in (some["log_likelihood"], some["pmax"],
                                                      1.0 / some["scale"].astype(np.float64))])
    return _Summary(counts, groups, *map(math.fsum, zip(*sums)))


def _used(run, particles, size):
    """PARTICLE[n] of those that have a class, in the order of the table, `size` of them at a time."""
    left = particles[:0]
    for part in pieces(len(particles)):
        some = particles[part]
        left = np.concatenate([left, some[some["class_number"] >= 0]])
        whole = len(left) // size * size
        yield from (left[first:first + size] for first in range(0, whole, size))
        left = left[whole:].copy()
        run.passes.shard.space.release()
    if len(left):
        yield left


def resolved_by_class(model):
    """int64[K]: rings up to the first with SSNR ≤ 1, by class."""
    below = model.ssnr <= 1.0
    return np.where(below.any(axis=1), below.argmax(axis=1), model.ssnr.shape[1])


def class_averages(geometry, model):
    """float32[K, L, L] for the eye: the regularised references, masked, as pixels."""
    grid = geometry.grid.with_rings(model.rings_before or model.rings)
    return PolarSynthesis(grid).images(geometry.grid.crop(model.references, grid))


def particle_results(run, particles):
    """Poses in RELION's convention (engine/poses.py), origins counted from the image as it was given."""
    psi = wrap_degrees(-np.rad2deg(particles["psi"]))
    found = -rotate_offset(particles["shift"], psi) * run.geometry.pixel_size
    return ParticleResults(
        class_number=particles["class_number"], psi=psi, origin=run.table.origin[particles["row"]] + found,
        pmax=particles["pmax"], n_significant=particles["n_significant"].astype(np.int32),
        log_likelihood=particles["log_likelihood"], norm=1.0 / particles["scale"].astype(np.float64))


def model_results(run, model, summary, resolution):
    """The model in the shells of RELION's model STAR: shell 0 is the mean, which has no ring."""
    geometry = run.geometry
    rotation, translation = accuracy(run, model)
    padded = {name: np.pad(getattr(model, name), ((0, 0), (1, 0))) for name in ("ssnr", "tau2", "sigma2")}
    rings = classes.resolved(model)
    return ModelResults(
        box_size=geometry.box_size,
        pixel_size=geometry.pixel_size,
        current_size=2 * model.rings,
        current_resolution=min(geometry.resolution_of(rings), geometry.box_size * geometry.pixel_size),
        tau2_fudge=run.options.tau2_fudge,
        sigma_offset=model.sigma_offset * geometry.pixel_size,
        log_likelihood=summary.log_likelihood,
        average_pmax=summary.pmax / summary.particles,
        average_norm=summary.norm / summary.particles,
        class_stack="run_classes.mrcs",
        class_prior=model.class_prior,
        class_resolution=np.where(np.isfinite(resolution), resolution, 999.0),
        accuracy_rotation=rotation,
        accuracy_translation=translation,
        ssnr=padded["ssnr"],
        tau2=padded["tau2"],
        sigma2_noise=padded["sigma2"],
        group_names=tuple(group.name for group in run.table.optics),
        group_sizes=summary.groups,
    )


def accuracy(run, model):
    """(degrees, Å) by class: the turn and the shift that make an average particle fit worse by LOG_LIKELIHOOD_LOST.

    To second order the loss is ½δ² Σ w̄C² |∂A|², with ∂ = m for a turn and ∂ = q/√2 for a shift; SSNR/τ² is w̄C² per
    class.
    """
    grid = run.geometry.grid
    per_particle = np.maximum(model.class_prior[:, None] * run.passes.n_particles, 1.0)
    weight = (
        model.ssnr * grid.pixels_on_ring / (2.0 * run.options.tau2_fudge * np.maximum(model.tau2, 1e-30)) / per_particle
    )
    power = grid.multiplicity * np.abs(model.references) ** 2
    q = 2.0 * np.pi / grid.box_size * np.arange(1, grid.n_rings + 1)
    turn = np.sum(weight[:, grid.ring_of] * power * grid.harmonic_of**2, axis=1)
    shift = 0.5 * np.sum(weight * grid.ring_power(model.references) * q**2, axis=1)
    with np.errstate(divide="ignore"):
        rotation, translation = (np.sqrt(2.0 * LOG_LIKELIHOOD_LOST / np.maximum(x, 0.0)) for x in (turn, shift))
    return (np.minimum(np.rad2deg(rotation), 180.0), np.minimum(translation * run.geometry.pixel_size, 999.0))


def _finish_log(run, counts, records):
    iterations = [record for record in records if record["kind"] == "iteration"]
    busy = sum(record["e_step"] for record in iterations) * run.comm.size * run.options.threads
    run.log.tell("done", classes=len(counts), empty=int((counts == 0).sum()), largest=int(counts.max()),
                 particles=int(counts.sum()), memory=max((r.get("memory") or 0 for r in iterations), default=0),
                 poses_per_core_second=_poses(records) / busy if busy else None,
                 files=["run_data.star", "run_classes.mrcs", "run_model.star", "classes.png", "convergence.png"])


def _poses(records):
    return sum(record.get("poses", 0) for record in records if record["kind"] == "iteration")

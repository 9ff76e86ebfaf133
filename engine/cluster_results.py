"""What a cluster job leaves behind: the files of classify2d, and the map of the classes on the latent grid."""
import numpy as np

from vitrea.engine import averages
from vitrea.engine.classify2d import peak_memory
from vitrea.engine.latent_pictures import NodeFigures, draw_course, draw_map
from vitrea.engine.log import RECORDS_NAME, read_records
from vitrea.engine.outputs import (
    UNKNOWN_ANGSTROM,
    ModelResults,
    ParticleResults,
    write_data_star,
    write_model_star,
)
from vitrea.engine.pictures import draw_gallery
from vitrea.engine.poses import wrap_degrees
from vitrea.engine.stacks import write_stack

FILES = ("run_data.star", "run_classes.mrcs", "run_model.star", "classes.png", "latent_map.png", "convergence.png")
AT_ONCE = 64   # images made at once: their transforms are eight times as large
UNIT = 2.0     # a component is √2 times the real or imaginary part of an orthonormal transform


def write(run, manifold):
    """Write the results of a finished run. Collective; rank 0 writes."""
    embedded = run.shard.embedded
    known, sums = averages.assign(embedded, manifold, run.shard.kept, outliers=run.options.outliers, window=run.window,
                                  comm=run.comm)
    known = averages.gathered(known, comm=run.comm)
    if run.comm.rank != 0:
        return
    found = averages.averaged(sums, manifold.beta, embedded.layout)
    counts = np.bincount(known["class_number"], minlength=len(found.average))
    folder, geometry = run.options.output, run.geometry
    images = class_images(geometry, run.shard.level, found.average)
    shells = averages.resolved_shells(found.ssnr)
    resolution = np.array([geometry.resolution_of(int(shell)) for shell in shells])
    write_stack(folder / "run_classes.mrcs", images, geometry.pixel_size)
    write_data_star(folder / "run_data.star", run.table, known["row"],
                    particle_results(run.table, known, run.window, geometry.pixel_size), latent_columns(known))
    write_model_star(folder / "run_model.star", model_results(run, manifold, found, known, resolution))
    shown = np.where(np.isfinite(resolution), resolution, geometry.box_size * geometry.pixel_size)
    n_told = len(counts) if counts[manifold.n_nodes:].any() else manifold.n_nodes   # outliers, if there are any
    title = str(folder) + (f"   class {n_told}: outliers" if n_told > manifold.n_nodes else "")
    draw_gallery(folder / "classes.png", images[:n_told], counts[:n_told], shown[:n_told], title)
    _draw_latent(run, manifold, images, counts, known)
    run.log.tell("done", classes=n_told, empty=int((counts[:n_told] == 0).sum()), largest=int(counts.max()),
                 particles=int(counts.sum()), memory=max(run.memory, peak_memory()), files=list(FILES))


def class_images(geometry, level, components):
    """float32[C, L, L], in the grey values of the particles, of averages float64[C, D] in units of their noise."""
    plane, images = geometry.plane, np.empty((len(components), geometry.box_size, geometry.box_size), np.float32)
    for i in range(0, len(components), AT_ONCE):
        part = slice(i, i + AT_ONCE)
        images[part] = plane.images(components[part] * np.sqrt(level)[plane.shell][plane.group])
    return images


def particle_results(table, known, window=None, pixel_size=1.0):
    """The poses as they were given, or the likeliest of a window [px of pixel_size], the classes as they were found."""
    rows = known["row"]
    psi, origin = table.psi[rows], table.origin[rows]
    if window is not None:
        psi, origin = window.refined(psi, origin / pixel_size, known["pose"])
        psi, origin = wrap_degrees(psi), origin * pixel_size
    norm = table.columns.get("rlnNormCorrection")
    return ParticleResults(
        class_number=known["class_number"], psi=psi, origin=origin, pmax=known["probability"],
        n_significant=np.rint(np.exp(known["entropy"])).astype(np.int32), log_likelihood=known["log_likelihood"],
        norm=np.ones(len(rows)) if norm is None else norm[rows].astype(np.float64))


def latent_columns(known):
    """The further columns of run_data.star."""
    axes = {f"vitreaLatentCoordinate{axis + 1}": known["latent"][:, axis] for axis in range(known["latent"].shape[1])}
    return axes | {"vitreaClassEntropy": known["entropy"], "vitreaOutlierProbability": known["outlier"]}


def model_results(run, manifold, found, known, resolution):
    """The model in RELION's units: variances of the real part of a transform divided by the box, shell 0 the mean."""
    geometry, table, level = run.geometry, run.table, run.shard.level
    n_classes = len(resolution)
    prior = np.append(manifold.class_prior, manifold.outlier_prior.sum())[:n_classes]
    nan, padded = np.full(n_classes, np.nan), {}
    for name, values in (("ssnr", found.ssnr), ("tau2", found.tau2 * level / UNIT), ("frc", found.frc),
                         ("sigma2", run.shard.noise / manifold.beta / UNIT)):
        padded[name] = np.pad(values, ((0, 0), (1, 0)))
    populated = np.bincount(known["class_number"], minlength=n_classes)[:manifold.n_nodes] > 0
    finest = resolution[:manifold.n_nodes][populated].min(initial=geometry.box_size * geometry.pixel_size)
    groups = np.bincount(table.optics_index[known["row"]], minlength=len(table.optics))
    return ModelResults(
        box_size=geometry.box_size, pixel_size=geometry.pixel_size, current_size=2 * geometry.plane.radius,
        current_resolution=finest, tau2_fudge=1.0, sigma_offset=0.0,
        log_likelihood=float(known["log_likelihood"].sum()), average_pmax=float(known["probability"].mean()),
        average_norm=1.0, class_stack="run_classes.mrcs", class_prior=prior / prior.sum(),
        class_resolution=np.where(np.isfinite(resolution), resolution, UNKNOWN_ANGSTROM), accuracy_rotation=nan,
        accuracy_translation=nan, ssnr=padded["ssnr"], tau2=padded["tau2"], sigma2_noise=padded["sigma2"],
        group_names=tuple(group.name for group in table.optics), group_sizes=groups, frc=padded["frc"])


def _draw_latent(run, manifold, images, counts, known):
    """latent_map.png and convergence.png."""
    n_nodes, folder = manifold.n_nodes, run.options.output
    inside = known["class_number"] < n_nodes
    total = np.bincount(known["class_number"][inside], weights=known["entropy"][inside], minlength=n_nodes)
    entropy = np.divide(total, counts[:n_nodes], out=np.full(n_nodes, np.nan), where=counts[:n_nodes] > 0)
    figures = NodeFigures(counts[:n_nodes], manifold.class_prior, entropy)
    draw_map(folder / "latent_map.png", images[:n_nodes], figures, manifold.lattice.shape, str(folder))
    draw_course(folder / "convergence.png", read_records(folder / RECORDS_NAME), figures, manifold.lattice.shape)

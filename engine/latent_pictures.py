"""The map of classes on their latent grid, and the course of a run that made it."""
import math

import numpy as np
from PIL import Image, ImageDraw

from vitrea.engine.files import written_beside
from vitrea.engine.pictures import FAINT, FRAME, GAP, INK, MARGIN, PAGE, PAGE_WIDTH, font_of, grey_levels

TILE_SIZES = (92, 200)     # px, smallest (its caption must fit) and largest tile
FADED = 0.25               # of the contrast of a tile without particles
PLANE_GAP = 3 * GAP        # px between the planes of a volume


def draw_map(path, class_averages, found, shape, title):
    """Write a PNG of class_averages float32[K, L, L] at their nodes on a latent grid of `shape` (k,), (k1, k2), or
    (k1, k2, k3), nodes in C order.

    A chain is read like text; a plane has its first axis downwards; a volume is a column of planes. Each tile carries
    its number in the STAR files (from 1), particles, free energy F = −ln π and mean entropy S of its particles' class
    posteriors [nats], of `found` (NodeFigures). Raises ValueError for arrays that do not fit, JobError if the disk
    refuses.
    """
    n_nodes = math.prod(shape)
    if len(class_averages) != n_nodes or len(found.sizes) != n_nodes:
        raise ValueError(f"a map of {shape} needs {n_nodes} class averages and sizes, not {len(class_averages)} and "
                         f"{len(found.sizes)}")
    layout = _MapLayout(shape)
    page = Image.new("RGB", layout.page_size, PAGE)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=font_of(layout.title_height))
    words = f"{_shape_words(shape)}   F = −ln π, the free energy in kT   S: entropy of the class posterior, nats"
    pen.text((MARGIN, MARGIN + 1.5 * layout.title_height), words, fill=FAINT, font=font_of(layout.text_height))
    for node in range(n_nodes):
        left, top = layout.corner(node)
        empty = found.sizes[node] == 0
        page.paste(_tile(class_averages[node], layout.tile, empty), (left, top))
        _caption(pen, layout, (left, top), node, found)
    with written_beside(path) as beside:
        page.save(beside, format="PNG")


class NodeFigures:
    """By node: sizes int[K] particles; free_energy float[K] −ln π; entropy float[K] [nats], NaN without particles."""

    def __init__(self, sizes, class_prior, entropy):
        self.sizes = np.asarray(sizes)
        with np.errstate(divide="ignore"):
            self.free_energy = -np.log(np.asarray(class_prior, dtype=np.float64))
        self.entropy = np.asarray(entropy, dtype=np.float64)


class _MapLayout:
    """Where the tiles of a latent grid go."""

    def __init__(self, shape):
        self.planes, self.rows, self.columns = _tiles_of(shape)
        smallest, largest = TILE_SIZES
        self.tile = int(np.clip((PAGE_WIDTH - 2 * MARGIN) // self.columns - GAP, smallest, largest))
        self.text_height = int(np.clip(round(self.tile / 8.5), 10, 16))
        self.title_height = round(1.5 * self.text_height)
        self.pitch = self.tile + round(2.7 * self.text_height) + GAP
        self.top = MARGIN + round(1.5 * self.title_height + 2 * self.text_height)
        width = max(2 * MARGIN + self.columns * (self.tile + GAP), 60 * self.text_height)
        height = self.top + self.planes * (self.rows * self.pitch + PLANE_GAP) - PLANE_GAP + MARGIN
        self.page_size = width, height

    def corner(self, node):
        plane, place = divmod(node, self.rows * self.columns)
        row, column = divmod(place, self.columns)
        top = self.top + plane * (self.rows * self.pitch + PLANE_GAP) + row * self.pitch
        return MARGIN + column * (self.tile + GAP), top


def _tiles_of(shape):
    """(planes, rows, columns) of tiles; a chain is broken into lines."""
    if len(shape) == 1:
        columns = min(shape[0], max(2, math.ceil(math.sqrt(1.7 * shape[0]))))
        return 1, math.ceil(shape[0] / columns), columns
    return (1, *shape) if len(shape) == 2 else shape


def _shape_words(shape):
    return f"{shape[0]} nodes on a chain, read like text" if len(shape) == 1 else " × ".join(map(str, shape)) + " nodes"


def _tile(image, size, empty):
    levels = grey_levels(image).astype(np.float64)
    if empty:
        levels = 225 + FADED * (levels - 225)
    return Image.fromarray(levels.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def _caption(pen, layout, corner, node, found):
    """Two lines below a tile: number and particles, then free energy and entropy."""
    left, top = corner
    right, first = left + layout.tile - 1, top + layout.tile + layout.text_height // 4
    second, font = first + round(1.15 * layout.text_height), font_of(layout.text_height)
    pen.rectangle((left, top, right, top + layout.tile - 1), outline=FRAME)
    size = int(found.sizes[node])
    pen.text((left, first), f"#{node + 1}", fill=FAINT, font=font)
    pen.text((right, first), f"{size:,}" if size else "empty", fill=INK if size else FAINT, font=font, anchor="ra")
    if np.isfinite(found.free_energy[node]):
        pen.text((left, second), f"F {found.free_energy[node]:.1f}", fill=INK, font=font)
    if np.isfinite(found.entropy[node]):
        pen.text((right, second), f"S {found.entropy[node]:.1f}", fill=FAINT, font=font, anchor="ra")


def draw_course(path, records, found, shape):
    """Write a PNG of a manifold run: likelihoods (learnt and held out), temperature, class sizes, and free energy on
    the latent grid.

    `records` are the dicts of record.jsonl, in order; those of kind "iteration" are drawn (log_likelihood and held_out
    per particle, temperature, class_sizes); a later record of one iteration replaces the earlier. found NodeFigures.
    Raises ValueError if there is none, JobError if the disk refuses.
    """
    latest = {record["iteration"]: record for record in records if record.get("kind") == "iteration"}
    if not latest:
        raise ValueError("no iteration records to draw")
    records = [latest[number] for number in sorted(latest)]
    # Slow to import, and only wanted here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_likelihood(axes[0, 0], records)
    _draw_temperature(axes[0, 1], records)
    _draw_populated(axes[1, 0], records)
    _draw_free_energy(axes[1, 1], figure, found, shape)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[:3]:
        panel.set_xlabel("iteration")
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=130)


def _series(records, name):
    """Iterations and values; NaN between two starts, which are no one course: there the temperature rises."""
    found, before = [], np.inf
    for record in records:
        if record["temperature"] > before:
            found.append((record["iteration"], np.nan))
        before = record["temperature"]
        if record.get(name) is not None:
            found.append((record["iteration"], record[name]))
    return list(zip(*found, strict=True)) or [(), ()]


def _draw_likelihood(panel, records):
    panel.plot(*_series(records, "log_likelihood"), marker=".", color="tab:blue", label="learnt from")
    if any(record.get("held_out") is not None for record in records):
        panel.plot(*_series(records, "held_out"), marker=".", color="tab:orange", label="held out")
        panel.legend(frameon=False)
    panel.set_ylabel("log-likelihood of a particle")


def _draw_temperature(panel, records):
    panel.plot(*_series(records, "temperature"), marker=".", color="tab:red")
    panel.set_yscale("log")
    panel.set_ylabel("temperature")


def _draw_populated(panel, records):
    """How many classes carry weight: the exponential of the entropy of the class sizes."""
    effective = []
    for record in records:
        share = np.array(record["class_sizes"], dtype=np.float64)
        share = share[share > 0] / max(share.sum(), 1e-300)
        effective.append({**record, "effective": float(np.exp(-np.sum(share * np.log(share))))})
    panel.plot(*_series(effective, "effective"), marker=".", color="tab:green")
    panel.set_ylabel("classes in use (exp. entropy of sizes)")


def _draw_free_energy(panel, figure, found, shape):
    energy = np.where(np.isfinite(found.free_energy), found.free_energy, np.nan)
    if len(shape) == 1:
        panel.plot(np.arange(1, shape[0] + 1), energy, marker=".", color="tab:purple", label="F = −ln π")
        panel.plot(np.arange(1, shape[0] + 1), found.entropy, marker=".", color="0.6", label="S")
        panel.legend(frameon=False)
        panel.set_xlabel("node of the chain")
        panel.set_ylabel("free energy [kT], entropy [nats]")
        return
    picture = panel.imshow(energy.reshape(-1, shape[-1]), cmap="viridis_r")
    panel.set_xlabel("last axis of the latent grid")
    panel.set_ylabel("first axis" if len(shape) == 2 else "first and second axis")
    figure.colorbar(picture, ax=panel, label="free energy [kT]")

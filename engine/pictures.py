"""Pictures for the eye: the gallery of class averages and the course of a run."""
import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitrea.engine.files import written_beside

PAGE_WIDTH = 2000              # px wished for; few classes make a narrower page
TILE_SIZES = (104, 256)        # px, smallest (its caption must fit) and largest tile
CONTRAST = (0.5, 99.7)         # percentiles inside the circle that become black and white
GAP, MARGIN = 10, 28           # px
PAGE, INK, FAINT, FRAME = (255, 255, 255), (25, 28, 33), (120, 126, 136), (210, 214, 220)
EMPTY_GREY = 225               # shade towards which the tile of an empty class fades


def draw_gallery(path, class_averages, sizes, resolutions, title):
    """Write a PNG of class_averages float32[K, L, L], largest class first, classes without particles last and grey.

    Each tile carries the number that the class has in the STAR files (from 1), its `sizes` int[K] (particles, and
    their share), and its `resolutions` float[K] [Å] (not finite: left out). The contrast of a tile runs between
    percentiles of the pixels inside the circle. Raises ValueError for arrays that do not fit, JobError if the disk
    refuses.
    """
    class_averages, sizes = np.asarray(class_averages), np.asarray(sizes)
    _check_shapes(class_averages, sizes, resolutions)
    layout = _Layout(len(sizes), (title, _summary(sizes)))
    page = Image.new("RGB", layout.page_size, PAGE)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=font_of(layout.title_height))
    pen.text((MARGIN, MARGIN + 1.5 * layout.title_height), _summary(sizes), fill=FAINT,
             font=font_of(layout.text_height))
    for place, k in enumerate(by_population(sizes)):
        corner = layout.corner(place)
        page.paste(_tile(class_averages[k], layout.tile, faded=sizes[k] == 0), corner)
        share = sizes[k] / max(sizes.sum(), 1)
        _caption(pen, layout, corner, k + 1, int(sizes[k]), share=share, resolution=resolutions[k])
    with written_beside(path) as beside:
        page.save(beside, format="PNG")


def draw_convergence(path, records):
    """Write a PNG of a run's course: log-likelihood, resolution, changed classes and class sizes by iteration.

    `records` are the dicts of a run's record.jsonl in their order, of every kind; those of kind "iteration" are drawn
    (log_likelihood, resolution [Å], changed [fraction], class_sizes). A later record of the same iteration, as after a
    resume, replaces the earlier one. Raises ValueError if there is none, JobError if the disk refuses.
    """
    records = _iterations(records)
    # Slow to import, and only wanted here; `matplotlib` itself is not.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    _draw_likelihood(axes[0, 0], records)
    _draw_resolution(axes[0, 1], records)
    _draw_changed(axes[1, 0], records)
    _draw_sizes(axes[1, 1], records)
    for panel in axes.flat:
        _mark_full_passes(panel, records, named=panel is axes[0, 0])
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in axes[1]:
        panel.set_xlabel("iteration")
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=130)


def by_population(sizes):
    """Order of the classes int[K]: largest first, equal sizes by number, so that empty classes come last."""
    return np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable")


def grey_levels(image):
    """uint8[L, L] of float[L, L]: percentiles inside the inscribed circle become black and white."""
    size = image.shape[-1]
    axis = np.arange(size) - size // 2
    inside = image[np.hypot(axis[:, None], axis) < size / 2]
    inside = inside[np.isfinite(inside)]
    low, high = np.percentile(inside, CONTRAST) if len(inside) else (0.0, 0.0)
    if not high > low:
        return np.full(image.shape, 128, dtype=np.uint8)
    scaled = np.nan_to_num((image - low) / (high - low), nan=0.5, posinf=1.0, neginf=0.0)
    return np.rint(255 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)


# ---- the gallery

class _Layout:
    """Where the tiles of K classes go: the page is about as wide as wished and holds its two titles."""

    def __init__(self, n_classes, titles):
        smallest, largest = TILE_SIZES
        self.columns = min(n_classes, max(2, math.ceil(math.sqrt(1.7 * n_classes))))
        width = (PAGE_WIDTH - 2 * MARGIN + GAP) // self.columns - GAP
        self.tile = min(max(width, smallest), largest)
        self.text_height = min(max(round(self.tile / 8.5), 11), 18)
        self.title_height = round(1.5 * self.text_height)
        self.caption = round(2.7 * self.text_height)
        self.top = MARGIN + round(1.5 * self.title_height + 2 * self.text_height)
        rows = math.ceil(n_classes / self.columns)
        width = 2 * MARGIN + self.columns * (self.tile + GAP) - GAP
        lines = zip(titles, (self.title_height, self.text_height))
        width = max(width, *(2 * MARGIN + math.ceil(font_of(height).getlength(line)) for line, height in lines))
        self.page_size = width, self.top + rows * (self.tile + self.caption + GAP) + MARGIN - GAP

    def corner(self, place):
        row, column = divmod(place, self.columns)
        return MARGIN + column * (self.tile + GAP), self.top + row * (self.tile + self.caption + GAP)


def _check_shapes(class_averages, sizes, resolutions):
    n_classes = len(sizes)
    square = class_averages.ndim == 3 and class_averages.shape[1] == class_averages.shape[2]
    if not square or not n_classes or len(class_averages) != n_classes or len(resolutions) != n_classes:
        raise ValueError(f"a gallery needs class averages [K, L, L] with K sizes and resolutions, not "
                         f"{class_averages.shape} with {n_classes} and {len(resolutions)}")


def _summary(sizes):
    n_empty = int(np.sum(sizes == 0))
    empty = f", {n_empty} empty" if n_empty else ""
    classes = "1 class" if len(sizes) == 1 else f"{len(sizes)} classes"
    return f"{sizes.sum():,} particles in {classes}{empty}   largest first   #number in the STAR file"


def _tile(image, size, faded):
    levels = grey_levels(image)
    if faded:
        levels = (0.25 * levels + 0.75 * EMPTY_GREY).astype(np.uint8)
    return Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)


def _caption(pen, layout, corner, number, size, *, share, resolution):
    """Two lines below a tile: number and particles, then share and resolution; parts go left and right."""
    left, top = corner
    right, first = left + layout.tile - 1, top + layout.tile + layout.text_height // 4
    second = first + round(1.15 * layout.text_height)
    font = font_of(layout.text_height)
    pen.rectangle((left, top, right, top + layout.tile - 1), outline=FRAME)
    pen.text((left, first), f"#{number}", fill=FAINT, font=font)
    pen.text((right, first), f"{size:,}" if size else "empty", fill=INK if size else FAINT, font=font, anchor="ra")
    if not size:
        return
    pen.text((left, second), _percentage(share), fill=INK, font=font)
    if np.isfinite(resolution) and resolution > 0:
        pen.text((right, second), f"{resolution:.1f} Å", fill=INK, font=font, anchor="ra")


def _percentage(share):
    return "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


@cache
def font_of(height):
    """DejaVu Sans, which comes with matplotlib; Pillow's own font has no Å."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", height)


# ---- the course of a run

def _iterations(records):
    """The iterations of both stages in order; full passes, which count from 1 again, are numbered after the batches."""
    found = [record for record in records if record.get("kind", "iteration") == "iteration"]
    if not found:
        raise ValueError("no iteration records to draw")
    batches = max((record["iteration"] for record in found if record.get("stage") == "minibatch"), default=0)
    latest = {record["iteration"] + (0 if record.get("stage") == "minibatch" else batches): record for record in found}
    return [{**latest[number], "iteration": number} for number in sorted(latest)]


def _series(records, name):
    """Iterations and values of one field; a value that a record lacks is NaN."""
    values = [record.get(name) for record in records]
    return [record["iteration"] for record in records], [np.nan if value is None else value for value in values]


def _draw_likelihood(panel, records):
    panel.plot(*_series(records, "log_likelihood"), marker=".", color="tab:blue")
    panel.set_ylabel("log-likelihood")


def _draw_resolution(panel, records):
    panel.plot(*_series(records, "resolution"), marker=".", color="tab:green")
    panel.set_ylabel("resolution [Å]")
    panel.invert_yaxis()   # better is up, as in the other panels


def _draw_changed(panel, records):
    iterations, changed = _series(records, "changed")
    panel.plot(iterations, 100 * np.asarray(changed, dtype=float), marker=".", color="tab:red")
    panel.set_ylabel("particles that changed class [%]")
    panel.set_ylim(0, None)


def _draw_sizes(panel, records):
    """Shares of the classes as bands, stacked in the order of their last size, the largest at the bottom."""
    records = [record for record in records if record.get("class_sizes") and sum(record["class_sizes"])]
    panel.set_ylabel("share of the classes [%]")
    panel.set_ylim(0, 100)
    if not records:
        return
    sizes = np.array([record["class_sizes"] for record in records], dtype=np.float64)
    shares = 100 * sizes / sizes.sum(axis=1, keepdims=True)
    order = by_population(sizes[-1])
    colours = [f"C{place % 10}" for place in range(len(order))]
    panel.stackplot([record["iteration"] for record in records], shares[:, order].T, colors=colours, linewidth=0.3,
                    edgecolor="white")


def _mark_full_passes(panel, records, named):
    """A line where the run changes from mini-batches to passes over every particle."""
    stages = [record.get("stage") for record in records]
    if "minibatch" in stages and "full" in stages:
        first = records[stages.index("full")]["iteration"]
        panel.axvline(first, color="0.6", linewidth=0.8, linestyle="--")
        if named:
            panel.annotate("full passes", (first, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color="0.4",
                           xytext=(3, -3), textcoords="offset points", va="top")

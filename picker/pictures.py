"""Pictures for the eye: picks on their micrographs, the scores of a run, and what training came to."""
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.pictures import FAINT, INK, MARGIN, PAGE, font_of
from vitrea.kernels.micrograph import clip_outliers
from vitrea.picker.coordinates import read_coordinates
from vitrea.picker.micrographs import BadMicrographError
from vitrea.picker.results import candidates_path

PICTURES, SCORES_NAME, TRAINING_NAME = "pictures", "picks.png", "training.png"
LONGEST_SIDE = 1024        # px of a micrograph in a picture
CONTRAST = (0.5, 99.5)     # percentiles that become black and white
MOST_BINS = 40             # of a histogram
NEARLY = 0.5               # of the threshold: candidates from there on are shown thin
TEXT = 16                  # px
LOW, HIGH, BELOW = np.array((255, 170, 0)), np.array((60, 230, 90)), (230, 60, 60)


def draw_overlay(path, micrograph, found, threshold, radius, words):
    """Write a PNG of a Micrograph, binned to at most LONGEST_SIDE px, with circles of `radius` [px of the micrograph]
    around the Coordinates that reach the threshold, from orange (at it) to green (1), thin red ones around those that
    nearly do, and the lines `words` above. Returns the number of circles, (picks, nearly)."""
    small, factor = _binned(clip_outliers(micrograph.image))
    low, high = np.percentile(small, CONTRAST)
    levels = np.rint(255 * np.clip((small - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)
    top = 2 * MARGIN + round(1.4 * TEXT * len(words))
    page = Image.new("RGB", (max(levels.shape[1], 480), top + levels.shape[0]), PAGE)
    page.paste(Image.fromarray(levels), (0, top))
    pen = ImageDraw.Draw(page)
    for line, text in enumerate(words):
        pen.text((MARGIN, MARGIN + round(1.4 * TEXT * line)), text, fill=FAINT if line else INK, font=font_of(TEXT))
    drawn = [0, 0]
    for x, y, score in sorted(zip(found.x, found.y, found.score), key=lambda pick: pick[2]):
        if score < NEARLY * threshold:
            continue
        # A pixel of the picture covers `factor` of the micrograph's: their middles are half of that from its corner.
        a, b, r = (x + 0.5) / factor - 0.5, (y + 0.5) / factor - 0.5 + top, radius / factor
        picked = score >= threshold
        pen.ellipse((a - r, b - r, a + r, b + r), outline=_colour(score, threshold) if picked else BELOW,
                    width=2 if picked else 1)
        drawn[0 if picked else 1] += 1
    with written_beside(path) as beside:
        page.save(beside, format="PNG")
    return tuple(drawn)


def overlay_path(folder, place, name):
    """Where the picture of a micrograph to look at is; place counts from 1."""
    return Path(folder) / PICTURES / f"{place:02d}_{Path(name).stem}.png"


def draw_run(folder, names, threshold):
    """Draw the scores of a run's micrographs, and make place for pictures of some: those of an earlier threshold go."""
    draw_scores(Path(folder) / SCORES_NAME, [read_coordinates(candidates_path(folder, name)).score for name in names],
                threshold)
    shutil.rmtree(Path(folder) / PICTURES, ignore_errors=True)
    (Path(folder) / PICTURES).mkdir()


def draw_looks(folder, looks, read, threshold, diameter):
    """Draw the micrographs to look at first: looks is [(place from 1, Look)], read(name) gives a Micrograph, diameter
    [Å]. One that cannot be read any more is left out; the number drawn."""
    drawn = 0
    for place, look in looks:
        try:
            micrograph = read(look.name)
        except BadMicrographError:
            continue
        found = read_coordinates(candidates_path(folder, look.name))
        words = [look.name, f"{int((found.score >= threshold).sum())} picks of at least {threshold:.2f}, orange to "
                            "green; thin red: nearly", look.reason]
        draw_overlay(overlay_path(folder, place, look.name), micrograph, found, threshold,
                     diameter / 2 / micrograph.pixel_size, words)
        drawn += 1
    return drawn


def draw_scores(path, scores, threshold):
    """Write a PNG of a run: histogram of all scores with the threshold, picks by micrograph in their order, and their
    histogram. scores: a list of float[n] by micrograph, of all candidates."""
    figure, axes = _figure(1, 3, (13, 4))
    everything = np.concatenate([np.zeros(0), *scores])
    picks = [int((one >= threshold).sum()) for one in scores]
    axes[0].hist(everything, bins=40, range=(0, 1), color="0.7")
    axes[0].hist(everything[everything >= threshold], bins=40, range=(0, 1), color="tab:green")
    axes[0].axvline(threshold, color="black", linewidth=0.8)
    axes[0].set(xlabel="score", ylabel="candidates", title=f"{sum(picks):,} picks of at least {threshold:.3f}")
    axes[1].plot(range(1, len(picks) + 1), picks, ".", color="tab:green")
    axes[1].set(xlabel="micrograph, in the order of the input", ylabel="picks", ylim=(0, None),
                title=f"median {np.median(picks) if picks else 0:g} picks a micrograph")
    axes[2].hist(picks, bins=_whole_bins(picks), color="tab:green")
    axes[2].set(xlabel="picks of a micrograph", ylabel="micrographs")
    for axis in (axes[0].yaxis, axes[1].xaxis, axes[1].yaxis, axes[2].xaxis, axes[2].yaxis):
        axis.get_major_locator().set_params(integer=True)   # half a micrograph is none
    _save(path, figure, axes)


def _whole_bins(picks):
    """Edges of at most MOST_BINS bins of one width, a whole number, around the whole numbers that `picks` has."""
    low, high = min(picks, default=0), max(picks, default=0)
    width = -(-(high - low + 1) // MOST_BINS)
    return np.arange(low, high + width + 1, width) - 0.5


def draw_comparison(path, comparison):
    """Write a PNG of precision against recall of a PickComparison; JobError if its picks have no scores."""
    if comparison.curve is None:
        raise JobError("--curve: the picks have no scores; expected a column rlnAutopickFigureOfMerit or score; leave "
                       "--curve out")
    figure, axes = _figure(1, 1, (5, 5))
    _draw_curve(axes[0], comparison.curve["recall"], comparison.curve["precision"], comparison.auprc)
    axes[0].plot(comparison.recall, comparison.precision, "o", color="tab:red", label=f"F1 {comparison.f1:.3f}")
    axes[0].legend(loc="lower left")
    _save(path, figure, axes)


def draw_training(path, losses, judged):
    """Write a PNG of what training came to: the loss by step, precision against recall (Curve), and how far
    probabilities are frequencies (Reliability), as pick_train.Judged has them; its title says what they were judged
    on."""
    figure, axes = _figure(1, 3, (13, 4.3))
    found, threshold, reliability = judged.curve, judged.threshold, judged.after
    figure.suptitle(f"judged on {judged.source}")
    width = max(1, len(losses) // 50)
    axes[0].plot(losses, color="0.8", linewidth=0.5)
    axes[0].plot(np.arange(width - 1, len(losses)), np.convolve(losses, np.ones(width) / width, "valid"))
    axes[0].set(xlabel="step", ylabel="loss", title=f"mean of {width} steps")
    counts = found.counts(threshold)
    _draw_curve(axes[1], found.recall, found.precision, found.auprc)
    axes[1].plot(counts.recall, counts.precision, "o", color="tab:red", label=f"threshold {threshold:.3f}")
    axes[1].legend(loc="lower left")
    axes[2].plot((0, 1), (0, 1), color="0.8")
    for mean, frequency, n in reliability.bins:
        axes[2].plot(mean, frequency, "o", color="tab:blue")
        axes[2].annotate(f"{n}", (mean, frequency), xytext=(6, -4), textcoords="offset points", fontsize=8)
    axes[2].set(xlabel="probability", ylabel="share that are particles", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
                title="candidates by their probability")
    _save(path, figure, axes)


def _draw_curve(panel, recall, precision, area):
    panel.plot(recall, precision, drawstyle="steps-pre")
    panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title=f"area {area:.3f}")


def _binned(image):
    """Means of k × k pixels, k the least that brings the longer side to LONGEST_SIDE: (float32[h, w], k)."""
    factor = -(-max(image.shape) // LONGEST_SIDE)
    height, width = (n // factor for n in image.shape)
    blocks = image[:height * factor, :width * factor].reshape(height, factor, width, factor)
    return blocks.mean(axis=(1, 3), dtype=np.float32), factor


def _colour(score, threshold):
    share = (score - threshold) / max(1 - threshold, 1e-12)
    return tuple(np.rint(LOW + share * (HIGH - LOW)).astype(int).tolist())


def _figure(rows, columns, size):
    # Slow to import, and only wanted here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)[0]


def _save(path, figure, axes):
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=110)

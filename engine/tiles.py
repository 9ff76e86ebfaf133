"""Class averages as small grey PNGs, for pages that carry their pictures with them."""
import io

from PIL import Image

from vitrea.engine.pictures import grey_levels

LARGEST, SMALLEST = 160, 48   # px of a tile
LEVELS = 64                   # shades of grey: the eye tells no more apart, and the files are a third smaller
SHRINK = 0.9
SAMPLED = 40                  # tiles from which the size of all is guessed


def tiles(images, budget):
    """(PNG bytes of each of images float32[K, L, L], px of a side), together at most `budget` bytes.

    Tiles are as large as the images, at most LARGEST px, and shrink until they fit, to SMALLEST px at the least.
    """
    levels = [grey_levels(image) for image in images]
    some = levels[::max(1, len(levels) // SAMPLED)]
    side = _fitting(some, min(images.shape[-1], LARGEST), budget * len(some) / len(levels))[1]
    return _fitting(levels, side, budget)


def _fitting(levels, side, budget):
    """(PNG bytes of each, their side): shrunk from `side` until they fit."""
    while True:
        found = [_png(each, side) for each in levels]
        total = sum(map(len, found))
        if total <= budget or side <= SMALLEST:
            return found, side
        # The bytes of a tile go with its area; one step is usually enough.
        side = max(SMALLEST, int(side * min(SHRINK, (budget / total) ** 0.5)))


def micrograph_jpeg(path, side):
    """A picture file made at most `side` px high and wide, as JPEG bytes: a micrograph is noise, which PNG only
    stores."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=80)
        return buffer.getvalue()


def _png(levels, side):
    picture = Image.fromarray(levels)
    if side != levels.shape[-1]:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    step = 255 / (LEVELS - 1)
    picture = picture.point([round(round(grey / step) * step) for grey in range(256)])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()

"""What the picker's jobs need at most a rank, from the headers of their micrographs: what `vitrea check` announces.

A rank holds one micrograph at a time, and of it the image and what is being made of it. Sums of the arrays that are
alive together at the worst moment; the process itself comes to PROCESS (measured: it has read libraries and compiled
kernels before the first micrograph). A test runs a job and compares.
"""
from vitrea.picker.micrographs import BadMicrographError, read_size

PROCESS = 350e6          # bytes of a process that has imported everything, MPI among it
FLOAT, COMPLEX, DOUBLE = 4, 8, 8
MASKS = 2                # bytes a pixel of the masks that judge a micrograph
EVENING = 36             # bytes a pixel of the prepared image, while background and contrast are made even
SPLINES = 20             # bytes a pixel, while cubic splines of a labelled micrograph are made
CUTTING = 3              # copies of a micrograph's particles that are alive together, at most
LARGEST_READ = 8         # of the largest files, whose headers are read


def picking(listed, picker, pixel_size=None):
    """Bytes a rank of `job: pick` needs at most for the micrographs of a MicrographList."""
    return PROCESS + max((_prepared(*each, picker.preparation, picker) for each in _largest(listed, pixel_size)),
                         default=0)


def training(listed, labelled, preparation, pixel_size=None):
    """Bytes a rank of `job: pick-train` needs at most: all labelled micrographs (their numbers), prepared, while the
    largest is being prepared."""
    largest = _largest(listed, pixel_size, labelled)
    small = [_pixels(preparation.shape_of(shape, pixel)) for shape, pixel, _ in largest]
    kept = 2 * FLOAT * max(small, default=0) * len(labelled)
    return PROCESS + kept + max((max(_prepared(*each, preparation), SPLINES * n) for each, n in zip(largest, small)),
                                default=0)


def extracting(listed, box_pixels, most):
    """Bytes a rank of `job: extract` needs at most, for `most` particles of box_pixels on one micrograph."""
    image = max((max(FLOAT + MASKS, value) * _pixels(shape) + FLOAT * _pixels(shape)
                 for shape, _, value in _largest(listed, None)), default=0)
    return PROCESS + image + CUTTING * FLOAT * box_pixels * most


def _prepared(shape, pixel_size, value, preparation, picker=None):
    """Bytes while one micrograph is read, prepared and, with a Picker, scanned."""
    n, small = _pixels(shape), preparation.shape_of(shape, pixel_size)
    reading = (FLOAT + max(value, MASKS)) * n
    clipped = 2 * FLOAT * n
    cropping = 0 if small == tuple(shape) else 2 * COMPLEX * shape[0] * (small[1] // 2 + 1)
    evening = FLOAT * n + EVENING * _pixels(small)
    scanning = FLOAT * n + 3 * FLOAT * _pixels(small) + (picker.planned(small).bytes if picker else 0)
    return max(reading, clipped + cropping, evening, scanning)


def _largest(listed, pixel_size, numbers=None):
    """[(shape, pixel size, bytes of a value)] of the largest files that have a header."""
    numbers = range(len(listed)) if numbers is None else numbers
    order = sorted(numbers, key=lambda number: -listed.paths[number].stat().st_size
                   if listed.paths[number].exists() else 0)
    found = []
    for number in order[:LARGEST_READ]:
        try:
            shape, known, value = read_size(listed.paths[number])
        except BadMicrographError:
            continue
        found.append((shape, pixel_size or listed.pixel_sizes[number] or known or 1.0, value))
    return found


def _pixels(shape):
    return shape[0] * shape[1]

"""From a map of scores to picks: local maxima, and none nearer than a distance to a better one.

Greedy suppression takes candidates from the best down; ties are broken by place, so that the result does not depend
on the order in which candidates are given. `deepem_peaks` is the published pair of passes with square windows.
"""
import numpy as np
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree


def local_maxima(scores, floor):
    """(positions float64[n, 2] (y, x), values float[n]) of the maxima of a map float[h, w] that exceed `floor`.

    A maximum is at least as high as its eight neighbours; of equal neighbours the first one counts. Positions are
    refined by a parabola through the neighbours in y and in x, by no more than half a place.
    """
    padded = np.pad(np.asarray(scores, dtype=np.float64), 1, constant_values=-np.inf)
    middle = padded[1:-1, 1:-1]
    found = (middle > floor) & (middle >= maximum_filter(padded, size=3)[1:-1, 1:-1])
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):   # an equal neighbour that comes earlier wins
        found &= middle > padded[1 + dy:padded.shape[0] - 1 + dy, 1 + dx:padded.shape[1] - 1 + dx]
    y, x = np.nonzero(found)
    shift = [_parabola(padded[y + 1 - dy, x + 1 - dx], padded[y + 1, x + 1], padded[y + 1 + dy, x + 1 + dx])
             for dy, dx in ((1, 0), (0, 1))]
    return np.stack([y + shift[0], x + shift[1]], axis=1), middle[y, x]


def _parabola(before, middle, after):
    """Place of the maximum of the parabola through three values at −1, 0, 1; 0 at an edge or on a flat top."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (before - after) / (before - 2.0 * middle + after)
    return np.where(np.isfinite(before + after) & np.isfinite(shift), np.clip(shift, -0.5, 0.5), 0.0)


def suppress(positions, scores, distance):
    """Rows of the candidates that are kept, best first: none is nearer than `distance` to a better one that is kept.

    positions float[n, 2], scores float[n], distance in the units of the positions.
    """
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 2)
    order = np.lexsort((positions[:, 1], positions[:, 0], -np.asarray(scores)))
    if not len(order):
        return order
    tree = cKDTree(positions)
    alive, kept = np.ones(len(order), dtype=bool), []
    for row in order:
        if alive[row]:
            kept.append(row)
            near = np.array(tree.query_ball_point(positions[row], distance))
            alive[near[np.hypot(*(positions[near] - positions[row]).T) < distance]] = False
            alive[row] = False
    return np.array(kept)


def deepem_peaks(corners, scores, threshold, first_range, second_range):
    """Rows of the boxes that DeepEM keeps: two passes of local maxima in squares, first over candidates > threshold.

    corners float[n, 2] (y, x), ranges [px] are half sides of the squares. In a pass every box is replaced by the best
    in its square (ties: the larger x, then the larger y), and boxes that were chosen several times are kept once.
    """
    corners, scores = np.asarray(corners, dtype=np.float64).reshape(-1, 2), np.asarray(scores)
    rows = np.flatnonzero(scores > threshold)
    for reach in (first_range, second_range):
        rows = _best_in_squares(corners, scores, rows, reach)
    return rows


def _best_in_squares(corners, scores, rows, reach):
    if not len(rows):
        return rows
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.lexsort((corners[rows, 0], corners[rows, 1], scores[rows]))] = np.arange(len(rows))
    tree = cKDTree(corners[rows])
    near = tree.query_ball_point(corners[rows], reach, p=np.inf)
    return rows[np.unique([max(places, key=rank.__getitem__) for places in near])]

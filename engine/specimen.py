"""Three-dimensional densities and their projections: Gaussian blobs, atomic models and MRC maps.

A projection is a central slice of the density's Fourier transform, evaluated by NUFFT at exactly the frequencies of the
image (no interpolation of voxels), rolled off just below Nyquist and transformed back. The padded grid is large enough
that the images are not those of a periodic crystal.
"""
import gzip
from dataclasses import dataclass
from pathlib import Path

import finufft
import gemmi
import mrcfile
import numpy as np
import scipy.fft

from vitrea.engine.errors import JobError

NUFFT_TOLERANCE = 1e-6
UPSAMPLING = 1.25       # of the NUFFT's fine grid: a 3D map at 2.0 would take four times the memory
ROLL_OFF = 0.9          # of Nyquist: the raised cosine starts here, so that what a view holds survives being turned
ATOM_B_FACTOR = 100.0   # Å², one for all atoms: a typical cryo-EM map, and smoother than half a pixel of most boxes
LARGEST_OUTSIDE = 0.05  # share of a view's power outside the circle of the box before the specimen is called too large
SPECIMEN_STREAM = 1 << 40   # keys of the random streams that belong to no particle


@dataclass(frozen=True)
class Blobs:
    """Gaussian blobs: points float64[n, 3] (x, y, z) [Å], weights float64[n] (integrals), sigmas float64[n] [Å]."""
    points: np.ndarray
    weights: np.ndarray
    sigmas: np.ndarray

    @property
    def extent(self):
        """Diameter [Å] of a ball about the origin that holds the density."""
        return 2.0 * float(np.max(np.linalg.norm(self.points, axis=1) + 3.0 * self.sigmas))

    def central_slice(self, matrix, grid_size, pixel_size):
        """Fourier transform of the projection along row 3 of `matrix`, complex128[P, P] (ky, kx), k = 0 at P//2."""
        x, y = (2.0 * np.pi / (grid_size * pixel_size) * (self.points @ matrix[:2].T)).T
        s2 = _squared_frequency(grid_size, pixel_size)
        total = np.zeros((grid_size, grid_size), dtype=np.complex128)
        for sigma in np.unique(self.sigmas):
            chosen = self.sigmas == sigma
            modes = finufft.nufft2d1(y[chosen], x[chosen], self.weights[chosen].astype(np.complex128),
                                     (grid_size, grid_size), isign=-1, eps=NUFFT_TOLERANCE, nthreads=1)
            total += modes * np.exp(-2.0 * np.pi**2 * sigma**2 * s2)
        return total


@dataclass(frozen=True)
class DensityMap:
    """A density on a grid: voxels float32[nz, ny, nx], voxel_size [Å], origin at voxel n//2 of each axis."""
    voxels: np.ndarray
    voxel_size: float

    @property
    def extent(self):
        """Edge [Å] of the map's box."""
        return max(self.voxels.shape) * self.voxel_size

    def central_slice(self, matrix, grid_size, pixel_size):
        """Fourier transform of the projection along row 3 of `matrix`, complex128[P, P] (ky, kx), k = 0 at P//2."""
        axis = (np.arange(grid_size) - grid_size // 2) / (grid_size * pixel_size)
        ky, kx = np.meshgrid(axis, axis, indexing="ij")
        needed = np.hypot(ky, kx) < 0.5 / pixel_size
        frequency = np.stack([kx[needed], ky[needed]], axis=-1) @ matrix[:2]
        x, y, z = np.ascontiguousarray(2.0 * np.pi * self.voxel_size * frequency.T)
        values = np.zeros((grid_size, grid_size), dtype=np.complex128)
        values[needed] = finufft.nufft3d2(z, y, x, self.voxels.astype(np.complex128), isign=-1, eps=NUFFT_TOLERANCE,
                                          upsampfac=UPSAMPLING, nthreads=1)
        return values * self.voxel_size**3


def random_blobs(box_size, pixel_size, seed):
    """The built-in specimen: a lopsided heap of 48 Gaussian blobs, about 60 % of the box across, the same for one seed.

    Blobs fill an ellipsoid whose shape and denser side are drawn too, so that no two views look alike.
    """
    random = _stream(seed, 0)
    n = 48
    radius = 0.30 * box_size * pixel_size
    direction = random.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = direction * np.cbrt(random.uniform(0.0, 1.0, (n, 1))) * np.array([1.0, 0.85, 0.7])
    axes, _ = np.linalg.qr(random.normal(size=(3, 3)))
    points = points @ axes
    weights = random.uniform(0.5, 1.5, n) * np.where(points @ axes[1] > 0.1, 1.6, 0.8)
    points -= np.average(points, axis=0, weights=weights)
    points *= radius / np.linalg.norm(points, axis=1).max()
    sigmas = random.choice([0.020, 0.028, 0.038], n) * box_size * pixel_size
    return Blobs(points, weights, sigmas)


def hinged(specimen, angle, seed):
    """(Blobs, (rot, tilt) [degrees]): Blobs with an arm turned by `angle` [degrees], and the direction of its hinge.

    The arm is the third of the blobs farthest along a direction drawn from the seed; it turns about a line through its
    near end, so that seen along that line the motion is in the plane of the image.
    """
    axes, _ = np.linalg.qr(_stream(seed, 2).normal(size=(3, 3)))
    along, hinge = axes[0], axes[1]
    height = specimen.points @ along
    arm = height > np.quantile(height, 2.0 / 3.0)
    pivot = specimen.points[arm].mean(axis=0)
    pivot += along * (height[arm].min() - pivot @ along)
    turned = specimen.points.copy()
    turned[arm] = pivot + (specimen.points[arm] - pivot) @ _about(hinge, angle).T
    direction = np.rad2deg([np.arctan2(hinge[1], hinge[0]), np.arccos(np.clip(hinge[2], -1.0, 1.0))])
    return Blobs(turned, specimen.weights, specimen.sigmas), direction


def read_atoms(path):
    """An atomic model (.pdb, .cif, also .gz) as Gaussians centred on its centre of mass.

    The first model's atoms without waters, weighted by atomic number × occupancy (electron scattering is nearly in
    proportion; bulk solvent is left out) and with one B factor. Raises JobError if the file is missing or has no atoms.
    """
    path = Path(path)
    try:
        structure = _read_structure(path)
    except (OSError, RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: could not be read as an atomic model ({_first_line(error)}); expected .pdb or .cif, "
                       "plain or .gz; check the path and the file") from error
    structure.remove_waters()
    atoms = [(atom.pos.tolist(), atom.element.atomic_number * atom.occ)
             for chain in (structure[0] if len(structure) else []) for residue in chain for atom in residue]
    if not atoms or not sum(weight for _, weight in atoms) > 0.0:
        raise JobError(f"{path}: found no atoms; expected a .pdb or .cif file with coordinates; check the file")
    points, weights = (np.array(column, dtype=np.float64) for column in zip(*atoms, strict=True))
    points -= np.average(points, axis=0, weights=weights)
    return Blobs(points, weights, np.full(len(weights), np.sqrt(ATOM_B_FACTOR / (8.0 * np.pi**2))))


def read_map(path, pixel_size):
    """An MRC density less its solvent level (the median of its faces), no finer than `pixel_size` [Å] can show.

    Raises JobError for a file that is missing, not MRC, not 3D, without a cubic voxel size, or not finite.
    """
    path = Path(path)
    voxels, voxel_size = _read_voxels(path)
    if not np.isfinite(voxels).all():
        raise JobError(f"{path}: found voxels that are not finite; expected a density map; repair the map")
    faces = [voxels[0], voxels[-1], voxels[:, 0], voxels[:, -1], voxels[:, :, 0], voxels[:, :, -1]]
    voxels = voxels - np.median(np.concatenate([face.ravel() for face in faces]))
    if not np.any(voxels):
        raise JobError(f"{path}: found the same value in all voxels; expected a density map; choose another map")
    return _coarsened(DensityMap(voxels.astype(np.float32), voxel_size), pixel_size)


def make_views(specimen, directions, box_size, pixel_size):
    """Projections of `specimen` along `directions` float[V, 2] (rot, tilt) [degrees] at psi = 0: float32[V, L, L].

    Unit: density × Å, sampled at pixel_size [Å]; centre at pixel L//2; no power beyond Nyquist.
    """
    grid_size = scipy.fft.next_fast_len(max(2 * box_size, int(np.ceil(specimen.extent / pixel_size)) + 1))
    weights = _roll_off(grid_size, pixel_size) / pixel_size**2
    first = grid_size // 2 - box_size // 2
    views = np.empty((len(directions), box_size, box_size), dtype=np.float32)
    for view, (rot, tilt) in zip(views, np.asarray(directions, dtype=np.float64), strict=True):
        modes = weights * specimen.central_slice(euler_matrix(rot, tilt, 0.0), grid_size, pixel_size)
        image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(modes)).real)
        view[:] = image[first:first + box_size, first:first + box_size]
    return views


def check_fits(views, pixel_size, name):
    """Raise JobError if more than 5 % of the power of any view float[V, L, L] lies outside the circle of its box."""
    box_size = views.shape[-1]
    axis = np.arange(box_size) - box_size // 2
    outside = np.hypot(axis[:, None], axis) > 0.5 * box_size
    power = np.square(views, dtype=np.float64)
    worst = np.max(power[:, outside].sum(axis=1) / np.maximum(power.sum(axis=(1, 2)), np.finfo(np.float64).tiny))
    if worst > LARGEST_OUTSIDE:
        raise JobError(f"{name}: found {100 * worst:.0f} % of a view's power outside a box of {box_size} px at "
                       f"{pixel_size:g} Å/px; expected a specimen that fits; take a larger --box or --pixel-size")


def euler_matrix(rot, tilt, psi):
    """RELION's A = R_z(psi) R_y(tilt) R_z(rot), angles [degrees]; rows: the image's x, its y, the view axis."""
    c, s = np.cos(np.deg2rad([rot, tilt, psi])), np.sin(np.deg2rad([rot, tilt, psi]))
    about_z, about_y, in_plane = (np.array([[c[0], s[0], 0.0], [-s[0], c[0], 0.0], [0.0, 0.0, 1.0]]),
                                  np.array([[c[1], 0.0, -s[1]], [0.0, 1.0, 0.0], [s[1], 0.0, c[1]]]),
                                  np.array([[c[2], s[2], 0.0], [-s[2], c[2], 0.0], [0.0, 0.0, 1.0]]))
    return in_plane @ about_y @ about_z


def _about(axis, angle):
    """Rotation by `angle` [degrees] about a unit vector: Rodrigues' formula, float64[3, 3]."""
    x, y, z = axis
    cross, radians = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]), np.deg2rad(angle)
    return np.eye(3) + np.sin(radians) * cross + (1.0 - np.cos(radians)) * cross @ cross


def spread_directions(n, seed):
    """n viewing directions far from each other, float64[n, 2] as (rot, tilt) [degrees], the same for one seed.

    Charges on a sphere, relaxed from a random start. Each is also repelled, more weakly, by the others' antipodes:
    opposite views are mirror images, which differ but resemble each other.
    """
    random = _stream(seed, 1)
    points = random.normal(size=(n, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for step in np.geomspace(0.3, 0.005, 150) if n > 1 else ():
        force = _repulsion(points, points) + 0.25 * _repulsion(points, -points)
        force -= np.sum(force * points, axis=1, keepdims=True) * points
        points += step / np.sqrt(n) * force / max(np.linalg.norm(force, axis=1).max(), 1e-12)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    rot, tilt = np.arctan2(points[:, 1], points[:, 0]), np.arccos(np.clip(points[:, 2], -1.0, 1.0))
    return np.rad2deg(np.stack([rot, tilt], axis=1))


# ---- private

def _stream(seed, stream):
    return np.random.Generator(np.random.Philox(key=np.array([seed, SPECIMEN_STREAM + stream], dtype=np.uint64)))


def _squared_frequency(grid_size, pixel_size):
    axis = (np.arange(grid_size) - grid_size // 2) / (grid_size * pixel_size)
    return axis[:, None] ** 2 + axis**2


def _roll_off(grid_size, pixel_size):
    """1 up to ROLL_OFF × Nyquist, a raised cosine to 0 at Nyquist, 0 in the corners: float64[P, P]."""
    nyquists = 2.0 * pixel_size * np.sqrt(_squared_frequency(grid_size, pixel_size))
    ramp = np.clip((nyquists - ROLL_OFF) / (1.0 - ROLL_OFF), 0.0, 1.0)
    return 0.5 * (1.0 + np.cos(np.pi * ramp))


def _repulsion(points, others):
    """Coulomb forces on unit vectors `points` from `others`, themselves left out: float64[n, 3]."""
    apart = points[:, None] - others
    distance = np.linalg.norm(apart, axis=2, keepdims=True)
    np.einsum("iik->ik", distance)[:] = np.inf
    return np.sum(apart / np.maximum(distance, 1e-3) ** 3, axis=1)


def _read_structure(path):
    """gemmi reads .gz itself, but takes the format from the name; a damaged gzip file must not crash it."""
    if path.suffix == ".gz":
        with gzip.open(path) as handle:
            text = handle.read().decode()
        inner = Path(path.stem).suffix.lower()
        if inner in (".pdb", ".ent"):
            return gemmi.read_pdb_string(text)
        return gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
    return gemmi.read_structure(str(path))


def _read_voxels(path):
    """The map with axes in the order z, y, x, and its voxel size [Å]."""
    try:
        with mrcfile.open(path, permissive=False) as mrc:
            voxels, header, sizes = np.array(mrc.data), mrc.header, mrc.voxel_size.tolist()
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: could not be read as an MRC map ({_first_line(error)}); expected a 3D density in MRC "
                       "format; check the path and the file") from error
    if voxels.ndim != 3 or min(voxels.shape) < 2 or np.iscomplexobj(voxels):
        raise JobError(f"{path}: found an array of shape {voxels.shape} and type {voxels.dtype}; expected a real 3D "
                       "density; choose a map, not a stack or a transform")
    if not min(sizes) > 0.0 or max(sizes) > 1.001 * min(sizes):
        found = " × ".join(f"{size:g}" for size in sizes)
        raise JobError(f"{path}: found a voxel size of {found} Å in the header; expected cubic voxels; "
                       "write it into the header (relion_image_handler --force_header_angpix does)")
    order = [int(header.maps), int(header.mapr), int(header.mapc)]   # the axis (1 x, 2 y, 3 z) along each array axis
    if sorted(order) == [1, 2, 3]:
        voxels = np.transpose(voxels, [order.index(axis) for axis in (3, 2, 1)])
    return np.asarray(voxels, dtype=np.float32), float(sizes[0])


def _coarsened(density, pixel_size):
    """Fourier-crop a map that is finer than the images: the same density on fewer voxels, their number odd."""
    shape = density.voxels.shape
    if density.voxel_size > 0.75 * pixel_size or len(set(shape)) != 1:
        return density
    n = 2 * int(np.ceil(0.5 * shape[0] * density.voxel_size / pixel_size)) + 1
    modes = np.fft.fftshift(scipy.fft.fftn(np.fft.ifftshift(density.voxels)))
    first = shape[0] // 2 - n // 2
    modes = modes[first:first + n, first:first + n, first:first + n]
    voxels = np.fft.fftshift(scipy.fft.ifftn(np.fft.ifftshift(modes)).real) * (n / shape[0]) ** 3
    return DensityMap(voxels.astype(np.float32), density.voxel_size * shape[0] / n)


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]

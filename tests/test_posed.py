"""Particles brought to their poses: exact turns and shifts, the CTF turned along, the noise white."""
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vitrea.engine import staging
from vitrea.engine.errors import JobError
from vitrea.engine.log import NullLog
from vitrea.engine.options import ClusterOptions
from vitrea.engine.particles import OpticsGroup, read_particles
from vitrea.engine.posed import Poser, make_posed_geometry, read_posed, require_poses
from vitrea.engine.poses import apply_pose, place
from vitrea.engine.simulate import ParticleSimulation, simulate_particles
from vitrea.engine.stacks import StackReader
from vitrea.engine.star import read_star, write_star
from vitrea.kernels.ctf import ctf
from vitrea.kernels.fourier import PixelsToMovingPoints

BOXES = [32, 45]


class NobodyStops:
    def asked(self):
        return False

    def agreed(self):
        return False


def options_for(star, **keys):
    defaults = {"n_classes": 5, "particle_diameter": 140.0, "max_resolution": 14.0}
    return ClusterOptions(input=star, **(defaults | {"output": Path("run")} | keys))


def blobs(box, seed=0):
    """A smooth lopsided image float64[L, L] well inside the box and below its Nyquist frequency."""
    random = np.random.default_rng(seed)
    axis = np.arange(box) - box // 2
    image = np.zeros((box, box))
    for _ in range(6):
        y, x = random.uniform(-0.12 * box, 0.12 * box, 2)
        image += random.uniform(0.5, 1.5) * np.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / (2 * 1.6**2))
    return image


def one_group(box, pixel_size=5.0):
    """(options, table-like, geometry) of a stack of one optics group, without a file."""
    class Table:
        path, has_ctf = Path("none.star"), False
        optics = (OpticsGroup(1, "one", 300.0, 2.7, 0.1, pixel_size, box),)
        optics_index = np.zeros(4, dtype=np.int32)

    options = options_for("none.star", particle_diameter=0.8 * box * pixel_size, max_resolution=2.3 * pixel_size)
    return Table, make_posed_geometry(Table, options)


@pytest.mark.parametrize("box", BOXES)
def test_moving_points_are_the_fourier_sum_about_the_box_centre(box):
    random = np.random.default_rng(box)
    plan, axis = PixelsToMovingPoints(box), np.arange(box) - box // 2
    for n in (7, 30):   # one plan, other points, other numbers of them
        image, q_y, q_x = random.normal(size=(box, box)), *random.uniform(-np.pi, np.pi, (2, n))
        expected = np.einsum("qy,yx,qx->q", np.exp(-1j * np.outer(q_y, axis)), image, np.exp(-1j * np.outer(q_x, axis)))
        np.testing.assert_allclose(plan.execute(image, q_y, q_x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("psi", "origin"), [(0.0, (0.0, 0.0)), (37.3, (1.7, -2.4)), (-161.0, (-0.4, 3.1))])
def test_a_posed_image_is_its_view(box, psi, origin):
    """Place a view, pose the image: the components are the view's own, to 1e-5 of its largest."""
    table, geometry = one_group(box)
    view = blobs(box)
    image = place(view, psi, origin)
    posed = geometry.plane.embed(Poser(table.optics[0], geometry, 0).pose(image, psi, np.array(origin))[None])
    expected = geometry.plane.embed_images(view[None])
    np.testing.assert_allclose(posed, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("box", BOXES)
def test_energy_is_kept(box):
    """Parseval: the squared length of the components is the energy of the band-limited, posed image, to 1e-5."""
    table, geometry = one_group(box)
    image = place(blobs(box), 25.0, (0.6, -1.3))
    posed = geometry.plane.embed(Poser(table.optics[0], geometry, 0).pose(image, 25.0, np.array([0.6, -1.3]))[None])
    pixels = apply_pose(image, 25.0, (0.6, -1.3))
    # all of the image's power but its mean lies within the half plane's radius
    assert np.sum(posed.astype(np.float64) ** 2) == pytest.approx(np.sum((pixels - pixels.mean()) ** 2), rel=1e-5)


def test_the_mask_is_centred_on_the_particle():
    table, geometry = one_group(32)
    poser = Poser(table.optics[0], geometry, 0)
    far = poser.mask(np.array([3.5, -2.0]))   # origin (3.5, −2): the particle lies at (−3.5, +2)
    axis = np.arange(32) - 16
    assert (far.sum(axis=1) @ axis) / far.sum() == pytest.approx(-3.5, abs=0.35)
    assert (far.sum(axis=0) @ axis) / far.sum() == pytest.approx(2.0, abs=0.35)


@pytest.fixture(scope="module")
def astigmatic(tmp_path_factory):
    """A folder of 150 nearly noise-free particles of one view with strong astigmatism, and its truth as the input."""
    folder = tmp_path_factory.mktemp("astigmatic")
    simulate_particles(ParticleSimulation(n=150, views=1, box_size=48, pixel_size=4.0, snr=200.0, seed=3,
                                          astigmatism=6000.0, defocus=(6000.0, 9000.0), max_shift=2.0), folder)
    return folder


def posed(star, comm, **keys):
    table = read_particles(star)
    options = options_for(star, **keys)
    geometry = make_posed_geometry(table, options)
    return table, geometry, read_posed(table, options, geometry, NobodyStops(), NullLog(), comm=comm)


def test_the_ctf_turns_with_the_particle(astigmatic, comm):
    """Σ c·t ÷ Σ c² is one view that explains every particle; with the astigmatism left unturned it does not."""
    table, geometry, shard = posed(astigmatic / "truth.star", comm, max_resolution=9.0, particle_diameter=160.0)
    plane, embedded = geometry.plane, shard.embedded
    assert plane.angular_bins > 1
    ratios = [_unexplained(embedded, _turned_ctf(table, geometry, shard.rows, angle), comm)
              for angle in (table.psi, np.zeros(len(table)), -table.psi)]
    assert ratios[0] < 0.02
    assert min(ratios[1:]) > 5 * ratios[0]


def _turned_ctf(table, geometry, rows, turn):
    """float64[n, H]: the CTF at the half plane's frequencies, its axes turned by `turn` [degrees], from its formula."""
    ky, kx = geometry.plane.frequency.T
    column = np.s_[rows, None]
    return ctf(np.hypot(ky, kx) / (geometry.box_size * geometry.pixel_size), np.arctan2(ky, kx),
               defocus_u=table.defocus_u[column], defocus_v=table.defocus_v[column],
               defocus_angle=table.defocus_angle[column] + turn[column], voltage=300.0, cs=2.7, amplitude_contrast=0.1)


def _unexplained(embedded, transfer, comm):
    """Share of Σ(c·t)² that c²·y leaves, y = Σ c·t ÷ Σ c² over all particles."""
    c2 = np.repeat(transfer**2, 2, axis=1)
    y = comm.allreduce(embedded.transformed.sum(axis=0, dtype=float)) / comm.allreduce(c2.sum(axis=0))
    rest, whole = (comm.allreduce(float(np.sum(part**2))) for part in (embedded.transformed - c2 * y,
                                                                       embedded.transformed.astype(float)))
    return rest / whole


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """200 particles at an SNR of 10⁻⁴: noise."""
    folder = tmp_path_factory.mktemp("faint")
    simulate_particles(ParticleSimulation(n=200, views=1, box_size=33, pixel_size=5.0, snr=1e-4, seed=3), folder)
    return folder


def test_noise_is_white_and_of_the_masks_share(faint, comm):
    """Noise of variance 1 is measured as 1, and its components have the share of that which the mask leaves."""
    _, geometry, shard = posed(faint / "truth.star", comm, ctf="none")
    embedded, plane = shard.embedded, geometry.plane
    np.testing.assert_allclose(shard.noise, 1.0, atol=0.12)
    np.testing.assert_array_equal(embedded.ctf2, 1.0)
    power, counts = comm.allreduce(embedded.power.sum(axis=0)), np.bincount(plane.shell[plane.group])
    np.testing.assert_allclose(power / (counts * embedded.n_total), geometry.mask_fraction, rtol=0.2)
    assert power.sum() / (counts.sum() * embedded.n_total) == pytest.approx(geometry.mask_fraction, rel=0.03)
    assert embedded.power.sum() == pytest.approx(np.sum(embedded.transformed.astype(float) ** 2), rel=1e-5)


def test_what_is_kept_is_whitened_alike(stacks, comm):
    """Images three times as bright, noise and all, embed as the same particles."""
    table, geometry, plain = posed(stacks / "mixed-truth.star", comm)
    options = options_for(table.path)

    class Brighter(StackReader):
        def read(self, rows):
            bright = np.where(table.optics_index[rows] == 1, 3.0, 1.0)
            return (bright[:, None, None] * super().read(rows)).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "StackReader", Brighter)
        options = dataclasses.replace(options, normalise="never")
        bright = read_posed(table, options, geometry, NobodyStops(), NullLog(), comm=comm)
    np.testing.assert_allclose(bright.embedded.power, plain.embedded.power, rtol=1e-4)
    product = [shard.embedded.transformed / np.sqrt(shard.embedded.ctf2[:, geometry.plane.group] + 1e-9)
               for shard in (plain, bright)]
    np.testing.assert_allclose(*product, atol=2e-3)   # c·t ÷ |c|: the particles themselves, in units of their noise


def test_optics_groups_of_other_boxes_and_pixels_hold_one_specimen(stacks, comm):
    """36 px of 5 Å and 45 px of 4 Å: the class averages of the two groups, each by itself, agree."""
    table, geometry, shard = posed(stacks / "mixed-truth.star", comm, max_resolution=16.0)
    views = {}
    classes = read_star(stacks / "mixed-truth.star")["particles"]["rlnClassNumber"].astype(int)
    for group in (0, 1):
        mine = (table.optics_index == group) & (classes == 1)
        ctf2 = shard.embedded.ctf2[mine].sum(axis=0)[geometry.plane.group]
        views[group] = shard.embedded.transformed[mine].sum(axis=0) / ctf2
    low = geometry.plane.shell[geometry.plane.group] < 6
    a, b = (view[low] for view in views.values())
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.9
    assert np.sqrt((a @ a) / (b @ b)) == pytest.approx(1.0, abs=0.1)


def test_images_set_aside_leave_no_trace(stacks, tmp_path, comm):
    """A stack with two flat images embeds as the stack without them."""
    blocks = read_star(stacks / "plain" / "truth.star")
    images = np.fromfile(stacks / "plain" / "particles.mrcs", dtype="u1")
    pixels = images[1024:].view("<f4").reshape(-1, 32, 32)
    pixels[[3, 100]] = 0
    place_ = Path(comm.bcast(str(tmp_path)))
    if comm.rank == 0:
        images.tofile(place_ / "bad.mrcs")
        names = np.array([f"{i + 1:06d}@{place_}/bad.mrcs" for i in range(240)])
        write_star(place_ / "bad.star", blocks | {"particles": blocks["particles"] | {"rlnImageName": names}})
        (place_ / "run").mkdir()
    comm.Barrier()
    _, _, whole = posed(stacks / "plain" / "truth.star", comm)
    _, _, shard = posed(place_ / "bad.star", comm, output=place_ / "run")
    assert shard.embedded.n_total == 238
    gathered = np.concatenate(comm.allgather(shard.kept))
    np.testing.assert_array_equal(np.sort(gathered), np.delete(np.arange(240), [3, 100]))
    local = np.isin(whole.rows, shard.kept)
    scale = shard.embedded.transformed / whole.embedded.transformed[local]
    np.testing.assert_allclose(np.median(scale), 1.0, atol=0.02)   # the noise is measured on two particles fewer
    assert shard.embedded.starts[-1] == len(shard.kept)


def test_a_table_without_alignments_is_refused(stacks):
    with pytest.raises(JobError, match=r"particles\.star: no alignments were found .*; expected .*; run 'job: class"):
        require_poses(read_particles(stacks / "plain" / "particles.star"))
    require_poses(read_particles(stacks / "plain" / "truth.star"))

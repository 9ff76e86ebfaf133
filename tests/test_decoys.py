"""Decoys: images of what is no particle, and what training makes of them."""
import numpy as np
import pytest

from vitrea.picker import decoys
from vitrea.picker.decoys import Kind, decoy, mean_profile, phases_drawn
from vitrea.picker.labels import FAR, Augmentation, LabelledMicrograph, Sampler, covered
from vitrea.picker.network import PRESETS

DIAMETER = 32.0


def discs(places, shape=(300, 340), depth=2.0):
    """Dark discs of 12 px radius in white noise."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    image = np.random.default_rng(1).normal(size=shape)
    for b, a in places:
        image -= depth * (np.hypot(y - b, x - a) < 12)
    return image.astype(np.float32)


PLACES = np.array([[60.0, 60.0], [60.0, 260.0], [150.0, 160.0], [240.0, 70.0], [230.0, 280.0]])


def test_drawn_phases_keep_the_spectrum_between_white_and_the_images_and_nothing_of_its_forms(monkeypatch):
    monkeypatch.setattr(decoys, "TILT", 0.0)
    image = discs(PLACES)
    power = np.abs(np.fft.rfft2(image))**2
    low = np.s_[1:8, 1:8]
    for seed in range(6):
        drawn = phases_drawn(image, np.random.default_rng(seed))
        assert drawn.std() == pytest.approx(1, abs=1e-5)
        assert abs(np.corrcoef(drawn.ravel(), image.ravel())[0, 1]) < 0.05
        share = np.abs(np.fft.rfft2(drawn))[low]**2 / drawn.size
        assert 0.5 < share.mean() < 1.1 * power[low].mean() / image.var() / image.size


@pytest.mark.parametrize("empty", [False, True])
def test_blobs_are_where_the_decoy_says_and_as_dark_as_particles(empty, monkeypatch):
    monkeypatch.setattr(decoys, "LIKE_PARTICLES", 1.0)
    monkeypatch.setattr(decoys, "FILM_SHARE", 0.0)
    y, x = np.mgrid[:300, :340]
    for sign in (-1, 1):
        inside, count = 0.0, 0
        for seed in range(4):
            noise = np.random.default_rng(9).normal(size=(300, 340)).astype(np.float32)
            ring = sign * np.where(np.abs(np.arange(24) - 12) < 3, 1.0, 0.0)
            image, blobs = decoy(noise, DIAMETER, 64, ring, np.random.default_rng(seed), empty=empty)
            for b, a, radius in blobs:
                values = image[np.hypot(y - b, x - a) < 0.6 * radius]
                inside, count = inside + (values.mean() if len(values) else 0), count + bool(len(values))
        assert count > 40
        assert sign * inside / count > 0.5
        assert abs(image.mean()) < 0.1


def test_the_profile_is_the_mean_over_circles_around_labels():
    found = mean_profile([discs(PLACES), discs(PLACES)], [PLACES, PLACES[:0]], DIAMETER)
    assert len(found) == 24
    assert found[:11] == pytest.approx(-2, abs=0.5)
    assert found[13:] == pytest.approx(0, abs=0.3)
    unlabelled = mean_profile([discs(PLACES)], [PLACES[:0]], DIAMETER)   # dark, as in ice
    assert (unlabelled[15], unlabelled[16]) == (-1, 0)


def test_blobs_that_look_like_the_particle_are_drawn_again_or_left_out(monkeypatch):
    disc = np.where(np.arange(24) < 12, -1.0, 0.0)
    sharp = Kind((0.3, 0.3), (1.0, 1.0), (0.0, 0.0))
    monkeypatch.setattr(decoys, "SOFT", (0.4, 0.5))
    monkeypatch.setattr(decoys, "LIKE_PARTICLES", 1.0)
    assert decoys._unlike(disc, 12.0, sharp, np.random.default_rng(0)) is None
    for profile, radius in ((disc, 3.0), (-disc, 3.0), (np.where(np.arange(24) > 9, disc, 0.0), 12.0)):
        edge = decoys._unlike(profile, radius, sharp, np.random.default_rng(0))
        assert np.sign(edge(radius)) == np.sign(profile.sum())


def test_under_a_blob_is_no_particle_and_what_it_touches_counts_for_nothing():
    source = LabelledMicrograph(discs(PLACES), PLACES, ignored=np.array([[10.0, 10.0, 5.0]]), margin=3.0)
    blobs = np.array([[63.0, 60.0, 12.0], [150.0, 185.0, 15.0], [400.0, 400.0, 20.0]])
    found = covered(source, source.image, blobs, DIAMETER)
    assert found.positives.tolist() == PLACES[[1, 3, 4]].tolist()
    assert found.ignored.tolist() == [[10.0, 10.0, 5.0], [150.0, 160.0, FAR * DIAMETER]]
    assert (found.negatives.tolist(), found.margin) == (blobs[:, :2].tolist(), 3.0)


def test_a_share_of_the_background_is_drawn_from_decoys():
    source = LabelledMicrograph(np.full((300, 340), 7.0, dtype=np.float32), PLACES)
    still = {"shift": 0.0, "contrast": 0.0, "offset": 0.0, "noise": 0.0}
    for share, expected in ((0.0, 0.0), (0.5, 0.25)):   # half of all tiles are background
        sampler = Sampler([source], PRESETS["vitrea"], DIAMETER, 5, Augmentation(decoys=share, **still), 0)
        tiles, target, weight = sampler.draws(0, range(200))
        of_decoys = np.abs(tiles - 7).max(axis=(1, 2)) > 1e-3
        assert of_decoys.mean() == pytest.approx(expected, abs=0.08)
        assert weight[of_decoys].sum() > 0.8 * 25 * of_decoys.sum() - 1
        assert target[of_decoys].sum() <= 0.05 * 25 * of_decoys.sum()


def test_unlabelled_particles_are_fewer_among_the_background_when_some_of_it_are_decoys():
    source = LabelledMicrograph(discs(PLACES), PLACES, unlabelled=20.0)
    rho = [Sampler([source], PRESETS["vitrea"], DIAMETER, 1, Augmentation(decoys=share), 0).unlabelled_share()
           for share in (0.0, 0.5)]
    assert rho[1] == pytest.approx(0.5 * rho[0])
    assert rho[0] > 0

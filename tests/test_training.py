"""Training: reproducible, blind to ranks, and learning; labels and losses mean what they say."""
import json
from dataclasses import replace

import numpy as np
import pytest

from vitrea.engine.errors import JobError
from vitrea.picker.calibration import Calibration
from vitrea.picker.labels import Augmentation, LabelledMicrograph, Sampler, most_uneven
from vitrea.picker.micrographs import Micrograph, Preparation
from vitrea.picker.modelfile import Model, _digest, read_model, write_model
from vitrea.picker.network import PRESETS, Layer, Network, initial_statistics
from vitrea.picker.pick import Picker
from vitrea.picker.training import DEFAULT, PUBLISHED, Recipe, cross_entropy, squared_error, start, train

TINY = Network("tiny", 16, (Layer(5, 4, 2, normalised=True), Layer(3, 6, 2, normalised=True)))
QUICK = Recipe(steps=60, batch=16, outputs=3, loss="bce", optimizer="adam", rate=1e-2,
               augmentation=Augmentation(shift=2))
DIAMETER = 10.0


def discs(seed, n=12, side=160, signal=2.0):
    """A micrograph of noise with dark discs of DIAMETER, and their centres (y, x), far from each other."""
    random = np.random.default_rng(seed)
    cells = random.permutation(64)[:n]
    centres = np.stack([cells // 8, cells % 8], axis=1) * 19.0 + 12 + random.uniform(-3, 3, (n, 2))
    y, x = np.mgrid[:side, :side]
    image = random.normal(size=(side, side))
    for a, b in centres:
        image -= signal / (1 + np.exp((np.hypot(y - a, x - b) - DIAMETER / 2) * 2))
    return image.astype(np.float32), centres


def labelled(seed, **keys):
    image, centres = discs(seed)
    return LabelledMicrograph(image, centres, **keys)


@pytest.fixture(scope="module")
def trained():
    from mpi4py import MPI

    *_, state = train([labelled(1), labelled(2)], TINY, DIAMETER, QUICK, seed=3, comm=MPI.COMM_SELF)
    return state


def test_the_surroundings_of_a_pick_may_be_as_uneven_as_those_of_any_label_and_four_deviations_more():
    ratios = np.exp(np.random.default_rng(0).normal(0.1, 0.05, size=400))

    def limit(*parts):
        return most_uneven([labelled(1, deviations=np.array(part)) for part in parts])

    usual = limit(ratios[:150], [], ratios[150:])
    assert usual == pytest.approx(np.exp(0.1 + 4 * 0.05), rel=0.03)
    assert usual > ratios.max()
    assert limit([*ratios, np.nan, 0.0]) == usual   # where a micrograph is flat
    assert limit([*ratios, 1.7]) == pytest.approx(1.7), "a label is right"
    assert limit(ratios[:9]) is None
    assert limit() is None


def test_a_trained_network_finds_the_discs_of_another_micrograph(trained):
    image, centres = discs(9)
    picker = Picker(TINY, trained.parameters, trained.statistics, Preparation(1.0, 40), distance=8.0, step=2)
    picks = picker.pick(Micrograph("m", image, 1.0))
    best = picks.score > 0.5
    from vitrea.picker.evaluate import count

    counts = count(np.stack([picks.y, picks.x], axis=1)[best], centres, 3.0)
    assert counts.f() > 0.9, counts
    found = np.stack([picks.y, picks.x], axis=1)[best]
    apart = np.hypot(*(found[:, None] - found[None]).transpose(2, 0, 1)) + 100 * np.eye(len(found))
    assert apart.min() >= 8.0


def test_contrast_brightness_and_order_do_not_change_picks(trained):
    picker = Picker(TINY, trained.parameters, trained.statistics, Preparation(1.0, 40), distance=8.0)
    image, _ = discs(10)
    one, other = (picker.pick(Micrograph("m", each, 1.0)) for each in (image, 7 * image + 300))
    np.testing.assert_allclose(one.score, other.score, atol=1e-4)
    np.testing.assert_allclose(one.x, other.x, atol=1e-2)
    again = picker.pick(Micrograph("m", image, 1.0))
    np.testing.assert_array_equal(one.score, again.score)


def test_the_micrographs_own_pixels_come_back():
    """A bright dot at a known place of a micrograph that is not square, found through cropping and mirroring."""
    image = np.random.default_rng(0).normal(scale=0.2, size=(300, 400))
    y, x = np.mgrid[:300, :400]
    image += np.exp(-((y - 211.3) ** 2 + (x - 64.8) ** 2) / 50)
    dot = Network("dot", 12, (Layer(5, 1),))
    small, large = np.exp(-((np.arange(5) - 2) ** 2) / 4), np.exp(-((np.arange(8) - 3.5) ** 2) / 4)
    parameters = {"weights1": np.outer(small, small)[None, None] / 12, "bias1": np.zeros(1),
                  "weights": np.outer(large, large)[None, None] / 6, "bias": np.full(1, -4.0)}
    parameters = {name: values.astype(np.float32) for name, values in parameters.items()}
    picker = Picker(dot, parameters, initial_statistics(dot), Preparation(2.5, 30), distance=30.0)
    picks = picker.pick(Micrograph("m", image.astype(np.float32), 1.0))
    assert (picks.y[0], picks.x[0]) == pytest.approx((211.3, 64.8), abs=0.6)
    assert not picks.edge[0]


def test_a_micrograph_without_anything_gives_nothing(trained):
    picker = Picker(TINY, trained.parameters, trained.statistics, Preparation(1.0, 40), distance=8.0)
    flat = np.zeros((90, 90), np.float32)
    flat[0, 0] = 1e-3
    picks = picker.pick(Micrograph("m", flat, 1.0), floor=0.5)
    assert len(picks) == 0
    assert np.isfinite(picker.pick(Micrograph("m", flat, 1.0), floor=0.0).score).all()


@pytest.mark.mpi
def test_training_over_these_ranks_gives_the_bits_of_one(comm):
    from mpi4py import MPI

    few = Recipe(**{**QUICK.__dict__, "steps": 4, "batch": 40})
    micrographs = [labelled(1)]
    *_, together = train(micrographs, TINY, DIAMETER, few, seed=5, comm=comm)
    *_, alone = train(micrographs, TINY, DIAMETER, few, seed=5, comm=MPI.COMM_SELF)
    for name, values in alone.parameters.items():
        np.testing.assert_array_equal(together.parameters[name], values)
    assert together.loss == alone.loss
    assert all((together.statistics[name] == alone.statistics[name]).all() for name in alone.statistics)


def test_the_seed_and_the_step_decide_and_nothing_else():
    sampler = Sampler([labelled(1), labelled(2)], TINY, DIAMETER, 3, Augmentation(), 7)
    one, again = sampler.draw(4, 6), sampler.draw(4, 6)
    for a, b in zip(one, again):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(sampler.draw(5, 6)[0], one[0])
    assert not np.array_equal(sampler.draw(4, 8)[0], one[0])
    np.testing.assert_array_equal(sampler.draws(4, [3, 6])[0][1], one[0])


def test_an_undisturbed_tile_is_the_micrograph_and_its_labels_are_in_place():
    micrograph = labelled(1, ignored=np.array([[80.0, 80.0, 500.0]]))
    plain = Augmentation(any_angle=False, mirror=False, shift=0, contrast=0, offset=0, noise=0)
    sampler = Sampler([micrograph], TINY, DIAMETER, 1, plain, 0)
    tile, target, weight = sampler.draw(0, 0)
    assert target.item() == 1
    assert weight.item() == 0   # all is in the disc that is ignored
    padded = np.pad(micrograph.image, 16)
    centres = {tuple(np.round(c).astype(int)) for c in micrograph.positives}
    matches = [np.abs(np.rot90(padded[y + 8:y + 24, x + 8:x + 24], q) - tile).mean()
               for y, x in centres for q in range(4)]
    assert min(matches) < 0.75 * np.median(matches)   # the same pixels up to a fraction of one
    free = Sampler([labelled(1)], TINY, DIAMETER, 5, plain, 0)
    target, weight = free.draw(0, 0)[1:]
    assert target[2, 2] == 1
    assert target.sum() == 1          # 4 px apart, NEAR is 1.2 px
    assert weight[2, 2] == 1
    assert weight[0, 0] == 1          # 11 px away is background
    # Background tiles hold negatives, and given negatives are drawn.
    given = Sampler([labelled(1, negatives=np.array([[3.0, 3.0]]))], TINY, DIAMETER, 1, plain, 0)
    tiles = [given.draw(0, k)[0] for k in range(1, 40, 2)]
    same = [np.abs(tile - other).max() < 1e-6 for i, tile in enumerate(tiles) for other in tiles[:i]]
    assert sum(same) > 5


def test_the_losses_slopes_are_their_differences_and_the_correction_lowers_the_background():
    random = np.random.default_rng(0)
    logits, target = random.normal(size=(4, 3, 3)), (random.random((4, 3, 3)) < 0.3).astype(float)
    weight = (random.random((4, 3, 3)) < 0.8).astype(float)
    for loss, weights in ((cross_entropy, (0.3, 0.1, 0.0)), (cross_entropy, (0.3, 0.1, 0.05)), (squared_error, None)):
        _, slope = loss(logits, target, weight, weights)
        for place in np.ndindex(2, 3, 3):
            up, down = logits.copy(), logits.copy()
            up[place] += 1e-5
            down[place] -= 1e-5
            difference = (loss(up, target, weight, weights)[0] - loss(down, target, weight, weights)[0]) / 2e-5
            assert slope[place] == pytest.approx(difference, abs=1e-8)
    corrected = cross_entropy(logits, target, weight, (0.3, 0.1, 0.2))[1]
    plain = cross_entropy(logits, target, weight, (0.3, 0.1, 0.0))[1]
    assert (corrected[(target * weight) > 0] < plain[(target * weight) > 0]).all()
    # Confident background: the corrected sum would be negative and is left out.
    certain = np.where(target > 0, 9.0, -9.0)
    loss, slope = cross_entropy(certain, target, weight, (0.3, 0.1, 0.2))
    assert loss > 0
    assert not slope[(target == 0)].any()


def test_unlabelled_particles_are_counted_by_the_area_they_take():
    micrograph = labelled(1, unlabelled=40)
    share = Sampler([micrograph], TINY, DIAMETER, 1, Augmentation(decoys=0.0), 0).unlabelled_share()
    assert share == pytest.approx(40 * np.pi * 1.2**2 / 160**2)


def test_recipes_are_what_they_say():
    assert (PUBLISHED.loss, PUBLISHED.optimizer, PUBLISHED.rate, PUBLISHED.outputs) == ("mse", "sgd", 1.0, 1)
    assert PUBLISHED.steps * PUBLISHED.batch == pytest.approx(20 * 6400, rel=1e-3)
    assert DEFAULT.batch % 8 == PUBLISHED.batch % 8 == 0


def test_a_model_survives_its_file_and_a_damaged_one_is_refused(tmp_path):
    state = start(PRESETS["vitrea"], 1)
    picker = Picker(PRESETS["vitrea"], state.parameters, state.statistics, Preparation(5.0, 40), distance=100.0,
                    calibration=Calibration(1.5, -0.25, "here"))
    model = Model(picker, 150.0, 0.4, {"seed": 1, "loss": [0.5, 0.25]})
    for name in ("a.npz", "b.npz"):
        write_model(tmp_path / name, model)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_model(tmp_path / "a.npz")
    assert found.picker.network == PRESETS["vitrea"]
    assert (found.picker.preparation, found.picker.distance) == (Preparation(5.0, 40), 100.0)
    assert (found.diameter, found.threshold, found.record) == (150.0, 0.4, model.record)
    assert found.picker.calibration == picker.calibration
    for kind in ("parameters", "statistics"):
        for name, values in getattr(picker, kind).items():
            np.testing.assert_array_equal(getattr(found.picker, kind)[name], values)
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    arrays["parameter:weights1"][0, 0, 0, 0] += 1
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(JobError, match="the digest does not agree"):
        read_model(tmp_path / "changed.npz")
    (tmp_path / "short.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:5000])
    for name, words in (("short.npz", "not a model file or damaged"), ("none.npz", "there is no such file")):
        with pytest.raises(JobError, match=words):
            read_model(tmp_path / name)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(JobError, match="but no model"):
        read_model(tmp_path / "other.npz")
    np.savez(tmp_path / "object.npz", header=np.array([{}], dtype=object), digest=np.zeros(1))
    with pytest.raises(JobError, match="not a model file"):
        read_model(tmp_path / "object.npz")


def test_a_model_of_the_first_format_has_scores_without_calibration(tmp_path):
    state = start(TINY, 1)
    picker = Picker(TINY, state.parameters, state.statistics, Preparation(5.0, 40), 100.0)
    write_model(tmp_path / "new.npz", Model(picker, 150.0, 0.4, {}))
    with np.load(tmp_path / "new.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "digest"}
    header = json.loads(arrays["header"].tobytes())
    del header["calibration"]
    arrays["header"] = np.frombuffer(json.dumps(header | {"format": 1}).encode(), dtype=np.uint8)
    np.savez(tmp_path / "old.npz", digest=_digest(arrays), **arrays)
    assert read_model(tmp_path / "old.npz").picker.calibration is None


def test_calibration_changes_scores_and_neither_places_nor_order(trained):
    image, _ = discs(11)
    plain = Picker(TINY, trained.parameters, trained.statistics, Preparation(1.0, 40), distance=8.0)
    calibrated = replace(plain, calibration=Calibration(2.0, -1.0))
    one, other = (each.pick(Micrograph("m", image, 1.0)) for each in (plain, calibrated))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_allclose(np.log(other.score / (1 - other.score)), 2 * np.log(one.score / (1 - one.score)) - 1,
                               rtol=1e-4, atol=1e-4)
    assert (np.diff(other.score) <= 0).all()

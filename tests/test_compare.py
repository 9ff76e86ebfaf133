"""Comparison of classes and poses with the truth: indices against brute force, frames removed exactly, words read."""
import itertools
import json

import numpy as np
import pytest

from vitrea.engine.compare import adjusted_rand_index, class_frame, compare, contingency, format_comparison
from vitrea.engine.errors import JobError
from vitrea.engine.poses import place, rotate_offset, wrap_degrees
from vitrea.engine.star import write_star

PIXEL_SIZE = 2.0


def truth_columns(n=300, views=4, seed=0):
    random = np.random.default_rng(seed)
    return {"rlnImageName": np.array([f"{i + 1:06d}@sim/particles.mrcs" for i in range(n)]),
            "rlnOpticsGroup": np.ones(n, dtype=int), "rlnClassNumber": np.arange(n) % views + 1,
            "rlnAnglePsi": random.uniform(-180, 180, n), "rlnOriginXAngst": random.uniform(-6, 6, n),
            "rlnOriginYAngst": random.uniform(-6, 6, n)}


def write(path, columns):
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [PIXEL_SIZE]}
    write_star(path, {"optics": optics, "particles": columns})
    return path


def framed(columns, frames):
    """The columns as a perfect classification would give them, class k in the frame frames[k] = (angle, (y, x))."""
    result = dict(columns)
    angle = np.array([frames[k][0] for k in columns["rlnClassNumber"]])
    shift = np.array([frames[k][1] for k in columns["rlnClassNumber"]])
    result["rlnAnglePsi"] = wrap_degrees(columns["rlnAnglePsi"] - angle)
    move = rotate_offset(shift, columns["rlnAnglePsi"] - angle)
    result["rlnOriginYAngst"] = columns["rlnOriginYAngst"] + move[:, 0]
    result["rlnOriginXAngst"] = columns["rlnOriginXAngst"] + move[:, 1]
    return result


FRAMES = {1: (0.0, (0.0, 0.0)), 2: (179.0, (3.0, -1.0)), 3: (-75.0, (-2.0, 5.0)), 4: (33.0, (0.0, 4.0))}


@pytest.fixture
def both(tmp_path):
    """Write truth and result; return their comparison."""
    def run(truth, result):
        return compare(write(tmp_path / "truth.star", truth), write(tmp_path / "result.star", result))
    return run


@pytest.mark.parametrize("seed", range(5))
def test_ari_is_that_of_all_pairs_counted_one_by_one(seed):
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 4, 40), random.integers(0, 6, 40)
    b[:20] = a[:20]
    same_a, same_b = np.array([(a[i] == a[j], b[i] == b[j]) for i, j in itertools.combinations(range(40), 2)]).T
    expected = same_a.sum() * same_b.sum() / len(same_a)
    largest = 0.5 * (same_a.sum() + same_b.sum())
    by_hand = (np.sum(same_a & same_b) - expected) / (largest - expected)
    assert adjusted_rand_index(a, b) == pytest.approx(by_hand, abs=1e-12)


def test_ari_of_equal_partitions_is_one_whatever_the_labels():
    a = np.array([0, 0, 1, 2, 2])
    assert adjusted_rand_index(a, 10 - a) == 1.0
    assert adjusted_rand_index(np.zeros(5, int), np.zeros(5, int)) == 1.0
    assert adjusted_rand_index(np.zeros(5, int), np.arange(5)) == 0.0


def test_contingency_counts_meetings():
    rows, columns, table = contingency(np.array([5, 5, 9]), np.array([1, 2, 2]))
    assert (rows.tolist(), columns.tolist(), table.tolist()) == ([5, 9], [1, 2], [[1, 1], [0, 1]])


def test_purity_confusion_and_views_by_hand(both):
    truth = truth_columns(8, 4)
    truth["rlnClassNumber"] = np.array([1, 1, 1, 2, 2, 3, 3, 4])
    result = truth | {"rlnClassNumber": np.array([7, 7, 7, 7, 9, 9, 9, 9])}
    c = both(truth, result)
    assert c.confusion == ((3, 1, 0, 0), (0, 1, 2, 1))
    assert c.purity == pytest.approx(5 / 8)
    assert (c.n, c.n_views, c.n_classes, c.views_found) == (8, 4, 2, 2)
    assert c.most_views_in_one_class == 3
    assert [(r.number, r.size, r.view) for r in c.classes] == [(7, 4, 1), (9, 4, 3)]


def test_a_perfect_result_in_other_frames_has_no_error(both):
    truth = truth_columns()
    c = both(truth, framed(truth, FRAMES))
    assert (c.ari, c.purity, c.n_posed) == (1.0, 1.0, 300)
    assert c.angle_error_p90 < 1e-3
    assert c.shift_error_p90_px < 1e-3
    for report in c.classes:
        angle, shift = FRAMES[report.number]
        assert abs(wrap_degrees(report.frame_angle - angle)) < 1e-3
        np.testing.assert_allclose(report.frame_shift, shift, atol=1e-3)


def test_shift_errors_are_reported_at_their_size(both):
    truth = truth_columns(4000)
    result, random = framed(truth, FRAMES), np.random.default_rng(1)
    angle = random.uniform(0, 2 * np.pi, 4000)
    result["rlnOriginXAngst"] = result["rlnOriginXAngst"] + 0.8 * np.cos(angle)
    result["rlnOriginYAngst"] = result["rlnOriginYAngst"] + 0.8 * np.sin(angle)
    c = both(truth, result)
    assert c.angle_error_p90 < 1e-3
    assert c.shift_error_median_angstrom == pytest.approx(0.8, abs=0.05)
    assert c.shift_error_median_px == pytest.approx(c.shift_error_median_angstrom / PIXEL_SIZE)


def test_gaussian_angle_errors_have_the_median_of_a_half_normal(both):
    truth = truth_columns(4000)
    result = framed(truth, FRAMES)
    result["rlnAnglePsi"] = result["rlnAnglePsi"] + np.random.default_rng(2).normal(0.0, 3.0, 4000)
    c = both(truth, result)
    assert c.angle_error_median == pytest.approx(0.6745 * 3.0, rel=0.06)
    assert c.angle_error_p90 == pytest.approx(1.645 * 3.0, rel=0.06)
    assert c.shift_error_p90_px < 1e-3


def test_the_frame_equation_is_that_of_images():
    random = np.random.default_rng(5)
    axis = np.arange(32) - 16
    view = sum(np.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 6.0) for y, x in random.uniform(-5, 5, (5, 2)))
    psi, origin, angle, shift = 40.0, np.array([1.0, -2.0]), -70.0, np.array([1.5, 0.7])
    class_average = place(place(view, angle, (0.0, 0.0)), 0.0, -shift)
    through_class = place(class_average, psi - angle, origin + rotate_offset(shift, psi - angle))
    np.testing.assert_allclose(through_class, place(view, psi, origin), atol=1e-3)


def test_the_frame_withstands_a_third_of_wrong_poses():
    random = np.random.default_rng(4)
    psi, origin = random.uniform(-180, 180, 300), random.uniform(-5, 5, (300, 2))
    psi_result, origin_result = psi - 170.0, origin + rotate_offset((2.0, -3.0), psi - 170.0)
    psi_result[:100] += 180.0
    origin_result[:100] += random.normal(0, 9, (100, 2))
    angle, shift = class_frame(psi, origin, psi_result, origin_result)
    assert angle == pytest.approx(170.0, abs=1e-6)
    np.testing.assert_allclose(shift, (2.0, -3.0), atol=1e-6)


def test_junk_is_left_out_of_the_indices_and_reported_apart(both):
    truth = truth_columns()
    clean = both(truth, framed(truth, FRAMES))
    result = framed(truth, FRAMES)
    spoilt = {label: np.concatenate([values, values[:40]]) for label, values in truth.items()}
    spoilt["rlnImageName"][300:] = [f"{i + 301:06d}@sim/particles.mrcs" for i in range(40)]
    spoilt["rlnClassNumber"][300:] = 0
    result = {label: np.concatenate([values, values[:40]]) for label, values in result.items()}
    result["rlnImageName"], result["rlnClassNumber"][300:] = spoilt["rlnImageName"], 5
    result["rlnClassNumber"][300:310] = 1
    c = both(spoilt, result)
    assert (c.n, c.n_junk, c.junk_apart) == (300, 40, 0.75)
    assert (c.ari, c.purity, c.angle_error_median) == (clean.ari, clean.purity, clean.angle_error_median)
    assert [(r.number, r.size, r.junk, r.view) for r in c.classes if r.junk] == [(1, 75, 10, 1), (5, 0, 30, 0)]


def test_rows_are_matched_by_image_whatever_their_order_zeros_and_folder(both):
    truth = truth_columns(60)
    order = np.random.default_rng(3).permutation(60)[:50]
    result = {label: values[order] for label, values in framed(truth, FRAMES).items()}
    result["rlnImageName"] = np.array([f"{row + 1}@/elsewhere/particles.mrcs" for row in order])
    c = both(truth, result)
    assert (c.n, c.n_truth, c.n_result, c.purity) == (50, 60, 50, 1.0)


def test_relion_3_0_origins_in_pixels_are_read_as_such(tmp_path):
    truth = truth_columns()
    result = framed(truth, FRAMES)
    old = {label: result[label] for label in ("rlnImageName", "rlnClassNumber", "rlnAnglePsi")}
    old |= {f"rlnOrigin{axis}": result[f"rlnOrigin{axis}Angst"] / PIXEL_SIZE for axis in "XY"}
    old |= {"rlnDetectorPixelSize": np.full(300, 10.0), "rlnMagnification": np.full(300, 1e5 / PIXEL_SIZE)}
    write_star(tmp_path / "old.star", {"": old})
    c = compare(write(tmp_path / "truth.star", truth), tmp_path / "old.star")
    assert c.shift_error_p90_px < 1e-3


def test_a_result_without_poses_is_compared_by_classes_alone(both):
    truth = truth_columns()
    c = both(truth, {label: truth[label] for label in ("rlnImageName", "rlnClassNumber")})
    assert (c.ari, c.angle_error_median, c.shift_error_median_px) == (1.0, None, None)
    assert "not determined" in format_comparison(c)


def test_the_comparison_is_json_and_text(both):
    truth = truth_columns()
    c = both(truth, framed(truth, FRAMES))
    read = json.loads(json.dumps(c.as_dict()))
    assert read["purity"] == 1.0
    assert read["classes"][1]["view"] == 2
    text = format_comparison(c)
    assert "ARI 1.0000   purity 1.0000   views found 4 of 4" in text
    assert "median 0.00°" in text


def test_foreign_images_are_refused(both, tmp_path):
    other = truth_columns(5) | {"rlnImageName": np.array([f"{i}@other.mrcs" for i in range(1, 6)])}
    with pytest.raises(JobError) as error:
        both(truth_columns(5), other)
    assert str(error.value) == (f"{tmp_path}/result.star: found no image of {tmp_path}/truth.star (1@other.mrcs "
                                "is not in it); expected the same images in both; compare with the truth of the "
                                "same stack")


@pytest.mark.parametrize(("truth", "result", "found"), [
    ({"vitreaJunk": "none"}, {}, "the latter is the truth of a simulation"),
    ({"vitreaJunk": "none"}, {"rlnMaxValueProbDistribution": 0.5}, "the latter is the truth of a simulation"),
    ({}, {"rlnMaxValueProbDistribution": 0.5}, "the former is a result")])
def test_truth_and_result_the_wrong_way_about_are_refused(both, truth, result, found):
    columns = truth_columns()
    truth, result = (columns | {name: np.full(300, value) for name, value in more.items()} for more in (truth, result))
    assert both(truth, result).purity == 1.0
    with pytest.raises(JobError, match=f"result.star as the result, but {found}; expected the truth first; try 'vitrea "
                                       "compare .*/result.star .*/truth.star'"):
        both(result, truth)


def test_two_results_and_a_result_that_kept_the_columns_of_its_input_are_compared(both):
    of_truth, of_result = ({name: np.full(300, 0.5)} for name in ("vitreaJunk", "rlnMaxValueProbDistribution"))
    assert both(truth_columns() | of_result, truth_columns() | of_result).purity == 1.0
    assert both(truth_columns() | of_truth, truth_columns() | of_truth | of_result).purity == 1.0


def test_an_image_listed_twice_is_refused(both):
    truth = truth_columns(5)
    twice = {label: np.concatenate([values, values[:1]]) for label, values in truth.items()}
    with pytest.raises(JobError, match=r"found 1@sim/particles.mrcs 2 times; expected each image once"):
        both(truth, twice)


def test_a_star_without_classes_is_refused(both):
    truth = truth_columns(5)
    with pytest.raises(JobError, match=r"result.star: found no column _rlnClassNumber; expected a particle STAR"):
        both(truth, {"rlnImageName": truth["rlnImageName"]})


def test_words_where_numbers_belong_are_refused(both):
    truth = truth_columns(5)
    with pytest.raises(JobError, match=r"result.star: found 'x' in column _rlnAnglePsi; expected numbers"):
        both(truth, truth | {"rlnAnglePsi": np.array(["x", "1", "2", "3", "4"])})


def test_nothing_but_junk_is_refused(both):
    truth = truth_columns(5) | {"rlnClassNumber": np.zeros(5, dtype=int)}
    with pytest.raises(JobError, match=r"found only junk among the 5 images"):
        both(truth, truth_columns(5))

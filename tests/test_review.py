"""Which micrographs are looked at first, and what is drawn of them."""
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vitrea.picker import pictures
from vitrea.picker.calibration import Reliability
from vitrea.picker.coordinates import Coordinates
from vitrea.picker.evaluate import Curve
from vitrea.picker.micrographs import Micrograph
from vitrea.picker.pick_train import TRAINED_ON, Judged
from vitrea.picker.pictures import BELOW, draw_overlay, draw_scores, draw_training
from vitrea.picker.review import look_first


def session(n=20):
    names = [f"m{i}" for i in range(n)]
    random = np.random.default_rng(1)
    scores = {name: random.uniform(0.6, 0.9, 50 + i % 3) for i, name in enumerate(names)}
    results = {name: {"mean": 100 + 0.1 * i, "deviation": 10.0} for i, name in enumerate(names)}
    return names, scores, results


def test_the_extremes_of_a_session_come_first_each_with_its_reason():
    names, scores, results = session()
    scores["m3"], scores["m7"] = np.full(2, 0.7), np.full(300, 0.7)
    scores["m11"] = np.full(50, 0.2)
    results["m15"]["mean"] = 58.0
    results["m16"]["deviation"] = 30.0
    looks = look_first(names, scores, results, 5)
    assert [look.name for look in looks] == ["m3", "m7", "m11", "m16", "m0"]
    assert looks[0].reason == "few picks: 2, the median is 51"
    assert looks[1].reason == "many picks: 300, the median is 51"
    assert looks[2].reason == "low scores: their median is 0.20"
    assert looks[3].reason == "contrast 30, the median is 10"
    assert "m15" in [look.name for look in look_first(names, scores, results, 8)]
    assert [look_first(names, scores, results, limit) for limit in (3, 0)] == [looks[:3], []]


def test_each_micrograph_is_named_once_and_an_even_session_has_nothing_odd():
    names, scores, results = session()
    looks = look_first(names, scores, results, 100)
    assert sorted(look.name for look in looks) == sorted(names)
    assert not any("grey" in look.reason or "contrast" in look.reason for look in looks)
    assert look_first([], {}, {}, 5) == []
    empty = look_first(["a"], {"a": np.zeros(0)}, {"a": {}}, 5)
    assert [look.reason for look in empty] == ["few picks: 0, the median is 0"]


def test_circles_lie_around_the_picks_of_a_micrograph_that_is_not_square(tmp_path):
    image = np.random.default_rng(0).normal(size=(1200, 2200)).astype(np.float32)
    found = Coordinates(np.array([300.0, 1900.0, 1000.0, 600.0]), np.array([200.0, 900.0, 600.0, 600.0]),
                        np.array([0.9, 0.5, 0.3, 0.1]), np.full(4, np.nan))
    drawn = draw_overlay(tmp_path / "a.png", Micrograph("m", image, 2.0), found, 0.5, 60.0, ["one", "two"])
    assert drawn == (2, 1)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] == 2200 // 3
    top = pixels.shape[0] - 1200 // 3
    colour = np.abs(pixels - pixels.mean(axis=2, keepdims=True)).sum(axis=2) > 30
    for x, y in ((300, 200), (1900, 900), (1000, 600)):
        ring = [colour[top + round(y / 3 + 20 * np.sin(t)) + dy, round(x / 3 + 20 * np.cos(t)) + dx]
                for t in np.linspace(0, 6, 12) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert np.mean(np.reshape(ring, (12, 9)).any(axis=1)) == 1
        assert not colour[top + y // 3 - 10:top + y // 3 + 10, x // 3 - 10:x // 3 + 10].any()
    assert not colour[top + 180:top + 220, 180:220].any(), "far below the threshold: no circle"
    assert (pixels[top + 195:top + 205, 300:370] == BELOW).all(axis=2).any()


def test_charts_count_whole_picks_and_micrographs(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save",
                        lambda _, figure, axes: (figure.draw_without_rendering(), drawn.append(axes)))
    draw_scores(tmp_path / "a.png", [np.full(n, 0.9) for n in (3, 4, 3, 5)], 0.6)
    for axis in (drawn[0][1].xaxis, drawn[0][1].yaxis, drawn[0][2].xaxis, drawn[0][2].yaxis):
        ticks = axis.get_ticklocs()
        assert (ticks == np.rint(ticks)).all()
    bars = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in drawn[0][2].patches}
    assert bars == {3: 2, 4: 1, 5: 1}
    draw_scores(tmp_path / "a.png", [np.full(n, 0.9) for n in (0, 400)], 0.6)
    assert 20 < len(drawn[1][2].patches) <= 41


@pytest.mark.parametrize("empty", [False, True])
def test_charts_are_drawn_with_candidates_and_without(tmp_path, monkeypatch, empty):
    score = np.zeros(0) if empty else np.array([0.9, 0.5])
    found = Curve(score, np.arange(1, len(score) + 1), np.zeros(len(score), dtype=int), 3)
    draw_scores(tmp_path / "a.png", [score, np.zeros(0)], 0.6)
    reliability = Reliability.of(score, score > 0.6)
    judged = Judged(None, 0.6, found.counts(0.6), found, reliability, reliability, TRAINED_ON)
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda figure, text: titles.append(text))
    draw_training(tmp_path / "c.png", [0.7, 0.5, 0.4], judged)
    assert titles == ["judged on the micrographs trained on"]
    draw_scores(tmp_path / "d.png", [], 0.6)
    for name in "acd":
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300

"""Pictures: order, numbers and grey of the gallery, contrast of a tile, and what the course of a run shows."""
import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitrea.engine import pictures
from vitrea.engine.errors import JobError
from vitrea.engine.pictures import by_population, draw_convergence, draw_gallery, grey_levels

RNG = np.random.default_rng(6)


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn on a page, in order."""
    texts, plain = [], ImageDraw.ImageDraw.text

    def text_and_note(pen, xy, text, **options):
        texts.append(text)
        plain(pen, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text_and_note)
    return texts


def iteration(number, stage="full", **fields):
    return {"kind": "iteration", "iteration": number, "stage": stage, "log_likelihood": -1e6 / number,
            "resolution": 20.0, "pmax": 0.5, "changed": 1 / number, "class_sizes": [5, 0, 3], **fields}


def test_largest_first_ties_by_number_empty_last():
    assert by_population([3, 0, 7, 3, 0]).tolist() == [2, 0, 3, 1, 4]


def test_each_tile_says_number_size_share_and_resolution(tmp_path, written):
    images = RNG.normal(size=(4, 32, 32))
    draw_gallery(tmp_path / "g.png", images, [1234, 0, 98765, 1], [8.04, 9.0, 6.5, np.inf], "a title")
    assert written == [
        "a title", "100,000 particles in 4 classes, 1 empty   largest first   #number in the STAR file",
        "#3", "98,765", "98.8 %", "6.5 Å", "#1", "1,234", "1.2 %", "8.0 Å", "#4", "1", "<0.1 %", "#2", "empty"]


def test_one_class_is_told_as_one():
    assert pictures._summary(np.array([7])).startswith("7 particles in 1 class   ")


@pytest.mark.parametrize("n_classes", [1, 2, 13, 400])
@pytest.mark.parametrize("box_size", [31, 64])
def test_any_number_of_classes_fits_on_the_page(tmp_path, n_classes, box_size):
    images = np.broadcast_to(RNG.normal(size=(box_size, box_size)), (n_classes, box_size, box_size))
    draw_gallery(tmp_path / "g.png", images, np.ones(n_classes, int), np.full(n_classes, 9.9), "t")
    layout = pictures._Layout(n_classes, ("t", "u"))
    with Image.open(tmp_path / "g.png") as page:
        width, height = page.size
    left, top = layout.corner(n_classes - 1)
    assert width >= left + layout.tile
    assert height >= top + layout.tile + layout.caption


def test_the_longest_captions_fit_beside_each_other():
    layout = pictures._Layout(400, ("t",))
    font = pictures.font_of(layout.text_height)
    for left, right in (("#400", "1,234,567"), ("<0.1 %", "123.4 Å")):
        assert font.getlength(left) + font.getlength(right) < layout.tile


def test_every_letter_on_a_page_is_in_the_font():
    missing = pictures.font_of(20).getmask("\uffff").getbbox(), bytes(pictures.font_of(20).getmask("\uffff"))
    for letter in "Å#%,<09az":
        mask = pictures.font_of(20).getmask(letter)
        assert (mask.getbbox(), bytes(mask)) != missing, letter


def test_an_empty_class_is_paler_than_a_full_one(tmp_path):
    image = RNG.normal(size=(48, 48))
    draw_gallery(tmp_path / "g.png", np.stack([image, image]), [0, 10], [9.0, 9.0], "t")
    layout = pictures._Layout(2, ("t",))
    with Image.open(tmp_path / "g.png") as page:
        full, empty = (np.asarray(page.convert("L").crop((x + 2, y + 2, x + layout.tile - 2, y + layout.tile - 2)))
                       for x, y in (layout.corner(0), layout.corner(1)))
    assert empty.std() < 0.3 * full.std()
    assert empty.mean() > full.mean() + 20


@pytest.mark.parametrize("box_size", [33, 64])
def test_contrast_ignores_a_hot_pixel_and_the_corners(box_size):
    axis = np.arange(box_size) - box_size // 2
    image = np.tile(axis.astype(float), (box_size, 1))
    plain = grey_levels(image)
    image[box_size // 2, box_size // 2], image[0, 0] = 1e6, -1e6
    spoilt = grey_levels(image)
    untouched = np.abs(image) < 1e5
    assert np.abs(plain.astype(int) - spoilt)[untouched].max() <= 6
    assert plain[box_size // 2, 0] == 0
    assert plain[box_size // 2, -1] == 255


def test_flat_and_unfinite_averages_are_drawn_grey():
    assert np.all(grey_levels(np.zeros((9, 9))) == 128)
    assert np.all(grey_levels(np.full((9, 9), np.nan)) == 128)
    image = RNG.normal(size=(9, 9))
    image[4, 4] = np.inf
    assert grey_levels(image)[4, 4] == 255


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    for images, sizes, resolutions in ((np.ones((2, 8, 8)), [1], [1.0]), (np.ones((1, 8, 9)), [1], [1.0]),
                                       (np.ones((1, 8, 8)), [1], []), (np.ones((0, 8, 8)), [], [])):
        with pytest.raises(ValueError, match="a gallery needs class averages"):
            draw_gallery(tmp_path / "g.png", images, sizes, resolutions, "t")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(JobError, match="could not be written"):
        draw_gallery(tmp_path / "no" / "g.png", np.ones((1, 8, 8)), [1], [1.0], "t")


def test_the_course_is_drawn_from_a_record_of_every_kind(tmp_path):
    records = [{"kind": "start", "particles": 8}, iteration(1, "minibatch"), iteration(2, "minibatch", resolution=None),
               {"kind": "checkpoint", "iteration": 2}, iteration(3), {"kind": "done"}]
    draw_convergence(tmp_path / "c.png", records)
    with Image.open(tmp_path / "c.png") as page:
        assert page.size == (1300, 910)
        assert np.asarray(page.convert("L")).std() > 10
    draw_convergence(tmp_path / "one.png", [iteration(1, class_sizes=[0, 0])])
    with pytest.raises(ValueError, match="no iteration records"):
        draw_convergence(tmp_path / "c.png", [{"kind": "start"}])


def test_an_iteration_repeated_after_a_resume_replaces_the_earlier_one():
    kept = pictures._iterations([iteration(1), iteration(2, pmax=0.1), iteration(2, pmax=0.9), iteration(3)])
    assert [record["iteration"] for record in kept] == [1, 2, 3]
    assert kept[1]["pmax"] == 0.9


def test_full_passes_follow_the_mini_batches_though_both_count_from_one():
    batches = [iteration(number, "minibatch") for number in (1, 2, 3)]
    kept = pictures._iterations([*batches, iteration(1), iteration(2)])
    assert [record["iteration"] for record in kept] == [1, 2, 3, 4, 5]
    assert [record["stage"] for record in kept] == 3 * ["minibatch"] + 2 * ["full"]

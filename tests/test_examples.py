"""The job files of docs/examples are whole: every stage has the keys it needs, and takes what an earlier one makes."""
import pytest

from tests.conftest import REPOSITORY
from vitrea.jobs.pipeline import read_pipeline

EXAMPLES = sorted((REPOSITORY / "docs" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_micrographs_become_classes_in_one_file(path):
    stages = read_pipeline(path).stages
    assert [stage.job.type.name for stage in stages] == ["pick-train", "pick", "extract", "classify2d"]
    train, pick, extract, classify = (stage.job.options for stage in stages)
    assert pick.model == train.output / "model.npz"
    assert extract.coordinates == pick.output / "coordinates"
    assert classify.input == extract.output / "particles.star"
    assert extract.diameter == train.diameter <= classify.particle_diameter
    assert path.name in (REPOSITORY / "docs" / "picker.md").read_text(encoding="utf-8")

"""Malformed files: a taste of tests/robust/fuzz.py, and what it has found, kept as cases."""
import os

import pytest

from tests.robust import fuzz
from vitrea.engine.errors import LONGEST_WORD, JobError
from vitrea.picker.coordinates import read_coordinates

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is limited by way of /proc")


def test_malformed_files_are_read_or_refused_with_a_sentence(monkeypatch):
    findings, tried, refused = fuzz.run(340, seed=7)
    assert findings == []
    assert min(tried.values()) >= 10
    assert sum(refused.values()) > 200, "most are refused"


def test_a_reader_that_fails_otherwise_is_found(tmp_path):
    """The script would see what it looks for."""
    def fail(path):
        raise ValueError("not a sentence")

    def tell(path):
        raise JobError("x " * 5000)

    assert "ValueError: not a sentence" in fuzz.problem(fail, tmp_path)[0]
    assert "a sentence of 10000 characters" in fuzz.problem(tell, tmp_path)[0]
    assert fuzz.problem(lambda path: None, tmp_path) == ("", "")


def test_a_word_without_end_is_shortened_where_it_is_quoted(tmp_path):
    path = tmp_path / "a.box"
    path.write_text("a" * 5000 + "\tb\t40\t40\n")
    with pytest.raises(JobError) as mistake:
        read_coordinates(path)
    assert str(path) in str(mistake.value)
    assert len(str(mistake.value)) < 3 * LONGEST_WORD

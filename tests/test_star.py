"""STAR files: what is read, what is written, and what each mistake is told with."""
import shutil
import subprocess

import gemmi
import numpy as np
import pytest

from vitrea.engine.errors import JobError
from vitrea.engine.star import ROWS_AT_ONCE, ROWS_WRITTEN, read_long_star, read_star, write_star
from vitrea.engine.storage import Memory


def star(tmp_path, text):
    path = tmp_path / "a.star"
    path.write_text(text)
    return path


def told(tmp_path, text):
    with pytest.raises(JobError) as error:
        read_star(star(tmp_path, text))
    return str(error.value).replace(str(tmp_path) + "/", "")


def test_nameless_block_pairs_loops_comments_and_quotes(tmp_path):
    blocks = read_star(star(tmp_path, """
# version 30001
data_

loop_ \r
_rlnImageName #1\r
_rlnGroupName #2
_rlnVoltage
1@a.mrcs   'two words' 300.0
2@b#c.mrcs "it's"      200.0 # a remark

3@d.mrcs   o'clock     100
data_model_general
_rlnPixelSize   1.5
_rlnName "a b"
"""))
    assert list(blocks) == ["", "model_general"]
    assert blocks[""]["rlnImageName"].tolist() == ["1@a.mrcs", "2@b#c.mrcs", "3@d.mrcs"]
    assert blocks[""]["rlnGroupName"].tolist() == ["two words", "it's", "o'clock"]
    assert blocks[""]["rlnVoltage"].tolist() == ["300.0", "200.0", "100"]
    assert blocks["model_general"]["rlnPixelSize"].tolist() == ["1.5"]
    assert blocks["model_general"]["rlnName"].tolist() == ["a b"]


def test_values_that_look_like_syntax_stay_values(tmp_path):
    blocks = read_star(star(tmp_path, "data_p\nloop_\n_rlnMicrographName #1\n_rlnX #2\ndata_20.mrc 1\n_7.mrc 2\n"))
    assert blocks["p"]["rlnMicrographName"].tolist() == ["data_20.mrc", "_7.mrc"]


def test_block_after_a_loop_of_one_label_is_a_block(tmp_path):
    blocks = read_star(star(tmp_path, "data_a\nloop_\n_rlnX #1\n5\n6\n\ndata_b\n_rlnY 1\n"))
    assert blocks["a"]["rlnX"].tolist() == ["5", "6"]
    assert blocks["b"]["rlnY"].tolist() == ["1"]


def test_an_empty_loop_has_columns_without_rows(tmp_path):
    assert len(read_star(star(tmp_path, "data_a\nloop_\n_rlnX #1\n_rlnY #2\n"))["a"]["rlnY"]) == 0


@pytest.mark.parametrize("name", [
    "relion31.star", "relion31.v2.star", "empiar_10076_7.star", "sample_relion_data.star"])
def test_real_files_read_as_gemmi_reads_them(data, name):
    path = data / "stacks_small" / name
    ours, peer = read_star(path), gemmi.cif.read(str(path))
    assert [block.name.strip() for block in peer] == list(ours)
    for block in peer:
        table = next(item.loop for item in block)
        labels = [tag[1:] for tag in table.tags]
        values = np.array(table.values).reshape(-1, len(labels))
        assert labels == list(ours[block.name.strip()])
        for column, label in enumerate(labels):
            assert ours[block.name.strip()][label].tolist() == values[:, column].tolist()


@pytest.mark.parametrize(("text", "sentence"), [
    ("data_a\nloop_\n_rlnX #1\n_rlnY #2\n1 2\n1 2 3\n", "a.star:6: found 3 values in the row; expected 2, one for each "
     "label; the file may be cut short or edited; write it again"),
    # The number of values of the whole table is right here, so that a parser of values alone would not notice.
    ("data_a\nloop_\n_rlnX #1\n_rlnY #2\n_rlnZ #3\n1 2\n1 2 3 4\n", "a.star:6: found 2 values in the row; expected 3"),
    ("data_a\nloop_\n_rlnX #1\n_rlnX #2\n1 2\n", "a.star:4: found the label _rlnX twice; expected each label once"),
    ("data_a\n_rlnX 1\ndata_a\n_rlnX 1\n", "a.star:3: found a second block data_a; expected each block once"),
    ("data_a\n1 2 3\n", "a.star:2: found '1 2 3' outside a loop_; expected a label or loop_"),
    ("data_a\n_rlnX 1 2\n", "a.star:2: found _rlnX with 2 values outside a loop_; expected one value"),
    ("data_a\nloop_\n\ndata_b\n", "a.star:2: found loop_ without labels; expected labels like _rlnImageName #1"),
    ("import numpy\n", "a.star:1: found 'import numpy' before any data_ block; expected 'data_'"),
    ("\n# nothing\n", "a.star:1: found no data_ block; expected a STAR file of RELION"),
])
def test_mistakes_are_told_with_their_line(tmp_path, text, sentence):
    assert told(tmp_path, text).startswith(sentence)


def test_missing_and_binary_files_are_told(tmp_path):
    with pytest.raises(JobError, match=r"none.star: could not be read .No such file.*expected a STAR file; check"):
        read_star(tmp_path / "none.star")
    (tmp_path / "b.star").write_bytes(bytes(range(256)))
    with pytest.raises(JobError, match=r"b.star: found bytes that are not text; expected a STAR file"):
        read_star(tmp_path / "b.star")


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "out.star"
    words = np.array(["plain", "two words", "", "_label", "#3", "it's here", 'say "x" now', "data_7"])
    numbers = np.array([0.0, 1.5, -2e-7, 3e9, 123456.789, -0.25, 1e-3, 7.0])
    write_star(path, {"general": {"rlnPixelSize": 1.25, "rlnName": "a b"},
                      "rows": {"rlnW": words, "rlnN": numbers, "rlnI": np.arange(8), "rlnB": numbers > 0}})
    blocks = read_star(path)
    assert blocks["rows"]["rlnW"].tolist() == words.tolist()
    assert np.allclose(blocks["rows"]["rlnN"].astype(float), numbers, rtol=1e-6)
    assert blocks["rows"]["rlnI"].tolist() == [str(i) for i in range(8)]
    assert blocks["rows"]["rlnB"].tolist() == ["0", "1", "0", "1", "1", "0", "1", "1"]
    assert blocks["general"]["rlnPixelSize"].tolist() == ["1.250000"]
    assert blocks["general"]["rlnName"].tolist() == ["a b"]


def test_layout_is_that_of_relion(tmp_path):
    write_star(tmp_path / "o.star", {"particles": {"rlnImageName": np.array(["1@a.mrcs"]),
                                                   "rlnAnglePsi": np.array([9.5])}})
    lines = [line.strip() for line in (tmp_path / "o.star").read_text().splitlines() if line.strip()]
    assert lines == ["# version 30001", "data_particles", "loop_", "_rlnImageName #1", "_rlnAnglePsi #2",
                     "1@a.mrcs     9.500000"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "o.star"
    write_star(path, {"a": {"rlnX": np.arange(3)}})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="unequal length"):
        write_star(path, {"a": {"rlnX": np.arange(3), "rlnY": np.arange(4)}})
    with pytest.raises(ValueError, match="one line"):
        write_star(path, {"a": {"rlnX": np.array(["a\nb"])}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["o.star"]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(JobError, match=r"no/o.star: could not be written \(No such file.*expected a writable folder"):
        write_star(tmp_path / "no" / "o.star", {"a": {"rlnX": np.arange(3)}})


def test_many_rows_survive_the_packing_into_columns(tmp_path):
    n = 45_001
    write_star(tmp_path / "o.star", {"a": {"rlnX": np.arange(n), "rlnY": np.arange(n) / 7}})
    block = read_star(tmp_path / "o.star")["a"]
    assert np.array_equal(block["rlnX"].astype(int), np.arange(n))
    assert np.allclose(block["rlnY"].astype(float), np.arange(n) / 7, atol=1e-6)


@pytest.mark.skipif(not shutil.which("relion_star_handler"), reason="relion_star_handler is not installed")
def test_relion_reads_what_is_written(tmp_path):
    write_star(tmp_path / "in.star", {
        "optics": {"rlnOpticsGroup": np.array([1]), "rlnOpticsGroupName": np.array(["a"]),
                   "rlnVoltage": np.array([300.0]),
                   "rlnSphericalAberration": np.array([2.7]), "rlnAmplitudeContrast": np.array([0.1]),
                   "rlnImagePixelSize": np.array([1.2]), "rlnImageSize": np.array([64])},
        "particles": {"rlnImageName": np.array(["1@a.mrcs", "2@a.mrcs"]), "rlnOpticsGroup": np.array([1, 1]),
                      "rlnAnglePsi": np.array([1.5, -170.25]), "rlnLogLikeliContribution": np.array([-1.5e7, 1e-5])}})
    command = "relion_star_handler --i in.star --o out.star --select rlnAnglePsi --minval -180 --maxval 0"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    chosen = read_star(tmp_path / "out.star")["particles"]
    assert chosen["rlnImageName"].tolist() == ["2@a.mrcs"]
    assert float(chosen["rlnLogLikeliContribution"][0]) == pytest.approx(1e-5)


def test_a_long_column_is_read_in_pieces_and_as_a_whole(tmp_path):
    """Words that are not ASCII too, and rows on both sides of the border between two pieces."""
    n = ROWS_AT_ONCE + 3
    words = [f"mäander_{i}.mrc" if i == 7 else f"m{i}.mrc" for i in range(n)]
    write_star(tmp_path / "o.star", {"a": {"rlnMicrographName": np.array(words), "rlnX": np.arange(n)}})
    column = read_long_star(tmp_path / "o.star", Memory())["a"]["rlnMicrographName"]
    assert len(column) == n
    assert column.tolist() == words
    assert [len(text) for _, text in column.pieces()] == [ROWS_AT_ONCE, 3]
    chosen = [n - 1, 7, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, 7]
    assert column[np.array(chosen)].tolist() == [words[i] for i in chosen]
    assert column[ROWS_AT_ONCE - 2:ROWS_AT_ONCE + 1].tolist() == words[ROWS_AT_ONCE - 2:ROWS_AT_ONCE + 1]


def test_a_table_written_in_pieces_is_the_same_file(tmp_path):
    n = 2 * ROWS_WRITTEN + 10
    columns = {"rlnX": np.arange(n), "rlnY": np.sqrt(np.arange(n)), "rlnName": np.array([f"m{i}" for i in range(n)])}
    write_star(tmp_path / "whole.star", {"a": columns})
    cut = ({label: values[first:first + ROWS_WRITTEN] for label, values in columns.items()}
           for first in range(0, n, ROWS_WRITTEN))
    write_star(tmp_path / "cut.star", {"a": cut})
    assert (tmp_path / "cut.star").read_bytes() == (tmp_path / "whole.star").read_bytes()

"""Job files: what is written is what is meant, and every mistake is a sentence with its line."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from vitrea.engine.errors import JobError
from vitrea.engine.options import (
    SECTIONS,
    Classify2dOptions,
    JobOptions,
    OptionError,
    format_value,
    key,
    options_of,
)
from vitrea.jobs.jobfile import JOBS, JobType, keys_document, read_job, resolved_notes, started_in, template, write_job

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDED = "job: classify2d\ninput: particles.star\noutput: runs/a\nn_classes: 5\nparticle_diameter: 180\n"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """`job(text, *overrides)`: read a job file job.yaml of this text."""
    monkeypatch.chdir(tmp_path)

    def read(text, *overrides):
        Path("job.yaml").write_text(text, encoding="utf-8")
        return read_job(Path("job.yaml"), overrides)

    return read


def told(job, text, *overrides):
    with pytest.raises(JobError) as mistake:
        job(text, *overrides)
    return str(mistake.value)


def test_five_keys_are_enough(job):
    read = job(NEEDED)
    assert read.type is JOBS["classify2d"]
    assert read.options == Classify2dOptions(
        input=Path("particles.star"), output=Path("runs/a"), n_classes=5, particle_diameter=180.0
    )
    assert read.options.seed == 0
    assert read.options.ctf == "full"


def test_values_mean_what_they_say_and_not_what_yaml_1_1_guesses(job):
    options = job(NEEDED + "norm_correction: no\npsi_step: 1e1\nmax_resolution: ~\nmemory_limit: 8\n").options
    assert options.norm_correction is False
    assert options.psi_step == 10.0
    assert options.max_resolution is None
    assert isinstance(options.memory_limit, float)
    assert job(NEEDED.replace("particles.star", "007")).options.input == Path("007")


def test_set_goes_over_the_file_and_mends_its_missing_keys(job):
    text = "job: classify2d\ninput: a b.star\nn_classes: 5\n"
    options = job(text, "n_classes=9", "output = o", "particle_diameter=90").options
    assert (options.n_classes, options.output, options.input) == (9, Path("o"), Path("a b.star"))


def test_home_is_expanded(job, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert job(NEEDED.replace("particles.star", "~/p.star")).options.input == Path("/home/someone/p.star")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (NEEDED + "tau2_fuge: 3\n", "job.yaml:6: unknown key 'tau2_fuge'; did you mean tau2_fudge?"),
        (NEEDED + "zzz: 3\n", "job.yaml:6: unknown key 'zzz'; 'vitrea new classify2d' prints all keys"),
        (
            NEEDED + "\n# again\nn_classes: 6\n",
            "job.yaml:8: key 'n_classes' is given again, after job.yaml:4; keep one of the lines",
        ),
        (
            NEEDED.replace("n_classes: 5", "n_classes: ten"),
            "job.yaml:4: n_classes is 'ten'; expected a whole number, at least 1; write for example 'n_classes: 50'",
        ),
        (
            NEEDED.replace("n_classes: 5", "n_classes: 0"),
            "job.yaml:4: n_classes is 0; expected a whole number, at least 1; write for example 'n_classes: 50'",
        ),
        (
            NEEDED.replace("n_classes: 5", "n_classes: 2.5"),
            "job.yaml:4: n_classes is 2.5; expected a whole number, at least 1; write for example 'n_classes: 50'",
        ),
        (
            NEEDED.replace(": 180", ": .nan"),
            "job.yaml:5: particle_diameter is '.nan'; expected a number [Å], above 0; "
            "write for example 'particle_diameter: 180'",
        ),
        (
            NEEDED + "skip_limit: 1.5\n",
            "job.yaml:6: skip_limit is 1.5; expected a number, 0 to 1; write for example 'skip_limit: 0.01'",
        ),
        (
            NEEDED + "ctf: fulll\n",
            "job.yaml:6: ctf is 'fulll'; expected one of full, phase_flipped, intact_first_peak, none; "
            "did you mean full?",
        ),
        (
            NEEDED + "center_classes: maybe\n",
            "job.yaml:6: center_classes is 'maybe'; expected true or false; write for example 'center_classes: true'",
        ),
        (
            NEEDED + "seed:\n",
            "job.yaml:6: seed is empty; expected a whole number, at least 0; write for example 'seed: 0'",
        ),
        (NEEDED + "ctf: [full]\n", "job.yaml:6: ctf is a list; expected one value; write 'ctf: value' on one line"),
        (NEEDED + "ctf:\n- full\n", "job.yaml:6: ctf is a list; expected one value; write 'ctf: value' on one line"),
        ("job: [pick]\n", "job.yaml:1: job is a list; expected one value; write 'job: value' on one line"),
        (
            NEEDED + "seed: [[1]]\n",
            "job.yaml:6: seed is a list of lists or keys; expected one value; write 'seed: value' on one line",
        ),
        (
            NEEDED + "ctf:\n  kind: full\n",
            "job.yaml:6: ctf is a group of keys; expected one value; write 'ctf: value' on one line",
        ),
        (
            NEEDED.replace("n_classes: 5\n", ""),
            "job.yaml: key n_classes is missing; every classify2d job needs it; add for example 'n_classes: 50'",
        ),
        (
            "job: classify2d\ninput: a\nn_classes: 5\n",
            "job.yaml: keys output, particle_diameter are missing; every classify2d job needs them; "
            "add for example 'output: runs/first' and 'particle_diameter: 180'",
        ),
        (
            "input: a\n",
            "job.yaml: key 'job' is missing; expected one of classify2d, cluster, deep2d, pick-train, pick, "
            "recurse, extract, select, simulate-particles, simulate-micrographs, dynamics, bench, pipeline; add a line "
            "such as 'job: classify2d'",
        ),
        (NEEDED.replace("2d", "3d"), "job.yaml:1: unknown job 'classify3d'; did you mean classify2d?"),
        ("job: scan\n",
         "job.yaml:1: unknown job 'scan'; expected one of classify2d, cluster, deep2d, pick-train, pick, recurse, "
         "extract, select, simulate-particles, simulate-micrographs, dynamics, bench, pipeline"),
        ("", "job.yaml: the file is empty; expected a job; 'vitrea new classify2d > job.yaml' makes one"),
        ("# only words\n", "job.yaml: the file is empty; expected a job; 'vitrea new classify2d > job.yaml' makes one"),
        (
            "classify2d\n",
            "job.yaml:1: no 'key: value' lines were found; expected lines such as 'job: classify2d'; "
            "'vitrea new classify2d' prints a job file to start from",
        ),
        (NEEDED + "\tseed: 3\n", "job.yaml:6: a tab was found; YAML takes spaces only; replace the tab by spaces"),
        (
            NEEDED + "seed: 3: 4\n",
            "job.yaml:6: 'seed: 3: 4' is not YAML (mapping values are not allowed here); expected 'key: value'; "
            "put quotes around a value that holds ': ' or ' #'",
        ),
        (
            NEEDED + "offset_range: 1.5\n",
            "job.yaml:6: offset_step is 2 px, more than offset_range of 1.5 px; only the shift 0 would be searched; "
            "make the step smaller, or write offset_range: 0 if no shift is wanted",
        ),
        (
            NEEDED.replace("classify2d", "deep2d") + "offset_step: 9\n",
            "job.yaml:6: offset_step is 9 px, more than offset_range of 5 px; only the shift 0 would be searched; "
            "make the step smaller, or write offset_range: 0 if no shift is wanted",
        ),
    ],
)
def test_a_mistake_is_a_sentence_with_its_line(job, text, sentence):
    assert told(job, text) == sentence


def test_an_open_quote_is_told_where_it_opens(job):
    assert told(job, NEEDED + "ctf: 'full\nseed: 3\n").startswith("job.yaml:6: 'ctf: 'full' is not YAML")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "--set seed: no '=' was found; expected key=value; write for example --set n_classes=100"),
        ("seeed=3", "--set seeed=3: unknown key 'seeed'; did you mean seed?"),
        (
            "n_classes=0",
            "--set n_classes=0: n_classes is 0; expected a whole number, at least 1; "
            "write for example --set n_classes=50",
        ),
        ("job=x", "--set job=x: the kind of job cannot be changed; 'vitrea new x' prints a file for another"),
    ],
)
def test_a_mistake_in_set_is_a_sentence(job, override, sentence):
    assert told(job, NEEDED, override) == sentence


def test_a_file_that_is_not_text_or_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stack.mrcs").write_bytes(b"job: \xff\xfe")
    with pytest.raises(JobError, match=r"stack.mrcs: byte number 6 is not text; expected a YAML file in UTF-8"):
        read_job(Path("stack.mrcs"))
    with pytest.raises(JobError, match=r"no.yaml: there is no such file; expected a job file; 'vitrea new"):
        read_job(Path("no.yaml"))
    with pytest.raises(JobError, match=r"cannot be read: Is a directory; expected a job file"):
        read_job(tmp_path)
    Path("control.yaml").write_bytes(b"job: \x01")
    with pytest.raises(JobError, match=r"control.yaml: character number 6 is not text"):
        read_job(Path("control.yaml"))


@pytest.mark.parametrize("name", JOBS)
def test_the_template_is_a_job_of_the_defaults_with_every_key(job, name):
    text = template(JOBS[name])
    options = job(text).options
    for each, option in options_of(JOBS[name].options).items():
        assert f"\n{each}: " in text
        assert getattr(options, each) == (option.example if option.required else option.default)
        assert option.help in " ".join(text.replace("#", "").split())
        assert not option.unit or f"[{option.unit}]" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_resolved_job_reads_back_as_it_was(job, tmp_path):
    first = job(NEEDED, "input=odd name: #1's.star", "psi_step=0.7", "memory_limit=2.5", "max_resolution=7")
    notes = resolved_notes("0.1.0", "node01", 4, Path("/data/project"))
    write_job(tmp_path / "resolved.yaml", first, notes)
    assert read_job(tmp_path / "resolved.yaml") == first
    text = (tmp_path / "resolved.yaml").read_text(encoding="utf-8")
    assert text.startswith("# vitrea 0.1.0 on node01, 4 ranks, 20")
    assert started_in(tmp_path / "resolved.yaml") == Path("/data/project")
    assert sum(line.startswith("#") for line in text.splitlines()) == 3


def test_every_key_has_words_a_section_and_a_default_it_takes():
    for job_type in JOBS.values():
        for name, option in options_of(job_type.options).items():
            assert option.help
            assert option.section in SECTIONS, name
            assert not option.help.endswith("."), name
            if option.required:
                assert option.check(option.example) == option.example
            else:
                assert option.check(option.default) == option.default
            assert option.nullable == bool(option.null_means), name


@dataclass(frozen=True, kw_only=True)
class ListOptions(JobOptions):
    """The keys of a job with lists."""

    input: Path | None = key("nothing", None, null_means="nothing", section="job")
    rates: tuple[float, ...] = key("some numbers", (0.1, 1.0), unit="Å", above=0, section="job")
    counts: tuple[int, ...] | None = key("some whole numbers", None, minimum=2, null_means="none", example=(2, 3),
                                         section="job")
    names: tuple[str, ...] = key("some names", ("a",), choices={"a": "first", "b": "second"}, section="job")


@pytest.fixture
def lists(job, monkeypatch):
    """`lists(text, *overrides)`: read a job of ListOptions with these lines."""
    monkeypatch.setitem(JOBS, "lists", JobType("lists", "a test", ListOptions, "nowhere:run"))
    return lambda text, *overrides: job("job: lists\noutput: o\n" + text, *overrides)


@pytest.mark.parametrize("text", ["rates: [1e-2, 3]", "rates:\n- 1e-2\n- 3", "rates: 0.01, 3", "rates: '[.01,3]'"])
def test_a_list_is_read_however_it_is_written(lists, text):
    assert lists(text).options.rates == (0.01, 3.0)


@pytest.mark.parametrize("text", ["0.01,3", "[1e-2, 3.0]", " .01 , 3 "])
def test_a_list_is_set_however_it_is_typed(lists, text):
    assert lists("", f"rates={text}").options.rates == (0.01, 3.0)


def test_lists_stand_in_templates_and_resolved_jobs(lists, tmp_path):
    first = lists("counts: 7\nnames: [b, a]\n", "rates=0.125,2")
    assert first.options.as_dict() == {"input": None, "output": "o", "rates": [0.125, 2.0], "counts": [7],
                                       "names": ["b", "a"]}
    write_job(tmp_path / "resolved.yaml", first, [])
    assert "\nrates: [0.125, 2]\n" in (tmp_path / "resolved.yaml").read_text(encoding="utf-8")
    assert read_job(tmp_path / "resolved.yaml") == first
    assert lists("").options.counts is None
    assert "\nrates: [0.1, 1]  " in template(JOBS["lists"])
    assert template(JOBS["lists"]).splitlines()[3].startswith("# output is needed; every other key")


@pytest.mark.parametrize(
    ("text", "override", "sentence"),
    [
        ("rates: [0.1, x]\n", "", "job.yaml:3: rates is 'x'; expected a list of numbers [Å], above 0; "
                                  "write for example 'rates: [0.1, 1]'"),
        ("rates: [0.1, -1]\n", "", "job.yaml:3: rates is -1; expected a list of numbers [Å], above 0; "
                                   "write for example 'rates: [0.1, 1]'"),
        ("rates: []\n", "", "job.yaml:3: rates is empty; expected a list of numbers [Å], above 0; "
                            "write for example 'rates: [0.1, 1]'"),
        ("", "rates=0.1,,2", "--set rates=0.1,,2: rates is a list with an empty place; expected a list of numbers [Å], "
                             "above 0; write for example --set rates=0.1,1"),
        ("counts: [2, 2.5]\n", "", "job.yaml:3: counts is 2.5; expected a list of whole numbers, at least 2, or null "
                                   "(none); write for example 'counts: [2, 3]'"),
        ("names: [a, c]\n", "", "job.yaml:3: names is 'c'; expected several of a, b; write for example 'names: [a]'"),
    ],
)
def test_a_mistake_in_a_list_is_a_sentence(lists, text, override, sentence):
    assert told(lists, text, *filter(None, [override])) == sentence


def test_options_from_python_are_checked_too():
    good = {"input": "a.star", "output": "o", "n_classes": 3, "particle_diameter": 100}
    assert Classify2dOptions(**good).input == Path("a.star")
    with pytest.raises(OptionError, match=r"n_classes is -3; expected a whole number, at least 1"):
        Classify2dOptions(**good | {"n_classes": -3})
    with pytest.raises(OptionError, match="threads is true; expected a whole number"):
        Classify2dOptions(**good, threads=True)
    with pytest.raises(OptionError, match="psi_step is inf"):
        dataclasses.replace(Classify2dOptions(**good), psi_step=float("inf"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.001, "0.001"), (2.0, "2"), ((0.5, 2.0), "[0.5, 2]"),
     (Path("a/b.star"), "a/b.star"), ("it's", "'it''s'")],
)
def test_values_are_written_as_yaml_reads_them(value, text):
    assert format_value(value) == text


def test_the_document_of_keys_is_current():
    document = REPOSITORY / "docs" / "job-keys.md"
    assert document.read_text(encoding="utf-8") == keys_document(), "run 'make docs'"


def test_examples_of_picker_jobs_follow_from_one_another():
    lines = {name: template(JOBS[name]).splitlines() for name in ("pick-train", "pick", "extract", "recurse")}
    for name, place in (("pick-train", "training/first"), ("pick", "picks/first"), ("extract", "particles/first"),
                        ("recurse", "recursion/first")):
        assert any(line.startswith(f"output: {place} ") for line in lines[name])
    assert any(line.startswith("model: training/first/model.npz ") for line in lines["pick"])
    assert any(line.startswith("coordinates: picks/first/coordinates ") for line in lines["extract"])

"""A scaling study as its YAML describes it: what is run, how often, and for which machine it is predicted.

Strong scaling keeps the particles and adds cores; weak scaling keeps the particles a core. Every case (stack, classes,
ranks × threads, repeat) has a number, which is all that an array job needs to know.
"""
import difflib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from vitrea.benchmarks.measure import made_folder
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.options import Classify2dOptions, OptionError, format_value, options_of

# what the files of cases mean; the other keys may change while a study goes on
MEASURED_KEYS = ("stack", "strong", "weak", "classes", "layouts", "job", "launcher", "cores")
STAMP = "study.json"
DECIDED = {"input": "stack, strong and weak", "output": "the study's own output", "n_classes": "classes",
           "threads": "layouts"}     # keys of classify2d that a study sets, and by which of its own
EXAMPLE = Path(__file__).with_name("scaling.yaml")


@dataclass(frozen=True)
class Stack:
    """Simulated particles: views, box [px], pixel_size [Å], snr, seed."""

    views: int = 10
    box: int = 64
    pixel_size: float = 4.0
    snr: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Network:
    """latency [s] of a message, bandwidth [bytes/s] of a link."""

    latency: float = 2.0e-6
    bandwidth: float = 1.0e10


@dataclass(frozen=True)
class Predict:
    """Ranks and particles of the runs that are predicted."""

    ranks: tuple = (64, 128, 256, 512, 1024, 2048, 4096)
    particles: tuple = (100_000, 1_000_000)


@dataclass(frozen=True)
class Scheduler:
    """What goes into the array scripts: time limit, further directives, lines of shell before the first command."""

    time: str = "01:00:00"
    directives: tuple = ()
    setup: str = ""


@dataclass(frozen=True)
class Study:
    """A study; see benchmarks/scaling.yaml for what the keys mean."""

    output: Path = Path("scaling")
    stack: Stack = field(default_factory=Stack)
    strong: tuple = (4000,)
    weak: tuple = (1000,)
    classes: tuple = (20,)
    layouts: tuple = ((1, 1), (2, 1), (1, 2), (4, 1), (8, 1))
    repeats: int = 3
    job: dict = field(default_factory=lambda: {"max_iterations": 6})
    launcher: str | None = None
    cores: int | None = None
    network: Network = field(default_factory=Network)
    predict: Predict = field(default_factory=Predict)
    scheduler: Scheduler = field(default_factory=Scheduler)

    @property
    def node_cores(self):
        return self.cores or os.cpu_count()

    def measured(self):
        """The keys that decide what the cases are, as JSON has them; the others may change while a study goes on."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self), default=str)).items()
                if name in MEASURED_KEYS}

    def claim(self):
        """Mark the output folder as this study's."""
        stamp = Path(self.output) / STAMP
        if not stamp.exists():
            made_folder(self.output, "output")
            with written_beside(stamp) as beside:
                beside.write_text(json.dumps(self.measured()))

    def check_output(self):
        """JobError, with the keys that differ, if the output folder holds the cases of another study."""
        stamp = Path(self.output) / STAMP
        if not stamp.exists():
            return
        held, ours = json.loads(stamp.read_text()), self.measured()
        other = [f"{name} is {ours[name]} here and {held[name]} there" for name in ours if ours[name] != held[name]]
        if other:
            raise JobError(f"output: {self.output} holds the cases of another study ({'; '.join(other)}); expected the "
                           "same study or a new folder; name another output, or remove that folder")

    def cases(self):
        """All cases, in the order of their numbers: the repeats outermost, so that a study cut short is balanced."""
        return [Case(number, *case) for number, case in enumerate(
            (kind, particles, n_classes, ranks, threads, repeat)
            for repeat in range(self.repeats) for n_classes in self.classes
            for kind, sizes in (("strong", self.strong), ("weak", self.weak)) for particles in sizes
            for ranks, threads in self.layouts)]


@dataclass(frozen=True)
class Case:
    """One run of a study; `size` is the particles in all (strong) or a core (weak)."""

    number: int
    kind: str
    size: int
    n_classes: int
    ranks: int
    threads: int
    repeat: int

    @property
    def particles(self):
        return self.size * (self.ranks * self.threads if self.kind == "weak" else 1)

    @property
    def words(self):
        """What is run, on ranks × threads."""
        return (f"{self.kind:<6}  {self.particles:>9,} particles   K {self.n_classes:<4}  {self.ranks} × {self.threads}"
                f"   repeat {self.repeat + 1}")

    def __str__(self):
        return f"{self.number:>4}  {self.words}"


def example():
    """The commented study that `vitrea new bench` prints."""
    return EXAMPLE.read_text(encoding="utf-8")


def read_study(path):
    """The Study of a YAML file; JobError, with the key, for what cannot be read or makes no sense."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read ({error}); expected a scaling study; 'vitrea new bench' prints one") \
            from error
    except yaml.YAMLError as error:
        raise JobError(f"{path}: not YAML ({' '.join(str(error).split())}); expected a scaling study; 'vitrea new "
                       "bench' prints one") from error
    if not isinstance(found, dict):
        raise JobError(f"{path}: no 'key: value' lines were found; expected a scaling study; 'vitrea new bench' "
                       "prints one")
    study = _read(Study, found, str(path))
    _check(study, path)
    return study


def _read(kind, found, where):
    """A dataclass from a mapping: keys known, values of the kind of the default."""
    known = {each.name: each for each in fields(kind)}
    values = {}
    for name, value in found.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise JobError(f"{where}: unknown key '{name}'; {hint}")
        values[name] = _value(known[name].type, value, f"{where}: {name}")
    return kind(**values)


def _value(kind, value, where):
    if kind in (Stack, Network, Predict, Scheduler):
        if not isinstance(value, dict):
            raise JobError(f"{where}: {shown(value)} was found; expected a group of keys; see 'vitrea new bench'")
        return _read(kind, value, where)
    try:
        if kind in (int, float):
            if isinstance(value, bool):
                raise ValueError
            return kind(value)
        if kind is tuple:
            return _frozen(value)
        if kind is dict:
            return dict(value or {})
        if kind is Path:
            return Path(value)
        return value if value is None else int(value) if kind == int | None else str(value)
    except (TypeError, ValueError) as error:
        wanted = {int: "a whole number", float: "a number", tuple: "a list in [ ]", dict: "a group of keys"}
        raise JobError(f"{where}: {shown(value)} was found; expected {wanted.get(kind, 'a text')}; see "
                       "'vitrea new bench'") from error


def shown(value):
    """A value as it stands in the YAML: texts in quotes, numbers and lists not."""
    return f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)


def _frozen(value):
    if not isinstance(value, list):
        raise ValueError
    return tuple(_frozen(each) if isinstance(each, list) else each for each in value)


def _check(study, path):
    """What no field can tell alone."""
    layouts = [layout for layout in study.layouts if not _is_pair(layout)]
    if layouts or not study.layouts:
        raise JobError(f"{path}: layouts: {shown(layouts[0] if layouts else [])} was found; expected pairs [ranks, "
                       "threads] of whole numbers; e.g. layouts: [[1, 1], [2, 1]]")
    if (1, 1) not in study.layouts:
        raise JobError(f"{path}: layouts: [1, 1] is not among them; expected it, for the others are compared with it; "
                       "add it")
    if not study.strong and not study.weak:
        raise JobError(f"{path}: strong and weak are both empty; expected particles in one of them; e.g. strong: "
                       "[4000]")
    for name in ("strong", "weak", "classes"):
        if not all(isinstance(each, int) and each > 0 for each in getattr(study, name)):
            raise JobError(f"{path}: {name}: {list(getattr(study, name))} was found; expected whole numbers above 0; "
                           f"e.g. {name}: [1000]")
    decided = [key for key in study.job if key in DECIDED]
    if decided:
        raise JobError(f"{path}: job: {decided[0]} is there; expected keys that the study does not set itself; use "
                       f"{DECIDED[decided[0]]}")
    check_job_keys(f"{path}: job", study.job)
    if study.launcher and "{ranks}" not in study.launcher:
        raise JobError(f"{path}: launcher: '{study.launcher}' was found; expected {{ranks}} in it, where their number "
                       "goes; e.g. \"srun -n {ranks}\"")


def check_job_keys(where, job):
    """JobError, beginning with `where`, for keys {name: value} that classify2d does not have, or values that it does
    not accept: a run would tell them only after the stacks were made."""
    keys = options_of(Classify2dOptions)
    for name, value in job.items():
        if name not in keys:
            near = difflib.get_close_matches(str(name), list(keys), 1)
            raise JobError(f"{where}: unknown key '{name}'; expected keys of classify2d"
                           f"{f'; did you mean {near[0]}?' if near else ' (docs/job-keys.md)'}")
        try:
            keys[name].parse(value if isinstance(value, str) else format_value(value))
        except OptionError as error:
            raise JobError(f"{where}: {error}") from error


def _is_pair(layout):
    return isinstance(layout, tuple) and len(layout) == 2 and all(isinstance(n, int) and n > 0 for n in layout)

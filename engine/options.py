"""What a job can be told: frozen dataclasses whose fields carry help, unit, range and choices.

A key is defined once, here. The reader of job files, `--set`, `vitrea new` and docs/job-keys.md are all made from the
same table, so none of them can disagree with the program. A field's annotation is its type (int, float, bool, str,
Path; `tuple[float, ...]` for a list of them; `| None` where null is allowed) and `key(...)` holds everything else.
Texts are converted by `Option.parse` according to the field, not by YAML's guesses: YAML 1.1 reads `1e-3` as a text,
`no` as false and `1:30` as ninety.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class OptionError(ValueError):
    """A value that a key does not take; reads `found; expected`, without the place, which only the caller knows."""


def key(help: str, default: object = dataclasses.MISSING, **details: object) -> typing.Any:
    """A dataclass field that is a key of a job file.

    help is one line, without a full stop. details are fields of `Option`: unit, minimum, maximum, above (an open lower
    limit), choices (value -> one line), null_means, example, section, resumable (may be changed by `vitrea resume`).
    """
    return dataclasses.field(default=default, metadata={"help": help, **details})


@dataclass(frozen=True)
class Option:
    """One key of a job: its type, default, range and words."""

    name: str
    kind: type
    nullable: bool
    default: object
    help: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: typing.Mapping[str, str] | None = None
    null_means: str = ""
    example: object = None
    section: str = ""
    resumable: bool = False
    several: bool = False

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def expected(self) -> str:
        """What the key takes, for people: `a whole number, at least 1`."""
        if self.choices:
            words = f"{'several' if self.several else 'one'} of {', '.join(self.choices)}"
        else:
            kinds = _LIST_WORDS if self.several else _KIND_WORDS
            words = kinds[self.kind] + (f" [{self.unit}]" if self.unit else "") + self._range_words()
        return f"{words}, or null ({self.null_means})" if self.nullable else words

    def parse(self, text: str) -> object:
        """The value of a text from a job file or the command line; OptionError if it is not one of this key."""
        text = text.strip()
        if text in ("null", "~", "") or (text == "auto" and self.nullable):
            return self.check(None)
        if self.several:
            return self.check([self._meant(part.strip()) for part in _without_brackets(text).split(",")])
        return self.check(self._meant(text))

    def _meant(self, text: str) -> object:
        if self.kind is bool:
            return _BOOLEANS.get(text.lower(), text)
        if self.kind in (int, float):
            return _number(text)
        return Path(text) if self.kind is Path else text

    def check(self, value: object) -> object:
        """The value if the key takes it; OptionError if not. A whole number becomes a float where one is due, and one
        value a tuple where several may stand."""
        if value is None:
            if not self.nullable:
                raise self._refusal("empty")
            return None
        if self.several:
            values = value if isinstance(value, list | tuple) else (value,)
            if not values or "" in values:
                raise self._refusal("a list with an empty place" if values else "an empty list")
            return tuple(self._checked(each) for each in values)
        return self._checked(value)

    def _checked(self, value: object) -> object:
        if self.kind is Path and isinstance(value, str):
            value = Path(value)
        if self.kind in (int, float):
            value = self._checked_number(value)
        if not isinstance(value, self.kind) or (self.choices and value not in self.choices):
            raise self._refusal(_shown(value))
        return value

    def _checked_number(self, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise self._refusal(_shown(value))
        if self.kind is int and value != int(value):
            raise self._refusal(_shown(value))
        outside = (
            (self.minimum is not None and value < self.minimum)
            or (self.above is not None and value <= self.above)
            or (self.maximum is not None and value > self.maximum)
        )
        if outside:
            raise self._refusal(_shown(value))
        return self.kind(value)

    def _range_words(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f", {format_value(self.minimum)} to {format_value(self.maximum)}"
        words = f", above {format_value(self.above)}" if self.above is not None else ""
        words += f", at least {format_value(self.minimum)}" if self.minimum is not None else ""
        return words + (f", at most {format_value(self.maximum)}" if self.maximum is not None else "")

    def _refusal(self, found: str) -> OptionError:
        return OptionError(f"{self.name} is {found}; expected {self.expected()}")


# Sections of a job file, in its order, with the heading each one has there.
SECTIONS = {
    "job": "What is classified",
    "following": "Data that arrive while the job runs",
    "selection": "The selection",
    "measurement": "What is measured",
    "simulation": "What is simulated",
    "specimen": "The specimen",
    "microscope": "The microscope",
    "experiment": "The experiment",
    "valleys": "The two-valley model, and the trajectories in it",
    "networks": "The networks",
    "micrographs": "The micrographs",
    "labels": "The labels",
    "training": "The network and its training",
    "recursion": "Rounds of training on the network's own picks",
    "picking": "Picking",
    "particles": "The particles",
    "model": "The model",
    "search": "The search over in-plane angles and shifts",
    "iterations": "Iterations",
    "machine": "The machine",
}


@functools.cache
def options_of(cls: type) -> dict[str, Option]:
    """The keys of an options class by name, in the order of a job file: its sections, and in each that of the class."""
    hints, order = typing.get_type_hints(cls), list(SECTIONS)
    found = {}
    for field in sorted(dataclasses.fields(cls), key=lambda field: order.index(field.metadata["section"])):
        kind, nullable, several = _kind(hints[field.name])
        found[field.name] = Option(
            name=field.name, kind=kind, nullable=nullable, several=several, default=field.default, **field.metadata
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Options:
    """A table of keys. Values are checked when the object is made: OptionError names the key."""

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            object.__setattr__(self, name, option.check(getattr(self, name)))

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Pairs (keys, sentence) of values that are right by themselves and wrong together."""
        yield from ()

    def as_dict(self) -> dict[str, object]:
        """The keys and values with paths as texts: what goes into JSON."""
        return {name: _plain(getattr(self, name)) for name in options_of(type(self))}


@dataclass(frozen=True, kw_only=True)
class JobOptions(Options):
    """What every job is told."""

    input: Path = key("the particles: a RELION STAR file (3.0 or 3.1), or an .h5 file of vitrea convert",
                      example=Path("particles.star"), section="job")
    output: Path = key("the run folder that is made", example=Path("runs/first"), section="job")


@dataclass(frozen=True, kw_only=True)
class FollowOptions(JobOptions):
    """The keys of jobs that can take in what arrives while they run (jobs/follow.py)."""

    follow: Path | None = key("a folder that a microscope delivers into; what is new there is taken in, in rounds, "
                              "until a file STOP is in it", None, null_means="the input is all there is",
                              example=Path("arriving"), section="following")
    follow_minutes: float | None = key("the job ends when nothing new has come for so long", None, unit="minutes",
                                       above=0, null_means="STOP alone ends it", example=30.0, resumable=True,
                                       section="following")


CTF_CHOICES = {
    "full": "amplitudes and phases in the likelihood",
    "phase_flipped": "the particles' phases were flipped before",
    "intact_first_peak": "ignore the CTF's amplitude until its first peak",
    "none": "no CTF: the particles carry none, or it is not known",
}
NORMALISE_CHOICES = {
    "check": "refuse particles that are not normalised as RELION does",
    "always": "bring the background around the particle to mean 0, deviation 1",
    "never": "take the particles as they are",
}
ALGORITHM_CHOICES = {
    "auto": "mini-batches first if there are many particles, then full passes",
    "full": "every iteration sees every particle",
    "minibatch": "mini-batches first, then full passes",
}


ANNEALED_PASSES = 10   # full passes in which a start_temperature falls to 1, where there are no mini-batches
SCHEDULE_CHOICES = {
    "clock": "their number",
    "measured": "two continuations, cooled, that agree twice; their number at most",
}
STORAGE_CHOICES = {
    "auto": "in memory where they fit, in scratch otherwise",
    "memory": "in memory",
    "scratch": "in files read in every iteration; memory does not grow with them",
}


@dataclass(frozen=True, kw_only=True)
class ParticleJobOptions(JobOptions):
    """The keys of every job that classifies particles. A job that says more of one of them defines it again."""

    n_classes: int = key("number of class averages", minimum=1, example=50, section="job")
    particle_diameter: float = key("diameter of the circular mask; a little more than the particle's longest axis",
                                   unit="Å", above=0, example=180.0, section="job")
    seed: int = key("start of every random draw; one seed, one result, on any number of ranks", 0,
                    minimum=0, section="job")

    ctf: str = key("how the contrast transfer function enters", "full", choices=CTF_CHOICES, section="particles")
    normalise: str = key("what to do about the particles' normalisation", "check", choices=NORMALISE_CHOICES,
                         section="particles")
    invert_contrast: bool = key("particles are dark on bright; turn them round", False, section="particles")
    skip_limit: float = key("fraction of bad images (unreadable, not finite) that is set aside; more stop the run",
                            0.01, minimum=0, maximum=1, section="particles")

    threads: int = key("threads a rank; the result does not depend on it", 1, minimum=1, resumable=True,
                       section="machine")
    memory_limit: float | None = key("most memory a rank may need; particles go to scratch, or the job is refused",
                                     None, unit="GB", minimum=0.1, null_means="no limit", example=8.0,
                                     resumable=True, section="machine")
    storage: str = key("where the transformed particles are kept; the result does not depend on it", "auto",
                       choices=STORAGE_CHOICES, resumable=True, section="machine")
    staging: bool = key("copy the images once per node into scratch, in large pieces, and read them there: for stacks "
                        "on a file system that many nodes share", False, resumable=True, section="machine")
    scratch: Path | None = key("folder of the scratch files, best on a disk of the node; they vanish with the run",
                               None, null_means="the run folder", example=Path("/tmp"), resumable=True,
                               section="machine")


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions(ParticleJobOptions):
    """The keys of every job that aligns particles in the plane."""

    psi_step: float = key("coarse step of the in-plane angle; the fine step is half of it", 6.0, unit="degrees",
                          minimum=0.5, maximum=45, section="search")
    offset_range: float = key("largest shift searched, in both directions, in pixels of the input", 5.0, unit="px",
                              minimum=0, section="search")
    offset_step: float = key("coarse step of the shift, in pixels of the input; the fine step is half of it", 2.0,
                             unit="px", minimum=0.25, section="search")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if 0 < self.offset_range < self.offset_step:
            yield ("offset_step", "offset_range"), (
                f"offset_step is {format_value(self.offset_step)} px, more than offset_range of "
                f"{format_value(self.offset_range)} px; only the shift 0 would be searched; "
                "make the step smaller, or write offset_range: 0 if no shift is wanted"
            )


@dataclass(frozen=True, kw_only=True)
class Classify2dOptions(AlignmentOptions, FollowOptions):
    """The keys of `job: classify2d`."""

    n_classes: int = key("number of class averages; 50 to 200 particles for each is usual",
                         minimum=1, example=50, section="job")

    tau2_fudge: float = key("weight of the data against the prior, RELION's T: higher, more detail and noise", 2.0,
                            above=0, section="model")
    norm_correction: bool = key("estimate one brightness factor per particle", True, section="model")
    center_classes: bool = key("move class averages to the middle of the box; the particles' origins follow", True,
                               section="model")
    max_resolution: float | None = key("finest resolution used", None, unit="Å", above=0,
                                       null_means="6 Å, or where the pixels end", example=8.0, section="model")
    mask_edge: float = key("width of the mask's soft edge", 5.0, unit="px", minimum=0, section="model")

    adaptive_fraction: float = key("share of the posterior weight that is searched again at the fine level", 0.999,
                                   minimum=0.5, maximum=1, section="search")

    algorithm: str = key("how the particles are gone through", "auto", choices=ALGORITHM_CHOICES, section="iterations")
    max_iterations: int = key("full passes, at most", 30, minimum=1, resumable=True, section="iterations")
    minibatch_iterations: int = key("mini-batch iterations before the full passes, at most", 60, minimum=1,
                                    section="iterations")
    minibatch_size: int | None = key("particles in a mini-batch", None, minimum=1, null_means="chosen from n_classes",
                                     example=5000, section="iterations")
    minibatch_step: float | None = key("what the sums of a mini-batch weigh in the running average, online EM's step; "
                                       "with the size it is the noise of the class averages", 0.2, above=0, maximum=1,
                                       null_means="falls as t^-0.6", section="iterations")
    schedule: str = key("what ends the mini-batches", "clock", choices=SCHEDULE_CHOICES, section="iterations")
    start_temperature: float = key("temperature of the posterior at the start, as if the noise had so many times its "
                                   "variance; it falls to 1 in the first half of the mini-batches, or ten full passes",
                                   1.0, minimum=1, maximum=100, section="iterations")
    convergence_change: float = key("the run may stop when a smaller fraction of the particles changes class", 0.01,
                                    minimum=0, maximum=1, section="iterations")
    checkpoint_minutes: float = key("time between checkpoints, 0 for one after every iteration; a stop makes one too",
                                    1.0, unit="minutes", minimum=0, resumable=True, section="iterations")
    half_sets: bool = key("at the end, ask two halves of the particles, learned apart, how sure the classes are; as "
                          "long as six more iterations", False, resumable=True,
                          section="iterations")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        yield from super().conflicts()
        if self.algorithm == "full" and self.schedule == "measured":
            yield ("schedule", "algorithm"), (
                "schedule is measured, which belongs to mini-batches, but algorithm is full; expected auto or "
                "minibatch; change algorithm, or leave schedule out"
            )
        elif self.schedule == "measured" and self.minibatch_step is None:
            yield ("schedule", "minibatch_step"), (
                "schedule is measured, but the step of the mini-batches falls as t^-0.6 by the clock; expected a step "
                "that lasts until the switch; write for example minibatch_step: 0.2"
            )
        if self.start_temperature > 1 and self.algorithm != "minibatch" and self.max_iterations <= ANNEALED_PASSES:
            yield ("start_temperature", "max_iterations"), (
                f"start_temperature falls to 1 in {ANNEALED_PASSES} full passes, but max_iterations is "
                f"{self.max_iterations}; expected more passes than that; raise max_iterations"
            )


LATENT_CHOICES = {
    "chain": "a line: one continuous change",
    "closed_chain": "a closed line: a rotation or a cycle",
    "plane": "a rectangle: two changes; n_classes is a product of two numbers",
    "volume": "a box: three changes; n_classes is a product of three numbers",
    "none": "no order: a plain mixture",
}
START_CHOICES = {
    "components": "along the principal components of the particles; no random numbers",
    "classes": "from the classes that the particles come with, put in order",
    "random": "from particles drawn at random",
}


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(ParticleJobOptions):
    """The keys of `job: cluster`."""

    n_classes: int | None = key("number of class averages, the nodes of the latent grid; or auto", minimum=3,
                                example=100, null_means="auto, the number that held-out particles choose",
                                section="job")

    latent: str = key("how the classes are related: the grid whose nodes they are", "chain", choices=LATENT_CHOICES,
                      section="model")
    basis_fraction: float = key("radial basis functions per node along an axis of the grid; fewer tie neighbours "
                                "together", 1.0, above=0, maximum=1, section="model")
    basis_width: float = key("width of a basis function, in their spacing; wider ties neighbours together", 0.5,
                             minimum=0.25, maximum=10, section="model")
    outliers: bool = key("set particles aside that no class explains, in a last class of their own", True,
                         section="model")
    max_resolution: float | None = key("finest resolution used", None, unit="Å", above=0,
                                       null_means="10 Å, or where the pixels end", example=12.0, section="model")
    mask_edge: float = key("width of the mask's soft edge", 5.0, unit="px", minimum=0, section="model")

    psi_error: float = key("standard deviation of the given angles' errors: above 0, poses nearby are tried too, "
                           "which costs 5 times as much", 0.0, unit="degrees", minimum=0, maximum=30, section="search")
    offset_error: float = key("the same of the given shifts, along each axis; costs 9 times as much", 0.0, unit="px",
                              minimum=0, maximum=10, section="search")

    start: str = key("where the class averages begin", "components", choices=START_CHOICES, section="iterations")
    starts: int | None = key("beginnings tried, the last with classes to spare that are merged; what held-out "
                             "particles judge best is kept", None, minimum=1,
                             null_means="4, or 1 where particles times classes exceed two million",
                             section="iterations")
    temperature: float = key("temperature at which the annealing ends; 1 is the likelihood itself, more is smoother",
                             1.0, minimum=1, maximum=100, section="iterations")
    cooling: float = key("factor from one temperature of the annealing to the next", 0.8, minimum=0.5, maximum=0.99,
                         section="iterations")
    held_out: float = key("fraction of the particles that judge and do not teach: the annealing ends when their "
                          "likelihood stops rising", 0.1, minimum=0, maximum=0.5, section="iterations")
    minibatch_size: int | None = key("particles of an iteration while cooling; the end sees all", None, minimum=1,
                                     null_means="all, or of many particles 16 a class, at least 16384", example=20000,
                                     section="iterations")
    minibatch_step: float | None = key("what the sums of a mini-batch weigh in the running average, online EM's step",
                                       None, above=0, maximum=1,
                                       null_means="falls as t^-0.6 at each temperature", example=0.5,
                                       section="iterations")
    max_iterations: int = key("iterations from one beginning, at most", 300, minimum=1, resumable=True,
                              section="iterations")

    def latent_shape(self) -> tuple[int, ...]:
        """Nodes along each axis of the latent grid; () if the classes cannot be laid out on it."""
        return near_cube(self.n_classes or 3, {"plane": 2, "volume": 3}.get(self.latent, 1))

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        several = "n_classes" if self.n_classes is None else "starts" if (self.starts or 1) > 1 else ""
        if several and (self.held_out == 0 or self.start == "classes"):
            yield (several, "held_out", "start"), (
                "held-out particles choose between several runs, but none are held out, or every run would begin with "
                f"the given classes; expected held_out above 0 and another start; change these or {several}"
            )
        if self.n_classes is None and self.latent in ("plane", "volume"):
            yield ("n_classes", "latent"), (
                f"the number of classes of a {self.latent} cannot be found; expected a number, or another latent grid; "
                "write for example n_classes: 100"
            )
        if self.n_classes is None:
            return
        if not self.latent_shape():
            better = next(n for n in range(self.n_classes, 2 * self.n_classes + 8)
                          if dataclasses.replace(self, n_classes=n).latent_shape())
            yield ("n_classes", "latent"), (
                f"{self.n_classes} classes cannot be laid out on a {self.latent}; expected a product of "
                f"{3 if self.latent == 'volume' else 2} numbers of at least 2; write for example n_classes: {better}"
            )
        if self.latent == "closed_chain" and self.n_classes < 5:
            yield ("n_classes", "latent"), (
                f"{self.n_classes} classes cannot be laid out on a closed chain; expected at least 5; "
                "write for example n_classes: 20"
            )


@dataclass(frozen=True, kw_only=True)
class Deep2dOptions(AlignmentOptions):
    """The keys of `job: deep2d`: those of classify2d that matter for its first stage, and of the fine search."""

    n_classes: int = key("number of classes that the particles are first aligned to; few: 10 to 50",
                         minimum=1, example=20, section="job")

    least_particles: int = key("particles a class must keep: no split leaves fewer in either part", 30, minimum=10,
                               section="model")
    align_resolution: float | None = key("finest resolution used while aligning; a coarse one keeps noise from being "
                                         "aligned", None, unit="Å", above=0,
                                         null_means="6 Å, or where the pixels end", example=20.0, section="model")
    max_resolution: float | None = key("finest resolution used in the fine search", None, unit="Å", above=0,
                                       null_means="10 Å, or where the pixels end", example=12.0, section="model")
    tau2_fudge: float = key("weight of the data against the prior while aligning, RELION's T", 2.0, above=0,
                            section="model")
    mask_edge: float = key("width of the mask's soft edge", 5.0, unit="px", minimum=0, section="model")

    max_iterations: int = key("full passes of the alignment, at most", 30, minimum=1, section="iterations")

    threads: int = key("threads a rank of the alignment; the result does not depend on it", 1, minimum=1,
                       resumable=True, section="machine")

    @property
    def held_out(self) -> float:
        """Of the particles as they are read: none; every class holds out its own."""
        return 0.0


def near_cube(n: int, axes: int) -> tuple[int, ...]:
    """The `axes` factors of n, each at least 2 (one axis: any n), that are most alike, smallest first; () if none."""
    if axes == 1:
        return (n,)
    found = [(k, *rest) for k in range(2, math.isqrt(n) + 1) if n % k == 0
             for rest in (near_cube(n // k, axes - 1),) if rest and min(rest) >= 2]
    return min((tuple(sorted(shape)) for shape in found), key=lambda shape: shape[-1] - shape[0], default=())


def format_value(value: object) -> str:
    """A value as it stands in a job file: `null`, `true`, `0.001`, `[0.1, 0.2]`, `runs/first`; quoted where YAML needs
    it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = f"{value:.15g}"
        return text if float(text) == value or not math.isfinite(value) else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    text = str(value)
    if isinstance(value, Path | str) and not _PLAIN.issuperset(text):
        return "'" + text.replace("'", "''") + "'"
    return text


_KIND_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
_LIST_WORDS = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-=@")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str | Path) else format_value(value)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _without_brackets(text: str) -> str:
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _kind(hint: object) -> tuple[type, bool, bool]:
    """(type of a value, whether null is allowed, whether it is a list of them)."""
    nullable = isinstance(hint, types.UnionType)
    if nullable:
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    several = typing.get_origin(hint) is tuple
    return typing.get_args(hint)[0] if several else hint, nullable, several

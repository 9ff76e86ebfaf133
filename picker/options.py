"""The keys of the picker's jobs; engine/options.py says how keys are made."""
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.options import FollowOptions, JobOptions, key

MICROGRAPHS = ("the micrographs: a STAR file of RELION, a folder, one .mrc, .tif, .png or .jpg, or a pattern such as "
               "'mics/*.mrc'")
NETWORK_CHOICES = {
    "vitrea": "made for CPUs: boxes of 48 px, rectified maps",
    "deepem-64": "DeepEM's eight layers for boxes of 64 px",
    "deepem-klh": "DeepEM's layers for KLH, 272 px; slow to train",
    "deepem-19s": "DeepEM's layers for the 19S particle, 160 px; slow to train",
}
OPTIMISER_CHOICES = {
    "adam": "Adam, its rate falling along a cosine",
    "sgd": "plain descent, its rate falling along a cosine",
    "freeze_aware": "plain descent, hot until probes find that the valley is decided",
}
OUTPUT = "the run folder that is made"
Y_CHOICES = {"down": "from the first row stored, as RELION and EMAN count", "up": "from the last row stored"}


@dataclass(frozen=True, kw_only=True)
class MicrographOptions(JobOptions):
    """What every job on micrographs is told."""

    input: Path = key(MICROGRAPHS, example=Path("micrographs.star"), section="micrographs")
    output: Path = key(OUTPUT, example=Path("picks/first"), section="micrographs")
    pixel_size: float | None = key("of the micrographs, instead of what their headers or the STAR file say", None,
                                   unit="Å/px", above=0, null_means="as the files say", example=1.2,
                                   section="micrographs")


@dataclass(frozen=True, kw_only=True)
class PickTrainOptions(MicrographOptions):
    """The keys of `job: pick-train`."""

    output: Path = key(OUTPUT, example=Path("training/first"), section="micrographs")
    coordinates: Path = key("folder with the labelled centres: a .star, .box, .cbox, .csv or .tsv file for each "
                            "micrograph, with its name", example=Path("labels"), section="labels")
    negatives: Path | None = key("folder of the same kind with places where no particle is", None,
                                 null_means="background is sampled", section="labels")
    ignore: Path | None = key("folder of .csv files with columns x, y, radius [px]: discs that are not learned from",
                              None, null_means="none", section="labels")
    y_axis: str = key("how the coordinate files count y", "down", choices=Y_CHOICES, section="labels")
    expected_particles: float | None = key(
        "particles on a micrograph, labelled or not; the others are allowed for", None, above=0,
        null_means="all are labelled", example=200.0, section="labels")
    edge_margin: float = key("width along the edges where nobody labelled, and nothing is learned", 0.0, unit="Å",
                             minimum=0, section="labels")
    holdout: float = key("fraction of the micrographs that is not trained on, but decides the threshold", 0.2,
                         minimum=0, maximum=0.8, section="labels")
    folds: int = key("where no micrograph is held back: parts they are cut into, each judged by a network trained on "
                     "the others, which takes as many trainings more; 0: judged where it was trained", 0, minimum=0,
                     section="labels")

    diameter: float = key("diameter of the particle, its longest axis", unit="Å", above=0, example=180.0,
                          section="training")
    network: str = key("the network and how it is trained", "vitrea", choices=NETWORK_CHOICES, section="training")
    optimiser: str = key("how the network vitrea descends its loss", "adam", choices=OPTIMISER_CHOICES,
                         section="training")
    min_distance: float = key("least distance of two picks, as a fraction of the diameter", 0.7, above=0, maximum=5,
                              section="training")
    steps: int | None = key("steps of training", None, minimum=1, null_means="as many as the recipe of the network",
                            example=1000, section="training")
    f_beta: float = key("the threshold is the one of the largest F_β; with 2 recall counts more than precision", 2.0,
                        above=0, section="training")
    match_radius: float = key("distance of a pick from a label up to which it is right, as a fraction of the diameter",
                              0.25, above=0, section="training")
    seed: int = key("start of every random draw; one seed, one model, on any number of ranks", 0, minimum=0,
                    section="training")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.network != "vitrea" and self.optimiser != "adam":
            yield ("optimiser", "network"), (
                f"{self.network} is trained by its published recipe; expected optimiser with the network vitrea only; "
                "take the line out")


SORT_CHOICES = {
    "scores": "by their own probability",
    "classify2d": "by the mean probability of its class in two dimensions",
}


@dataclass(frozen=True, kw_only=True)
class RecurseOptions(PickTrainOptions):
    """The keys of `job: recurse`."""

    output: Path = key(OUTPUT, example=Path("recursion/first"), section="micrographs")
    unlabelled: Path = key("more micrographs, without labels: a STAR file, a folder or a pattern",
                           example=Path("micrographs.star"), section="recursion")
    rounds: int = key("trainings at most; they end when F on the micrographs held back no longer rises", 3, minimum=2,
                      section="recursion")
    sort: str = key("how picks are sorted into particles, background and those that are not learned from", "scores",
                    choices=SORT_CHOICES, section="recursion")
    accept: float = key("least probability of a pick that is learned from as a particle", 0.8, above=0, maximum=1,
                        section="recursion")
    reject: float = key("picks with a lower probability are background", 0.2, minimum=0, maximum=1,
                        section="recursion")
    rejected: Path | None = key("folder of coordinate files with places where a person has seen that no particle is",
                                None, null_means="none", section="recursion")
    n_classes: int = key("classes to sort by, where sort is classify2d", 10, minimum=2, section="recursion")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        yield from super().conflicts()
        if self.reject > self.accept:
            yield ("reject", "accept"), (
                f"reject is {self.reject:g}, more than accept of {self.accept:g}; a pick cannot be both; make reject "
                "smaller")


@dataclass(frozen=True, kw_only=True)
class PickOptions(MicrographOptions, FollowOptions):
    """The keys of `job: pick`."""

    model: Path = key("the model.npz of a pick-train job", example=Path("training/first/model.npz"), section="picking")
    threshold: float | None = key("least score of a pick", None, minimum=0, maximum=1, null_means="the model's",
                                  example=0.5, section="picking")
    expected_particles: float | None = key("choose the threshold so that there are as many picks in the mean",
                                                 None, above=0, null_means="threshold decides", example=200.0,
                                                 section="picking")
    min_distance: float | None = key("least distance of two picks", None, unit="Å", above=0, null_means="the model's",
                                     example=120.0, section="picking")
    max_deviation: float | None = key(
        "picks in more uneven surroundings are left out: deviation of the grey values over the micrograph's median of "
        "it, large on carbon and ice", None, above=0, null_means="the model's: more than at any labelled particle",
        example=1.5, section="picking")
    edge_margin: float = key("picks nearer to an edge are left out", 0.0, unit="Å", minimum=0, section="picking")
    invert_contrast: bool = key("the micrographs have the opposite contrast to those the model learned from", False,
                                section="picking")
    eman_box: int | None = key("also write EMAN .box files with boxes of this size", None, unit="px", minimum=1,
                               null_means="no .box files", example=256, section="picking")
    cryolo_box: int | None = key("also write crYOLO .cbox files with boxes of this size", None, unit="px", minimum=1,
                                 null_means="no .cbox files", example=256, section="picking")
    csv: bool = key("also write .csv files with x, y and score", False, section="picking")
    pictures: int = key("pictures of micrographs with their picks, of those a person should look at first", 12,
                        minimum=0, section="picking")
    skip_limit: float = key("fraction of micrographs that may be unusable; more make the job fail", 0.05, minimum=0,
                            maximum=1, section="picking")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.threshold is not None and self.expected_particles is not None:
            yield ("threshold", "expected_particles"), (
                "threshold and expected_particles are both given; each decides which picks are kept; "
                "write null for one of them")

    @property
    def formats(self) -> dict[str, int | None]:
        """{suffix: box [px]} of the coordinate files that are written besides RELION's."""
        boxes = {".box": self.eman_box, ".cbox": self.cryolo_box}
        return {suffix: box for suffix, box in boxes.items() if box} | ({".csv": None} if self.csv else {})


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(MicrographOptions):
    """The keys of `job: extract`."""

    output: Path = key(OUTPUT, example=Path("particles/first"), section="micrographs")
    coordinates: Path = key("folder with the centres: a .star, .box, .cbox, .csv or .tsv file for each micrograph",
                            example=Path("picks/first/coordinates"), section="particles")
    box_size: int = key("side of the box that is cut out, in pixels of the micrograph", unit="px", minimum=8,
                        example=256, section="particles")
    scaled_size: int | None = key("side of the box after cropping in Fourier space", None, unit="px", minimum=8,
                                  null_means="box_size", example=64, section="particles")
    diameter: float = key("diameter of the particle; the background is what lies outside", unit="Å", above=0,
                          example=180.0, section="particles")
    invert_contrast: bool = key("make dark particles bright, as classification wants them", True, section="particles")
    y_axis: str = key("how the coordinate files count y", "down", choices=Y_CHOICES, section="particles")
    threshold: float | None = key("least score of a particle, where the coordinates have scores", None,
                                  null_means="all", example=0.5, section="particles")
    voltage: float = key("of the microscope, unless the micrographs' STAR file says", 300.0, unit="kV", above=0,
                         section="particles")
    cs: float = key("spherical aberration, unless the micrographs' STAR file says", 2.7, unit="mm", minimum=0,
                    section="particles")
    amplitude_contrast: float = key("unless the micrographs' STAR file says", 0.1, minimum=0, maximum=1,
                                    section="particles")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.scaled_size is not None and self.scaled_size > self.box_size:
            yield ("scaled_size", "box_size"), (
                f"scaled_size is {self.scaled_size} px, more than box_size of {self.box_size} px; particles are only "
                "made smaller; make it smaller")

"""The picker's scan: a micrograph file to coordinates, dense, checked against the network box by box.

The limit counts the arithmetic of the scan alone, in the way it is done: direct products at the rate of a matrix
product, transforms at FFTW's; reading, cropping and normalising the micrograph come on top. Box by box is timed on the
boxes of the check and scaled to as many boxes as the dense scan has scores, and as DeepEM's step of 20 px has.
"""
import shutil
import statistics
import tempfile
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path

import mrcfile
import numpy as np

from vitrea.benchmarks.kernels import agree
from vitrea.benchmarks.machine import Work
from vitrea.engine.errors import JobError
from vitrea.picker.micrographs import Preparation, read_micrograph
from vitrea.picker.network import PRESETS, initial_parameters, initial_statistics, stages
from vitrea.picker.pick import Picker
from vitrea.picker.scan import DenseScan, scan_boxes

CHECKED_BOXES = 20
PUBLISHED_STEP = 20     # px between DeepEM's boxes
SCORE_ERROR = 1e-5      # of a probability, relative to the largest


@dataclass(frozen=True)
class ScanSizes:
    """A square micrograph of `side` px at pixel_size [Å], a network preset, and a particle's diameter [Å]."""

    network: str = "vitrea"
    side: int = 4096
    pixel_size: float = 1.0
    diameter: float = 180.0
    orientations: int = 4
    seed: int = 0
    rotations: int = 512   # length of the transforms that the machine's limit is measured with

    def __post_init__(self):
        if self.network not in PRESETS:
            raise JobError(f"--network: {self.network} was found; expected one of {', '.join(PRESETS)}; choose one")

    def as_dict(self):
        return asdict(self)


class Scan:
    """Read → crop → even out → scan → peaks of one micrograph of noise, as `job: pick` does it."""

    unit, twin = "megapixel", f"the network box by box at {CHECKED_BOXES} places"

    def __init__(self, sizes):
        network, random = PRESETS[sizes.network], np.random.default_rng(sizes.seed)
        preparation = Preparation.of(network, sizes.diameter)
        self.sizes, self.network, self.units = sizes, network, sizes.side**2 / 1e6
        folder = tempfile.mkdtemp(prefix="vitrea-bench-")
        weakref.finalize(self, shutil.rmtree, folder)
        self.path = Path(folder) / "noise.mrc"
        noise = random.normal(100.0, 10.0, size=(sizes.side, sizes.side)).astype(np.float16)
        with mrcfile.new(self.path, data=noise) as file:
            file.voxel_size = sizes.pixel_size
        self.picker = Picker(network, initial_parameters(network, random), initial_statistics(network), preparation,
                             distance=0.7 * sizes.diameter, orientations=tuple(range(sizes.orientations)))
        self.prepared = preparation.apply(read_micrograph(self.path))
        self.plan = self.picker.planned(self.prepared.shape)

    def run(self):
        self.picks = self.picker.pick(read_micrograph(self.path), self.plan)

    def check(self):
        scores, _, step = self.picker.score_map(self.prepared, self.plan)
        chain = stages(self.network, self.picker.parameters, self.picker.statistics)
        random, box = np.random.default_rng(1), self.network.box
        padded = np.pad(self.prepared, box // 2, mode="symmetric")
        places = random.integers(scores.shape, size=(CHECKED_BOXES, 2))
        crops = [padded[i * step:i * step + box, j * step:j * step + box] for i, j in places]
        boxes = [scan_boxes(chain, box, crop, 1, orientations=self.picker.orientations)[0, 0] for crop in crops]
        self._box_seconds = self._timed_boxes(DenseScan(chain, box, (box, box), orientations=self.picker.orientations),
                                              crops)
        self.scores = scores.size
        return agree("scan", scores[tuple(places.T)], np.array(boxes), SCORE_ERROR)

    @staticmethod
    def _timed_boxes(plan, crops):
        """Seconds of CPU of each box, by layers planned for a box: the fastest way to go box by box."""
        seconds = []
        for crop in crops:
            begin = time.process_time()
            plan.scores(crop)
            seconds.append(time.process_time() - begin)
        return seconds

    def found(self):
        """Seconds [CPU] of the dense scan alone, of the whole, and what box by box would take."""
        begin = time.process_time()
        self.picker.score_map(self.prepared, self.plan)
        dense = time.process_time() - begin
        box = statistics.median(self._box_seconds)
        published = ((self.sizes.side * self.sizes.pixel_size / self.picker.preparation.pixel_size - self.network.box)
                     // PUBLISHED_STEP + 1) ** 2
        return {"dense_seconds": dense, "box_milliseconds": 1e3 * box, "scores": self.scores,
                "pixel_size_scanned": self.picker.preparation.pixel_size, "side_scanned": self.prepared.shape[0],
                "speed_up": self.scores * box / dense, "speed_up_published_step": published * box / dense,
                "picks": len(self.picks)}

    @property
    def work(self):
        products, transforms = self.plan.work
        return Work(product_flops=products, transform_flops=transforms)


def told(record):
    """A record for people, a few lines."""
    found, limits = record["found"], record["limits"]
    whole = record["median"] * record["units"]
    return "\n".join([
        f"scan       {record['network']}   {record['side']}² px of {record['pixel_size']:g} Å, scanned at "
        f"{found['side_scanned']}² px of {found['pixel_size_scanned']:.3g} Å   {record['orientations']} orientations",
        f"  check    {record['check']:.1e} away from {record['twin']}",
        f"  time     {whole / 1e3:.3g} s of CPU from file to coordinates   least "
        f"{record['min'] * record['units'] / 1e3:.3g} s   n {record['n']}   {1e3 / record['median']:,.4g} megapixels / "
        f"core·s   warm-up {record['warm_up_seconds']:.1f} s",
        f"  dense    {found['dense_seconds']:.3g} s for {found['scores']:,} scores   box by box "
        f"{found['box_milliseconds']:.3g} ms each: {found['speed_up']:,.0f} times the dense scan for as many scores, "
        f"{found['speed_up_published_step']:,.0f} times at the published step",
        f"  limit    {record['limit_ms'] * record['units'] / 1e3:.3g} s   {100 * record['fraction_of_limit']:.0f} % of "
        f"it reached   sgemm {limits['sgemm'] / 1e9:.1f} GFLOP/s   FFTW({limits['n_angles']}) "
        f"{limits['fftw'] / 1e9:.1f} GFLOP/s",
    ])

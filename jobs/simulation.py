"""`job: simulate-particles` and `job: simulate-micrographs`: data with known truth as jobs, for pipelines.

The same as `vitrea simulate`, whose words are the keys. Rank 0 works, with `threads`; the others sleep.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.engine.options import Options, key

WANTED, SPECIMEN, MICROSCOPE = {"section": "simulation"}, {"section": "specimen"}, {"section": "microscope"}
PAIRS = {"size": "width and height", "defocus": "the least and the largest"}   # keys that are two numbers


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(Options):
    """What both simulations are told."""

    output: Path = key("the run folder that is made", example=Path("simulated"), **WANTED)
    n: int = key("how many", minimum=1, example=1000, **WANTED)
    pixel_size: float = key("pixel size", unit="Å/px", above=0, example=4.0, **WANTED)
    snr: float = key("variance of the CTF-filtered signal over that of the noise", above=0, example=0.1, **WANTED)
    seed: int = key("start of every random draw", 0, minimum=0, **WANTED)

    map_path: Path | None = key("a density map of the specimen", None, null_means="a built-in one", **SPECIMEN)
    model_path: Path | None = key("atoms of the specimen: .pdb or .cif, also .gz", None, null_means="a built-in one",
                                  **SPECIMEN)

    defocus: tuple[float, ...] = key("least and largest underfocus", (10_000.0, 25_000.0), unit="Å", **MICROSCOPE)
    astigmatism: float = key("largest difference of the two defoci", 500.0, unit="Å", minimum=0, **MICROSCOPE)
    voltage: float = key("of the microscope", 300.0, unit="kV", above=0, **MICROSCOPE)
    cs: float = key("spherical aberration", 2.7, unit="mm", minimum=0, **MICROSCOPE)
    amplitude_contrast: float = key("fraction", 0.1, minimum=0, maximum=1, **MICROSCOPE)

    threads: int = key("threads; the images do not depend on it", 1, minimum=1, resumable=True, section="machine")

    def conflicts(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for name in PAIRS:
            if len(getattr(self, name, (0, 0))) != 2:
                n = len(getattr(self, name))
                yield (name,), (f"{name} has {n} number{'s' if n != 1 else ''}; expected two, "
                                f"{PAIRS[name]}; write for example [1, 2]")
        if self.map_path and self.model_path:
            yield ("model_path", "map_path"), ("map_path and model_path are both given; expected one specimen; write "
                                               "null for one of them")

    def values(self) -> dict[str, object]:
        """What the simulation itself is told."""
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tuple(value) if name in PAIRS else value for name, value in told.items()
                if name not in ("output", "threads")}


@dataclass(frozen=True, kw_only=True)
class SimulateParticlesOptions(SimulationOptions):
    """The keys of `job: simulate-particles`."""

    views: int = key("views, equally populated", minimum=1, example=10, **WANTED)
    box_size: int = key("side of the box", unit="px", minimum=16, example=64, **WANTED)
    max_shift: float = key("largest shift in x and in y", 3.0, unit="px", minimum=0, **WANTED)
    junk: float = key("fraction of pure noise, off-centre particles and close neighbours", 0.0, minimum=0, maximum=1,
                      **WANTED)
    stack_size: int | None = key("particles in a stack", None, minimum=1, null_means="all in one", **WANTED)

    motion: float = key("the arm of the built-in specimen turns by so much over the views, seen from one side", 0.0,
                        unit="degrees", minimum=0, maximum=180, **SPECIMEN)

    ctf: bool = key("images with a CTF", True, **MICROSCOPE)
    phase_shift: float = key("of a phase plate", 0.0, unit="degrees", **MICROSCOPE)


@dataclass(frozen=True, kw_only=True)
class SimulateMicrographsOptions(SimulationOptions):
    """The keys of `job: simulate-micrographs`."""

    diameter: float = key("diameter of the particle", unit="Å", above=0, example=180.0, **WANTED)
    particles: float = key("particles on a micrograph, in the mean", minimum=0, example=120.0, **WANTED)
    size: tuple[int, ...] = key("width and height", (2048, 2048), unit="px", minimum=16, **WANTED)
    views: int = key("views of the specimen", 50, minimum=1, **WANTED)
    overlapping: float = key("fraction of particles that another overlaps", 0.1, minimum=0, maximum=1, **WANTED)
    aggregates: float = key("heaps of particles on a micrograph", 1.0, minimum=0, **WANTED)
    contamination: float = key("crystals of ice on a micrograph", 2.0, minimum=0, **WANTED)
    carbon: float = key("fraction of micrographs with an edge of carbon", 0.25, minimum=0, maximum=1, **WANTED)
    ice_gradient: float = key("change of the dose over a micrograph", 0.2, minimum=0, maximum=1, **WANTED)

    dose: float = key("electrons", 30.0, unit="1/Å²", above=0, **MICROSCOPE)


def run_particles(options: SimulateParticlesOptions, *, resume: bool, comm) -> str:
    """Simulate particles into options.output: "done". Collective. A run that is resumed begins anew."""
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles

    simulation = ParticleSimulation(**options.values())
    return _run(options, "simulate-particles", lambda tell: simulate_particles(
        simulation, options.output, tell, threads=options.threads), comm)


def run_micrographs(options: SimulateMicrographsOptions, *, resume: bool, comm) -> str:
    """Simulate micrographs into options.output: "done". Collective. A run that is resumed begins anew."""
    from vitrea.picker.simulate import MicrographSimulation, simulate_micrographs

    simulation = MicrographSimulation(**options.values())
    return _run(options, "simulate-micrographs", lambda tell: simulate_micrographs(
        simulation, options.output, tell, threads=options.threads), comm)


def check(options: SimulationOptions) -> list[str]:
    """Lines for `vitrea check`."""
    from vitrea.engine.simulate import ParticleSimulation
    from vitrea.picker.simulate import MicrographSimulation

    kind = ParticleSimulation if isinstance(options, SimulateParticlesOptions) else MicrographSimulation
    kind(**options.values())
    return [f"{options.n:,} at {options.pixel_size:g} Å/px, SNR {options.snr:g}"]


def _run(options: SimulationOptions, job: str, work: Callable[[Callable[[int, int], None]], object], comm) -> str:
    from vitrea.engine.comm import StopRequest, wait_for_all
    from vitrea.engine.log import RunLog

    def simulate() -> None:
        with RunLog(options.output, echo=True) as log:
            log.record("start", job=job, output=str(options.output), host=platform.node(), process=os.getpid(),
                       ranks=comm.size, options=options.as_dict())
            log.line(f"{job}   {options.output}   {options.n:,} at {options.pixel_size:g} Å/px, SNR {options.snr:g}")
            work(lambda done, n: None)
            log.record("done", n=options.n)
            log.line(f"done   {options.n:,}")

    mistake = None
    with StopRequest(comm=comm):   # it is not stopped half-way; what comes after it in a pipeline is
        if comm.rank == 0:
            try:
                simulate()
            except JobError as error:
                mistake = str(error)
        wait_for_all(comm=comm)
    if mistake := comm.bcast(mistake, root=0):
        raise JobError(mistake)
    return "done"

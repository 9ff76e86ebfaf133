"""The command simulate: particles or micrographs with known truth."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.jobs.commandline import DONE, Formatter, command, one_blas_thread, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `simulate` with its kinds."""
    simulate = commands.add_parser("simulate", help="make particles or micrographs with known truth",
                                   formatter_class=Formatter)
    kinds = simulate.add_subparsers(title="what", metavar="WHAT", required=True)
    particles = command(kinds, "particles", _simulate_particles,
                        "a stack of particles and its truth: particles.star, particles.mrcs, truth.star, views.mrcs",
                        "vitrea simulate particles --out sim --n 2000 --views 10 --box 64 --pixel-size 4 --snr 0.1 "
                        "--seed 1")
    _add_wanted(particles.add_argument_group("what is wanted"))
    _add_specimen(particles.add_argument_group("specimen (without either: a built-in asymmetric one)"))
    _add_optics(particles.add_argument_group("microscope"))
    micrographs = command(kinds, "micrographs", _simulate_micrographs,
                          "micrographs and their truth: micrographs.star, coordinates/, ignore/",
                          "vitrea simulate micrographs --out sim --n 10 --size 2048 2048 --pixel-size 2 "
                          "--diameter 180 --particles 120 --snr 0.05 --seed 1")
    _add_wanted_micrographs(micrographs.add_argument_group("what is wanted"))
    _add_specimen(micrographs.add_argument_group("specimen (without either: a built-in asymmetric one)"))
    _add_accidents(micrographs.add_argument_group("what else is met"))
    _add_microscope(micrographs.add_argument_group("microscope"))


def _add_wanted_micrographs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    keep = {"default": argparse.SUPPRESS}
    add("--out", type=Path, required=True, metavar="DIR", help="folder that the files are written to")
    add("--n", type=int, required=True, metavar="N", help="number of micrographs")
    add("--size", nargs=2, type=int, **keep, metavar=("W", "H"), help="width and height [px] (default 2048 2048)")
    add("--pixel-size", type=float, required=True, metavar="A", help="pixel size [Å/px]")
    add("--diameter", type=float, required=True, metavar="A", help="diameter of the particle [Å]")
    add("--particles", type=float, required=True, metavar="P", help="particles on a micrograph, in the mean")
    add("--snr", type=float, required=True, metavar="S",
        help="var(CTF-filtered signal over a box of diameter / 0.65) / var(shot noise)")
    add("--seed", type=int, **keep, metavar="K", help="start of every random draw (default 0)")
    add("--views", type=int, **keep, metavar="V", help="views of the specimen (default 50)")
    add("--threads", type=positive, metavar="T", help="threads; the images do not depend on it (default 1)")


def _add_accidents(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    keep = {"default": argparse.SUPPRESS, "type": float}
    add("--overlapping", **keep, metavar="F", help="fraction of particles that another overlaps (default 0.1)")
    add("--aggregates", **keep, metavar="N", help="heaps of 4 to 13 particles on a micrograph (default 1)")
    add("--contamination", **keep, metavar="N", help="crystals of ice on a micrograph (default 2)")
    add("--carbon", **keep, metavar="F", help="fraction of micrographs with an edge of carbon (default 0.25)")
    add("--ice-gradient", **keep, metavar="F", help="change of the dose over a micrograph (default 0.2)")


def _add_wanted(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    keep = {"default": argparse.SUPPRESS}
    add("--out", type=Path, required=True, metavar="DIR", help="folder that the files are written to")
    add("--n", type=int, required=True, metavar="N", help="number of particles")
    add("--views", type=int, required=True, metavar="V", help="number of views, equally populated")
    add("--box", dest="box_size", type=int, required=True, metavar="L", help="box [px]")
    add("--pixel-size", type=float, required=True, metavar="A", help="pixel size [Å/px]")
    add("--snr", type=float, required=True, metavar="S",
        help="var(CTF-filtered signal over the whole box) / var(noise)")
    add("--seed", type=int, **keep, metavar="K", help="start of every random draw (default 0)")
    add("--max-shift", type=float, **keep, metavar="PX", help="largest shift in x and in y [px] (default 3)")
    add("--stack-size", type=int, **keep, metavar="N", help="particles in a stack (default: all in one)")
    add("--threads", type=positive, metavar="T", help="threads; the images do not depend on it (default: the cores)")
    add("--motion", type=float, **keep, metavar="DEG",
        help="instead of turning the specimen about: its arm turns by DEG in all over the views, seen from one side")
    add("--junk", type=float, **keep, metavar="FRACTION",
        help="fraction of pure noise, off-centre particles and close neighbours, 0 to 1 (default 0)")


def _add_specimen(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    keep = {"default": argparse.SUPPRESS, "type": Path}
    one.add_argument("--map", dest="map_path", **keep, metavar="MAP.mrc", help="a density map")
    one.add_argument("--model", dest="model_path", **keep, metavar="FILE", help="atoms: .pdb or .cif, also .gz")


def _add_optics(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--no-ctf", dest="ctf", action="store_false", default=argparse.SUPPRESS, help="images without a CTF")
    add("--phase-shift", default=argparse.SUPPRESS, type=float, metavar="DEG",
        help="phase shift of a phase plate [degrees] (default 0)")
    _add_lens(group)


def _add_microscope(group: argparse._ArgumentGroup) -> None:
    _add_lens(group)
    group.add_argument("--dose", default=argparse.SUPPRESS, type=float, metavar="E",
                       help="electrons per Å² (default 30)")


def _add_lens(group: argparse._ArgumentGroup) -> None:
    keep = {"default": argparse.SUPPRESS, "type": float}
    add = group.add_argument
    add("--defocus", nargs=2, metavar=("MIN", "MAX"), **keep, help="underfocus [Å] (default 10000 25000)")
    add("--astigmatism", metavar="A", **keep, help="largest difference of the two defoci [Å] (default 500)")
    add("--voltage", metavar="KV", **keep, help="[kV] (default 300)")
    add("--cs", metavar="MM", **keep, help="spherical aberration [mm] (default 2.7)")
    add("--amplitude-contrast", metavar="Q", **keep, help="fraction (default 0.1)")


def _simulate_particles(arguments: argparse.Namespace) -> int:
    one_blas_thread()
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "out", "threads")}
    simulation = ParticleSimulation(**given)
    _require_no_simulation(arguments.out, _SIMULATED, "particles")
    simulate_particles(simulation, arguments.out, threads=arguments.threads or len(os.sched_getaffinity(0)))
    print(f"{simulation.n:,} particles of {simulation.views} views   box {simulation.box_size} px   "
          f"{simulation.pixel_size:.4g} Å/px   SNR {simulation.snr:.4g}")
    for pattern, words in _SIMULATED.items():
        found = list(arguments.out.glob(pattern))
        print(f"  {found[0] if len(found) == 1 else arguments.out / pattern!s:<40} {words}")
    return DONE


def _simulate_micrographs(arguments: argparse.Namespace) -> int:
    one_blas_thread()
    from vitrea.picker.simulate import MicrographSimulation, simulate_micrographs

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "out", "threads")}
    simulation = MicrographSimulation(**given)
    _require_no_simulation(arguments.out, _SIMULATED_MICROGRAPHS, "micrographs")
    counts = simulate_micrographs(simulation, arguments.out, threads=arguments.threads or 1)
    width, height = simulation.size
    print(f"{simulation.n:,} micrographs of {width} × {height} px   {simulation.pixel_size:.4g} Å/px   "
          f"{counts.sum():,} particles of {simulation.diameter:g} Å   SNR {simulation.snr:.4g}")
    for name, words in _SIMULATED_MICROGRAPHS.items():
        print(f"  {arguments.out / name!s:<40} {words}")
    return DONE


def _require_no_simulation(folder: Path, patterns: dict[str, str], what: str) -> None:
    """What somebody may be working with is never replaced in passing."""
    held = [path.name for pattern in patterns for path in folder.glob(pattern)]
    if held:
        raise JobError(f"{folder}: this folder already holds simulated {what} ({held[0]}); expected a new or empty "
                       "one; choose another --out, or remove the folder first")


_SIMULATED = {
    "particles.star": "the particles, for a job's input",
    "particles*.mrcs": "their images",
    "truth.star": "view, angle and shift of each, for vitrea compare",
    "views.mrcs": "the noise-free views",
}
_SIMULATED_MICROGRAPHS = {
    "micrographs.star": "the micrographs with their CTF, for a job's input",
    "coordinates": "centres of clean particles: labels, and the truth for vitrea compare",
    "ignore": "discs where picking is neither right nor wrong: cut, overlapping, aggregated",
}

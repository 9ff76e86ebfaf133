"""Commands for life with other programs: `vitrea convert`, `vitrea from-relion`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitrea.engine.errors import JobError
from vitrea.jobs.commandline import DONE, command, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `vitrea`."""
    convert = command(commands, "convert", _convert, "convert particles and coordinates: RELION, cryoSPARC, EMAN",
                      "vitrea convert J12_particles.cs J12_passthrough_particles.cs particles.star\n"
                      "  vitrea convert runs/first classes.cs\n"
                      "  vitrea convert particles.star particles.h5 --dtype float16\n"
                      "  vitrea convert mic1.box mic1.star")
    add = convert.add_argument
    add("input", type=Path, nargs="+", metavar="IN", help="a particle STAR file (RELION 3.0 to 5), a .cs file and its "
        "passthrough files, the folder of a run; or the coordinates of one micrograph: .star, .box, .cbox, .csv, .tsv, "
        "EMAN2's .json (info) and .hdf (particle stack)")
    add("output", type=Path, metavar="OUT", help="what is written: particles as .star, .cs or, with "
        "their images, .h5; coordinates as .star, .box, .cbox, .csv or .json")
    add("--star", choices=("3.1", "3.0"), default="3.1", help="RELION's version of the STAR file; 4 and 5 read 3.1 "
        "(default 3.1)")
    add("--box", type=positive, metavar="PX", help=".box and .cbox: side of a box")
    add("--invert-y", action="store_true", help=".cs: count micrograph coordinates from the other end, as for "
        "micrographs that another program's motion correction made")

    add("--dtype", choices=("float32", "float16"), default="float32", help=".h5: how the images are kept (default "
        "float32); float16 takes half the room, for particles that are normalised")

    relion = command(commands, "from-relion", _from_relion, "write the job file that a relion_refine command asks for",
                     'vitrea from-relion "relion_refine --i particles.star --o Class2D/job005/run --K 50 '
                     '--particle_diameter 180 --ctf --iter 25 --tau2_fudge 2" > job.yaml')
    relion.add_argument("words", metavar="COMMAND", nargs="?", help="the command, in quotes; read from standard "
                        "input if left out")


def _convert(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.convert import convert

    for line in convert(arguments.input, arguments.output, star=arguments.star, box=arguments.box,
                        invert_y=arguments.invert_y, dtype=arguments.dtype):
        print(f"  {line}")
    return DONE


def _from_relion(arguments: argparse.Namespace) -> int:
    from vitrea.jobs.from_relion import as_job_file, translate

    words = arguments.words if arguments.words is not None else sys.stdin.read()
    if not words.strip():
        raise JobError("from-relion: no command was given; expected it in quotes, or on standard input; see "
                       "note.txt in RELION's job folder")
    translation = translate(words)
    print(as_job_file(translation), end="")
    if translation.ranks:
        print(f"run it with: mpiexec -n {translation.ranks} vitrea run job.yaml", file=sys.stderr)
    for told in translation.told:
        print(told, file=sys.stderr)
    return DONE

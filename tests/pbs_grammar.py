"""What qsub takes, written down from the manual pages qsub(1B) of OpenPBS 22 and of Torque 4: no PBS ran here."""
import re

VALUE = r"[^\s:,+=]+"
CHUNK = rf"{VALUE}={VALUE}(:{VALUE}={VALUE})*"
CLOCK = r"(\d+:)?[0-5]?\d:[0-5]\d|\d+"
SIZE = r"\d+(b|kb|mb|gb|tb|w|kw|mw|gw|tw)"
COMMON = {
    "-N": r"[A-Za-z][!-~]{0,14}",           # no blanks, a letter first, 15 characters (PBS Pro < 14, Torque)
    "-q": r"[^\s@]+(@\S+)?",
    "-A": r"\S+",
    "-j": r"oe|eo|n",
    "-r": r"[yn]",
}
PBS = COMMON | {
    "-l": rf"select=(\d+:)?{CHUNK}(\+(\d+:)?{CHUNK})*"
          r"|place=(free|pack|scatter|vscatter)(:(excl|shared|exclhost))?(:group=\S+)?"
          rf"|walltime=({CLOCK})",
    "-J": r"\d+-\d+(:\d+)?(%\d+)?",
}
TORQUE = COMMON | {
    "-l": rf"nodes=\d+:ppn=\d+|walltime=({CLOCK})|mem={SIZE}",
    "-t": r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?",
    "-n": r"",
}
CHUNK_SIZES = rf"mem={SIZE}"


def mistakes(text, grammar):
    """Directives of a script that qsub would refuse; directives end at the first line that is neither a comment nor
    empty."""
    found, directives = [], 0
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in lines[1:]:
        if not line.startswith("#") and line.strip():
            break
        if not line.startswith("#PBS"):
            continue
        directives += 1
        option, _, value = line.removeprefix("#PBS ").partition(" ")
        if option not in grammar or not re.fullmatch(grammar[option], value):
            found.append(line)
        found += [line for part in value.split(":") if part.startswith("mem=") and not re.fullmatch(CHUNK_SIZES, part)]
    assert directives > 3
    late = [line for line in lines[lines.index(next(x for x in lines[1:] if not x.startswith("#"))):]
            if line.startswith(("#PBS", "#SBATCH"))]
    return found + late

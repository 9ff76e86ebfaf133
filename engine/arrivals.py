"""What has arrived for a run that takes in particles or micrographs while it goes on: one STAR file in its folder.

Everything new is appended to it in rounds, file by file in the order of their names, so that the file is the order in
which the run has seen its data, whatever happened when. It is written whole or not at all; besides the table that the
jobs read it has one of the files that were taken in (data_arrivals), by which a changed one is known.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import from_here
from vitrea.engine.outputs import carried, optics_columns
from vitrea.engine.particles import read_particles
from vitrea.engine.star import read_star, write_star

LIST_NAME = "arrived.star"
ROUND = "vitreaRound"
ARRIVALS = {"vitreaArrivalName": str, "vitreaArrivalBytes": int, "vitreaArrivalModified": int,
            "vitreaArrivalItems": int, ROUND: int}
GROUP = "rlnOpticsGroup"
COMMENT = "What has arrived, in the order in which the run took it in."


@dataclass(frozen=True)
class Arrival:
    """A file that was taken in: its name, size [bytes], time of the last change [ns], new items in it, the round."""

    name: str
    size: int
    modified: int
    items: int
    round: int


@dataclass(frozen=True)
class Arrived:
    """All that has arrived. kind: the block, "particles" or "micrographs"; optics and items {label: str array};
    arrivals: in their order."""

    kind: str
    optics: Mapping[str, np.ndarray]
    items: Mapping[str, np.ndarray]
    arrivals: tuple[Arrival, ...]

    def __len__(self):
        return len(next(iter(self.items.values()), ()))

    @property
    def rounds(self):
        """Rounds so far."""
        return max((arrival.round for arrival in self.arrivals), default=0)

    def marks(self):
        """{name: (size, modified)} of the files as they were taken in last."""
        return {arrival.name: (arrival.size, arrival.modified) for arrival in self.arrivals}


def read_arrived(folder, kind):
    """Arrived of a run folder, empty if nothing has; JobError if its list is not as it was written."""
    path = Path(folder) / LIST_NAME
    if not path.exists():
        return Arrived(kind, {}, {}, ())
    blocks = read_star(path)
    try:
        table = blocks["arrivals"]
        columns = [table[label].astype(kept) for label, kept in ARRIVALS.items()]
        arrivals = tuple(Arrival(*row) for row in zip(*(column.tolist() for column in columns)))
        return Arrived(kind, blocks.get("optics", {}), blocks.get(kind, {}), arrivals)
    except (KeyError, ValueError) as error:
        raise JobError(f"{path}: cannot be read as the list of what has arrived ({error}); expected the file that "
                       "vitrea wrote; bring back a copy, or start a new run with another output") from error


def write_arrived(folder, arrived, name=LIST_NAME):
    """Write the list into a run folder, whole or not at all."""
    rows = [(each.name, each.size, each.modified, each.items, each.round) for each in arrived.arrivals]
    blocks = {"optics": dict(arrived.optics)} if arrived.optics else {}
    blocks |= {arrived.kind: dict(arrived.items)} if len(arrived) else {}
    blocks["arrivals"] = {label: np.array(column) for label, column in zip(ARRIVALS, zip(*rows))}
    write_star(Path(folder) / name, blocks, comment=COMMENT)


def with_micrograph(arrived, path, number):
    """Arrived with a micrograph appended, in round `number`; one that is listed is only noted as it is now."""
    arrival = _arrival(path, 1, number)
    known = arrived.items.get("rlnMicrographName", np.zeros(0, "U1"))
    new = arrival.name not in known.tolist()
    if not new:
        arrival = replace(arrival, items=0)
    names = np.concatenate([known, [arrival.name]]) if new else known
    return replace(arrived, items={"rlnMicrographName": names}, arrivals=(*arrived.arrivals, arrival))


def with_particles(arrived, path, number):
    """(Arrived with the particles of a STAR file appended that it does not list yet, in round `number`; the
    ParticleTable of the file).

    Raises JobError, of the file, if it cannot be read, if a stack is missing or cut short, or if its particles do not
    belong to those that there are: other boxes or pixels, or with a CTF where the others have none.
    """
    mark = _arrival(path, 0, number)
    table = read_particles(path)
    optics, items = _columns(table)
    _require_alike(path, arrived, optics, items)
    fresh = ~np.isin(items["rlnImageName"], arrived.items.get("rlnImageName", []))
    merged, group = _merged(arrived.optics, optics)
    items[GROUP] = group[np.searchsorted(optics[GROUP].astype(np.int64), items[GROUP].astype(np.int64))].astype(str)
    items[ROUND] = np.full(len(table), number).astype(str)
    items = {label: values[fresh] for label, values in items.items()}
    arrival = replace(mark, items=int(fresh.sum()), round=number if fresh.any() else arrived.rounds)
    return Arrived(arrived.kind, merged if fresh.any() else arrived.optics, _appended(arrived.items, items),
                   (*arrived.arrivals, arrival)), table


def round_ends(rounds):
    """int64[R]: how many particles there are after each round, from the rounds int[N] of the particles, in order."""
    return np.cumsum(np.bincount(rounds)[1:])


def _arrival(path, items, number):
    status = Path(path).stat()
    return Arrival(from_here(Path(path).absolute()), status.st_size, status.st_mtime_ns, items, number)


def _columns(table):
    """(optics, items) of a ParticleTable as words, its image names seen from here, its optics groups those in use."""
    used = np.unique(table.optics_index)
    optics = {label: _words(np.asarray(values))[used] for label, values in optics_columns(table).items()}
    order = np.argsort(optics[GROUP].astype(np.int64))
    optics = {label: values[order] for label, values in optics.items()}
    rows = np.arange(len(table))
    names = [from_here(stack) for stack in table.stacks]
    items = {label: _words(values) for label, values in carried(table, rows).items()}
    items["rlnImageName"] = np.array([f"{section + 1:06d}@{names[stack]}" for section, stack in zip(
        table.section.tolist(), table.stack_index.tolist())])
    items[GROUP] = _words(np.array([group.number for group in table.optics])[table.optics_index])
    if table.origin.any():
        items |= {"rlnOriginXAngst": _words(table.origin[:, 1]), "rlnOriginYAngst": _words(table.origin[:, 0])}
    return optics, items


def _words(values):
    """A column as str array; numbers with all their digits."""
    return values if values.dtype.kind == "U" else np.array([repr(value) for value in values.tolist()])


def _require_alike(path, arrived, optics, items):
    if not len(arrived):
        sizes = {(optics["rlnImageSize"][i], optics["rlnImagePixelSize"][i]) for i in range(len(optics[GROUP]))}
        known, ctf = next(iter(sizes)), "rlnDefocusU" in items
    else:
        known = arrived.optics["rlnImageSize"][0], arrived.optics["rlnImagePixelSize"][0]
        ctf = "rlnDefocusU" in arrived.items
    for box, pixel in zip(optics["rlnImageSize"], optics["rlnImagePixelSize"]):
        if int(box) != int(known[0]) or float(pixel) != float(known[1]):
            raise JobError(f"{path}: found boxes of {box} px of {float(pixel):.4g} Å; expected {known[0]} px of "
                           f"{float(known[1]):.4g} Å, as the particles before; extract them alike")
    if ("rlnDefocusU" in items) != ctf:
        raise JobError(f"{path}: found particles {'without' if ctf else 'with'} _rlnDefocusU; expected them "
                       f"{'with' if ctf else 'without'}, as the particles before; write them alike")


def _merged(known, optics):
    """(optics with the groups appended that are not in `known`, int64[g]: their numbers for those of `optics`)."""
    labels = [label for label in (known or optics) if label != GROUP]
    kinds = list(zip(*(known[label].tolist() for label in labels))) if known else []
    numbers = []
    for kind in zip(*(optics.get(label, np.full(len(optics[GROUP]), "0")).tolist() for label in labels)):
        if kind not in kinds:
            kinds.append(kind)
        numbers.append(kinds.index(kind) + 1)
    columns = {label: np.array(column) for label, column in zip(labels, zip(*kinds))}
    return {GROUP: np.arange(1, len(kinds) + 1).astype(str), **columns}, np.array(numbers)


def _appended(known, items):
    """The columns of `known`, or of `items` if there are none, with those of `items` after them; 0 where a later file
    lacks one."""
    if not known:
        return items
    n = len(items["rlnImageName"])
    return {label: np.concatenate([column, items.get(label, np.full(n, "0"))]) for label, column in known.items()}

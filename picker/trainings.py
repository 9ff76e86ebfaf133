"""The trainings of a run in its checkpoint: those that have ended, and the one at work with its optimiser's state.

Every draw of a training is numbered by step and place in the batch (picker/labels.py), so that a State is all that is
needed to go on to the same bits, on any number of ranks. All ranks hold the same State; rank 0 writes it, by its clock.
"""
import hashlib
import json
import time
from dataclasses import fields
from pathlib import Path

import numpy as np

from vitrea.engine.checkpoint import NAME, read_checkpoint, write_checkpoint
from vitrea.engine.errors import JobError
from vitrea.picker.training import State

CHECKPOINT_SECONDS = 20.0   # between two checkpoints
PARTS = ("parameters", "statistics", "first", "second")
EXPECTED = {"kind": "trainings"}


class Trainings:
    """The trainings of a run by name. Made by all ranks together; JobError if the checkpoint cannot be read."""

    def __init__(self, folder, *, resume, comm):
        self._path, self._writes, self._courses = Path(folder) / NAME, comm.rank == 0, {}
        found = mistake = None
        if resume and self._writes:
            try:
                found = _read(self._path)
            except JobError as error:
                mistake = str(error)
        found, mistake = comm.bcast((found, mistake), root=0)
        if mistake:
            raise JobError(mistake)
        self._courses.update(found or {})
        self._written = time.monotonic()

    def begun(self, name, digest):
        """(State, losses so far) of a training that was begun with the same digest; (None, []) of any other."""
        state, losses, known = self._courses.get(name, (None, [], None))
        return (state, list(losses)) if known == digest else (None, [])

    def keep(self, name, digest, state, losses):
        """Take the State after a step; now and then, write all there are."""
        self._courses[name] = (state, losses, digest)
        if self._writes and time.monotonic() - self._written > CHECKPOINT_SECONDS:
            self.write()

    def write(self):
        """Write the checkpoint, on rank 0; JobError if that fails."""
        if self._writes and self._courses:
            arrays, about = {}, {}
            for name, (state, losses, digest) in self._courses.items():
                arrays |= {f"{name}|{part}|{key}": values for part, of in zip(PARTS, _parts(state))
                           for key, values in of.items()} | {f"{name}|losses|": np.array(losses)}
                about[name] = {"step": state.step, "digest": digest}
            write_checkpoint(self._path, arrays, EXPECTED | {"trainings": json.dumps(about)})
        self._written = time.monotonic()


def digest_of(training, network, diameter, recipe, seed):
    """What decides every bit of a training, as a text: its LabelledMicrographs, network, recipe and seed."""
    digest = hashlib.sha256(repr((network, diameter, recipe, seed)).encode())
    for each in training:
        for field in fields(each):
            value = getattr(each, field.name)
            if isinstance(value, np.ndarray):
                digest.update(repr((field.name, value.shape)).encode())
                digest.update(np.ascontiguousarray(value))
            else:
                digest.update(repr((field.name, value)).encode())
    return digest.hexdigest()


def _parts(state):
    return state.parameters, state.statistics, *state.moments


def _read(path):
    """{name: (State, losses, digest)} of a checkpoint."""
    arrays, attributes = read_checkpoint(path, EXPECTED)
    courses = {}
    for name, about in json.loads(attributes["trainings"]).items():
        own = {part: {} for part in PARTS} | {"losses": {}}
        for key, values in arrays.items():
            training, part, tensor = key.rsplit("|", 2)
            if training == name:
                own[part][tensor] = values
        losses = own["losses"][""].tolist()
        courses[name] = (State(own["parameters"], own["statistics"], (own["first"], own["second"]), about["step"],
                               losses[-1]), losses, about["digest"])
    return courses

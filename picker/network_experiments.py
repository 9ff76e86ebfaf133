"""The laboratory's experiments on the picker's own network and labelled micrographs: Procedures of `job: dynamics`.

They are those of engine/network_experiments.py on another landscape (picker/landscape.py). The first two thirds of the
micrographs are trained on, the others tested on. Cells are smaller than those of the digits: an epoch has few parts.
"""
from vitrea.engine.dynamics import Procedure
from vitrea.engine.dynamics_networks import Cell, Expected, noise_table
from vitrea.engine.errors import JobError
from vitrea.engine.network_experiments import (
    branching_result,
    cells_of,
    draw_branching,
    draw_noise,
    judge_claims,
    noise_result,
    study_of,
)
from vitrea.picker.landscape import PickerLandscape
from vitrea.picker.micrographs import Preparation
from vitrea.picker.network import PRESETS
from vitrea.picker.options import PickTrainOptions
from vitrea.picker.pick_train import load_labels

NETWORK = "vitrea"
CELLS = (Cell(0.1, 6), Cell(0.1, 1), Cell(0.3, 6), Cell(0.3, 1), Cell(0.2, 1), Cell(0.6, 1), Cell(0.1, 6, fresh=True))
BRANCHING_CELLS = (Cell(0.1, 1), Cell(0.6, 1))
EXPECTED = Expected(quiet=(0.1, 6), good=(0.3, 1), loud=(0.6, 1), early=(0.1, 1), late=(0.6, 1))
REPEATS, PARENTS = 4, 2
BRANCH_TIMES = (0.0, 5.0, 20.0)
TESTED = 3               # every third micrograph


def landscape_of(options, log, *, comm):
    """PickerLandscape of a job's labelled micrographs. Collective. JobError if they are fewer than three."""
    network = PRESETS[NETWORK]
    preparation = Preparation.of(network, options.diameter)
    keys = PickTrainOptions(input=options.input, output=options.output, coordinates=options.coordinates,
                            diameter=options.diameter)
    labels = load_labels(keys, preparation, log, comm=comm)
    if len(labels) < TESTED:
        raise JobError(f"{options.coordinates}: labels for {len(labels)} micrographs; expected at least {TESTED}, to "
                       "train on some and test on others; label more")
    held = len(labels) // TESTED
    return PickerLandscape(network, labels[held:], labels[:held], options.diameter / preparation.pixel_size,
                           parts=options.parts, tests=options.tests, seed=options.seed)


def _measure_noise(laboratory):
    options = laboratory.options
    landscape = landscape_of(options, laboratory.log, comm=laboratory.comm)
    rows = noise_table(laboratory, study_of(options, landscape), cells_of(options, CELLS), options.repeats or REPEATS)
    return rows and noise_result(rows, landscape, EXPECTED)


def _measure_branching(laboratory):
    options = laboratory.options
    landscape = landscape_of(options, laboratory.log, comm=laboratory.comm)
    return branching_result(laboratory, study_of(options, landscape), cells_of(options, BRANCHING_CELLS),
                            options.repeats or PARENTS, EXPECTED, BRANCH_TIMES)


def _outlook(cells, repeats):
    def lines(options):
        return [f"network     {NETWORK}, {options.parts} parts of tiles; {len(cells_of(options, cells))} cells × "
                f"{options.repeats or repeats} descents over a learning time of {options.learning_time:g}"]
    return lines


PICKER_NOISE = Procedure(_measure_noise, judge_claims, draw_noise, _outlook(CELLS, REPEATS))
PICKER_BRANCHING = Procedure(_measure_branching, judge_claims, draw_branching, _outlook(BRANCHING_CELLS, PARENTS))

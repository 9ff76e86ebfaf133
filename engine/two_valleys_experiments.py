"""The experiments of `job: dynamics` on the two-valley model: what each simulates, its verdict, and its picture."""
from pathlib import Path

import numpy as np

from vitrea.engine.dynamics import Procedure
from vitrea.engine.two_valleys import Landscape
from vitrea.engine.two_valleys_ensemble import Cell, Setting, simulate
from vitrea.kernels.langevin import CROSSED, X, Y

PAPER_GRID = tuple(float(value) for value in np.logspace(-2, -1, 10))   # of learning rates and of noise strengths


def _setting(options, trajectories, start_y, marks=()):
    return Setting(Landscape.of(options), options.trajectories or trajectories, options.start_y or start_y,
                   options.noise_power, options.seed, marks)


# ---- phase diagram

def _phase_cells(options):
    steps = options.iterations or 20_000
    return [Cell(rate, noise, steps) for rate in options.learning_rates or PAPER_GRID
            for noise in options.noise_strengths or PAPER_GRID]


def _measure_phases(laboratory):
    options = laboratory.options
    cells, setting = _phase_cells(options), _setting(options, 2000, 5.0)
    ends = simulate(cells, setting, laboratory)
    if ends is None:
        return None
    found = [{"learning_rate": cell.learning_rate, "noise_strength": cell.noise_strength,
              "p_flat": float((state[X] >= 0).mean()),
              "normalised_freezing_time": float(cell.learning_rate * state[CROSSED].mean()),
              "y_end": float(state[Y].mean())}
             for cell, state in zip(cells, ends["state"])]
    return {"trajectories": setting.trajectories, "iterations": cells[0].steps, "start_y": setting.start_y,
            "cells": found}


def _judge_phases(result):
    weakest, strongest = (min(result["cells"], key=_effective), max(result["cells"], key=_effective))
    return [f"from the weakest to the strongest noise P_flat goes from {weakest['p_flat']:.3f} to "
            f"{strongest['p_flat']:.3f}, the freezing time η t_f from {weakest['normalised_freezing_time']:.2f} to "
            f"{strongest['normalised_freezing_time']:.2f}"]


def _effective(cell):
    return cell["learning_rate"] * cell["noise_strength"]


def _draw_phases(result, path: Path):
    from matplotlib.figure import Figure

    rates = sorted({cell["learning_rate"] for cell in result["cells"]})
    noises = sorted({cell["noise_strength"] for cell in result["cells"]})
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, name, words in zip(figure.subplots(1, 2), ("p_flat", "normalised_freezing_time"),
                                 ("fraction in the flat valley", "freezing time η t_f")):
        values = np.full((len(rates), len(noises)), np.nan)
        for cell in result["cells"]:
            values[rates.index(cell["learning_rate"]), noises.index(cell["noise_strength"])] = cell[name]
        shown = axes.imshow(values, origin="lower", aspect="auto")
        axes.set_xticks(range(len(noises)), [f"{noise:.3g}" for noise in noises], rotation=60)
        axes.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
        axes.set(xlabel="noise strength σ", ylabel="learning rate η", title=words)
        figure.colorbar(shown, ax=axes)
    figure.savefig(path, format="png", dpi=120)


def _outlook(cells_of, trajectories):
    def lines(options):
        cells = cells_of(options)
        count = options.trajectories or trajectories
        steps = sum(cell.steps for cell in cells) * count
        return [f"ensemble    {len(cells)} cells of {count:,} trajectories   {steps:.3g} steps in all, about "
                f"{steps / STEPS_PER_SECOND:,.0f} s of one core"]
    return lines


STEPS_PER_SECOND = 4e7   # of one core, along the diagonal; for outlooks only

PHASE_DIAGRAM = Procedure(_measure_phases, _judge_phases, _draw_phases, _outlook(_phase_cells, 2000))

"""Compile the kernels before the particles are read: once a machine, by one rank, with a word in the log.

numba keeps what it compiled on disk. Without this every rank would compile for itself at its first block, for half a
minute in which the log says nothing.
"""
import time
from pathlib import Path

import numpy as np

from vitrea.engine.expectation import Search, Workspace, expect
from vitrea.engine.scoring import Particles, make_templates
from vitrea.engine.search import make_level
from vitrea.kernels import harmonic
from vitrea.kernels.packed import PackedTable
from vitrea.kernels.polar import PolarGrid, PolarSynthesis

WORTH_SAYING = 3.0   # s


def compile_kernels(log, *, comm):
    """Run one tiny E step, on rank 0 first so that the others find its work on disk. Collective."""
    begin = time.perf_counter()
    if not list(Path(harmonic.__file__).parent.glob("__pycache__/harmonic.*.nbc")):
        log.line("compiling the kernels, about a minute, once after an installation")
    if comm.rank == 0:
        tiny_expectation()
    comm.Barrier()
    if comm.rank != 0:
        tiny_expectation()
    seconds = time.perf_counter() - begin
    if seconds > WORTH_SAYING:
        log.line(f"kernels compiled in {seconds:.0f} s, kept for the next run")


def tiny_expectation():
    """The E step of three particles against two classes, on two levels, with an astigmatic CTF: every kernel once."""
    grid, n_terms, random = PolarGrid(16, 6, 5.0), 2, np.random.default_rng(0)
    shape = (5, grid.size)
    coefficients = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
    references, images = coefficients[:2], PackedTable.of(coefficients[2:], grid)
    fine, coarse = (make_templates(make_level(grid, 2.0, step, 30.0), references, np.full(2, 0.5), 1.0, n_terms)
                    for step in (1.0, 2.0))
    ctf2 = np.ones((3, n_terms, grid.n_rings), dtype=np.complex64)
    particles = Particles(images, np.arange(3), ctf2, np.ones(grid.n_rings), np.ones(3, np.float32))
    search = Search(fine, coarse, 0.999)
    expect(particles, search, Workspace(search))
    PolarSynthesis(grid).images(references)

"""What ranks do together, on the ranks of the test run itself (1, 2 and 4 in `make test`)."""
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vitrea.engine.checkpoint import PARTICLE
from vitrea.engine.comm import (
    StopRequest,
    check_allocation,
    check_launcher,
    gather_rows,
    largest_over_ranks,
    spoils_starts,
    sum_over_ranks,
)
from vitrea.engine.em import Pass
from vitrea.engine.errors import JobError
from vitrea.engine.expectation import Search
from vitrea.engine.model import Model
from vitrea.engine.scoring import make_templates
from vitrea.engine.search import make_level
from vitrea.engine.shards import Block, Shard, share_of
from vitrea.kernels.exact import quantum, to_quanta
from vitrea.kernels.polar import PolarGrid

GRID = PolarGrid(24, 8, 8.0)
N_BLOCKS, BLOCK = 7, 6


def noise(seed, *shape):
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


@pytest.mark.mpi
def test_sums_of_quanta_are_the_same_bits_on_any_number_of_ranks(comm):
    terms = to_quanta(np.random.default_rng(0).normal(size=(1000, 5)), quantum(1e4))
    mine = terms[share_of(1000, comm.rank, comm.size)].sum(axis=0)
    np.testing.assert_array_equal(sum_over_ranks(mine, comm=comm), terms.sum(axis=0))


@pytest.mark.mpi
def test_the_largest_of_an_empty_share_is_the_neutral_element(comm):
    mine = np.full(3, 5.0) if comm.rank == comm.size - 1 else np.zeros(3)
    np.testing.assert_array_equal(largest_over_ranks(mine, comm=comm), np.full(3, 5.0))


@pytest.mark.mpi
def test_records_of_all_ranks_arrive_in_the_order_of_ranks(comm):
    mine = np.zeros(comm.rank, dtype=PARTICLE)   # the first rank has none
    mine["row"], mine["psi"] = comm.rank, comm.rank / 3
    everything = gather_rows(mine, comm=comm)
    if comm.rank:
        assert everything is None
        return
    expected = np.repeat(np.arange(comm.size), np.arange(comm.size))
    np.testing.assert_array_equal(everything["row"], expected)
    np.testing.assert_allclose(everything["psi"], expected / 3)


@pytest.mark.mpi
def test_a_signal_to_the_last_rank_stops_every_rank(comm):
    with StopRequest(comm=comm) as stop:
        assert not stop.agreed()
        if comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 20
        while not stop.asked():
            assert time.monotonic() < until, "no word of the signal came"
            time.sleep(0.01)
        assert stop.agreed()
        assert stop.reason == "SIGUSR1"


def pass_over(blocks, comm):
    """One E step over `blocks` of noise with fixed references: (Totals, poses of the particles by row)."""
    geometry = SimpleNamespace(grid=GRID, ctf_terms=1, mask_fraction=0.5, box_size=GRID.box_size)
    shard = Shard.allocate(blocks, geometry)
    for i, block in enumerate(blocks):
        kept = np.full((BLOCK, 1, 8), 0.7, np.complex64), np.full((BLOCK, 8), 1.3, np.float32)
        shard.put(i, shard.of_block(i), noise(1, N_BLOCKS * BLOCK, GRID.size)[block.rows], *kept, GRID)
    options = SimpleNamespace(threads=1, norm_correction=True, offset_range=2.0)
    model = Model(noise(2, 3, GRID.size), np.ones((1, 8)), np.ones((3, 8)), np.ones((3, 8)), np.full(3, 1 / 3), 2.0, 8)
    one = make_templates(make_level(GRID, 2.0, 1.0, 20.0), model.references, model.class_prior, 2.0, 1)
    run = Pass(shard, geometry, options, np.full(8, 10.0), N_BLOCKS * BLOCK, comm=comm)
    totals = run.run(model, Search(one, None, 0.999))
    run.normalise_scale(totals)
    return totals, dict(zip(shard.rows.tolist(), zip(run.poses.class_number, run.poses.psi, run.scale)))


@pytest.mark.mpi
def test_an_e_step_over_these_ranks_gives_the_bits_of_one_rank(comm):
    from mpi4py import MPI

    blocks = [Block(i, 0, np.arange(BLOCK * i, BLOCK * (i + 1))) for i in range(N_BLOCKS)]
    together, mine = pass_over(blocks[share_of(N_BLOCKS, comm.rank, comm.size)], comm)
    alone, everyone = pass_over(blocks, MPI.COMM_SELF)
    for found, expected in zip(together.arrays(), alone.arrays()):
        np.testing.assert_array_equal(found, expected)
    assert together.particles == N_BLOCKS * BLOCK
    for row, entry in mine.items():
        assert entry == everyone[row]


def test_a_launcher_of_another_mpi_is_refused_with_a_sentence():
    with pytest.raises(JobError, match=r"the launcher started 4 ranks \(PMI_SIZE\), but each of them sees only itself"):
        check_launcher(1, {"PMI_SIZE": "4"}, "Open MPI v5")
    check_launcher(4, {"PMI_SIZE": "4"}, "MPICH")
    check_launcher(1, {"PMI_SIZE": "1", "SLURM_NTASKS": "8"}, "MPICH")


ALLOCATED = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(("size", "environment"), [
    (1, {}), (8, ALLOCATED | {"PMI_SIZE": "8"}), (4, ALLOCATED | {"SLURM_STEP_NUM_TASKS": "4"}),
    (1, ALLOCATED | {"SLURM_STEP_NUM_TASKS": "1"}), (1, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}),
    (16, ALLOCATED | {"PMI_SIZE": "16", "SLURM_OVERCOMMIT": "1"}), (1, {"SLURM_NTASKS": "8"})])
def test_ranks_that_fit_the_allocation_are_let_pass(size, environment):
    check_allocation(size, environment)


@pytest.mark.parametrize(("size", "environment", "words"), [
    (1, ALLOCATED, "the allocation has 8 tasks .SLURM_NTASKS., but vitrea was started once, without a launcher; exp"),
    (16, ALLOCATED | {"PMI_SIZE": "16"}, "16 ranks were started, but the allocation has 8 tasks")])
def test_ranks_that_do_not_fit_the_allocation_are_refused(size, environment, words):
    with pytest.raises(JobError, match=words):
        check_allocation(size, environment)


BOTH = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\n"
SLURM = {"SLURM_STEP_ID": "0", "PMI_FD": "11"}


@pytest.mark.parametrize(("library", "environment", "spoilt"), [
    (BOTH, SLURM, True),
    (BOTH, {"PMI_FD": "9"}, False),   # its own mpiexec
    (BOTH, {"SLURM_JOB_ID": "1", "PMI_FD": "9"}, False),   # its own mpiexec in an allocation
    (BOTH.replace(" ofi", ""), SLURM, False),   # there is nothing to choose: it would not start at all
    (BOTH.replace("ch4:ucx ", "ch4:"), SLURM, False),
    ("Open MPI v5.0.11", SLURM, False),
])
def test_mpich_started_by_slurm_goes_by_the_network_module_that_starts(library, environment, spoilt):
    assert spoils_starts(library, environment) is spoilt

"""Particles in scratch: the same bits as in memory, on any ranks and after any end; little memory, and nothing left."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitrea.benchmarks import streaming
from vitrea.engine import classify2d, plan
from vitrea.engine.errors import JobError
from vitrea.engine.log import read_records
from vitrea.engine.minibatches import Schedule
from vitrea.engine.options import Classify2dOptions
from vitrea.engine.particles import read_particles
from vitrea.engine.shards import LARGEST_BLOCK, make_blocks
from vitrea.engine.storage import InMemory, InScratch, Kept, Scratch, ScratchRows, record_type
from vitrea.jobs import cli
from vitrea.kernels.packed import PackedTable
from vitrea.kernels.polar import PolarGrid

GEOMETRY = SimpleNamespace(grid=PolarGrid(48, 20, 18.0), ctf_terms=3)
RESULT_FILES = ("run_data.star", "run_model.star", "run_classes.mrcs")
JOB = """\
job: classify2d
input: {stacks}/mixed.star
output: {output}
n_classes: 6
particle_diameter: 140
algorithm: minibatch
minibatch_size: 100
minibatch_iterations: 3
max_iterations: 4
storage: {storage}
scratch: scratch
"""


def some_kept(n, seed=0):
    random, grid = np.random.default_rng(seed), GEOMETRY.grid
    coefficients, ctf2 = (random.normal(size=(n, *shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
                          for shape in ((grid.size,), (3, grid.n_rings)))
    power = random.random((n, grid.n_rings), dtype=np.float32)
    return Kept(PackedTable.of(coefficients, grid), np.arange(n), ctf2, power)


def arrays(kept):
    return kept.table.quanta[kept.rows], kept.table.unit[kept.rows], kept.ctf2, kept.power


# ---- one rank's file

@pytest.mark.parametrize("local", [range(40), range(7, 20), [3, 4, 5, 11, 12, 30, 2, 2], []])
def test_what_is_put_is_taken_in_any_order_and_of_memory_and_scratch_alike(tmp_path, local):
    kept, order, local = some_kept(40), np.random.default_rng(1).permutation(40), np.array(local, dtype=int)
    for storage in (InMemory(40, GEOMETRY), InScratch(40, GEOMETRY, tmp_path)):
        for places in np.split(order, [9, 31]):
            storage.put(places, Kept(kept.table, places, kept.ctf2[places], kept.power[places]))
        for found, expected in zip(arrays(storage.take(local)), arrays(kept)):
            np.testing.assert_array_equal(found, expected[local])
        assert storage.nbytes == 40 * record_type(GEOMETRY).itemsize


def test_the_file_has_no_name_and_its_bytes_are_there_before_the_first_particle(tmp_path):
    storage = InScratch(1000, GEOMETRY, tmp_path)
    assert not list(tmp_path.iterdir())
    status = os.fstat(storage.file)
    assert status.st_blocks * 512 >= status.st_size == storage.nbytes


def test_a_full_disk_is_a_sentence_when_space_is_reserved_and_when_particles_are_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = (r"scratch: .* does not take the \S+ GB of particles that a rank keeps there "
            r"\(No space left on device\); expected a writable folder")
    storage = InScratch(1000, GEOMETRY, tmp_path)
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(JobError, match=said):
        storage.put(np.arange(5), some_kept(5))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(JobError, match=said):
        InScratch(1000, GEOMETRY, tmp_path)
    assert not list(tmp_path.iterdir())


MEMORY = """\
import resource, sys
from types import SimpleNamespace
import numpy as np
from tests.test_storage import GEOMETRY, some_kept
from vitrea.engine.classify2d import peak_memory
from vitrea.engine.em import _in_order
from vitrea.engine.storage import InScratch
from concurrent.futures import ThreadPoolExecutor
n, block = 40_000, 500
storage, kept = InScratch(n, GEOMETRY, sys.argv[1]), some_kept(block)
storage.take(np.arange(block))
before = peak_memory()
for first in range(0, n, block):
    storage.put(first + np.arange(block), kept)
with ThreadPoolExecutor(1) as reader:
    for found in _in_order(reader, lambda first: storage.take(np.arange(first, first + block)), range(0, n, block), 1):
        assert found.power[7, 3] == kept.power[7, 3]
print(storage.nbytes, peak_memory() - before, block * storage.nbytes // n)
"""


def test_going_through_the_file_takes_the_memory_of_a_few_blocks(tmp_path):
    script = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], cwd=Path(__file__).parent.parent, check=True,
                            capture_output=True, text=True)
    held, grown, block = map(int, script.stdout.split())
    assert held > 100e6
    assert grown < (plan.BLOCKS_AHEAD + 3) * block


# ---- what else is known of the particles

def test_arrays_in_scratch_are_arrays_whose_pages_may_be_given_back(tmp_path):
    space = Scratch(tmp_path)
    array, pair = space.zeros(3000, np.int32), space.zeros((4, 2))
    assert not array.any()
    array[:], pair[2] = np.arange(3000), (1.5, -2.0)
    words = [space.keep(np.array(each)) for each in ([b"a", b"bcd"], [b"e"])]
    space.release()
    np.testing.assert_array_equal(array, np.arange(3000))
    assert pair.tolist() == [[0, 0], [0, 0], [1.5, -2.0], [0, 0]]
    assert [part[()].tolist() for part in words] == [[b"a", b"bcd"], [b"e"]]
    assert not list(tmp_path.iterdir())


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_released_arrays_take_no_memory(tmp_path):
    space = Scratch(tmp_path)
    array = space.zeros(8_000_000)
    before = resident()
    array[:] = 1.0
    assert resident() > before + 60e6
    space.release()
    assert resident() < before + 5e6
    assert array[-1] == 1.0


@pytest.mark.parametrize("stack", ["mixed.star", "plain/truth.star"])
def test_a_table_in_scratch_is_that_in_memory(stacks, tmp_path, stack):
    plain, kept = read_particles(stacks / stack), read_particles(stacks / stack, space=Scratch(tmp_path))
    assert plain.optics == kept.optics
    for name, array in vars(plain).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, getattr(kept, name), name)
    rows = np.random.default_rng(0).permutation(len(plain))[:20]
    for label, column in plain.columns.items():
        for chosen in (slice(None), slice(7, 30), rows, rows[0], np.arange(len(plain)) % 3 == 0):
            assert kept.columns[label][chosen].tolist() == column[:][chosen].tolist()


# ---- whole runs

def write_job(folder, stacks, output, storage):
    folder.joinpath("scratch").mkdir(exist_ok=True)
    path = folder / f"{output}.yaml"
    path.write_text(JOB.format(stacks=stacks, output=output, storage=storage))
    return path


@pytest.fixture(scope="module")
def remembered(stacks, tmp_path_factory):
    """The run folder of the job with its particles in memory."""
    folder = tmp_path_factory.mktemp("remembered")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", str(write_job(folder, stacks, "run", "memory"))]) == 0
    return folder / "run"


def same_results(found, expected):
    for name in RESULT_FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize(("ranks", "threads"), [(0, 1), (0, 2), (2, 1)])
def test_scratch_does_not_change_a_bit(remembered, stacks, launch, tmp_path, ranks, threads):
    job = write_job(tmp_path, stacks, "run", "scratch")
    ended = launch(ranks, "-m", "vitrea.jobs", "run", job, "--set", f"threads={threads}")
    assert ended.returncode == 0, ended.stderr
    assert "particles in scratch: 0.00" in ended.stdout
    same_results(tmp_path / "run", remembered)
    assert not list((tmp_path / "scratch").iterdir())


SLOW = """\
import sys, time
from vitrea.engine import em
from vitrea.jobs import cli
fast = em.Pass._block

def slow(*arguments):
    time.sleep(0.1)
    return fast(*arguments)

em.Pass._block = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_in_scratch_nothing_is_left_and_it_is_resumed_in_memory(remembered, stacks, begin, launch, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    write_job(tmp_path, stacks, "run", "scratch")
    process = begin(0, "slow.py", "run", "run.yaml", "--set", "checkpoint_minutes=0")
    until = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint.h5").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert not list((tmp_path / "scratch").iterdir())
    ended = launch(0, "-m", "vitrea.jobs", "resume", "run", "--set", "storage=memory")
    assert ended.returncode == 0, ended.stderr
    same_results(tmp_path / "run", remembered)


LIMITED = """\
import os, resource, sys
from vitrea.jobs import cli
reserve = os.posix_fallocate

def limited(*arguments):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))
    try:
        reserve(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

os.posix_fallocate = limited
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_disk_without_space_ends_the_job_with_one_sentence_and_leaves_nothing(stacks, launch, tmp_path, ranks):
    """A limit on the size of files stands for the disk: the kernel refuses to reserve the bytes."""
    (tmp_path / "limited.py").write_text(LIMITED)
    ended = launch(ranks, "limited.py", "run", write_job(tmp_path, stacks, "run", "scratch"))
    assert ended.returncode == 2
    assert ended.stderr.count("scratch: scratch does not take the 0.00") == 1, ended.stderr
    assert "(File too large); expected" in ended.stderr
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "run").exists()


# ---- where particles go

def planned(stacks, room=np.inf, n=20_000, **keys):
    table = read_particles(stacks / "plain" / "particles.star")
    table = table.take(np.arange(n) % len(table))
    options = Classify2dOptions(input=table.path, output=Path("run"), particle_diameter=140.0, n_classes=4, **keys)
    return plan.plan(options, table, 2, room)


def test_auto_keeps_particles_in_memory_while_they_fit_the_machine_and_the_limit(stacks):
    plenty = planned(stacks)
    assert plenty.storage == "memory"
    assert plenty.scratch_per_rank_bytes == 0
    scratch = planned(stacks, room=plenty.memory_at_most_bytes - 1)
    assert scratch.storage == "scratch"
    assert scratch.memory_at_most_bytes < plenty.memory_at_most_bytes
    between = 0.5e-9 * (scratch.memory_at_most_bytes + plenty.memory_at_most_bytes)
    assert planned(stacks, memory_limit=between).storage == "scratch"
    with pytest.raises(JobError, match=r"in memory, more than .* in scratch \(storage: scratch\), use more"):
        planned(stacks, memory_limit=between, storage="memory")
    with pytest.raises(JobError, match=r"in scratch, more than the limit of 0\.1 GB; expected no more; use more ranks"):
        planned(stacks, memory_limit=0.1)


def test_memory_in_scratch_grows_by_what_is_held_for_a_moment_alone(stacks):
    few, many = (planned(stacks, n=n, storage="scratch") for n in (100_000, 400_000))
    grown = many.memory_per_rank_bytes - few.memory_per_rank_bytes
    assert grown == pytest.approx(300_000 * plan.BYTES_PASSING, abs=2)
    assert plan.BYTES_PASSING < 10
    assert many.scratch_per_rank_bytes == 4 * few.scratch_per_rank_bytes


def test_a_machine_has_memory_and_ranks_share_it(comm_alone):
    assert 2**28 < plan.machine_memory() < 2**50
    assert plan.machine_room(comm_alone) == int(plan.MACHINE_SHARE * plan.machine_memory())


@pytest.fixture
def comm_alone():
    from mpi4py import MPI

    return MPI.COMM_SELF


# ---- mini-batches of very many particles, and checkpoints

def test_small_mini_batches_take_a_share_of_every_mth_block_and_go_round(stacks):
    """Of 40 · 512 particles, 160 a batch: all from one block, rather than 4 particles of each."""
    n = 40 * LARGEST_BLOCK
    blocks = make_blocks(np.zeros(n, dtype=int))
    shard = SimpleNamespace(blocks=blocks, of_block=lambda i: blocks[i].rows)
    options = SimpleNamespace(minibatch_size=160, algorithm="minibatch", n_classes=2, seed=3)
    run = SimpleNamespace(passes=SimpleNamespace(shard=shard), options=options, table=range(n),
                          schedule=Schedule(160, None, 1.0, 60, n))
    taken = []
    for iteration in range(40):
        choose = classify2d._chooser(run, SimpleNamespace(stage="minibatch", iteration=iteration, in_stage=0))
        counts = [len(choose(i)) for i in range(len(blocks))]
        assert sorted(counts) == [0] * 39 + [160]
        taken.append(int(np.argmax(counts)))
    assert sorted(taken) == list(range(40))


def test_checkpoints_are_written_when_their_time_has_come_and_at_the_end(stacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, saved = classify2d.write_checkpoint, []
    monkeypatch.setattr(classify2d, "write_checkpoint",
                        lambda path, arrays, kept, *space: (saved.append(kept["iteration"]), write(path, arrays, kept)))
    for minutes, expected in ((0, [1, 2, 3, 4]), (60, [4])):
        saved.clear()
        job = write_job(tmp_path, stacks, f"run{minutes}", "memory")
        assert cli.main(["run", str(job), "--set", f"checkpoint_minutes={minutes}"]) == 0
        assert saved == expected
    assert sum(r["kind"] == "iteration" for r in read_records(tmp_path / "run60" / "record.jsonl")) == 4


def test_the_streaming_benchmark_compares_the_results_and_tells_memory_disk_and_the_ways_to_a_mini_batch(
        tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "FETCHED", 40)
    monkeypatch.setattr(streaming, "BOX", 32)
    monkeypatch.setattr(streaming, "JOB", streaming.JOB | {"particle_diameter": 90, "max_iterations": 1})
    memory, scratch, fetched = records = streaming.measure(tmp_path, [150])
    assert (memory["storage"], scratch["storage"]) == ("memory", "scratch")
    assert (memory["disk"], scratch["disk"]) == (
        0, 150 * (fetched["record_bytes"] + plan.BYTES_A_PARTICLE + plan.BYTES_A_ROW))
    assert min(run["memory"] for run in (memory, scratch)) > 50e6
    assert fetched["again_cpu"] > 0
    told = streaming.told(records)
    assert "same run_data.star" in told
    assert told.count("\n| 150") == 2
    monkeypatch.setattr(streaming, "observe", lambda folder, name, keys, **_: different(folder / name))
    with pytest.raises(SystemExit, match="differs between particles in memory"):
        list(streaming._both(tmp_path, "stack_n150", 150))


def different(folder):
    """A finished run whose result is not that of another storage."""
    records = read_records(folder / "record.jsonl")
    (folder / "run_data.star").write_text(folder.name)
    return SimpleNamespace(memory=1, cpu_seconds=1.0), [{"cpu_iterating": 1.0}], records


def test_rows_in_scratch_are_those_of_an_array(tmp_path):
    """Slices, scattered rows, rows times a factor, and fewer rows than there were; numbers, not views."""
    array = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    rows = ScratchRows(50, 7, tmp_path)
    rows[:30], rows[np.arange(30, 50)] = array[:30], array[30:]
    for chosen in (slice(3, 41), slice(48, 99), np.array([4, 5, 6, 30, 2]), np.zeros(0, dtype=np.int64)):
        np.testing.assert_array_equal(rows[chosen], array[chosen])
    rows[10:20] *= 3.0
    array[10:20] *= 3.0
    np.testing.assert_array_equal(rows[:], array)
    fewer = rows.first(20)
    assert len(fewer) == 20
    np.testing.assert_array_equal(fewer[15:], array[15:20])

"""What ranks say to one another in an iteration: one Allreduce, of a size that does not know how many particles there
are, and a second one only where classes are re-seeded."""

import json

import pytest

from vitrea.benchmarks.predict import gather_bytes
from vitrea.engine.log import read_records
from vitrea.engine.simulate import ParticleSimulation, simulate_particles

FEW, MANY = 150, 480
KEYS = {"job": "classify2d", "output": "run", "n_classes": 8, "particle_diameter": 140, "psi_step": 24,
        "offset_range": 2, "max_resolution": 24, "algorithm": "minibatch", "minibatch_size": 70,
        "minibatch_iterations": 6, "max_iterations": 4, "convergence_change": 0,
        "checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def both_stacks(tmp_path_factory):
    """A folder with few/ and many/ particles of the same three views."""
    folder = tmp_path_factory.mktemp("traffic")
    for name, n in (("few", FEW), ("many", MANY)):
        simulate_particles(ParticleSimulation(n=n, views=3, box_size=32, pixel_size=6.0, snr=0.3, seed=1),
                           folder / name)
    return folder


@pytest.fixture
def observe(both_stacks, launch, tmp_path):
    """`observe(stack, ranks)`: (the calls of each rank as [stage, operation, bytes], iterations that re-seeded)."""
    def run(stack, ranks):
        keys = KEYS | {"input": both_stacks / stack / "particles.star", "output": f"{stack}{ranks}"}
        (tmp_path / "job.yaml").write_text("".join(f"{name}: {value}\n" for name, value in keys.items()))
        ended = launch(ranks, "-m", "vitrea.benchmarks.observed", "job.yaml", "seen.json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        seen = json.loads((tmp_path / "seen.json").read_text())
        records = read_records(tmp_path / keys["output"] / "record.jsonl")
        reseeded = {record["iteration"] for record in records if record["kind"] == "reseed"}
        return [[call[:3] for call in rank["calls"]] for rank in seen], reseeded, records

    return run


def sums_of(calls):
    """{iteration: bytes of each of its Allreduces} of one rank."""
    found = {}
    for stage, operation, size in calls:
        if stage not in ("start", "results"):
            found.setdefault(stage, [])
            assert operation in ("Allreduce", "gather", "Gatherv"), "an iteration sums, and a checkpoint gathers"
            found[stage] += [size] if operation == "Allreduce" else []
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_iteration_is_one_allreduce_and_re_seeding_a_second_one(observe, ranks):
    calls, reseeded, records = observe("many", ranks)
    assert len(calls) == ranks
    sums = sums_of(calls[0])
    assert all(sums_of(each) == sums for each in calls)
    stages = [record["stage"] for record in records if record["kind"] == "iteration"]
    assert len(sums) == len(stages)
    assert set(stages) == {"minibatch", "full"}
    assert {number: len(sizes) for number, sizes in sums.items()} == {
        number: 2 if number in reseeded else 1 for number in sums}
    assert reseeded, "the job is one with re-seeding"
    assert reseeded < sums.keys(), "and with iterations without"
    sizes = [record["class_sizes"] for record in records if record["kind"] == "iteration"]
    assert all(sum(each) == MANY for each in sizes[-1:]), "a full pass: every particle has its class"
    assert 0 < sum(sizes[0]) < MANY, "after the first mini-batch most particles have none"
    for record in (each for each in records if each["kind"] == "iteration"):
        assert record["seen"] == MANY if record["stage"] == "full" else sum(sizes[0]) >= record["seen"] >= 70
        phases = [record[phase] for phase in ("coarse", "score", "posterior", "accumulate")]
        assert min(phases) > 0
        assert sum(phases) < record["e_step"]
        assert record["e_step"] + record["m_step"] + record["reduce"] + record["checkpoint"] <= record["seconds"]


def test_the_bytes_of_the_allreduce_do_not_depend_on_the_number_of_particles_and_a_checkpoint_gathers_the_rest(observe):
    calls_of_few, calls_of_many = (observe(stack, 2)[0] for stack in ("few", "many"))
    few, many = ([sizes[0] for sizes in sums_of(calls[0]).values()] for calls in (calls_of_few, calls_of_many))
    assert few == many, "both use the same rings: all eight from the second iteration on"
    assert len(set(many[1:])) == 1
    gathered = [sum(size for rank in calls for stage, operation, size in rank if (stage, operation) == (2, "Gatherv"))
                for calls in (calls_of_few, calls_of_many)]
    assert gathered == [gather_bytes(FEW), gather_bytes(MANY)]

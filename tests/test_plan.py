"""What a job is said to need: the figures that can be counted are counted, and the whole is compared with a run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrea.engine.errors import JobError
from vitrea.engine.geometry import make_geometry
from vitrea.engine.log import read_records
from vitrea.engine.options import Classify2dOptions
from vitrea.engine.particles import read_particles
from vitrea.engine.plan import BYTES_A_PARTICLE, BYTES_A_ROW, plan
from vitrea.engine.shards import Shard, make_blocks

WITHIN = 0.2   # what the program promises


def options_for(star, **keys):
    return Classify2dOptions(input=star, output=Path("run"), particle_diameter=140.0, **({"n_classes": 4} | keys))


@pytest.mark.parametrize("stack", ["plain/particles.star", "mixed.star"])
def test_a_particle_more_costs_what_a_shard_keeps_of_it(stacks, stack):
    table = read_particles(stacks / stack)
    options = options_for(table.path)
    shard = Shard.allocate(make_blocks(table.optics_index), make_geometry(table, options))
    kept = shard.storage.nbytes
    twice = table.take(np.tile(np.arange(len(table)), 2))
    grown = plan(options, twice, 1).memory_per_rank_bytes - plan(options, twice, 2).memory_per_rank_bytes
    assert grown == pytest.approx(kept + len(table) * BYTES_A_PARTICLE, rel=0.001)
    assert plan(options, twice, 2).particles_per_rank == len(table)
    assert BYTES_A_ROW < 1000


def test_a_hundred_thousand_particles_of_128_px_fit_in_8_gb_on_two_ranks(stacks):
    """The finest sampling that can be wanted: every ring up to Nyquist, a particle of 80 % of the box, 100 classes."""
    table = read_particles(stacks / "plain" / "particles.star")
    table = table.take(np.arange(100_000) % len(table))
    table = replace(table, optics=tuple(replace(group, box_size=128, pixel_size=3.0) for group in table.optics))
    planned = plan(replace(options_for(table.path), n_classes=100, particle_diameter=0.8 * 128 * 3.0), table, 2)
    assert planned.rings == 63
    assert 2 * planned.memory_per_rank_bytes < 8e9


def test_memory_limit_is_held_before_anything_is_read(stacks):
    table = read_particles(stacks / "plain" / "particles.star")
    with pytest.raises(JobError, match=r"memory_limit: the run needs up to 0\.\d GB a rank .* the limit of 0\.15 GB"):
        plan(options_for(table.path, memory_limit=0.15), table, 1)


def test_what_is_said_before_the_start_is_what_a_run_takes(stacks, launch, tmp_path):
    """Of the second run: the first one after a change of the kernels compiles them, which takes more."""
    for folder in ("first", "second"):
        text = (f"job: classify2d\ninput: {stacks}/mixed.star\noutput: {folder}\nn_classes: 12\n"
                "particle_diameter: 140\nmax_iterations: 5\n")
        (tmp_path / "job.yaml").write_text(text)
        assert launch(0, "-m", "vitrea.jobs", "run", "job.yaml").returncode == 0
    records = read_records(tmp_path / "second" / "record.jsonl")
    said = next(record["memory_per_rank"] for record in records if record["kind"] == "start")
    taken = max(record["memory"] for record in records if record["kind"] == "iteration")
    assert taken == pytest.approx(said, rel=WITHIN)

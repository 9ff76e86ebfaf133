"""Particles that arrive in parts beside the same particles from the start: classes and time.

    python -m vitrea.benchmarks.following --particles 1500 --parts 5 --seeds 0 1 2

For each seed one stack is simulated and classified twice with the same keys: at once, and by `--follow`, its particles
delivered in parts, each when the round before is done, then STOP. Told are the adjusted Rand index of either with the
truth, of the followed run also before its last full passes, and the CPU time of the whole programs.
"""
import argparse
import sys

from vitrea.benchmarks.measure import table, vitrea
from vitrea.benchmarks.records import of_seeds, surroundings
from vitrea.engine.compare import adjusted_rand_index
from vitrea.engine.errors import JobError
from vitrea.engine.log import read_records
from vitrea.engine.star import read_star, write_star
from vitrea.jobs.follow import FIRST_A_CLASS

KEYS = {"n_classes": 10, "particle_diameter": 180, "max_iterations": 10, "psi_step": 10, "offset_range": 4,
        "minibatch_size": 150}
SIMULATION = ("--views", 10, "--box", 64, "--pixel-size", 4.0, "--snr", 0.03)
RESULT = "run_data.star"


class Microscope:
    """Delivers the parts of a STAR file into `folder`/arriving, each when the round before is done."""

    def __init__(self, folder, parts):
        self._folder, self._parts, self._next = folder, parts, 0
        self._blocks, self.before_the_end = read_star(folder / "sim" / "particles.star"), None
        (folder / "arriving").mkdir()

    def look(self):
        """Called while the run goes on."""
        records = read_records(self._folder / "follow" / "record.jsonl")
        if self._next > self._parts or self._next > sum(record["kind"] == "round" for record in records):
            return
        if self._next == self._parts:
            self.before_the_end = _classes(self._folder / "follow" / RESULT)
            (self._folder / "arriving" / "STOP").touch()
        else:
            n, columns = len(self._blocks["particles"]["rlnImageName"]), self._blocks["particles"]
            mine = slice(n * self._next // self._parts, n * (self._next + 1) // self._parts)
            write_star(self._folder / "arriving" / f"p{self._next}.star", {
                "optics": self._blocks["optics"], "particles": {label: each[mine] for label, each in columns.items()}})
        self._next += 1


def measure(folder, particles, parts, seed):
    """The record of one seed; JobError for parts so small that the first one would begin no run."""
    first = FIRST_A_CLASS * KEYS["n_classes"]
    if particles // parts < first:
        raise JobError(f"--particles {particles} --parts {parts}: the first part would hold {particles // parts} "
                       f"particles; expected {first}, which a run waits for; ask for more particles, or fewer parts")
    vitrea("simulate", "particles", "--out", "sim", "--n", particles, *SIMULATION, "--seed", seed, folder=folder)
    lines = "".join(f"{name}: {value}\n" for name, value in (KEYS | {"seed": seed}).items())
    (folder / "job.yaml").write_text(f"job: classify2d\ninput: sim/particles.star\noutput: whole\n{lines}")
    whole = vitrea("run", "job.yaml", folder=folder)
    microscope = Microscope(folder, parts)
    followed = vitrea("run", "job.yaml", "--set", "output=follow", "input=arriving", "--follow", "arriving",
                      folder=folder, look=microscope.look)
    truth = _classes(folder / "sim" / "truth.star")
    ari = {"at once": _classes(folder / "whole" / RESULT), "followed": _classes(folder / "follow" / RESULT),
           "before the last passes": microscope.before_the_end}
    return {"bench": "following", "particles": particles, "parts": parts, "seed": seed,
            "truth": {name: adjusted_rand_index(truth, found) for name, found in ari.items()},
            "cpu_seconds": {"at once": whole.cpu_seconds, "followed": followed.cpu_seconds}, **surroundings()}


def _classes(path):
    return read_star(path)["particles"]["rlnClassNumber"].astype(int)


def told(records):
    """A table of all records, for people."""
    rows = [[each["seed"], *(f"{value:.3f}" for value in each["truth"].values()),
             *(f"{value:.1f}" for value in each["cpu_seconds"].values())] for each in records]
    return table(("seed", "at once", "followed", "before its last passes", "at once, CPU s", "followed, CPU s"), rows)


def main(argv=None):
    """Measure, print, keep the records; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitrea.benchmarks.following",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--particles", type=int, default=1500, metavar="N", help="in all (default %(default)s)")
    parser.add_argument("--parts", type=int, default=5, metavar="P", help="deliveries (default %(default)s)")
    try:
        records = of_seeds(parser, argv, lambda folder, given, seed: measure(folder, given.particles, given.parts,
                                                                             seed))
    except JobError as mistake:
        print(f"vitrea: {mistake}", file=sys.stderr)
        return 2
    print(told(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())

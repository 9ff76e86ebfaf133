"""A small job on many ranks: `python -m tests.robust.many_ranks --ranks 1 8 64`.

More ranks than cores share them; the result must be that of one rank. Prints, for each number of ranks, the processor
time of a rank until its first iteration, its largest memory, and whether the results have the same bits.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.robust.chaos import JOB, RESULTS, undisturbed

RANK = """\
import json, os, resource, sys, time
from vitrea.engine import classify2d
from vitrea.jobs.cli import main

iterate, begun = classify2d.iterate, []
classify2d.iterate = lambda run, state: (begun.append(time.process_time()), iterate(run, state))[1]
code = main(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_SELF)
with open(f"rank-{os.getpid()}.json", "w") as file:
    json.dump({"start": begun[0], "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss / 1e6}, file)
sys.exit(code)
"""


def measure(good, ranks):
    """A dict of what one number of ranks takes; the folder `good` holds the job and the results of one rank."""
    folder = Path(tempfile.mkdtemp(dir=good.parent))
    (folder / "sim").symlink_to(good / "sim")
    (folder / "job.yaml").write_text(JOB)
    (folder / "rank.py").write_text(RANK)
    launcher = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
    done = subprocess.run([*launcher, sys.executable, "rank.py", "run", "job.yaml"], cwd=folder, capture_output=True,
                          text=True, env=os.environ | {"VITREA_PATIENCE": "0"})
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    seen = [json.loads(path.read_text()) for path in folder.glob("rank-*.json")]
    same = all((folder / "run" / name).read_bytes() == (good / name).read_bytes() for name in RESULTS)
    return {"ranks": ranks, "start_cpu_seconds": round(sum(each["start"] for each in seen) / ranks, 2),
            "cpu_seconds": round(sum(each["cpu"] for each in seen), 1),
            "memory_GB": round(max(each["memory"] for each in seen), 3), "same_bits": same and len(seen) == ranks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        good.mkdir()
        undisturbed(good)
        for ranks in arguments.ranks:
            found = measure(good, ranks)
            print(json.dumps(found), flush=True)
            failed |= not found["same_bits"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Malformed input of every kind that a user can hand in: `python -m tests.robust.fuzz --n 10000 --seed 1`.

Each case is a good file that was cut, flipped, spliced or given hostile values. The reader may read it, or refuse it
with a JobError; anything else is a finding: another exception, more memory or time than there is reason for, a file
left behind, or, of a sentence, no place and no remedy. Findings are kept in a folder, with the seed that makes them.
"""
import argparse
import contextlib
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np

SECONDS, GIGABYTES = 5.0, 1.0
HOSTILE = ("nan", "inf", "-inf", "1e400", "-1", "0", "99999999999999999999", "1e-320", "", "''", '"', "${x.y}", "${",
           "%s", "\x00", "\t", "\r", "é", "٣", "\ud800", "a" * 5000, "../../etc/passwd", "/dev/zero", "1@", "@",
           "0@x.mrcs", "999999999999@x", "!!python/object/apply:os.system [x]", "&a [*a]", "- - -", "{", "[1, [2]]",
           "2026-01-01", "1:30", "yes", "~", "null", "data_", "loop_", "_rlnImageName #1", "# ", ";", "0x10", "1_000",
           "٫5")


class SlowError(Exception):
    """A reader took too long."""


def kinds(folder):
    """{name: (content of a good file, its suffix, reader of a path)}; good files are made in `folder`."""
    from rich.console import Console

    from vitrea.engine.arrivals import LIST_NAME, read_arrived
    from vitrea.engine.checkpoint import read_checkpoint, write_checkpoint
    from vitrea.engine.converted import MAGIC, USER_BLOCK, read_converted, write_converted
    from vitrea.engine.log import LINES_NAME, RECORDS_NAME, RunLog
    from vitrea.engine.particles import read_particles
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles
    from vitrea.engine.stacks import read_header, read_images
    from vitrea.engine.star import read_star, write_star
    from vitrea.jobs.allocation import read_allocation
    from vitrea.jobs.follow import PARTICLES, Watch
    from vitrea.jobs.jobfile import JOBS, read_job, template
    from vitrea.jobs.ledger import LEDGER_NAME, Inputs, read_ledger, write_ledger
    from vitrea.jobs.pipeline import example, read_pipeline
    from vitrea.jobs.watch import watch
    from vitrea.picker.coordinates import read_coordinates, write_coordinates
    from vitrea.picker.micrographs import list_micrographs, read_micrograph

    simulate_particles(ParticleSimulation(n=12, views=2, box_size=16, pixel_size=6.0, snr=0.3), folder)
    star = (folder / "particles.star").read_bytes()
    stack = (folder / "particles.mrcs").read_bytes()
    write_checkpoint(folder / "c.h5", {"a": np.arange(300.0), "b": np.zeros((3, 4))}, {"iteration": 3, "name": "x"})
    places = np.linspace(5.0, 90.0, 9)
    write_coordinates(folder / "k.star", places, places, places / 100)

    def particles(path):
        table = read_particles(path)
        read_images(table, np.arange(len(table)))

    def images(path):
        read_header(path)
        (folder / "m.star").write_bytes(star.replace(b"particles.mrcs", path.name.encode()))
        particles(folder / "m.star")

    def micrograph(path):
        read_micrograph(path, 4.0)

    def ledger(path):
        path.replace(folder / LEDGER_NAME)
        try:
            read_ledger(folder)
        finally:
            (folder / LEDGER_NAME).replace(path)

    def records(path):
        path.replace(folder / RECORDS_NAME)
        try:
            watch(folder, once=True, console=Console(file=io.StringIO(), width=80))
        finally:
            (folder / RECORDS_NAME).replace(path)

    def resealed(path):
        """A converted file whose description is what the file says, under a good seal."""
        words = path.read_bytes()
        head = MAGIC + f"1 {len(whole)} {len(words)} {hashlib.sha256(words).hexdigest()}\n".encode()
        (folder / "r.h5").write_bytes(head.ljust(USER_BLOCK, b"\0") + whole[USER_BLOCK:] + words)
        particles(folder / "r.h5")

    def arriving(path):
        """A file that a microscope has delivered, with two looks at it."""
        (folder / "arriving").mkdir(exist_ok=True)
        (folder / "arriving" / "p.star").write_bytes(path.read_bytes())
        options = SimpleNamespace(follow=folder / "arriving", input=folder / "arriving", output=folder / "run",
                                  follow_minutes=None, n_classes=1)
        (folder / "run").mkdir(exist_ok=True)
        (folder / "arriving" / "STOP").touch()
        watch = Watch(options, PARTICLES)
        with contextlib.redirect_stdout(io.StringIO()):
            for _ in range(3):
                watch.look()
        listed = (folder / "run" / LIST_NAME).exists()
        (folder / "run" / "run.out").unlink(missing_ok=True)
        shutil.rmtree(folder / "run")
        shutil.rmtree(folder / "arriving")
        if not listed and path.read_bytes() == star:
            raise RuntimeError("the good file was not taken")

    def list_of_arrivals(path):
        path.replace(folder / LIST_NAME)
        try:
            read_arrived(folder, PARTICLES)
        finally:
            (folder / LIST_NAME).replace(path)

    write_converted(folder / "w.h5", read_particles(folder / "particles.star"), "float16")
    whole = (folder / "w.h5").read_bytes()
    described = json.dumps(read_converted(folder / "w.h5").description, indent=1).encode()
    arrived = star + (b"\ndata_arrivals\n\nloop_\n_vitreaArrivalName\n_vitreaArrivalBytes\n_vitreaArrivalModified\n"
                      b"_vitreaArrivalItems\n_vitreaRound\na.star 10 20 12 1\n")
    mrcfile.write(folder / "one.mrc", np.arange(7680, dtype=np.float32).reshape(80, 96), voxel_size=4.0)
    write_star(folder / "l.star", {"": {"rlnMicrographName": ["a.mrc", "b.mrc"], "rlnDefocusU": ["1e4", "2e4"]}})
    write_ledger(folder, {"first": (Inputs({"n": "1"}, {"a": (1, 2, "x")}), True)})
    marks = (folder / LEDGER_NAME).read_bytes()
    (folder / LEDGER_NAME).unlink()
    with RunLog(folder, echo=False) as log:
        log.record("start", job="classify2d", particles=12, n_classes=2, box_size=16, pixel_size=6.0, ranks=2)
        log.record("iteration", iteration=1, of=3, stage="full", log_likelihood=-1.0, class_sizes=[5, 7], eta=3.0)
        log.record("stopped", total=1, iteration=1, of=3, stage="full", reason="SIGTERM")
    lines = (folder / RECORDS_NAME).read_bytes()
    for name in (RECORDS_NAME, LINES_NAME):
        (folder / name).unlink()
    cluster = b"cluster:\n  scheduler: slurm\n  nodes: 2\n  modules: [a, b]\n  directives: |\n    --x=y\n"
    csv = b"x,y,score\n" + b"".join(b"%d,%d,0.5\n" % (x, x) for x in places)
    box = "".join(f"{int(x)}\t{int(x)}\t40\t40\n" for x in places).encode()
    jobs = {f"job {name}": (template(job_type).encode(), ".yaml", read_job) for name, job_type in JOBS.items()}
    return {
        "particles.star": (star, ".star", particles), "any star": (star, ".star", read_star),
        "stack": (stack, ".mrcs", images), "checkpoint": ((folder / "c.h5").read_bytes(), ".h5",
                                                          lambda path: read_checkpoint(path, {"iteration": 3})),
        "coordinates.star": ((folder / "k.star").read_bytes(), ".star", read_coordinates),
        "coordinates.box": (box, ".box", read_coordinates),
        "coordinates.csv": (csv, ".csv", read_coordinates),
        "micrograph": ((folder / "one.mrc").read_bytes(), ".mrc", micrograph),
        "micrographs.star": ((folder / "l.star").read_bytes(), ".star", list_micrographs),
        "converted": (whole, ".h5", particles), "converted, resealed": (described, ".json", resealed),
        "arriving": (star, ".star", arriving), "arrived.star": (arrived, ".star", list_of_arrivals),
        "stages.json": (marks, ".json", ledger), "record.jsonl": (lines, ".jsonl", records),
        "pipeline": (example().encode(), ".yaml", read_pipeline),
        "cluster section": (b"job: classify2d\n" + cluster, ".yaml", read_allocation), **jobs}


def mutated(content, random_, text):
    """A good file with one to four things wrong."""
    content = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        if not content:
            break
        place, other = random_.randrange(len(content)), random_.randrange(len(content))
        how = random_.randrange(7 if text else 5)
        if how == 0:
            del content[place:]
        elif how == 1:
            content[place] = random_.randrange(256)
        elif how == 2:
            content[place:place] = content[min(place, other):max(place, other)][:4096]
        elif how == 3:
            del content[min(place, other):max(place, other)]
        elif how == 4:   # a header's numbers
            place = random_.randrange(min(1024, len(content)))
            content[place:place + 4] = random_.choice((b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0" * 4, b"\0\0\xc0\x7f"))
        else:
            words = bytes(content).split(b" " if how == 5 else b"\n")
            words[random_.randrange(len(words))] = random_.choice(HOSTILE).encode("utf-8", "surrogatepass")
            content = bytearray((b" " if how == 5 else b"\n").join(words))
    return bytes(content)


def problem(read, path):
    """What is wrong with how a reader takes a file; "" if it reads or refuses it as it should, and by what sentence."""
    from vitrea.engine.errors import JobError

    begun = time.process_time()
    try:
        read(path)
        told = ""
    except JobError as mistake:
        told = str(mistake)
        if "\n" in told.strip() or len(told) > 8000:
            return f"a sentence of {len(told)} characters or several lines: {told[:200]!r}", told
    except SlowError:
        return f"no answer in {SECONDS} s", ""
    except BaseException:
        return traceback.format_exc(limit=-4), ""
    if time.process_time() - begun > SECONDS:
        return f"{time.process_time() - begun:.1f} s", told
    return "", told


def run(n, seed, keep=None, only=None):
    """Try n files: (findings, Counter of what was tried, Counter of what was refused)."""
    def slow(*_):
        raise SlowError

    signal.signal(signal.SIGVTALRM, slow)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    findings, tried, refused = [], Counter(), Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "good").mkdir()
        table = kinds(folder / "good")
        names = [name for name in table if not only or only in name]
        for name in names:
            content, suffix, read = table[name]
            path = folder / "good" / f"case{suffix}"
            path.write_bytes(content)
            found, told = problem(read, path)
            if found or told:
                raise RuntimeError(f"{name}: the good file is not read: {found}{told}")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(GIGABYTES * 1e9), limit[1]))
        for case in range(n):
            random_ = random.Random(f"{seed}/{case}")
            name = names[case % len(names)]
            content, suffix, read = table[name]
            path = folder / "good" / f"case{suffix}"
            path.write_bytes(mutated(content, random_, suffix not in (".h5", ".mrcs")))
            there = set(folder.rglob("*"))
            signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
            found, told = problem(read, path)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            left = {each.name for each in set(folder.rglob("*")) - there} - {"m.star", "r.h5"}
            found = found or (f"left {left}" if left else "")
            tried[name] += 1
            refused[name] += bool(told)
            if found:
                findings.append((case, name, found))
                if keep:
                    Path(keep).mkdir(exist_ok=True)
                    (Path(keep) / f"{seed}-{case}{suffix}").write_bytes(path.read_bytes())
        resource.setrlimit(resource.RLIMIT_AS, limit)
    return findings, tried, refused


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="files (default 10000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="kinds of file with this in their name")
    parser.add_argument("--keep", help="folder for the files that were taken wrongly")
    arguments = parser.parse_args()
    findings, tried, refused = run(arguments.n, arguments.seed, arguments.keep, arguments.only)
    for case, name, found in findings:
        print(f"--- case {case}, {name}\n{found}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"files": sum(tried.values()), "refused": sum(refused.values()), "findings": len(findings),
                      "peak_memory_GB": round(memory, 2), "cpu_seconds": round(time.process_time(), 1),
                      "refused_by_kind": {name: f"{refused[name]} of {tried[name]}" for name in tried}}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

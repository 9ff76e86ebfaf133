"""What tests of running jobs share: job files, commands, waiting for a run, comparing two."""
import time

from vitrea.engine.log import read_records

RUN, RESUME = ("-m", "vitrea.jobs", "run", "job.yaml"), ("-m", "vitrea.jobs", "resume", "run")


def write_job(path, job, **keys):
    """The job file `path` of a kind of job and its keys."""
    path.write_text(f"job: {job}\n" + "".join(f"{name}: {value}\n" for name, value in keys.items()))
    return path


def iterations(folder):
    """How many iterations the log of a run tells of by now."""
    return sum(record["kind"] == "iteration" for record in read_records(folder / "record.jsonl"))


def wait_until(condition, process, seconds=60):
    """Until condition(); fails if the process ends before, or after some seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def same_files(found, expected, names):
    """Files of two run folders are equal to the bit."""
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name

"""`vitrea bench STUDY.yaml`: run the cases of a scaling study here or hand them to a scheduler, then report.

Each case leaves one file in cases/, so that array jobs may finish in any order and a study that was cut short goes on
where it stopped.
"""
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

from vitrea.benchmarks.launching import observe, worth
from vitrea.benchmarks.measure import iterations_done, iterations_of
from vitrea.benchmarks.records import surroundings
from vitrea.benchmarks.report import write_report
from vitrea.benchmarks.study import read_study
from vitrea.benchmarks.whole import DIAMETER, make_stack
from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.options import Classify2dOptions, options_of
from vitrea.jobs.schedulers import SCHEDULERS, Request, job_name, script, seconds_of


def command(arguments):
    """Do what the options ask for; 0."""
    study = read_study(arguments.study)
    study.check_output()
    cases = study.cases()
    if arguments.list:
        print("\n".join(f"{case}{'   done' if _path(study, case).exists() else ''}" for case in cases))
        return 0
    if arguments.submit:
        return _submit(study, arguments.study, cases, arguments.submit)
    if arguments.prepare:
        _prepare(study, cases, arguments.progress)
        return 0
    if arguments.case is not None:
        _run(study, _numbered(cases, arguments.case), arguments.progress)
        return 0
    if not arguments.report:
        _prepare(study, cases, arguments.progress)
        for case in cases:
            if not _path(study, case).exists():
                _run(study, case, arguments.progress)
    return _report(study, cases, arguments.progress)


def _numbered(cases, number):
    if not 0 <= number < len(cases):
        raise JobError(f"--case {number}: the study has cases 0 to {len(cases) - 1}; expected one of them; see --list")
    return cases[number]


def _path(study, case):
    return Path(study.output) / "cases" / f"case-{case.number:05d}.json"


def _stack(study, particles, progress):
    return make_stack(Path(study.output).resolve(), SimpleNamespace(particles=particles, **vars(study.stack)), progress)


def _prepare(study, cases, progress):
    """Make every stack, once."""
    study.claim()
    (Path(study.output) / "cases").mkdir(parents=True, exist_ok=True)
    for particles in sorted({case.particles for case in cases}):
        _stack(study, particles, progress)


def _run(study, case, progress):
    """Run one case and keep what it is worth."""
    study.claim()
    folder = Path(study.output).resolve()
    stack = _stack(study, case.particles, progress)
    keys = {"input": f"{stack}/particles.star", "n_classes": case.n_classes, "seed": study.stack.seed,
            "particle_diameter": DIAMETER * study.stack.box * study.stack.pixel_size, "algorithm": "full",
            "convergence_change": 0, "checkpoint_minutes": 0, **study.job, "threads": case.threads}
    name = f"run-{case.number:05d}"
    iterations = keys.get("max_iterations", options_of(Classify2dOptions)["max_iterations"].default)
    progress.step(f"case {case.number + 1} of {len(study.cases())}: {case.words}: iterations", iterations,
                  iterations_done(folder / name))
    measured, seen, records = observe(folder, name, keys, case.ranks, study.launcher, progress)
    found = worth(measured, seen, records)
    record = {"benchmark": "scaling", "name": case.kind, "case": case.number, "size": case.size,
              "particles": case.particles, "classes": case.n_classes, "ranks": case.ranks, "threads": case.threads,
              "repeat": case.repeat,
              "oversubscribed": case.ranks * case.threads > study.node_cores * found["nodes"],
              "job": study.job, **vars(study.stack)}
    record |= {**found, "unit": "particle·iteration", "n": 1, "samples": [found["cpu_ms_per_particle_iteration"]]}
    record |= {"rings": [each["rings"] for each in iterations_of(records)], "traffic": traffic(seen)}
    with written_beside(_path(study, case)) as beside:
        beside.write_text(json.dumps(record | surroundings()))


def traffic(seen):
    """Messages by stage: {stage: {operation: [calls of a rank, bytes given by rank 0, by all ranks, largest of one]}}.

    Every rank must have entered the same collectives; WrongTrafficError names two that did not.
    """
    orders = [[call[:2] for call in rank["calls"]] for rank in seen]
    for rank, order in enumerate(orders):
        if order != orders[0]:
            raise WrongTrafficError(f"rank {rank} entered other collectives than rank 0")
    stages = {}
    for rank in seen:
        for stage, operation, size, _ in rank["calls"]:
            entry = stages.setdefault(str(stage), {}).setdefault(operation, [0, 0, 0, 0])
            if rank["rank"] == 0:
                entry[0] += 1
                entry[1] += size
            entry[2] += size
            entry[3] = max(entry[3], size)
    return stages


class WrongTrafficError(RuntimeError):
    """Ranks that do not meet in the same collectives."""


def _report(study, cases, progress):
    found = [json.loads(_path(study, case).read_text()) for case in cases if _path(study, case).exists()]
    if not found:
        raise JobError(f"{study.output}: nothing has been measured yet; expected cases in {study.output}/cases; run "
                       "the study first")
    folder = Path(study.output)
    with written_beside(folder / "records.jsonl") as beside:
        beside.write_text("".join(json.dumps(record) + "\n" for record in found))
    missing = len(cases) - len(found)
    stack = _any_stack(study, found, progress)
    progress.step("report: tables, plots, prediction")
    progress.result(write_report(study, found, folder, stack))
    print(f"written: {folder / 'scaling.md'}, plots beside it, {folder / 'records.jsonl'}"
          + (f"   ({missing} cases not measured yet)" if missing else ""))
    return 0


def _any_stack(study, found, progress):
    """The smallest stack that is there, for the shape of the model's arrays."""
    name = _stack(study, min(record["particles"] for record in found), progress)
    return Path(study.output).resolve() / name / "particles.star"


def _submit(study, path, cases, scheduler):
    """Write array scripts, one for each layout, and submit.sh, which hands them in after the stacks are made."""
    scripts = Path(study.output).resolve() / f"submit-{scheduler}"
    write = _Scripts(study, path, scripts, scheduler)
    study.claim()
    scripts.mkdir(parents=True, exist_ok=True)
    dialect = SCHEDULERS[scheduler]
    lines = ["#!/bin/bash", "set -eu", f"cd {shlex.quote(str(scripts))}",
             f"first=$({shlex.join(dialect.submit(write.preparation()))})"]
    for ranks, threads in study.layouts:
        numbers = [case.number for case in cases if (case.ranks, case.threads) == (ranks, threads)]
        lines += [shlex.join(dialect.submit(name, "FIRST")).replace("FIRST", '"$first"')
                  for name in write.arrays(ranks, threads, numbers)]
    (scripts / "submit.sh").write_text("\n".join(lines) + "\n")
    print(f"{len(cases)} cases in {len(lines) - 4} scripts; look them over, then: bash {scripts / 'submit.sh'}\n"
          f"afterwards: vitrea bench {path} --report")
    return 0


class _Scripts:
    """Writes the scripts of a study into a folder for a scheduler."""

    def __init__(self, study, path, folder, scheduler):
        self._folder, self._scheduler, self._study = folder, scheduler, study
        # of this environment, whatever a job's PATH
        self._bench = shlex.join([sys.executable, "-m", "vitrea.jobs", "bench", str(path)])
        try:
            self._seconds = seconds_of(study.scheduler.time)
        except ValueError as error:
            raise JobError(f"scheduler: time is '{study.scheduler.time}'; expected H:MM:SS; write for example "
                           "01:00:00") from error

    def preparation(self):
        """The script that makes the stacks: its name."""
        return self._write("prepare.sh", 1, 1, None, "--prepare")

    def arrays(self, ranks, threads, numbers):
        """Scripts for the cases `numbers` of a layout: their names. PBS arrays are evenly spaced, of two or more."""
        dialect = SCHEDULERS[self._scheduler]
        spaced = dialect.arrays_are_ranges
        parts = [numbers] if not spaced else _evenly_spaced(numbers)
        names = []
        for i, part in enumerate(parts):
            name = f"r{ranks}-t{threads}{f'-{i}' if len(parts) > 1 else ''}.sh"
            if len(part) == 1:
                names.append(self._write(name, ranks, threads, None, f"--case {part[0]}"))
                continue
            text = ",".join(map(str, part)) if not spaced else f"{part[0]}-{part[-1]}:{part[1] - part[0]}"
            names.append(self._write(name, ranks, threads, text, f'--case "${dialect.array_variable}"'))
        return names

    def _write(self, name, ranks, threads, array, option):
        request = Request(job_name(Path(name).stem), ranks, threads, self._seconds, exclusive=True, array=array,
                          directives=self._study.scheduler.directives)
        text = script(self._scheduler, request, f"{self._bench} {option}", folder=Path.cwd(),
                      setup=self._study.scheduler.setup)
        (self._folder / name).write_text(text)
        return name


def _evenly_spaced(numbers):
    """Cut ascending numbers into the longest evenly spaced pieces, from the left."""
    if len(numbers) < 3:
        return [numbers] if numbers else []
    step = numbers[1] - numbers[0]
    length = next((i for i in range(1, len(numbers)) if numbers[i] - numbers[i - 1] != step), len(numbers))
    return [numbers[:length], *_evenly_spaced(numbers[length:])]

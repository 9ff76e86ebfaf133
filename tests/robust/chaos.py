"""Harm at random moments: `python -m tests.robust.chaos --n 100 --seed 1`.

Each trial runs a small job on one to three ranks, does harm to it, undoes what can be undone, and goes on with it on
another number of ranks, perhaps to be harmed again. It must end in the bits of the undisturbed run, lose no checkpoint
that was whole before the harm, and leave nobody hanging longer than the watchdog's patience allows.
"""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

PATIENCE = 15.0         # of the watchdog [s]; the start of a run on a busy machine takes seconds
HANGING = 90.0          # seconds after the harm, when a run that has not ended counts as hanging
STARTS = 12             # of one trial, at most
RESULTS = ("run_data.star", "run_model.star", "run_classes.mrcs")
JOB = """\
job: classify2d
input: sim/particles.star
output: run
n_classes: 3
particle_diameter: 150
psi_step: 12
max_resolution: 24
offset_range: 2
max_iterations: 6
convergence_change: 0
checkpoint_minutes: 0
"""
SLOW = """\
import sys, time
from vitrea.engine import classify2d
from vitrea.jobs.cli import main

iterate = classify2d.iterate
classify2d.iterate = lambda run, state: (time.sleep(0.4), iterate(run, state))[1]
sys.exit(main(sys.argv[1:]))
"""
# of a run that follows a folder: a part is delivered when the round before is done, then STOP
FOLLOWING = """\
import shutil, sys, time
from pathlib import Path
from vitrea.engine import classify2d, rounds
from vitrea.jobs import follow
from vitrea.jobs.cli import main

follow.LOOK_SECONDS = follow.NAP = 0.05
look, iterate, batch = follow.Watch.look, classify2d.iterate, rounds._batch

def delivering(watch):
    done = watch._arrived.rounds
    part = Path(f"parts/p{done}.star")
    if len(list(Path("arriving").glob("*.star"))) == done:
        if part.exists():
            shutil.copy(part, "arriving/.next")
            Path("arriving/.next").rename(f"arriving/{part.name}")
        else:
            Path("arriving/STOP").touch()
    return look(watch)

follow.Watch.look = delivering
classify2d.iterate = lambda run, state: (time.sleep(0.4), iterate(run, state))[1]
rounds._batch = lambda *words: (time.sleep(0.4), batch(*words))[1]
sys.exit(main(sys.argv[1:]))
"""
PARTS = (60, 90, 120)   # particles that have come after each
# root writes where permission is denied, unless these are taken from it
ORDINARY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
HARMS = ("kill a rank", "kill all", "kill the launcher", "stop a rank", "terminate a rank", "warn the launcher",
         "fill the disk", "truncate the checkpoint", "flip a bit of the checkpoint", "deny writing", "none")


class Trial:
    """One job in a folder of its own, the harm done to it, and whether it ended as it should."""

    patience, hanging = PATIENCE, HANGING

    def __init__(self, folder, good, seed):
        self.folder, self.run, self.random, self.done = folder, folder / "run", random.Random(seed), []
        shutil.copytree(good / "sim", folder / "sim")
        if (good / "parts").exists():
            shutil.copytree(good / "parts", folder / "parts")
            (folder / "arriving").mkdir()
        for name in ("job.yaml", "slow.py"):
            shutil.copy(good / name, folder)

    def problem(self, good):
        """What went wrong; "" if nothing did."""
        for _ in range(STARTS):
            harm = self.random.choice(HARMS) if len(self.done) < 1 or self.random.random() < 0.25 else "none"
            ranks = self.random.choice((1, 2, 2, 3))
            if harm == "stop a rank":   # of a lone one that is stopped nobody can know
                ranks = max(2, ranks)
            self.done.append((harm, ranks))
            found, ended = self._once(harm, ranks)
            if found:
                return found
            if ended:
                different = [name for name in RESULTS if (self.run / name).read_bytes() != (good / name).read_bytes()]
                return f"other bits in {different}" if different else ""
        return f"not done after {STARTS} starts"

    def _once(self, harm, ranks):
        """Start or go on, do harm, wait for the end, undo it: (what went wrong, whether the run is done)."""
        words = ["resume", "run"] if (self.run / "job.yaml").exists() else ["run", "job.yaml"]
        launcher = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
        environment = os.environ | {"VITREA_PATIENCE": str(self.patience)}
        with open(self.folder / "told", "ab") as told:
            process = subprocess.Popen([*ORDINARY, *launcher, sys.executable, "slow.py", *words], cwd=self.folder,
                                       stdout=told, stderr=told, env=environment)
        self._wait_for_a_moment(process)
        whole_before = self._whole()
        undo = self._harm(harm, process)
        try:
            process.wait(self.hanging)
        except subprocess.TimeoutExpired:
            self._end(process)
            return f"hangs after '{harm}'", False
        finally:
            undo()
        self._end(process)
        if whole_before and not self._whole():
            return f"the checkpoint is lost after '{harm}'", False
        return "", process.returncode == 0 and self._ending() == "done"

    def _wait_for_a_moment(self, process):
        """Until a random moment: somewhere in the start, or some iterations after it."""
        if self.random.random() < 0.3:
            until = time.monotonic() + self.random.uniform(0, 3)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            return
        wanted = self._iterations() + self.random.randrange(1, 5)
        while process.poll() is None and self._iterations() < wanted:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 0.6))

    def _harm(self, harm, process):
        """Do it; what undoes it."""
        ranks = self._ranks()
        one = self.random.choice(ranks) if ranks else process.pid
        if harm == "kill all":
            self._signal([process.pid, *ranks], signal.SIGKILL)
        elif harm in ("kill the launcher", "warn the launcher"):
            self._signal([process.pid], signal.SIGKILL if harm.startswith("kill") else signal.SIGUSR1)
        elif harm in ("kill a rank", "stop a rank", "terminate a rank"):
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}[harm.split()[0]]
            self._signal([one], number)
        elif harm == "fill the disk":
            return self._fill()
        elif harm == "deny writing" and self.run.exists():
            self.run.chmod(0o555)
            return lambda: self.run.exists() and self.run.chmod(0o755)
        elif "checkpoint" in harm:
            self._signal([process.pid, *ranks], signal.SIGKILL)
            process.wait()
            self._damage(harm)
        return lambda: None

    def _fill(self):
        ballast = self.folder / "ballast"
        with suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        return lambda: ballast.unlink(missing_ok=True)

    def _damage(self, harm):
        path = self.run / "checkpoint.h5"
        if not path.exists() or not (self.run / "checkpoint-earlier.h5").exists():
            return   # of the only one nothing is left to go on from
        content = bytearray(path.read_bytes())
        place = self.random.randrange(len(content))
        content[place] ^= 1 << self.random.randrange(8)
        path.write_bytes(content if harm.startswith("flip") else content[:place])

    def _whole(self):
        """Whether a checkpoint is there that a run can go on from."""
        from vitrea.engine.checkpoint import EARLIER, NAME, _found_wrong

        return any(_found_wrong(self.run / name) is None for name in (NAME, EARLIER))

    def _iterations(self):
        with suppress(OSError):
            return (self.run / "record.jsonl").read_bytes().count(b'"kind": "iteration"')
        return 0

    def _ending(self):
        lines = (self.run / "record.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["kind"]

    def _ranks(self):
        """Process numbers of the ranks."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if place.joinpath("cwd").resolve() == self.folder and b"slow.py" in \
                        place.joinpath("cmdline").read_bytes().split(b"\0")[1:2]:
                    found.append(int(place.name))
        return sorted(found)

    def _signal(self, numbers, which):
        for number in numbers:
            with suppress(ProcessLookupError):
                os.kill(number, which)

    def _end(self, process):
        self._signal([process.pid] if process.poll() is None else [], signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 10
        while self._ranks() and time.monotonic() < until:
            time.sleep(0.05)
        self._signal(self._ranks(), signal.SIGKILL)


def undisturbed(folder, following=False):
    """Make the stack and the job in `folder`, run it on one rank, and put its results there."""
    from vitrea.engine.simulate import ParticleSimulation, simulate_particles

    here = Path.cwd()
    os.chdir(folder)
    try:
        simulate_particles(ParticleSimulation(n=120, views=3, box_size=32, pixel_size=6.0, snr=0.3), Path("sim"))
    finally:
        os.chdir(here)
    job = JOB.replace("sim/particles.star", "arriving\nfollow: arriving\nminibatch_size: 10") if following else JOB
    (folder / "job.yaml").write_text(job)
    (folder / "slow.py").write_text(FOLLOWING if following else SLOW)
    if following:
        _divide(folder)
    words = ["slow.py"] if following else ["-m", "vitrea.jobs"]
    subprocess.run([sys.executable, *words, "run", "job.yaml"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in RESULTS:
        shutil.copy(folder / "run" / name, folder)


def _divide(folder):
    """Parts of the particles, as a microscope would deliver them."""
    from vitrea.engine.star import read_star, write_star

    blocks = read_star(folder / "sim" / "particles.star")
    (folder / "parts").mkdir()
    (folder / "arriving").mkdir()
    for number, (begin, end) in enumerate(zip((0, *PARTS), PARTS)):
        write_star(folder / "parts" / f"p{number}.star", {"optics": blocks["optics"], "particles": {
            label: column[begin:end] for label, column in blocks["particles"].items()}})


def run(n, seed, first=0, tell=print, following=False):
    """Try n times from trial `first` on: (list of (trial, what was done, what went wrong), Counter of harm)."""
    findings, harm = [], Counter()
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        good.mkdir()
        undisturbed(good, following)
        for number in range(first, first + n):
            folder = Path(place) / f"trial{number}"
            folder.mkdir()
            # a disk of its own, which can be filled
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "vitrea-chaos", folder], check=True)
            try:
                trial = Trial(folder.resolve(), good, f"{seed}/{number}")
                found = trial.problem(good)
                harm.update(each for each, _ in trial.done)
                tell(f"trial {number}: {trial.done}: {found or 'the same bits'}")
                if found:
                    findings.append((number, trial.done, found))
                    tell((folder / "told").read_text()[-3000:])
            finally:
                subprocess.run(["umount", "-l", folder], check=True)
    return findings, harm


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="trials (default 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="of the watchdog [s] (default 15)")
    parser.add_argument("--hanging", type=float, default=HANGING, help="seconds after which a run counts as hanging "
                        "(default 90); more of both for a machine that is busy with other work")
    parser.add_argument("--following", action="store_true", help="of a run that follows a folder, in three rounds")
    arguments = parser.parse_args()
    Trial.patience, Trial.hanging = arguments.patience, arguments.hanging
    begun = time.monotonic()
    findings, harm = run(arguments.n, arguments.seed, arguments.first, tell=lambda text: print(text, flush=True),
                         following=arguments.following)
    minutes = round((time.monotonic() - begun) / 60, 1)
    print(json.dumps({"trials": arguments.n, "findings": len(findings), "minutes": minutes, "harm": harm}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

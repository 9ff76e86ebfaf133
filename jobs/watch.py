"""`vitrea watch RUN_DIR`: a live view of a run, made from its record.jsonl alone, from any terminal.

The run itself draws nothing (engine/log.py says why), so it can be watched from another machine that sees the folder,
by several people, and after it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vitrea.engine.errors import JobError
from vitrea.engine.log import RECORDS_NAME, format_clock, format_record, read_records
from vitrea.jobs.jobfile import JOB_NAME
from vitrea.jobs.processes import ENDINGS, is_gone

REFRESH_SECONDS = 1.0
SILENT_SECONDS = 60.0     # a run that writes nothing for this long, or
SILENT_ITERATIONS = 5.0   # for so many times its last iteration, is said to be silent
PLAIN_WIDTH = 100         # of a frame that goes to a file or a pipe
STAGES = {"minibatch": "mini-batch", "full": "full pass", "ensemble": "round", "train": "step", "scan": "micrograph",
          "extract": "micrograph"}

Record = Mapping[str, object]


@dataclass
class RunState:
    """What the records of a run say, up to the last one read."""

    start: Record = field(default_factory=dict)
    iterations: list[Record] = field(default_factory=list)
    progress: Record | None = None
    reseed: Record | None = None
    round: Record = field(default_factory=dict)   # of a run that follows a folder: the last that was done,
    wait: Record = field(default_factory=dict)    # and what it waits for
    ending: Record | None = None
    last: Record | None = None
    lost: bool = False   # ended without a word: its process is gone
    stages: dict[str, Record] = field(default_factory=dict)   # of a pipeline: what was last told of each

    def add(self, record: Record) -> None:
        kind = record["kind"]
        self.last = record
        self.ending = record if kind in ENDINGS else None
        if kind == "start":
            self.start, self.progress = record, None
            # Where stages are jobs of their own, each start is one of them, and the others stand as they are.
            self.stages = {str(name): self.stages.get(str(name), {}) for name in record.get("stages") or ()}
        elif kind == "iteration":
            record = {**record, "rounds": self.round.get("number", 0)}
            # A resumed run goes back to its checkpoint and makes some iterations again.
            while self.iterations and _order(self.iterations[-1]) >= _order(record):
                self.iterations.pop()
            self.iterations.append(record)
            self.progress = None
        elif kind == "progress":
            self.progress = record
        elif kind == "reseed":
            self.reseed = record
        elif kind == "round":
            self.round, self.progress = record, None
        elif kind == "wait":
            self.wait = record
        elif kind == "stage":
            self.stages[str(record["stage"])] = self.stages.get(str(record["stage"]), {}) | record

    def stage_at_work(self) -> Record | None:
        """What was told of the stage of a pipeline that is at work, or was when it ended."""
        return next((record for record in self.stages.values() if record.get("state") in ("begin", "go on")), None)

    def waiting(self) -> bool:
        """Whether a run that follows a folder has taken in what came, and waits for more."""
        return self.last is not None and self.last["kind"] in ("round", "wait") and not self.lost

    def fraction(self) -> float | None:
        """How much of the present stage is done, 0 to 1; None before its length is known."""
        if self.ending and self.ending["kind"] == "done":
            return 1.0
        now = self.progress or (self.iterations[-1] if self.iterations else None)
        if now is None:
            return 0.0
        if self.reading():
            return float(now.get("fraction") or 0.0)
        of = now.get("of") or (self.iterations[-1].get("of") if self.iterations else None)
        if not of:
            return None
        whole = now["iteration"] - 1 + float(now.get("fraction") or 0.0) if now is self.progress else now["iteration"]
        return min(1.0, max(0.0, whole / of))

    def reading(self) -> bool:
        """Whether the particles are being read: before the first iteration, or after a resume."""
        return self.progress is not None and self.progress.get("stage") == "read"

    def seconds_left(self, now: datetime) -> float | None:
        """The run's own estimate, less the time since it was made; None if there is none."""
        told = self.progress if self.progress and "eta" in self.progress else (self.iterations or [{}])[-1]
        if self.ending or self.lost or self.reading() or self.waiting() or told.get("eta") is None:
            return None
        return max(0.0, float(told["eta"]) - _age(told, now))

    def silent_for(self, now: datetime) -> float | None:
        """Seconds since the last record, if that is longer than the run's pace lets expect; None otherwise."""
        if self.ending or self.lost or self.last is None or self.waiting():
            return None
        pace = float(self.iterations[-1].get("seconds") or 0.0) if self.iterations else 0.0
        age = _age(self.last, now)
        return age if age > max(SILENT_SECONDS, SILENT_ITERATIONS * pace) else None


def watch(folder: Path, *, once: bool, console: Console | None = None) -> int:
    """Show a run until it ends, or once; returns the exit code: 1 if the run failed or was killed, else 0.

    Raises JobError if the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / JOB_NAME).exists() and not (folder / RECORDS_NAME).exists():
        found = "holds no run" if folder.is_dir() else "is not a folder"
        raise JobError(f"{folder}: {found}; expected the output folder of a run; is it spelt as in the job file?")
    console = console or _console()
    if once or not console.is_terminal:
        state = read_state(folder)
        console.print(frame(folder, state, console))
    else:
        state = _follow(folder, console)
    return 1 if state.lost or (state.ending and state.ending["kind"] == "failed") else 0


def read_state(folder: Path) -> RunState:
    """The state of a run folder now."""
    gone = is_gone(_records_of(folder).start)
    state = _records_of(folder)   # read after the look at the process, which may have ended the run just before
    state.lost = gone and state.ending is None
    return state


def _records_of(folder: Path) -> RunState:
    state = RunState()
    for record in read_records(Path(folder) / RECORDS_NAME):
        if _is_whole(record):
            state.add(record)
    return state


def _is_whole(record: Record) -> bool:
    """Whether a record has what every record has; one that a disk has damaged may not."""
    try:
        datetime.fromisoformat(str(record["time"]))
        float(record["elapsed"])
        if record["kind"] in ("iteration", "progress"):
            int(record["iteration"])
        return isinstance(record["kind"], str)
    except (KeyError, ValueError, TypeError):
        return False


def frame(folder: Path, state: RunState, console: Console, now: datetime | None = None) -> Group:
    """One picture of the run, as high as the console lets it be."""
    now = now or datetime.now(UTC)
    if state.stages:
        return _pipeline_frame(folder, state, console, now)
    parts = [_heading(folder, state), Text(), _bar(state, console, now)]
    if state.iterations:
        parts += [Text(), _figures(state.iterations[-1]), Text(), _trends(state.iterations, console)]
    sizes = next((each["class_sizes"] for each in reversed(state.iterations) if each.get("class_sizes")), None)
    if sizes:
        rows = max(4, console.height - 18) if console.is_terminal else len(sizes)
        parts += [Text(), _class_sizes(sizes, rows, console.width)]
    parts += [Text(), *_notes(folder, state, now)]
    return Group(*parts)


def _pipeline_frame(folder: Path, state: RunState, console: Console, now: datetime) -> Group:
    """The stages of a pipeline, and below them the run of the one at work."""
    rows = Table.grid(padding=(0, 3))
    for number, (name, record) in enumerate(state.stages.items(), 1):
        told = str(record.get("state", "waits"))
        words, style = _STAGE_WORDS.get(told, (told, ""))
        if record is state.stage_at_work() and (state.ending or state.lost):
            words, style = "ended before its end", "yellow"
        rows.add_row(Text(f"{number:>3}"), Text(name), Text(words, style=style), Text(str(record.get("why") or "")))
    parts = [_heading(folder, state), Text(), rows]
    at_work = state.stage_at_work()
    place = Path(str(at_work["folder"])) if at_work else None
    if at_work and not place.is_absolute() and not place.exists():
        place = folder / place.name   # seen from another working directory
    if at_work and not state.ending and (place / RECORDS_NAME).exists():
        parts += [Text(), frame(place, read_state(place), console, now)]
    elif state.ending or state.lost:
        parts += [Text(), *_notes(folder, state, now)]
    return Group(*parts)


_STAGE_WORDS = {"waits": ("waits", "dim"), "skip": ("done before", "green"), "done": ("done", "green"),
                "begin": ("at work", "cyan"), "go on": ("at work", "cyan")}


def _follow(folder: Path, console: Console) -> RunState:
    state = read_state(folder)
    with Live(frame(folder, state, console), console=console, auto_refresh=False) as live:
        try:
            while state.ending is None and not state.lost:
                time.sleep(REFRESH_SECONDS)
                state = read_state(folder)
                live.update(frame(folder, state, console), refresh=True)
        except KeyboardInterrupt:
            pass
    return state


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH, no_color=True)


def _heading(folder: Path, state: RunState) -> Text:
    start = state.start
    words = Text(str(folder), style="bold")
    parts = [str(start["job"])] if start.get("job") else []
    if start.get("particles") is not None:
        parts.append(f"{start['particles']:,} particles")
    if start.get("micrographs") is not None:
        parts.append(f"{start['micrographs']:,} micrographs")
    if start.get("n_classes") is not None:
        parts.append(f"{start['n_classes']} classes")
    if start.get("box_size") and start.get("pixel_size"):
        parts.append(f"box {start['box_size']} px, {start['pixel_size']:.4g} Å/px")
    if start.get("ranks"):
        parts.append(f"{start['ranks']} rank{'s' if start['ranks'] > 1 else ''} on {start.get('host', '?')}")
    return words.append("".join(f"   {part}" for part in parts), style="not bold")


def _bar(state: RunState, console: Console, now: datetime) -> Table:
    fraction, left = state.fraction(), state.seconds_left(now)
    latest = state.progress or (state.iterations[-1] if state.iterations else None)
    place = "starting"
    if latest:
        of = latest.get("of") or (state.iterations[-1].get("of") if state.iterations else None)
        place = f"{STAGES.get(str(latest.get('stage')), 'iteration')} {latest['iteration']}/{of or '–'}"
    if state.reading():
        place = "reading particles"
    if state.waiting():
        place = "waits for new files"
    gone = float(state.last["elapsed"]) if state.last else 0.0
    if state.last and not state.ending and not state.lost and not state.silent_for(now):
        gone += _age(state.last, now)
    row = Table.grid(padding=(0, 2))
    width = max(10, min(50, console.width - 60))
    words = [place, "" if fraction is None else f"{100 * fraction:.0f} %", f"{format_clock(gone)} gone"]
    if not state.ending and not state.lost and not state.waiting():
        words.append("time left not known yet" if left is None else f"{format_clock(left)} left at most")
    done = round(width * (fraction or 0.0))
    row.add_row(Text("━" * done, style="green").append("─" * (width - done), style="dim"), *words)
    return row


def _figures(record: Record) -> Table:
    def shown(name: str, form: str, factor: float = 1.0) -> str:
        value = record.get(name)
        return "–" if value is None else f"{float(value) * factor:{form}}".replace("-", "−", 1)

    row = Table.grid(padding=(0, 4))
    if record.get("stage") == "ensemble":
        row.add_row(f"{shown('seconds', '.1f')} s a round")
        return row
    if "held_out" in record:
        row.add_row(
            f"log-likelihood of a particle {shown('log_likelihood', '.2f')}", f"held out {shown('held_out', '.2f')}",
            f"temperature {shown('temperature', '.2f')}",
            *([f"class switches {shown('mobility', '.1f', 100)} %"] if record.get("mobility") is not None else []),
            f"{shown('seconds', '.1f')} s an iteration",
        )
        return row
    row.add_row(
        f"log-likelihood {shown('log_likelihood', '.4e')}", f"resolution {shown('resolution', '.1f')} Å",
        f"pmax {shown('pmax', '.2f')}", f"changed {shown('changed', '.1f', 100)} %",
        *([f"class switches {shown('mobility', '.1f', 100)} %"] if record.get("mobility") is not None else []),
        *([f"temperature {shown('temperature', '.2f')}"] if record.get("temperature", 1.0) != 1.0 else []),
        f"{shown('seconds', '.1f')} s an iteration",
    )
    return row


def _trends(iterations: list[Record], console: Console) -> Table:
    rows = Table.grid(padding=(0, 2))
    width = max(10, min(60, console.width - 45))
    for name, words, form, factor in (
        ("log_likelihood", "log-likelihood", ".4e", 1.0), ("resolution", "resolution [Å]", ".1f", 1.0),
        ("changed", "changed [%]", ".1f", 100.0), ("mobility", "class switches [%]", ".1f", 100.0),
        ("held_out", "held out", ".4e", 1.0),
        ("temperature", "temperature", ".2f", 1.0),
    ):
        values = [factor * float(record[name]) for record in iterations if record.get(name) is not None]
        if len(values) > 1 and not (name == "temperature" and set(values) == {1.0}):
            ends = f"{values[0]:{form}} → {values[-1]:{form}}".replace("-", "−")
            rows.add_row(Text(words, style="dim"), Text(_spark(values[-width:]), style="cyan"), Text(ends, style="dim"))
    return rows


def _spark(values: list[float]) -> str:
    low, high = min(values), max(values)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(steps * (value - low) / (high - low)) if high > low else 0] for value in values)


_BLOCKS = "▁▂▃▄▅▆▇█"
_CLASS_WIDTH = 40   # columns for one class in the list of sizes: number, bar, count, share


def _class_sizes(sizes: list[int], rows: int, width: int) -> Group:
    order = sorted(range(len(sizes)), key=lambda k: (-sizes[k], k))
    total, largest = sum(sizes) or 1, max(sizes) or 1
    columns = max(1, width // _CLASS_WIDTH)
    shown = order[: rows * columns]
    height = -(-len(shown) // columns)
    table = Table.grid(padding=(0, 3))
    cells = [_class_cell(k + 1, sizes[k], sizes[k] / largest, sizes[k] / total) for k in shown]
    for row in range(height):
        table.add_row(*cells[row::height])
    empty = sum(size == 0 for size in sizes)
    words = f"particles in each of {len(sizes)} classes" + (f", {empty} empty" if empty else "")
    hidden = len(order) - len(shown)
    tail = [Text(f"and {hidden} smaller classes", style="dim")] if hidden else []
    return Group(Text(words, style="dim"), table, *tail)


def _class_cell(number: int, size: int, of_largest: float, share: float) -> Text:
    bar = "█" * round(12 * of_largest) if size else ""
    if size and not bar:
        bar = "▏"
    text = Text(f"{number:>4} ", style="dim" if size == 0 else "")
    return text.append(f"{bar:<12}", style="green").append(f" {size:>9,} {100 * share:5.1f} %")


def _notes(folder: Path, state: RunState, now: datetime) -> Iterable[Text]:
    for record in (state.round, state.wait if state.waiting() else {}):
        if record:
            yield Text(format_record(record)[0])
    if state.reseed:
        words = "   ".join(format_record(state.reseed))
        yield Text(f"it {state.reseed.get('iteration')}: {words}", style="dim")
    if state.ending:
        style = {"done": "bold green", "stopped": "bold yellow", "failed": "bold red"}[str(state.ending["kind"])]
        for line in format_record(state.ending):
            yield Text(line, style=style)
        if state.ending["kind"] != "done":
            yield Text(f"go on with 'vitrea resume {folder}'")
    if state.lost:
        since = _local_time(state.last)
        yield Text(f"not running any more: its process is gone, and wrote last on {since}", style="bold red")
        yield Text(f"go on with 'vitrea resume {folder}'")
    silent = state.silent_for(now)
    if silent is not None:
        since = _local_time(state.last)
        yield Text(f"silent since {since}: nothing was written for {format_clock(silent)}", style="bold yellow")
        yield Text(f"if the job is no longer running, go on with 'vitrea resume {folder}'", style="yellow")
    if state.last is None:
        yield Text("nothing recorded yet; the run reads its particles first", style="dim")


def _order(record: Record) -> tuple[int, bool, int]:
    return int(record["rounds"]), record.get("stage") != "minibatch", int(record["iteration"])


def _local_time(record: Record) -> str:
    return datetime.fromisoformat(str(record["time"])).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _age(record: Record, now: datetime) -> float:
    return max(0.0, (now - datetime.fromisoformat(str(record["time"]))).total_seconds())

"""`vitrea select` from its command to its files."""

from __future__ import annotations

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.finished import read_finished
from vitrea.engine.subset import CHOICE, REJECTED, SELECTED, read_kept, write_subset
from vitrea.jobs.pages import render
from vitrea.jobs.report_classes import class_page
from vitrea.jobs.scores import required_scores, scores_of
from vitrea.jobs.select import by_hand, choose, output_folder
from vitrea.jobs.select_page import Server

SCRIPTS = ("plots.js", "gallery.js", "select.js")
POLICY = "; connect-src 'self'; frame-ancestors 'none'"


def select(run_folder, rules, out=None):
    """Write the selection of a run by Rules; the exit code."""
    folder = output_folder(run_folder, out, interactive=False)
    run = read_finished(run_folder)
    scores = required_scores(run) if rules.score is not None else scores_of(run)
    score = None if scores is None else scores.score
    choice = choose(run, rules, score)
    if not choice.kept.any():
        raise JobError(f"{run_folder}: no class fulfils {', '.join(choice.criteria)}; expected at least one; loosen a "
                       "rule")
    _tell(folder, write_subset(folder, run, choice, score), choice)
    return 0


def interactive(run_folder, rules, out=None, port=0):
    """Serve the page of a run until the person is done; the exit code."""
    folder = output_folder(run_folder, out, interactive=True)
    run = read_finished(run_folder)
    server = serve(run, rules, folder, port)
    print(f"open in a browser on this machine:\n\n  {server.address}\n\nCtrl+C, or Done on the page, ends it",
          flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def serve(run, rules, folder, port=0):
    """The Server of the page for a FinishedRun, which writes into `folder`. JobError if the port is taken."""
    scores = required_scores(run) if rules.score is not None else scores_of(run)
    score = None if scores is None else scores.score
    choice = choose(run, rules, score)
    earlier = None if rules else read_kept(folder, run.n_classes)
    start = choice.kept if earlier is None else earlier
    entries, shared = class_page(run, scores)
    for entry in entries:
        entry["kept"] = bool(start[entry["number"] - 1])
    page = shared | {"plots": {}, "kept": (np.flatnonzero(start) + 1).tolist()}
    text, policy = render("select.html", SCRIPTS, page, title=str(run.folder), classes=entries,
                          scored=scores is not None)

    def save(kept):
        decided = by_hand(choice, kept & (run.sizes > 0))
        counts = write_subset(folder, run, decided, score)
        _tell(folder, counts, decided)
        return {"selected": counts[0], "rejected": counts[1], "folder": str(folder)}

    try:
        return Server(text, policy + POLICY, save, run.n_classes, port)
    except OSError as error:
        raise JobError(f"--port {port}: {error.strerror}; expected a free port; choose another, or leave --port out"
                       ) from error


def _tell(folder, counts, choice):
    print(f"{int(choice.kept.sum())} of {len(choice.kept)} classes   {counts[0]:,} particles selected, {counts[1]:,} "
          "rejected")
    for name, words in ((SELECTED, "for the next job's input"), (REJECTED, "the other particles"),
                        (CHOICE, "what was chosen and why")):
        print(f"  {folder / name!s:<40} {words}", flush=True)

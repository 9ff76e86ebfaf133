"""`vitrea report`, and the report.html at the end of each run: one file that needs no server and no network.

The page is written from the files of the run folder alone, so that it can be made again at any time.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.finished import is_finished, read_finished
from vitrea.engine.log import LINES_NAME, RECORDS_NAME, format_bytes, format_clock, read_records
from vitrea.engine.relion_files import write_relion_files
from vitrea.engine.stability import read_half_sets
from vitrea.engine.star import read_star
from vitrea.jobs.jobfile import JOB_NAME, read_job
from vitrea.jobs.pages import render
from vitrea.jobs.report_classes import NO_CLASSES, class_page, data_uri, rounded
from vitrea.jobs.report_course import convergence_plots, flow_plots, iterations, size_plots, timing_plots
from vitrea.jobs.report_section import Section, reliability_plot
from vitrea.jobs.report_warnings import warnings_of
from vitrea.jobs.scores import scores_of

REPORT_NAME = "report.html"
RESULT_NAME = "result.png"   # of jobs that measure: what they found, beside what was expected
TREE_NAME = "class_tree.star"
LOG_LINES = 400
PACKAGES = ("numpy", "scipy", "numba", "pyfftw", "finufft", "mpi4py", "h5py", "mrcfile")


def write_report(folder, comparison=None):
    """Write report.html into the folder of a run, and beside it what RELION needs to open its classes; the path of the
    page. JobError if the folder holds no run.

    comparison: a PickComparison, for the folder of a pick job.
    """
    folder = Path(folder)
    if not (folder / JOB_NAME).exists():
        found = "holds no job.yaml" if folder.is_dir() else "is not a folder"
        raise JobError(f"{folder}: {found}; expected the folder of a run; check the path")
    records = read_records(folder / RECORDS_NAME)
    job = read_job(folder / JOB_NAME)
    run = read_finished(folder) if is_finished(folder) else None
    if run:
        write_relion_files(folder)
    entries, shared = class_page(run, scores_of(run)) if run else ([], NO_CLASSES)
    sections = _sections(folder, job, run, records, comparison)
    text, _ = render("report.html", ("flow.js", "plots.js", "gallery.js"),
                     shared | {"plots": {section.id: list(section.plots) for section in sections}},
                     **_heading(folder, job, records, run), classes=entries, sections=_index(entries, sections),
                     scored=any(each["score"] is not None for each in entries), plot_sections=sections,
                     warnings=warnings_of(folder, job, run, records))
    path = folder / REPORT_NAME
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def _index(entries, sections):
    found = [("classes", "Classes")] if entries else []
    return [*found, *((section.id, section.name) for section in sections), ("job", "Job, log and versions")]


# ---- the head of the page

def _heading(folder, job, records, run):
    start = next((record for record in records if record["kind"] == "start"), {})
    last = records[-1] if records else {}
    state = {"done": "done", "stopped": "stopped before its end", "failed": "failed"}.get(last.get("kind"), "not done")
    return {"title": f"{job.type.name}  {folder}", "facts": _facts(start, last, run, records),
            "subtitle": f"{job.type.summary[0].upper()}{job.type.summary[1:]}; {state}.",
            "job_file": (folder / JOB_NAME).read_text(encoding="utf-8"), "log": _log(folder),
            "versions": _versions(start)}


def _facts(start, last, run, records):
    facts = []
    if run:
        finest = np.nanmin(run.resolution) if np.isfinite(run.resolution).any() else None
        facts += [("particles", f"{len(run.class_number):,}"), ("classes", f"{run.n_classes}, "
                  f"{int((run.sizes == 0).sum())} empty"), ("best resolution", f"{finest:.1f} Å" if finest else "none"),
                  ("box", f"{run.box_size} px, {run.pixel_size:.4g} Å/px")]
    for name, words in (("picks", "picks"), ("micrographs", "micrographs"), ("precision", "precision"),
                        ("recall", "recall"), ("f1", "F1"), ("threshold", "threshold")):
        if last.get(name) is not None:
            value = last[name]
            facts.append((words, f"{value:,}" if isinstance(value, int) else f"{value:.3f}"))
    ranks = start.get("ranks")
    facts += [("input", start.get("input")), ("time", format_clock(last.get("elapsed") or 0)),
              ("ranks", f"{ranks}, nodes {start.get('nodes', 1)}, threads of each {start.get('threads', 1)}"
               if ranks else None),
              ("memory of rank 0", format_bytes(last.get("memory") or max(
                  (r.get("memory") or 0 for r in records), default=0) or None)),
              ("speed", f"{last['poses_per_core_second']:.2g} poses a core-second"
               if last.get("poses_per_core_second") else None),
              ("ranks at work", _busy(records)),
              ("begun", str(start.get("time", ""))[:19].replace("T", " ") or None), ("host", start.get("host"))]
    return [(name, value) for name, value in facts if value not in (None, "–", "")]


def _busy(records):
    """How busy the ranks of a job on micrographs were, None where no record tells."""
    busy = next((record["busy"] for record in records if record["kind"] in ("scanned", "extracted")), None)
    return ", ".join(f"{100 * share:.0f} %" for share in busy) if busy else None


def _log(folder):
    path = folder / LINES_NAME
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    left_out = len(lines) - LOG_LINES
    return "\n".join(lines if left_out <= 0 else [f"({left_out:,} earlier lines are in {LINES_NAME})",
                                                   *lines[-LOG_LINES:]])


def _versions(start):
    ran = [f"run by vitrea {start.get('version', '(not told)')}, {start.get('mpi') or 'without MPI'}"]
    here = [f"this page by vitrea {importlib.metadata.version('vitrea')}, Python {platform.python_version()}, "
            f"{platform.platform()}, with"]
    return "\n".join(ran + here + [f"  {name} {importlib.metadata.version(name)}" for name in PACKAGES])


# ---- the sections

def _sections(folder, job, run, records, comparison):
    sections = []
    if job.type.name == "pick":
        from vitrea.jobs.report_picks import pick_sections

        sections += pick_sections(folder, comparison) if (folder / "threshold.json").exists() else []
    done = next((record for record in reversed(records) if record["kind"] == "done"), {})
    if job.type.name in ("pick-train", "recurse"):
        from vitrea.jobs.report_picks import training_section

        sections.append(training_section(folder, done))
    if (folder / RESULT_NAME).exists():
        picture = {"image": data_uri((folder / RESULT_NAME).read_bytes(), "png"), "label": "What was measured",
                   "caption": RESULT_NAME}
        sections.append(Section("result", "Result", pictures=[picture]))
    if run:
        sections += _confidence(run) + _latent(job, run) + _tree(folder, run)
    return sections + _course(folder, records)


def _course(folder, records):
    """Convergence, sizes and timing; of deep2d those of its first stage, whose folder is align/."""
    align = folder / "align" / RECORDS_NAME
    found = iterations(read_records(align) if align.exists() else records)
    if not found:
        return []
    words = "Of the first stage, align/." if align.exists() else ""
    reseeds = [record for record in records if record["kind"] == "reseed"]
    course = convergence_plots(found)
    sections = [Section("convergence", "Convergence", words, course)] if course else []
    sizes = size_plots(found, reseeds)
    if sizes:
        sections.append(Section("flow", "Class sizes and moves", "", sizes + flow_plots(found)))
    sections.append(Section("timing", "Time and memory", words, timing_plots(found)))
    return sections


def _confidence(run):
    """How sure the classes are, as two halves of the particles said."""
    found = read_half_sets(run.folder, run.n_classes)
    if found is None:
        return []
    stable = sorted((value for value in found["classes"] if value is not None), reverse=True)
    plots = [reliability_plot(found[key], title, words, happened="stability") for key, title, words in (
        ("uncalibrated", "Before calibration", "Mean stability of particles by the posterior probability of their "
         "class."),
        ("reliability", "Calibrated", f"The same by the calibrated probability, σ({found['slope']:.3g} · logit p "
         f"{found['offset']:+.3g})."))]
    plots.append({"title": "Stability of the classes", "words": f"Most stable first; by chance {found['chance']:.2f}.",
                  "kind": "line", "points": True, "x": list(range(1, len(stable) + 1)), "xlabel": "class, by stability",
                  "ylabel": "stability", "whole": True, "range": [0, 1],
                  "series": [{"name": "stability", "y": rounded(stable)}]})
    words = (f"Two halves of the particles, learned apart, give a particle the same class with probability "
             f"{found['stability']:.2f} in the mean, its stability. half_sets.star has it and the calibrated "
             "probability of every particle.")
    return [Section("confidence", "Confidence", words, plots)]


def _latent(job, run):
    """The classes at their nodes, and the free energy over the latent grid."""
    if "vitreaLatentCoordinate1" not in run.particles:
        return []
    shape = _latent_shape(job.options, run.n_classes)
    nodes = int(np.prod(shape))
    with np.errstate(divide="ignore"):
        energy = -np.log(run.prior[:nodes] / run.prior[:nodes].sum())
    rows = np.arange(1, nodes + 1).reshape(-1, *(shape[-2:] if len(shape) > 1 else (shape[0],)))
    planes = rows.tolist() if len(shape) > 1 else [[rows[0].tolist()]]
    if len(shape) == 1:
        plots = [{"title": "Free energy along the chain", "words": "F = −ln π in units of kT: low where many particles "
                  "are.", "kind": "line", "x": list(range(1, nodes + 1)), "xlabel": "node", "ylabel": "F [kT]",
                  "whole": True, "series": [{"name": "F", "y": rounded(energy)}]}]
    else:
        grid = energy.reshape(-1, shape[-1])
        plots = [{"title": "Free energy on the grid", "words": "F = −ln π in units of kT: dark where many particles "
                  "are.", "kind": "heat", "x": list(range(1, shape[-1] + 1)), "xlabel": "last axis of the grid",
                  "ylabel": "F [kT]", "whole": True,
                  "series": [{"name": f"row {i + 1}", "y": rounded(row)} for i, row in enumerate(grid)]}]
    words = f"{' × '.join(map(str, shape))} nodes, class averages at their places: neighbours look alike."
    return [Section("latent", "Latent map", words, plots, map=planes)]


def _latent_shape(options, n_classes):
    """Nodes along each axis: the classes without that of the outliers, where the job has one."""
    return replace(options, n_classes=n_classes - int(options.outliers)).latent_shape()


def _tree(folder, run):
    """The classes of a deep2d run as a tree: which was split into which, and what it was worth."""
    if not (folder / TREE_NAME).exists():
        return []
    rows = read_star(folder / TREE_NAME)["class_tree"]
    columns = [rows[label].astype(float).tolist() for label in (
        "vitreaTreeClass", "vitreaTreeParent", "rlnClassNumber", "vitreaParticles", "vitreaHeldOutGain",
        "vitreaHeldOutError")]
    below = {}
    for number, parent, leaf, particles, gain, error in zip(*columns):
        words = f"{int(particles):,} particles"
        if not leaf:
            words += f", split: {gain:+.3f} ± {error:.3f} nats a held-out particle"
        below.setdefault(int(parent), []).append({"id": int(number), "leaf": int(leaf), "words": words})
    return [Section("tree", "Class tree", "Classes of the first stage, and what they were split into.",
                    tree=_branches(below, 0))]


def _branches(below, parent):
    return [entry | {"below": _branches(below, entry["id"])} for entry in below.get(parent, [])]

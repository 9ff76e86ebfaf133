"""What a scaling study found: tables in Markdown, plots, and a prediction that says that it is one."""
import statistics
from pathlib import Path

from vitrea.benchmarks.measure import table
from vitrea.benchmarks.predict import (
    communication,
    gather_bytes,
    largest_share,
    predicted,
    rates,
    row_seconds,
    sum_bytes,
)
from vitrea.engine.files import written_beside

MEASURED = ("particles", "K", "ranks × threads", "s/iteration", "spread", "speed-up", "efficiency", "communication",
            "CPU ms/particle·it", "n", "")
CHECKED = ("particles", "K", "ranks", "measured [s/iteration]", "predicted", "measured / predicted", "E measured",
           "predicted", "M measured", "predicted", "messages measured", "predicted", "")
COUNTED = ("particles", "K", "ranks", "Allreduces/iteration", "sums counted [bytes]", "computed [bytes]",
           "gathered counted [bytes]", "computed [bytes]", "table broadcast [bytes]")
PREDICTED = ("particles", "K", "ranks", "most particles a rank", "s/iteration", "E", "M", "rest", "Allreduce", "gather",
             "efficiency", "communication")


def write_report(study, records, folder, stack):
    """Write scaling.md and the plots into `folder`; returns the text. stack: the STAR file of one of the stacks."""
    groups = grouped(records)
    measured = [row for group in groups.values() for row in group]
    geometry = _geometry(study, stack)
    counted, small = check_traffic(measured, geometry)
    row_time = row_seconds(folder)
    models = {n: rates([row["record"] for row in measured if row["layout"] == (1, 1) and row["classes"] == n],
                       _last_sums(measured, n), small, row_time) for n in sorted({row["classes"] for row in measured})}
    checked = check_times(measured, models, study.network)
    forecast = [each for n, model in models.items() for each in forecasts(study, model, n)]
    text = _document(study, records, groups, {"counted": counted, "checked": checked, "forecast": forecast,
                                              "without_cores": without_cores(study, measured, models)}, models)
    with written_beside(folder / "scaling.md") as beside:
        beside.write_text(text)
    draw_measured(folder / "scaling.png", groups)
    draw_predicted(folder / "predicted.png", forecast, checked)
    return text


def grouped(records):
    """{(kind, size, classes): [row by layout]}: medians over the repeats, compared with the layout [1, 1]."""
    groups = {}
    for record in records:
        key = record["name"], record["size"], record["classes"]
        groups.setdefault(key, {}).setdefault((record["ranks"], record["threads"]), []).append(record)
    return {key: _rows(key, layouts) for key, layouts in groups.items() if (1, 1) in layouts}


def _rows(key, layouts):
    one = _seconds(layouts[1, 1])
    rows = []
    for (ranks, threads), runs in sorted(layouts.items(), key=lambda item: (item[0][0] * item[0][1], item[0])):
        seconds, cores = _seconds(runs), ranks * threads
        middle = statistics.median(seconds)
        speed_up = statistics.median(one) / middle * (cores if key[0] == "weak" else 1)
        record = min(runs, key=lambda run: abs(run["iterating_seconds"] / run["iterations"] - middle))
        rows.append({"kind": key[0], "classes": key[2], "particles": runs[0]["particles"], "layout": (ranks, threads),
                     "cores": cores, "seconds": middle, "spread": max(seconds) - min(seconds), "speed_up": speed_up,
                     "efficiency": speed_up / cores, "n": len(runs), "record": record,
                     "cpu_ms": statistics.median(run["cpu_ms_per_particle_iteration"] for run in runs),
                     "communication": statistics.median(run["reduce"] / run["iterating_seconds"] for run in runs),
                     "oversubscribed": runs[0]["oversubscribed"]})
    return rows


def _seconds(runs):
    return [run["iterating_seconds"] / run["iterations"] for run in runs]


def check_traffic(rows, geometry):
    """(table rows, further small Allreduces an iteration): what was counted beside what the model says.

    Of the last iteration.
    """
    found, small = [], 0
    for row in rows:
        record, (ranks, threads) = row["record"], row["layout"]
        stages = record["traffic"]
        last = stages[str(record["iterations"])]
        calls, _, _, largest = last["Allreduce"]
        small = max(small, calls - 1)
        computed = sum_bytes(row["classes"], geometry, record["rings"][-1])
        if threads == 1:
            found.append({"particles": row["particles"], "classes": row["classes"], "ranks": ranks,
                          "allreduces": calls, "sums": largest, "sums_computed": computed,
                          "gathered": last["Gatherv"][2], "gathered_computed": gather_bytes(row["particles"]),
                          "table": stages["start"]["bcast"][1]})
    return found, small


def check_times(rows, models, network):
    """Rows of one thread a rank and no more ranks than cores: [dict] of what was measured and what is predicted [s].

    `source` marks the rows whose runs the rates come from; their E and M steps agree by construction.
    """
    found = []
    for row in rows:
        ranks, threads = row["layout"]
        if threads > 1 or row["oversubscribed"]:
            continue
        record, model = row["record"], models[row["classes"]]
        parts = predicted(model, network, row["particles"], ranks)
        most = max(each["particles"] for each in rows if each["layout"] == (1, 1) and each["classes"] == row["classes"])
        found.append({"particles": row["particles"], "classes": row["classes"], "ranks": ranks,
                      "source": ranks == 1 and row["particles"] == most,
                      "measured": {"seconds": row["seconds"], **{name: record[name] / record["iterations"]
                                                                 for name in ("e_step", "m_step", "reduce")}},
                      "predicted": {**parts, "seconds": sum(parts.values()),
                                    "reduce": parts["allreduce"] + parts["gather"]}})
    return found


def _last_sums(rows, n_classes):
    return max(row["record"]["traffic"][str(row["record"]["iterations"])]["Allreduce"][3]
               for row in rows if row["classes"] == n_classes)


def forecasts(study, model, n_classes):
    """Predicted iterations: dicts of particles, ranks, parts [s]."""
    return [_forecast(study, model, n_classes, particles, ranks)
            for particles in study.predict.particles for ranks in study.predict.ranks]


def _forecast(study, model, n_classes, particles, ranks):
    one = sum(predicted(model, study.network, particles, 1).values())
    parts = predicted(model, study.network, particles, ranks)
    return {"particles": particles, "classes": n_classes, "ranks": ranks, "parts": parts,
            "most": largest_share(particles, ranks), "seconds": sum(parts.values()),
            "efficiency": one / sum(parts.values()) / ranks, "communication": communication(parts)}


def without_cores(study, rows, models):
    """Forecasts for the oversubscribed rows of one thread a rank: their messages were counted, their times were not
    to be had here."""
    return [_forecast(study, models[row["classes"]], row["classes"], row["particles"], row["layout"][0])
            for row in rows if row["oversubscribed"] and row["layout"][1] == 1]


def _geometry(study, stack):
    """The polar grid of the study's stacks, as the engine makes it."""
    from vitrea.benchmarks.whole import DIAMETER
    from vitrea.engine.geometry import make_geometry
    from vitrea.engine.options import Classify2dOptions, format_value, options_of
    from vitrea.engine.particles import read_particles

    known = options_of(Classify2dOptions)
    keys = {name: known[name].parse(format_value(value)) for name, value in study.job.items()}
    options = Classify2dOptions(input=stack, output=stack.parent / "run", n_classes=2, **{
        "particle_diameter": DIAMETER * study.stack.box * study.stack.pixel_size, **keys})
    return make_geometry(read_particles(stack), options)


def _document(study, records, groups, found, models):
    shared = any(row["oversubscribed"] for rows in groups.values() for row in rows)
    lines = ["# Scaling of classify2d", "",
             f"{_all_of(records, 'cpu')}, {_all_of(records, 'cores')} cores, {_all_of(records, 'mpi')}; commit "
             f"{_all_of(records, 'commit')}; load "
             f"{min(each['load'][0] for each in records):.1f}–{max(each['load'][0] for each in records):.1f} when the "
             "runs ended. Time is that of the iterations, without start and results; median of n, spread largest less "
             "least. Communication is the time in messages, waiting for other ranks included.",
             ""]
    mixed = [name for name in ("cpu", "cores", "mpi", "commit") if len({each[name] for each in records}) > 1]
    if mixed:
        lines += [f"**Not one machine and program**: the runs of this study differ in {', '.join(mixed)}. "
                  "Speed-up and efficiency then compare what is not alike.", ""]
    if shared:
        lines += ["**oversubscribed**: more ranks and threads than cores. Such runs are there for the numbers and "
                  "sizes of their messages; their times say nothing.", ""]
    for (kind, size, n_classes), rows in groups.items():
        words = f"{size:,} particles" if kind == "strong" else f"{size:,} particles a core"
        lines += [f"## Measured: {kind} scaling, {words}, K = {n_classes}", "",
                  table(MEASURED, map(_measured_row, rows)), ""]
    lines += ["## Counted: messages beside the model", "",
              "Of the last iteration, by a counting communicator, bytes given by all ranks (sums: by one rank). "
              + _traffic_verdict(found["counted"]), "", table(COUNTED, map(_counted_row, found["counted"])), "",
              "## Checked: the prediction beside what was measured here", "", _check_words(found["checked"]), "",
              table(CHECKED, map(_checked_row, found["checked"])), "",
              "## Predicted, not measured", "", _assumptions(study, models), "", *_without_cores_told(found),
              table(PREDICTED, map(_predicted_row, found["forecast"])), ""]
    return "\n".join(lines)


def _all_of(records, name):
    """What the records have in a field, each value once."""
    return " and ".join(dict.fromkeys(str(each[name]) for each in records))


def _without_cores_told(found):
    """The table of the layouts that had too few cores here."""
    if not found["without_cores"]:
        return []
    return ["The layouts of this study that were oversubscribed, if every rank had a core; the bytes of their messages "
            "are those counted above:", "", table(PREDICTED, map(_predicted_row, found["without_cores"])), "",
            "Many ranks:", ""]


def _check_words(checked):
    """How far apart prediction and measurement lie, over the rows that the rates do not come from."""
    ratios = [row["measured"]["seconds"] / row["predicted"]["seconds"] for row in checked if not row["source"]]
    verdict = (f"Measured over predicted: {min(ratios):.2f} to {max(ratios):.2f}." if ratios else
               "No run but the source of the rates could be compared.")
    return (f"{verdict} The same model, with the same network, for the ranks that have a core of their own here; the "
            "rates come from the rows marked so, whose E and M steps agree by construction. Messages are measured with "
            "the waiting for slower ranks, which the model knows only as whole blocks.")


def _checked_row(row):
    measured, model = row["measured"], row["predicted"]
    pairs = [f"{each[name]:.2g}" for name in ("e_step", "m_step", "reduce") for each in (measured, model)]
    return (f"{row['particles']:,}", row["classes"], row["ranks"], f"{measured['seconds']:.3g}",
            f"{model['seconds']:.3g}", f"{measured['seconds'] / model['seconds']:.2f}", *pairs,
            "source of the rates" if row["source"] else "")


def _measured_row(row):
    ranks, threads = row["layout"]
    return (f"{row['particles']:,}", row["classes"], f"{ranks} × {threads}", f"{row['seconds']:.3g}",
            f"{row['spread']:.2g}" if row["n"] > 1 else "–",
            f"{row['speed_up']:.2f}", f"{100 * row['efficiency']:.0f} %",
            f"{100 * row['communication']:.1f} %", f"{row['cpu_ms']:.3g}", row["n"],
            "oversubscribed" if row["oversubscribed"] else "")


def _counted_row(row):
    return (f"{row['particles']:,}", row["classes"], row["ranks"], row["allreduces"], f"{row['sums']:,}",
            "–" if row["sums_computed"] is None else f"{row['sums_computed']:,}", f"{row['gathered']:,}",
            f"{row['gathered_computed']:,}", f"{row['table']:,}")


def _traffic_verdict(counted):
    wrong = [row for row in counted if row["sums"] != row["sums_computed"] and row["sums_computed"] is not None]
    wrong += [row for row in counted if row["gathered"] != row["gathered_computed"]]
    if wrong:
        return f"**{len(wrong)} of {2 * len(counted)} sizes differ from the model.**"
    return "Every size is what the model computes."


def _assumptions(study, models):
    network = study.network
    lines = ["From rates measured on one rank, message sizes computed (and counted above), and a network as given: "
             f"latency {1e6 * network.latency:g} µs, {network.bandwidth / 1e9:g} GB/s a link. Not in it: reading the "
             "particles, memory bandwidth shared by the cores of a node, other traffic, the arithmetic of the "
             "reduction, a slow file system. Particles are dealt in whole blocks: "
             "with more ranks than blocks some have nothing to do. One rank computes each core; s/iteration in parts. "
             "*rest* and *gather* are those of a checkpoint after every iteration, as the runs of a study make it; "
             "with `checkpoint_minutes` they come once in so many minutes."]
    lines += [f"- K = {n}: {1e3 * model.t_particle:.3g} ms a particle and iteration, M {model.m_step:.3g} s, rest "
              f"{model.rest:.3g} s and {1e6 * model.row:.2g} µs a particle, sums of {model.sums:,} bytes, "
              f"{model.small:g} further Allreduces" for n, model in models.items()]
    return "\n".join([lines[0], "", *lines[1:]])


def _predicted_row(row):
    parts = row["parts"]
    return (f"{row['particles']:,}", row["classes"], row["ranks"], f"{row['most']:,}",
            f"{row['seconds']:.3g}", *(f"{parts[name]:.2g}" for name in parts), f"{100 * row['efficiency']:.0f} %",
            f"{100 * row['communication']:.2g} %")


def _figure(width, panels):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.0), layout="constrained")
    return figure, figure.subplots(1, panels)


def draw_measured(path, groups):
    """Speed-up, efficiency and share of communication over cores; oversubscribed runs are hollow."""
    figure, panels = _figure(13.0, 3)
    names = (("speed_up", "speed-up", 1.0), ("efficiency", "efficiency [%]", 100.0),
             ("communication", "communication [% of an iteration]", 100.0))
    most = max(row["cores"] for rows in groups.values() for row in rows)
    panels[0].plot([1, most], [1, most], color="0.7", ls="--", label="ideal")
    panels[1].axhline(100.0, color="0.7", ls="--")
    for number, ((kind, size, n_classes), rows) in enumerate(groups.items()):
        colour = f"C{number % 10}"
        label = f"{kind}, {size:,}{' a core' if kind == 'weak' else ''}, K {n_classes}"
        for panel, (name, words, factor) in zip(panels, names):
            panel.plot([], [], "o", color=colour, label=label)
            for row in rows:
                panel.plot(row["cores"], factor * row[name], "o" if row["layout"][1] == 1 else "^", color=colour,
                           mfc="none" if row["oversubscribed"] else colour)
            panel.set(xlabel="cores", ylabel=words, xscale="log",
                      title="measured: ○ ranks, △ threads too; hollow: oversubscribed")
            panel.title.set_fontsize(10)
    for panel in panels:
        ticks = sorted({row["cores"] for rows in groups.values() for row in rows})
        panel.set_xticks(ticks, labels=list(map(str, ticks)))
        panel.minorticks_off()
    panels[1].set(ylim=(0.0, None))
    panels[2].set(ylim=(0.0, None))
    panels[0].set(yscale="log")
    panels[0].set_yticks(ticks, labels=list(map(str, ticks)))
    panels[0].minorticks_off()
    panels[0].legend(fontsize=8)
    _save(figure, path)


def draw_predicted(path, forecast, checked):
    """Predicted time of an iteration over ranks, and the share of communication; before them the check: what was
    measured (filled) beside what the same model says of it (hollow squares, as in the other panels)."""
    figure, panels = _figure(14.0, 3)
    _draw_checked(panels[0], checked)
    panels = panels[1:]
    for key in dict.fromkeys((row["particles"], row["classes"]) for row in forecast):
        rows = [row for row in forecast if (row["particles"], row["classes"]) == key]
        label = f"{key[0]:,} particles, K {key[1]}"
        ranks = [row["ranks"] for row in rows]
        panels[0].loglog(ranks, [row["seconds"] for row in rows], "s--", mfc="none", label=label)
        panels[1].semilogx(ranks, [100.0 * row["communication"] for row in rows], "s--", mfc="none", label=label)
    panels[0].set(xlabel="ranks", ylabel="s/iteration", title="predicted, not measured")
    panels[1].set(xlabel="ranks", ylabel="communication [% of an iteration]", title="predicted, not measured")
    panels[0].legend(fontsize=8)
    panels[1].set_ylim(0.0, None)
    for panel in panels:
        ticks = sorted({row["ranks"] for row in forecast})
        panel.set_xticks(ticks, labels=list(map(str, ticks)), rotation=45)
        panel.minorticks_off()
    _save(figure, path)


def _draw_checked(panel, checked):
    for number, key in enumerate(dict.fromkeys((row["particles"], row["classes"]) for row in checked)):
        rows = [row for row in checked if (row["particles"], row["classes"]) == key]
        ranks, colour = [row["ranks"] for row in rows], f"C{number % 10}"
        panel.plot(ranks, [row["measured"]["seconds"] for row in rows], "o", color=colour,
                   label=f"{key[0]:,} particles, K {key[1]}")
        panel.plot(ranks, [row["predicted"]["seconds"] for row in rows], "s", color=colour, mfc="none", ms=10)
    panel.set(xlabel="ranks", ylabel="s/iteration", ylim=(0.0, None), title="check: ● measured, □ predicted")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=8)


def _save(figure, path):
    with written_beside(Path(path)) as beside:
        figure.savefig(beside, format="png", dpi=120)

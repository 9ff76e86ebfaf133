"""`vitrea bench compare A B`: what changed between two files of records, beyond the noise of both.

Measurements of one benchmark and size are pooled in each file. Their ratio of medians, B over A, is a change if it lies
farther from 1 than the noise: the spread of the samples of A and of B (largest less least, over the median) and, where
the machine's limit was measured beside them, how much that limit itself differs between A and B, added in quadrature,
and never less than LEAST. Samples of one run are more alike than runs are, hence the whole spread and not an error of
the median. One sample tells nothing of its spread, and such a comparison says so.
"""
import math
import statistics

from vitrea.benchmarks.measure import table

LEAST = 0.02               # a change below this is not told from the clock's own noise
BUSY = 0.6                 # load a core above which others were at work
NOT_SIZES = {"n", "min", "median", "samples", "wall_median", "date", "commit", "versions", "python", "cpu", "cores",
             "load", "mpi", "check", "twin", "limits", "phases", "phases_ms", "found", "traffic", "rings", "case",
             "repeat", "frc", "class_sizes", "not_counted", "clocks_missing", "unit", "units", "flops", "bytes",
             "coefficients", "harmonics", "iterations", "memory", "views_found", "most_views_in_one_class", "version",
             "path", "oversubscribed", "nodes"}
SIZES_WITH_POINT = {"pixel_size", "snr", "psi_step", "offset_range", "offset_step", "diameter", "support"}
SHOWN = ("flags", "classes", "n_classes", "rotations", "shifts", "rings", "particles", "box", "ranks", "threads")
COLUMNS = ("benchmark", "sizes", "A [ms]", "B [ms]", "B / A", "noise", "of the limit, A", "B", "")


def changes(before, after):
    """Compare two lists of records: {"surroundings": …, "measurements": [one dict a benchmark and size of both]}."""
    first, second = pooled(before), pooled(after)
    found = [_compared(first[key], second[key]) for key in first if key in second]
    return {"surroundings": _different(before[-1], after[-1]), "measurements": found,
            "busy": [(record.get("load"), record.get("cores")) for record in (*before, *after)],
            "only_before": [_name(first[key][-1]) for key in first if key not in second],
            "only_after": [_name(second[key][-1]) for key in second if key not in first]}


def pooled(records):
    """{(benchmark, name, sizes): records that measured the same}, in the order of the file."""
    groups = {}
    for record in records:
        if "samples" in record:
            groups.setdefault(_key(record), []).append(record)
    return groups


def _key(record):
    return str(sorted((name, value) for name, value in record.items() if _is_size(name, value)))


def _is_size(name, value):
    """Whether a field says what was measured; the others say how it came out, or when and where."""
    if name == "rings":
        return isinstance(value, int)    # of a kernel; a run lists those it used
    return name in SIZES_WITH_POINT or (name not in NOT_SIZES and isinstance(value, int | str | dict | list))


def _compared(before, after):
    a, b = ([sample for record in records for sample in record["samples"]] for records in (before, after))
    ratio = statistics.median(b) / statistics.median(a)
    spread = noise(a, b, _drift(before, after))
    verdict = "one sample" if spread is None else "no change"
    if spread is not None and abs(ratio - 1.0) > spread:
        verdict = "faster" if ratio < 1.0 else "SLOWER"
    return {"name": _name(after[-1]), "sizes": _sizes(after[-1]), "before": statistics.median(a),
            "after": statistics.median(b), "n_before": len(a), "n_after": len(b), "ratio": ratio, "noise": spread,
            "limit_before": before[-1].get("fraction_of_limit"), "limit_after": after[-1].get("fraction_of_limit"),
            "verdict": verdict}


def noise(a, b, drift=0.0):
    """How far from 1 the ratio of medians may lie by chance; None if one of the two is a single sample.

    drift: by how much the machine's limit differs, as a share.
    """
    if min(len(a), len(b)) < 2:
        return None
    spreads = [(max(samples) - min(samples)) / statistics.median(samples) for samples in (a, b)]
    return max(LEAST, math.hypot(*spreads, drift))


def _drift(before, after):
    """How much the limit of the machine changed, as a share; 0 where none was measured."""
    limits = [statistics.median(record["limit_ms"] for record in records) if "limit_ms" in records[0] else 1.0
              for records in (before, after)]
    return abs(limits[1] / limits[0] - 1.0)


def _name(record):
    return f"{record['benchmark']} {record.get('name', record.get('program', ''))}".strip()


def _sizes(record):
    return " ".join(f"{name} {record[name]}" for name in SHOWN if record.get(name, "") != "")


def _different(a, b):
    """What differs in where and when the two were measured."""
    names = ("commit", "cpu", "cores", "mpi", "python", "versions")
    found = {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}
    return found | {"load": [a.get("load"), b.get("load")]}


def told(found):
    """The comparison for people."""
    def share(value):
        return "–" if value is None else f"{100 * value:.0f} %"

    lines = [f"{name}: {before} → {after}" for name, (before, after) in found["surroundings"].items()]
    rows = [(each["name"], each["sizes"], f"{each['before']:.4g} (n {each['n_before']})",
             f"{each['after']:.4g} (n {each['n_after']})", f"{each['ratio']:.3f}",
             "–" if each["noise"] is None else f"± {each['noise']:.3f}", share(each["limit_before"]),
             share(each["limit_after"]), each["verdict"]) for each in found["measurements"]]
    busiest = max((load[0] / (cores or 1) for load, cores in found["busy"] if load), default=0.0)
    if busiest > BUSY:
        lines.append(f"the machine was busy (load {busiest:.1f} a core): a difference may be others' work")
    lines += ["", table(COLUMNS, rows) if rows else "no benchmark of one size is in both files"]
    lines += [f"only in A: {name}" for name in found["only_before"]] + [f"only in B: {name}" for name in
                                                                     found["only_after"]]
    return "\n".join(lines)

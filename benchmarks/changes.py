"""`vitrea bench compare A B`: what changed between two files of records, beyond the noise of both.

Measurements of one benchmark and size are pooled in each file. Their ratio of medians, B over A, is a change if it lies
farther from 1 than the noise: the spread of the samples of A and of B (largest less least, over the median) and, where
the machine's limit was measured beside them, how much that limit itself differs between A and B, added in quadrature,
and never less than LEAST. Samples of one run are more alike than runs are, hence the whole spread and not an error of
the median. One sample tells nothing of its spread, and such a comparison says so. Times on two processors are not
compared unless that is asked for.
"""
import math
import statistics

from vitrea.benchmarks.measure import table
from vitrea.engine.errors import JobError

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


def changes(before, after, other_cpu=False):
    """Compare two lists of records: {"surroundings": …, "measurements": [one dict a benchmark and size of both]}.

    JobError if they come from more than one kind of processor, unless other_cpu.
    """
    cpus = sorted({record["cpu"] for record in (*before, *after) if "cpu" in record})
    if len(cpus) > 1 and not other_cpu:
        raise JobError(f"A and B: the records come from {len(cpus)} kinds of processor ({'; '.join(cpus)}); expected "
                       "one, for a ratio would tell of the machines; measure both on one, or use --other-cpu")
    first, second = pooled(before), pooled(after)
    found = [_compared(first[key], second[key]) for key in first if key in second]
    return {"surroundings": _different(before, after), "measurements": found,
            "busiest": max(_busyness(record) for record in (*before, *after)),
            "only_before": [_alone(first[key][-1], second) for key in first if key not in second],
            "only_after": [_alone(second[key][-1], first) for key in second if key not in first],
            "without_samples": sorted({_name(record) for record in (*before, *after) if not list(_timed(record))})}


def pooled(records):
    """{(benchmark, name, sizes): records that measured the same}, in the order of the file."""
    groups = {}
    for record in records:
        for timed in _timed(record):
            groups.setdefault(_key(timed), []).append(timed)
    return groups


def _timed(record):
    """The record itself if it has samples; or one of its own for each part of it that has, times in ms."""
    if "samples" in record:
        yield record
        return
    parts = {name: value for name, value in record.items() if isinstance(value, dict) and "samples" in value}
    rest = {name: value for name, value in record.items() if name not in parts}
    for name, part in parts.items():
        yield {**rest, "name": name, "samples": [1e3 * sample for sample in part["samples"]]}


def _alone(record, others):
    """A measurement without a partner, and what the nearest one in the other file was made with."""
    words, sizes = f"{_name(record)} {_sizes(record)}".strip(), _size_fields(record)
    near = [_size_fields(other[-1]) for other in others.values() if _name(other[-1]) == _name(record)]
    if not near:
        return words
    other = min(near, key=lambda found: len(_unlike(sizes, found)))
    differ = ", ".join(f"{name} {other.get(name, 'not said')}" for name in _unlike(sizes, other))
    return f"{words} (the other file has it with {differ})"


def _unlike(a, b):
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def _key(record):
    return str(sorted(_size_fields(record).items()))


def _size_fields(record):
    return {name: value for name, value in record.items() if _is_size(name, value)}


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
        verdict += "?" if max(_busyness(record) for record in (*before, *after)) > BUSY else ""
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


def _busyness(record):
    """Load a core, 0 where nothing is known."""
    return record["load"][0] / (record.get("cores") or 1) if record.get("load") else 0.0


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
    """What differs in where and when the records of the two files were measured."""
    names = ("commit", "cpu", "cores", "mpi", "python")
    found = {name: [_all_of(a, name), _all_of(b, name)] for name in names}
    versions = [record.get("versions") or {} for record in (a[-1], b[-1])]
    packages = sorted(versions[0].keys() | versions[1].keys())
    found |= {name: [version.get(name, "none") for version in versions] for name in packages}
    found = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    return found | {"load": [_loads(a), _loads(b)]}


def _all_of(records, name):
    """The values of a field, each once, as a text."""
    return ", ".join(dict.fromkeys(str(record[name]) for record in records if name in record)) or "not said"


def _loads(records):
    loads = [record["load"][0] for record in records if record.get("load")]
    return f"{min(loads):.1f}–{max(loads):.1f}" if loads else "not said"


def told(found):
    """The comparison for people."""
    def share(value):
        return "–" if value is None else f"{100 * value:.0f} %"

    lines = [f"{name}: {before} → {after}" for name, (before, after) in found["surroundings"].items()]
    rows = [(each["name"], each["sizes"], f"{each['before']:.4g} (n {each['n_before']})",
             f"{each['after']:.4g} (n {each['n_after']})", f"{each['ratio']:.3f}",
             "–" if each["noise"] is None else f"± {each['noise']:.3f}", share(each["limit_before"]),
             share(each["limit_after"]), each["verdict"]) for each in found["measurements"]]
    if found["busiest"] > BUSY:
        lines.append(f"the machine was busy (load {found['busiest']:.1f} a core): a difference may be others' work, "
                     "and a verdict has a question mark")
    lines += ["", table(COLUMNS, rows) if rows else "no benchmark of one size is in both files"]
    lines += [f"only in A: {words}" for words in found["only_before"]]
    lines += [f"only in B: {words}" for words in found["only_after"]]
    if found["without_samples"]:
        lines.append(f"not compared, for they hold no repeated times: {', '.join(found['without_samples'])}")
    return "\n".join(lines)

"""Trainings compared in pairs: a bootstrap over seeds and micrographs, and verdicts by rules fixed before the runs.

A resample draws seeds with replacement and, for each that is drawn, its micrographs with replacement; every arm has the
same draws, so that a difference of two arms is one of pairs. The area under precision against recall is that of a
seed's micrographs together.
"""
import numpy as np

RESAMPLES = 2000
STANDARD, RIVALS = "Adam", ("cosine", "Adam", "SASA")
OURS, ABLATIONS = "freeze-aware", ("fixed fraction", "random time")
LEAST_GAIN, LEAST_SNRS = 0.01, 2   # of "helps", docs/dynamics.md
MEASURES = ("auprc", "f1", "recall", "calibration", "seconds")


class Resamples:
    """RESAMPLES draws of seeds and micrographs, the same for all arms."""

    def __init__(self, seeds, micrographs):
        random, self.seeds = np.random.default_rng(0), list(seeds)
        self._drawn = random.integers(len(self.seeds), size=(RESAMPLES, len(self.seeds)))
        chosen = random.integers(micrographs, size=(*self._drawn.shape, micrographs))
        self._counts = (chosen[..., None] == np.arange(micrographs)).sum(axis=2)

    def means(self, ranked):
        """float64[n]: the mean AUPRC of the drawn seeds; ranked[seed] is as `areas` takes it."""
        total = np.zeros(len(self._drawn))
        for number, seed in enumerate(self.seeds):
            row, slot = np.nonzero(self._drawn == number)
            np.add.at(total, row, areas(ranked[seed], self._counts[row, slot]))
        return total / len(self.seeds)


def areas(ranked, counts):
    """float64[n] areas under precision against recall of micrographs that count counts int[n, M] times.

    ranked: [(particles, scores of the candidates, those of false ones negative)] by micrograph, M of them.
    """
    signed = np.concatenate([np.asarray(scores, dtype=float) for _, scores in ranked])
    owner = np.repeat(np.arange(len(ranked)), [len(scores) for _, scores in ranked])
    order = np.argsort(-np.abs(signed), kind="stable")
    weight, true = counts[:, owner[order]].astype(float), signed[order] > 0
    right, all_picks = np.cumsum(weight * true, axis=1), np.maximum(np.cumsum(weight, axis=1), 1)
    particles = np.maximum(counts @ np.array([particles for particles, _ in ranked]), 1)
    return (weight * true * right / all_picks).sum(axis=1) / particles


def judged(records):
    """{name: value} of the test records of a comparison: by condition and arm means with 95 % intervals, differences to
    STANDARD, and the verdicts. Seeds that not all arms of a condition have are left out of it."""
    table = {}
    for condition in dict.fromkeys((record["snr"], record["wrong"]) for record in records):
        of_arms = {}
        for record in records:
            if (record["snr"], record["wrong"]) == condition:
                of_arms.setdefault(record["arm"], {})[record["seed"]] = record
        seeds = sorted(set.intersection(*(set(of) for of in of_arms.values())))
        if seeds:
            table[condition] = _condition(of_arms, seeds)
    rows = [{"snr": snr, "wrong": wrong, **found} for (snr, wrong), found in table.items()]
    for row in rows:
        row.pop("drawn")
    return {"conditions": rows, "verdicts": verdicts(table)}


def _condition(of_arms, seeds):
    micrographs = len(next(iter(of_arms.values()))[seeds[0]]["ranked"])
    resamples = Resamples(seeds, micrographs)
    drawn = {arm: resamples.means({seed: of[seed]["ranked"] for seed in seeds}) for arm, of in of_arms.items()}
    arms = {}
    for arm, of in of_arms.items():
        arms[arm] = {name: float(np.mean([of[seed][name] for seed in seeds])) for name in MEASURES}
        arms[arm]["interval"] = _interval(drawn[arm])
        if STANDARD in drawn:
            arms[arm]["above_standard"] = arms[arm]["auprc"] - float(
                np.mean([of_arms[STANDARD][seed]["auprc"] for seed in seeds]))
            arms[arm]["above_interval"] = _interval(drawn[arm] - drawn[STANDARD])
    return {"seeds": len(seeds), "arms": arms, "drawn": drawn}


def _interval(drawn):
    return [float(end) for end in np.quantile(drawn, (0.025, 0.975))]


# ---- verdicts

def verdicts(table):
    """{claim: {name: value}} by the rules of docs/dynamics.md; table[SNR or real set, share of wrong labels]."""
    complete = [found for (snr, wrong), found in table.items() if wrong == 0 and not isinstance(snr, str)]
    found = {}
    if all(arm in each["arms"] for each in complete for arm in (OURS, *RIVALS)):
        against = [max(RIVALS, key=lambda arm: each["arms"][arm]["auprc"]) for each in complete]
        gains = [_gain(each, OURS, rival) for each, rival in zip(complete, against)]
        found["helps"] = {"against": against, "gains": gains, "holds": sum(
            gain >= LEAST_GAIN and low > 0 for gain, low, _ in gains) >= LEAST_SNRS}
    if all(arm in each["arms"] for each in complete for arm in (OURS, *ABLATIONS)):
        gains = {arm: [_gain(each, OURS, arm) for each in complete] for arm in ABLATIONS}
        found["timing matters"] = {"gains": gains, "holds": sum(
            all(gains[arm][k][1] > 0 for arm in ABLATIONS) for k in range(len(complete))) >= LEAST_SNRS}
    if complete and all(STANDARD in each["arms"] for each in table.values()):
        found["default"] = _default(table, complete)
    return found


def _default(table, complete):
    common = set.intersection(*(set(each["arms"]) for each in complete))
    best = max(sorted(common), key=lambda arm: np.mean([each["arms"][arm]["auprc"] for each in complete]))
    gains = [_gain(each, best, STANDARD) for each in complete]
    worse = [key for key, each in table.items() if best in each["arms"] and _gain(each, best, STANDARD)[2] < 0]
    wins = best != STANDARD and sum(low > 0 for _, low, _ in gains) >= LEAST_SNRS and not worse
    return {"best": best, "gains": gains, "worse": worse, "becomes": best if wins else STANDARD}


def _gain(found, one, other):
    """(difference of the mean AUPRC of two arms, ends of its 95 % interval)."""
    difference = found["arms"][one]["auprc"] - found["arms"][other]["auprc"]
    return [difference, *_interval(found["drawn"][one] - found["drawn"][other])]


# ---- for people

def told(found):
    """The tables and verdicts, as Markdown."""
    rows = found["conditions"]
    most = max(len(row["arms"]) for row in rows)
    whole = [row for row in rows if len(row["arms"]) == most]
    arms = sorted(whole[0]["arms"], key=lambda arm: -np.mean([row["arms"][arm]["auprc"] for row in whole]))
    lines = _table("AUPRC (95 %)", rows, arms, lambda of: f"{of['auprc']:.3f} ({of['interval'][0]:.3f}–"
                   f"{of['interval'][1]:.3f})")
    lines += _table(f"AUPRC above {STANDARD} (95 %)", rows, [arm for arm in arms if arm != STANDARD], lambda of: (
        _signed([of["above_standard"], *of["above_interval"]]) if "above_standard" in of else "–"))
    lines += _table("F1, recall at precision 0.9, calibration error", rows, arms,
                    lambda of: f"{of['f1']:.3f}, {of['recall']:.3f}, {of['calibration']:.3f}")
    return "\n".join([*lines, *_verdict_lines(found["verdicts"])])


def _table(words, rows, arms, cell):
    """Lines of a table with a column for each condition."""
    heads = [_head(row) for row in rows]
    lines = [f"| {words} | {' | '.join(heads)} |", "|---" * (len(rows) + 1) + "|"]
    for arm in arms:
        cells = [cell(row["arms"][arm]) if arm in row["arms"] else "–" for row in rows]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return [*lines, ""]


def _head(row):
    name = row["snr"] if isinstance(row["snr"], str) else f"SNR {row['snr']:g}"
    return name + (f", {100 * row['wrong']:.0f} % wrong" if row["wrong"] else "") + f", n = {row['seeds']}"


def _verdict_lines(found):
    lines = []
    if "helps" in found:
        of = found["helps"]
        lines.append(f"* **Helps**: {_yes(of)}. {OURS} above the best of {', '.join(RIVALS)}: " + "; ".join(
            f"{_signed(gain)} ({rival})" for gain, rival in zip(of["gains"], of["against"])) + ".")
    if "timing matters" in found:
        of = found["timing matters"]
        lines.append(f"* **Timing matters**: {_yes(of)}. {OURS} above " + "; above ".join(
            f"{arm}: " + ", ".join(map(_signed, gains)) for arm, gains in of["gains"].items()) + ".")
    if "default" in found:
        of = found["default"]
        lines.append(f"* **The default** is {of['becomes']}. Largest mean AUPRC: {of['best']}, above {STANDARD} by "
                     + ", ".join(map(_signed, of["gains"])) + ".")
    return lines


def _yes(verdict):
    return "yes" if verdict["holds"] else "no"


def _signed(gain):
    return f"{gain[0]:+.3f} ({gain[1]:+.3f} … {gain[2]:+.3f})".replace("-", "−")

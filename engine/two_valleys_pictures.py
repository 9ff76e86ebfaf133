"""Pictures of the experiments on the two-valley model: what was simulated as points, theory as lines."""
from pathlib import Path

import numpy as np

SIMULATED = {"linestyle": "none", "marker": "o", "markersize": 4, "capsize": 2}
LEAST_TIME = 0.1   # of freezing, that a colour is given to
AUTHORS = {"linestyle": "none", "marker": "x", "color": "black", "markersize": 6}


def draw_phases(result, path: Path) -> None:
    """P_flat and freezing time over learning rate and noise strength; P_flat against their product, with F4."""
    figure = _figure(14, 4.2)
    left, middle, right = figure.subplots(1, 3)
    _draw_map(figure, left, result["cells"], ("p_flat", "fraction in the flat valley"))
    _draw_map(figure, middle, result["cells"], ("normalised_freezing_time", "freezing time η t_f"), norm="log",
              vmin=LEAST_TIME)
    delta = _values(result, "learning_rate") * _values(result, "noise_strength")
    right.errorbar(delta, _values(result, "p_flat"), _values(result, "p_flat_error"), label="simulated", **SIMULATED)
    right.plot(delta, _values(result, "theory_p_flat"), "s", color="tab:orange", fillstyle="none", markersize=9,
               label="theory F4")
    right.plot(delta, _values(result, "authors_p_flat"), label="the authors'", **AUTHORS)
    right.set(xscale="log", xlabel="effective noise Δ = ησ", ylabel="fraction in the flat valley")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)   # points reach every corner
    _save(figure, path)


def draw_scan(result, path: Path) -> None:
    """y at freezing and the final P_flat over the noise."""
    figure = _figure(10, 4.2)
    delta, order = _values(result, "delta"), np.argsort(_values(result, "delta"))
    panels = (("freezing_y", "freezing_y_deviation", "y at freezing (bars: deviation)", "upper left"),
              ("p_flat", "p_flat_error", "fraction in the flat valley", "lower right"))
    for axes, (name, error, words, place) in zip(figure.subplots(1, 2), panels):
        axes.errorbar(delta, _values(result, name), _values(result, error), label="simulated", **SIMULATED)
        axes.plot(delta[order], _values(result, f"theory_{name}")[order], label="theory F4, nothing fitted")
        axes.plot(delta[order], _values(result, f"printed_{name}")[order], ":",
                  label=f"as printed, ε = {result['printed_epsilon']:g}")
        axes.plot(delta, _values(result, f"authors_{name}"), label="the authors'", **AUTHORS)
        axes.set(xscale="log", xlabel="effective noise Δ = ησ", ylabel=words)
        axes.legend(loc=place)
    _save(figure, path)


def draw_courses(result, path: Path) -> None:
    """P_flat over y for each noise strength, with F4 and the steady state of each y."""
    figure = _figure(6.5, 4.5)
    axes = figure.subplots()
    y, strengths = _values(result, "y"), _values(result, "noise_strength")
    for number, strength in enumerate(np.unique(strengths)):
        mine = np.flatnonzero(strengths == strength)
        mine, colour = mine[np.argsort(y[mine])], f"C{number}"
        axes.errorbar(y[mine], _values(result, "p_flat")[mine], _values(result, "p_flat_error")[mine], color=colour,
                      label=f"simulated, σ = {strength:g}", **SIMULATED)
        axes.plot(y[mine], _values(result, "theory_p_flat")[mine], color=colour, label="theory F4")
        axes.plot(y[mine], _values(result, "steady_p_flat")[mine], ":", color=colour, label="steady state F2")
    axes.plot(y, _values(result, "authors_p_flat"), label="the authors'", **AUTHORS)
    axes.set(xlabel="progress y", ylabel="fraction in the flat valley")
    axes.legend(fontsize="small", loc="lower right")
    _save(figure, path)


def draw_quench(result, path: Path) -> None:
    """P_flat at the end over the time of quenching."""
    figure = _figure(6.5, 4.2)
    axes = figure.subplots()
    time, strength = _values(result, "quench_time"), _values(result, "noise_strength")
    for number, each in enumerate(np.unique(strength)):
        mine = np.flatnonzero((strength == each) & np.isfinite(time))
        mine, colour = mine[np.argsort(time[mine])], f"C{number}"
        axes.errorbar(time[mine], _values(result, "p_flat")[mine], _values(result, "p_flat_error")[mine], color=colour,
                      label=f"simulated, σ = {each:g}", **SIMULATED)
        axes.plot(time[mine], _values(result, "theory_p_flat")[mine], color=colour, label="theory F5, nothing fitted")
        for held in np.flatnonzero((strength == each) & ~np.isfinite(time)):
            axes.axhline(_values(result, "p_flat")[held], linestyle="--", color=colour, label="never quenched")
        axes.axvline(_values(result, "held_freezing_time")[strength == each][0], linestyle=":", color=colour,
                     label="freezing time")
    axes.set(xlabel="time of quenching, learning rate × steps", ylabel="fraction in the flat valley")
    axes.legend(fontsize="small", loc="lower right")
    _save(figure, path)


def draw_cooling(result, path: Path) -> None:
    """P_flat at the end for every schedule."""
    figure = _figure(7, 4.2)
    axes = figure.subplots()
    cells = result["cells"]
    names = [cell["schedule"] + (f"\nτ = {cell['cooling_time']:g}" if cell["schedule"] == "exponential" else "")
             for cell in cells]
    axes.errorbar(range(len(cells)), _values(result, "p_flat"), _values(result, "p_flat_error"), label="simulated",
                  **SIMULATED)
    axes.plot(range(len(cells)), _values(result, "theory_p_flat"), "_", markersize=14, label="theory F4")
    axes.set_xticks(range(len(cells)), names, fontsize="small")
    axes.set(ylabel="fraction in the flat valley")
    axes.legend(loc="lower right")
    _save(figure, path)


def _values(result, name: str) -> np.ndarray:
    return np.array([np.nan if cell.get(name) is None else cell[name] for cell in result["cells"]], dtype=np.float64)


def _draw_map(figure, axes, cells, told: tuple[str, str], **scale) -> None:
    name, words = told
    rates, strengths = (sorted({cell[key] for cell in cells}) for key in ("learning_rate", "noise_strength"))
    values = np.full((len(rates), len(strengths)), np.nan)
    for cell in cells:
        values[rates.index(cell["learning_rate"]), strengths.index(cell["noise_strength"])] = cell[name]
    shown = axes.imshow(np.maximum(values, scale.get("vmin", values)), origin="lower", aspect="auto", **scale)
    axes.set_xticks(range(len(strengths)), [f"{strength:.3g}" for strength in strengths], rotation=60)
    axes.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
    axes.set(xlabel="noise strength σ", ylabel="learning rate η", title=words)
    figure.colorbar(shown, ax=axes)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)

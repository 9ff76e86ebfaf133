"""A part of a report between two headings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """plots: what templates/plots.js draws, each with a title and words; pictures: dicts of image (a data URI), label
    and caption; table: (heading, rows); map: planes of rows of class numbers; tree: entries of id, leaf (class number
    or 0), words, and those below."""

    id: str
    name: str
    words: str = ""
    plots: tuple | list = ()
    pictures: tuple | list = ()
    table: tuple | None = None
    map: list | None = None
    tree: list | None = None


def reliability_plot(bins, title, words, happened="share that is true"):
    """What happened against its probability; bins: (mean probability, mean of what happened, n)."""
    return {"title": title, "words": f"{words} On the diagonal, probabilities are frequencies.", "kind": "line",
            "x": [round(mean, 4) for mean, *_ in bins], "xlabel": "probability", "ylabel": happened,
            "range": [0, 1], "series": [{"name": "found", "y": [round(share, 4) for _, share, _ in bins]},
                                        {"name": "ideal", "y": [round(mean, 4) for mean, *_ in bins], "dashed": True}]}

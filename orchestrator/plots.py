"""The pictures of a report, from the same numbers as its tables.

Readable in grey and by colour-blind readers: cividis for values, one ramp of lightness with hatches for systems, and
every number that matters written out. No pyplot, so nothing global and no display.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from deftx.evaluate import AVERAGE
from orchestrator.record import BASELINE_TITLES, RowKind
from orchestrator.results import Results, RowResult
from orchestrator.words import METRIC_WORDS

_COLOURS = colormaps["cividis"]
_RANKS = ("rank_l", "rank_t")
_PAGE_INCHES = 18
_MANY_CELLS = 8
_GREY = "#8a8a8a"
_STYLES: dict[RowKind, dict[str, str]] = {
    "combination": {"facecolor": "#0b2c5e"},
    "lt-sft": {"facecolor": "#6f7f9c"},
    "task": {"facecolor": "#c9b458", "hatch": "//"},
    "task+source": {"facecolor": "#dfcf8b", "hatch": "\\\\"},
    "other-language": {"facecolor": "#f1e9c8", "hatch": ".."},
    "dense-task": {"facecolor": "#ffffff"},
}


def heatmap(results: Results) -> bytes | None:
    """The mean score of every combination over the targets as PNG: r_l by r_t, one panel for each retention.

    Returns:
        none when no combination was asked.
    """
    cells = _cells(results)
    if cells.empty:
        return None
    panels = list(cells.groupby(["retention_l", "retention_t"]))
    figure, axes = _panels(len(panels), *(max(panel[rank].nunique() for _, panel in panels) for rank in _RANKS))
    norm = _norm(cells["value"])
    for axis, (kept, panel) in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, norm)
        axis.set_title(_kept_words(*kept), fontsize=10)
    shrink = min(1.0, 5 / figure.get_figheight())
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=axes, aspect=30, pad=0.02, shrink=shrink)
    bar.set_label(_unit(results), fontsize=9)
    figure.suptitle(f"Mean {results.split} score: {_sample(results)}{_typical_interval(cells)}", fontsize=11)
    figure.supxlabel("r_t: rank of the task vector", fontsize=10)
    figure.supylabel("r_l: rank of the language vectors", fontsize=10)
    return _png(figure)


def language_bars(results: Results) -> bytes | None:
    """The chosen combination and the baselines on each target and on average as PNG, with 95 % intervals.

    Returns:
        none when none of them was graded.
    """
    systems = [one for one in (results.chosen, *map(results.baseline, BASELINE_TITLES)) if one and one.scores]
    if not systems:
        return None
    names = [*results.targets, AVERAGE]
    width = max(7.0, (0.3 + 0.2 * len(systems)) * len(names) + 1.0)
    figure = Figure(figsize=(width, 4.6), dpi=150, layout="constrained")
    axis = figure.subplots()
    for place, one in enumerate(systems):
        _draw_bars(axis, one, names, place, len(systems))
    axis.axvline(len(names) - 1.5, color=_GREY, linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(names)), [f"{name}\nn = {results.items(name)}" for name in names])
    axis.set_ylabel(_unit(results))
    axis.set_title(f"{results.split.capitalize()} scores with 95 % intervals: {_sample(results)}", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return _png(figure)


def _cells(results: Results) -> pd.DataFrame:
    """One line for each combination: its parameters, its mean score, whether it was chosen."""
    frame = results.frame
    return frame[(frame["kind"] == "combination") & (frame["language"] == AVERAGE)]


def _panels(count: int, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure that grows with its cells, smaller ones where there are many, and as many axes as there are panels."""
    across, down = (0.8, 0.6) if columns <= _MANY_CELLS else (0.54, 0.36)
    wide, high = 0.8 + across * columns, 0.9 + down * rows
    abreast = min(count, max(1, int(_PAGE_INCHES // wide)))
    deep = -(-count // abreast)
    size = (max(6.0, abreast * wide + 1.4), max(3.6, deep * high + 1.0))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = list(figure.subplots(deep, abreast, squeeze=False).flat)
    for spare in axes[count:]:
        figure.delaxes(spare)
    return figure, axes[:count]


def _norm(values: pd.Series) -> Normalize:
    """From the lowest to the highest score, at least one point wide, so that noise does not look like contrast."""
    known = values.dropna()
    middle = (known.min() + known.max()) / 2 if len(known) else 50.0
    half = max((known.max() - known.min()) / 2, 0.5) if len(known) else 50.0
    return Normalize(middle - half, middle + half)


def _draw_panel(axis: Axes, panel: pd.DataFrame, norm: Normalize) -> None:
    """The cells of one retention over the ranks asked with it; what was not asked stays empty."""
    ranks_l, ranks_t = (sorted(panel[rank].unique(), key=_rank_order) for rank in _RANKS)
    axis.set_xticks(range(len(ranks_t)), ranks_t)
    axis.set_yticks(range(len(ranks_l)), ranks_l)
    axis.set_xlim(-0.5, len(ranks_t) - 0.5)
    axis.set_ylim(-0.5, len(ranks_l) - 0.5)
    axis.tick_params(length=0)
    axis.grid(color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    for cell in panel.sort_values("chosen").to_dict("records"):
        _draw_cell(axis, ranks_t.index(cell["rank_t"]), ranks_l.index(cell["rank_l"]), cell, norm)


def _draw_cell(axis: Axes, x: int, y: int, cell: dict[str, Any], norm: Normalize) -> None:
    graded = not pd.isna(cell["value"])
    colour = _COLOURS(norm(cell["value"])) if graded else (1.0, 1.0, 1.0, 1.0)
    edge, hatch = ("white", None) if graded else (_GREY, "///")
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=edge, hatch=hatch))
    words = f"{cell['value']:.1f}" if graded else str(cell["status"])
    ink = "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
    if cell["chosen"]:
        words += "\nchosen"
        axis.add_patch(Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, fill=False, edgecolor=ink, linewidth=2.0))
    background = None if graded else {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    weight = "bold" if cell["chosen"] else "normal"
    axis.text(x, y, words, ha="center", va="center", fontsize=7.5, color=ink, weight=weight, bbox=background)


def _draw_bars(axis: Axes, one: RowResult, names: Sequence[str], place: int, count: int) -> None:
    width = 0.84 / count
    there = [(at, one.scores[name]) for at, name in enumerate(names) if name in one.scores]
    left = [at + (place - (count - 1) / 2) * width for at, _ in there]
    values = np.array([(score.value, score.low, score.high) for _, score in there]) * 100
    label = f"{one.row.title} (chosen)" if one.row.kind == "combination" else one.row.title
    style: dict[str, Any] = {"edgecolor": "#333333", "linewidth": 0.6, **_STYLES[one.row.kind]}
    axis.bar(left, values[:, 0], width * 0.94, label=label, **style)
    reach = np.abs(values[:, [0]] - values[:, 1:]).T
    _, caps, bars = axis.errorbar(left, values[:, 0], reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
    for line in (*caps, *bars):
        line.set_path_effects([withStroke(linewidth=2.0, foreground="white")])
    if there[-1][0] == len(names) - 1:
        top = values[-1, 2] + 1.5
        axis.text(left[-1], top, f"{values[-1, 0]:.1f}", ha="center", va="bottom", fontsize=7.5, rotation=90)


def _rank_order(rank: str) -> tuple[bool, float]:
    """Uniform ranks first, then shares of variance, each by size."""
    return rank.endswith("%"), float(rank.rstrip("%"))


def _kept_words(kept_l: float, kept_t: float) -> str:
    if kept_l == kept_t:
        return f"retention {kept_l * 100:g} %"
    return f"retention {kept_l * 100:g} % (language), {kept_t * 100:g} % (task)"


def _unit(results: Results) -> str:
    return f"{METRIC_WORDS[results.metric]} (percent points)"


def _sample(results: Results) -> str:
    return f"{len(results.targets)} languages, {results.items()} parallel items, one run"


def _typical_interval(cells: pd.DataFrame) -> str:
    """So that nobody reads a pattern into cells that differ by less than this."""
    half = ((cells["high"] - cells["low"]) / 2).median()
    return "" if pd.isna(half) else f"\n95 % interval of one cell: about ±{half:.1f}"


def _png(figure: Figure) -> bytes:
    """Without a software tag, so that the same numbers give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

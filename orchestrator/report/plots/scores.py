"""The scores of a sweep as pictures: by rank and by language. The numbers are those of its tables.

Vectors are drawn in `vectors`, times in `time`; what all pictures share is in `page`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from deftx.config import METRIC_NAMES, SPLIT_NAMES
from deftx.evaluate.bootstrap import AVERAGE
from deftx.rank import Rank
from orchestrator.record.sweep import BASELINE_TITLES, RowKind
from orchestrator.report.plots.page import (
    COLOURS,
    EDGE,
    GREY,
    PAGE,
    RAMP,
    SMALL,
    TEXT,
    heading,
    heading_inches,
    ink,
    page,
)
from orchestrator.report.results import Results, RowResult
from orchestrator.wording import counted, format_items

_RANKS = ("rank_l", "rank_t")
_SIGNS = {"chosen": "★", "failed": "×", "waiting": "…"}
_WIDEST_CELL, _NARROW_CELL = 1.2, 0.42
"""Inches."""
_GROUPS_PER_LINE = 6
_KINDS: tuple[RowKind, ...] = ("combination", *BASELINE_TITLES)
_STYLES = dict(zip(_KINDS, RAMP, strict=False))


# -- by rank ----------------------------------------------------------------------------------------------------------


def heatmap(results: Results) -> Figure | None:
    """A heat map of the mean score over the targets: r_l by r_t, one panel for each pair of retentions.

    A panel has only the ranks that were asked with its retentions, in cells of equal size: a sparse search is legible.

    Returns:
        None when no combination was asked.
    """
    cells = _cells(results)
    if cells.empty:
        return None
    panels = list(cells.groupby(["retention_l", "retention_t"]))
    columns = max(panel["rank_t"].nunique() for _, panel in panels)
    per_line = max(1, min(len(panels), int(PAGE // (0.8 + _NARROW_CELL * columns))))
    cell_width = min(_WIDEST_CELL, (PAGE / per_line - 0.9) / columns)
    cell_height = 0.42 if cell_width > 0.5 else 0.34
    lines = _heatmap_lines(results, cells)
    rows = [panel["rank_l"].nunique() for _, panel in panels]
    rows = [max(rows[first : first + per_line]) for first in range(0, len(rows), per_line)]
    height = heading_inches(*lines) + sum(0.75 + count * cell_height for count in rows) + 0.75
    figure, axes = page(height, len(rows), per_line, height_ratios=rows)
    norm = _norm(cells["value"])
    for place, (axis, (retentions, panel)) in enumerate(zip(axes, panels, strict=False)):
        size = (rows[place // per_line], columns)
        _draw_panel(axis, panel, norm, size)
        axis.set_box_aspect(size[0] * cell_height / (size[1] * cell_width))
        axis.set_title(_format_retention(*retentions), fontsize=TEXT, loc="left")
    for spare in axes[len(panels) :]:
        figure.delaxes(spare)
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), ax=axes[: len(panels)], location="bottom", aspect=40, pad=0.02, shrink=0.7
    )
    bar.set_label(_unit(results), fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    heading(figure, f"Mean {SPLIT_NAMES[results.split]} score by r_l (language vectors) and r_t (task vector)", *lines)
    return figure


def _cells(results: Results) -> pd.DataFrame:
    """The lines of the frame with the average of each combination."""
    frame = results.frame
    return frame[(frame["kind"] == "combination") & (frame["language"] == AVERAGE)]


def _heatmap_lines(results: Results, cells: pd.DataFrame) -> list[str]:
    """The lines below the title: sample size and noise, the baselines, and the signs that occur."""
    half = ((cells["high"] - cells["low"]) / 2).median()
    noise = "" if pd.isna(half) else f"; 95 % interval of a cell: about ±{half:.1f}"
    baselines = filter(None, (results.baseline("lt-sft"), results.baseline("task")))
    averages = [(baseline.row.title, baseline.scores[AVERAGE]) for baseline in baselines if AVERAGE in baseline.scores]
    comparison = ", ".join(f"{title} {100 * average.value:.1f}" for title, average in averages)
    seen = set(cells["status"]) | ({"chosen"} if cells["chosen"].any() else set())
    signs = [f"{sign} {word}" for word, sign in _SIGNS.items() if word in seen]
    asked = cells.groupby(["retention_l", "retention_t"])[["row", *_RANKS]].nunique()
    if (asked["row"] < asked["rank_l"] * asked["rank_t"]).any():
        signs.append("empty: not asked")
    return [
        f"{_sample(results)}{noise}",
        f"For comparison: {comparison}" if comparison else "",
        ", ".join(signs),
    ]


def _norm(values: pd.Series) -> Normalize:
    """A scale from the lowest to the highest score, at least one point wide: noise must not look like contrast."""
    graded = values.dropna()
    middle = (graded.min() + graded.max()) / 2 if len(graded) else 50.0
    half = max((graded.max() - graded.min()) / 2, 0.5) if len(graded) else 50.0
    return Normalize(middle - half, middle + half)


def _draw_panel(axis: Axes, panel: pd.DataFrame, norm: Normalize, size: tuple[int, int]) -> None:
    """Draw the cells of one pair of retentions, low ranks at the bottom left; what was not asked stays empty."""
    ranks_l, ranks_t = (sorted(panel[rank].unique(), key=Rank.parse) for rank in _RANKS)
    axis.set_xticks(range(len(ranks_t)), ranks_t, rotation=90 if size[1] > 2 * _GROUPS_PER_LINE else 0)
    axis.set_yticks(range(len(ranks_l)), ranks_l)
    axis.set_xlim(-0.5, size[1] - 0.5)
    axis.set_ylim(-0.5, size[0] - 0.5)
    axis.tick_params(length=0, labelsize=SMALL)
    axis.set_xlabel("r_t", fontsize=TEXT, x=len(ranks_t) / size[1] / 2)
    axis.set_ylabel("r_l", fontsize=TEXT, y=len(ranks_l) / size[0] / 2, rotation=0, ha="right", va="center")
    axis.spines[:].set_visible(False)
    edges = [np.arange(len(ranks) + 1) - 0.5 for ranks in (ranks_l, ranks_t)]
    axis.hlines(edges[0], -0.5, len(ranks_t) - 0.5, color="#dddddd", linewidth=0.6, zorder=0)
    axis.vlines(edges[1], -0.5, len(ranks_l) - 0.5, color="#dddddd", linewidth=0.6, zorder=0)
    for cell in panel.sort_values("chosen").to_dict("records"):
        _draw_cell(axis, ranks_t.index(cell["rank_t"]), ranks_l.index(cell["rank_l"]), cell, norm)


def _draw_cell(axis: Axes, x: int, y: int, cell: dict[str, Any], norm: Normalize) -> None:
    graded = not pd.isna(cell["value"])
    colour = COLOURS(norm(cell["value"])) if graded else (1.0, 1.0, 1.0, 1.0)
    edge, hatch = ("white", None) if graded else (GREY, "////")
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=edge, hatch=hatch, clip_on=False))
    label = f"{cell['value']:.1f}" if graded else _SIGNS[cell["status"]]
    if cell["chosen"]:
        label = f"{_SIGNS['chosen']}\n{label}"
        axis.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fill=False, edgecolor=ink(colour), linewidth=1.5))
    background = None if graded else {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axis.text(
        x, y, label, ha="center", va="center", fontsize=SMALL - 0.5, linespacing=0.95, color=ink(colour),
        bbox=background,
    )  # fmt: skip


def _format_retention(retention_l: float, retention_t: float) -> str:
    if retention_l == retention_t:
        return f"retention {retention_l * 100:g} %"
    return f"retention {retention_l * 100:g} % (language), {retention_t * 100:g} % (task)"


# -- by language ------------------------------------------------------------------------------------------------------


def language_bars(results: Results) -> Figure | None:
    """Bars of the chosen combination and the baselines on each target, with joint 95 % intervals.

    The average is drawn too where there are several targets.

    Returns:
        None when none of them was graded.
    """
    candidates = filter(None, (results.chosen, *map(results.baseline, BASELINE_TITLES)))
    row_results = [row_result for row_result in candidates if row_result.scores]
    if not row_results:
        return None
    names = [*results.targets, AVERAGE] if len(results.targets) > 1 else [*results.targets]
    line_count = -(-len(names) // _GROUPS_PER_LINE)
    per_line = -(-len(names) // line_count)
    lines = [_sample(results), "An item is redrawn in all its languages at once, for all rows."]
    legend = 0.2 * -(-len(row_results) // 2) + 0.25
    figure, axes = page(heading_inches(*lines) + line_count * 2.7 + legend, line_count, 1, sharey=True)
    for line, axis in enumerate(axes):
        _draw_groups(axis, results, row_results, names[line * per_line : (line + 1) * per_line], per_line)
    highest = max(score.high for row_result in row_results for score in row_result.scores.values())
    axes[0].set_ylim(0, min(118.0, 100 * highest + 16))
    axes[0].set_yticks(range(0, 101, 20))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False
    )
    heading(figure, f"{SPLIT_NAMES[results.split].capitalize()} scores with joint 95 % intervals", *lines)
    return figure


def _draw_groups(
    axis: Axes, results: Results, row_results: Sequence[RowResult], names: Sequence[str], per_line: int
) -> None:
    """Draw one line of the page: a group of bars for each name."""
    for place, row_result in enumerate(row_results):
        _draw_bars(axis, row_result, names, place, len(row_results))
    if AVERAGE in names[1:]:
        axis.axvline(names.index(AVERAGE) - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xlim(-0.6, per_line - 0.4)
    axis.set_xticks(range(len(names)), [_format_name(results, name) for name in names])
    axis.set_ylabel(_unit(results).replace(" (", "\n("), fontsize=TEXT)


def _format_name(results: Results, name: str) -> str:
    """A language with the number of its items, and the number of its rows where that is larger."""
    items, rows = results.items(name), results.examples(name)
    return f"{name}\nn = {items:,}" + (f"\n({rows:,} rows)" if rows != items and name != AVERAGE else "")


def _draw_bars(axis: Axes, row_result: RowResult, names: Sequence[str], place: int, count: int) -> None:
    width, row = 0.84 / count, row_result.row
    scores = {at: row_result.scores[name] for at, name in enumerate(names) if name in row_result.scores}
    left = [at + (place - (count - 1) / 2) * width for at in scores]
    values = np.array([(score.value, score.low, score.high) for score in scores.values()]).reshape(-1, 3) * 100
    label = f"{row.title} (chosen)" if row.kind == "combination" else row.title
    style: dict[str, Any] = {"edgecolor": EDGE, "linewidth": 0.6, **_STYLES[row.kind]}
    axis.bar(left, values[:, 0], width * 0.94, label=textwrap.fill(label, 46), **style)
    reach = np.abs(values[:, [0]] - values[:, 1:]).T
    _, caps, bars = axis.errorbar(left, values[:, 0], reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
    for line in (*caps, *bars):
        line.set_path_effects([withStroke(linewidth=2.0, foreground="white")])
    for at, (value, _, high) in zip(left, values, strict=True):
        axis.text(at, high + 1.5, f"{value:.1f}", ha="center", va="bottom", fontsize=SMALL - 0.5, rotation=90)


def _unit(results: Results) -> str:
    return f"{METRIC_NAMES[results.metric]} (percentage points)"


def _sample(results: Results) -> str:
    languages = counted(len(results.targets), "language")
    items = format_items(results.items(), parallel=not results.disagreements)
    return f"{METRIC_NAMES[results.metric]}: {languages}, {items}, one run"

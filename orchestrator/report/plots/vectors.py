"""The vectors of the chosen combination as pictures: the spectra of their dense changes, and how masks overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from orchestrator.report.plots.page import COLOURS, EDGE, RAMP, SMALL, TEXT, heading, heading_inches, ink, page
from orchestrator.report.vectors import MATRICES, TASK, Mask, Overlap, Spectrum, chance_overlap, overlap

_LINES: dict[str, dict[str, Any]] = dict(
    zip(
        MATRICES,
        (
            {"color": "#0b2c5e", "linestyle": "-", "marker": "o"},
            {"color": "#8a7a2a", "linestyle": "--", "marker": "s"},
            {"color": "#6f7f9c", "linestyle": ":", "marker": "^"},
        ),
        strict=True,
    )
)
_RANK_TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)
_WIDEST_CELL = 1.1


def spectra_plot(spectra: Sequence[Spectrum]) -> Figure | None:
    """Curves of the cumulative share of squared singular values by rank: a panel for each subject, chosen ranks marked.

    Returns:
        None when there are no singular values.
    """
    subjects = list(dict.fromkeys(spectrum.subject for spectrum in spectra))
    if not subjects:
        return None
    lines = (
        "Dense phase: share of the squared singular values (energy) that the first r of them hold.",
        "Marks: the rank that the chosen vector keeps of the matrix.",
    )
    figure, axes = page(heading_inches(*lines) + 4.2, 1, len(subjects), sharey=True)
    for axis, subject in zip(axes, subjects, strict=True):
        of_subject = [spectrum for spectrum in spectra if spectrum.subject == subject]
        for spectrum in of_subject:
            _draw_spectrum(axis, spectrum)
        _log_ranks(axis, max(len(spectrum.values) for spectrum in of_subject))
        axis.set_title("task vector" if subject == TASK else f"language vector: {subject}", fontsize=TEXT)
        axis.set_xlabel("rank r (logarithmic)", fontsize=TEXT)
        axis.set_ylim(-0.02, 1.04)
        axis.grid(color="#e4e4e4", linewidth=0.6)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=SMALL, frameon=False)
    axes[0].set_ylabel("cumulative share of energy", fontsize=TEXT)
    heading(figure, "Singular-value spectra", *lines)
    return figure


def _log_ranks(axis: Axes, full: int) -> None:
    axis.set_xscale("log")
    axis.set_xlim(0.9, 1.1 * full)
    axis.set_xticks([rank for rank in _RANK_TICKS if rank <= full], minor=False)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_locator(NullLocator())


def _draw_spectrum(axis: Axes, spectrum: Spectrum) -> None:
    """Draw a curve from rank 1 to full rank, marked at the rank that was kept."""
    curve, full, rank = spectrum.cumulative, len(spectrum.values), spectrum.rank
    label = f"{spectrum.matrix}: full rank {full}" if rank is None else f"{spectrum.matrix}: r = {rank} of {full}"
    if rank is not None:
        label += f", {curve[rank]:.1%} of energy"
    marked = [] if rank is None else [rank - 1]
    axis.plot(
        range(1, full + 1), curve[1:], markevery=marked, label=label, linewidth=1.8, markersize=8,
        markeredgecolor="black", **_LINES[spectrum.matrix],
    )  # fmt: skip


def overlap_plot(masks: Sequence[Mask], to_lt_sft: Mapping[str, float]) -> Figure | None:
    """The Jaccard overlaps of the chosen masks with each other and with LT-SFT's as a picture, each beside chance.

    Args:
        masks: of the chosen vectors.
        to_lt_sft: each SFT's overlap with LT-SFT's mask from the same dense phase, as its manifest has it.

    Returns:
        None when there are no masks.
    """
    if not masks:
        return None
    bars = [mask for mask in masks if mask.subject in to_lt_sft]
    pairs = len(masks) > 1
    cell_width = min(_WIDEST_CELL, 7.0 / max(len(masks) - 1, 1))
    matrix, chart = (len(masks) - 1) * max(0.36, 0.45 * cell_width), 0.28 * len(bars)
    ratios = [matrix + 0.3] * pairs + [chart + 0.2] * bool(bars)
    if not ratios:
        return None
    lines = _overlap_lines(masks)
    figure, axes = page(
        heading_inches(*lines) + sum(ratios) + 0.55 * len(ratios) + 0.3, len(ratios), height_ratios=ratios
    )
    if pairs:
        _draw_pairs(axes[0], masks)
        axes[0].set_box_aspect(matrix / (cell_width * (len(masks) - 1)))
    if bars:
        _draw_to_lt_sft(axes[-1], bars, to_lt_sft)
    heading(figure, "Overlap of the chosen masks", *lines)
    return figure


def _overlap_lines(masks: Sequence[Mask]) -> tuple[str, ...]:
    totals: dict[int, set[int]] = {}
    for mask in masks:
        totals.setdefault(mask.k, set()).add(sum(mask.sizes.values()))
    sizes = ", ".join(f"{k:,} of {' to '.join(f'{n:,}' for n in sorted({min(t), max(t)}))}" for k, t in totals.items())
    return (
        "Jaccard: entries that both hold over entries that either holds (1: the same mask).",
        "In brackets, and as dashed lines: chance, of masks of these sizes drawn at random.",
        f"Entries held: {sizes}.",
    )


def _draw_pairs(axis: Axes, masks: Sequence[Mask]) -> None:
    """Draw a triangle of cells, one for each pair of masks."""
    cells = {(x, y): overlap(masks[x], masks[y]) for y in range(1, len(masks)) for x in range(y)}
    top = max(max(cell.value, cell.chance) for cell in cells.values())
    norm = Normalize(0, max(top, 0.01))
    for (x, y), cell in cells.items():
        _draw_pair(axis, x, y - 1, cell, norm)
    axis.set_xticks(range(len(masks) - 1), [mask.subject for mask in masks[:-1]])
    axis.set_yticks(range(len(masks) - 1), [mask.subject for mask in masks[1:]])
    axis.set_xlim(-0.5, len(masks) - 1.5)
    axis.set_ylim(len(masks) - 1.5, -0.5)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("with each other", fontsize=TEXT)


def _draw_pair(axis: Axes, x: int, y: int, cell: Overlap, norm: Normalize) -> None:
    colour = COLOURS(norm(cell.value))
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
    label = f"{cell.value:.2f}\n({cell.chance:.2f})"
    axis.text(x, y, label, ha="center", va="center", fontsize=SMALL, linespacing=1.0, color=ink(colour))


def _draw_to_lt_sft(axis: Axes, masks: Sequence[Mask], to_lt_sft: Mapping[str, float]) -> None:
    """Draw a bar for each mask, and chance as a dashed line through it: k entries twice from the same parameters."""
    values = [to_lt_sft[mask.subject] for mask in masks]
    sizes = [sum(mask.sizes.values()) for mask in masks]
    chances = [chance_overlap(mask.k, mask.k, n, n, n) for mask, n in zip(masks, sizes, strict=True)]
    places = range(len(masks))
    axis.barh(places, values, 0.66, edgecolor=EDGE, linewidth=0.6, **RAMP[2])
    low, high = ([place + side for place in places] for side in (-0.45, 0.45))
    axis.vlines(chances, low, high, color="white", linewidth=3.5)
    axis.vlines(chances, low, high, color="black", linewidth=1.6, linestyles=(0, (2, 1)))
    for place, value, chance in zip(places, values, chances, strict=True):
        axis.text(max(value, chance) + 0.01, place, f"{value:.2f} ({chance:.2f})", va="center", fontsize=SMALL)
    axis.set_yticks(places, [mask.subject for mask in masks])
    axis.set_ylim(len(masks) - 0.5, -0.5)
    axis.set_xlim(0, 1.13)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_title("with LT-SFT's mask from the same dense phase", fontsize=TEXT)
    axis.set_xlabel("Jaccard overlap", fontsize=TEXT)

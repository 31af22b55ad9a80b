"""What all pictures of a report share: the page they are drawn for, their colours, and how a picture becomes a file.

Every picture is as wide as a page of a README (800 pixels show 8 inches), so that text has the same size in all of
them. Fills differ in lightness, so that colour-blind readers and grey prints can tell them apart; some light ones
are hatched. pyplot is not used: no global state, and no display is needed.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAGE = 8.0
"""Width of every picture, inches."""
TEXT, SMALL = 9.0, 8.0
"""Font sizes, points; on a page of 800 pixels a point is 1.4 pixels."""
GREY, EDGE = "#8a8a8a", "#333333"
COLOURS = colormaps["cividis"]
RAMP: tuple[dict[str, Any], ...] = (
    {"facecolor": "#0b2c5e"},
    {"facecolor": "#6f7f9c"},
    {"facecolor": "#c9b458", "hatch": "//"},
    {"facecolor": "#dfcf8b", "hatch": "\\\\"},
    {"facecolor": "#f1e9c8", "hatch": ".."},
    {"facecolor": "#ffffff"},
    {"facecolor": "#ffffff", "hatch": "xx"},
)
"""Fills from dark to light."""
_LETTERS = 98


def page(height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure as wide as the page, and its axes row by row.

    Args:
        height: inches.
        layout: as `Figure.subplots` takes it.
    """
    figure = Figure(figsize=(PAGE, height), dpi=150, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **layout).flat)
    for axis in axes:
        axis.tick_params(labelsize=TEXT)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def heading(figure: Figure, title: str, *lines: str) -> None:
    """Write the title of a figure, and below it units, sample sizes and marks, wrapped at the width of the page."""
    broken = [textwrap.fill(line, _LETTERS) for line in lines if line]
    figure.suptitle("\n".join([title, *broken]), fontsize=TEXT, linespacing=1.4)


def heading_inches(*lines: str) -> float:
    """The height that `heading` takes for a title and these lines, inches."""
    return 0.19 * (1 + sum(-(-len(line) // (_LETTERS - 4)) for line in lines if line)) + 0.1


def ink(colour: Iterable[float]) -> str:
    """Black or white, whichever is read more easily on a colour (r, g, b, ...)."""
    return "black" if np.dot([*colour][:3], (0.299, 0.587, 0.114)) > 0.5 else "white"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, without a software tag, so that the same numbers give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

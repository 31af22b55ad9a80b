"""Draws docs/figures/method.svg, the method on a made-up 16 x 12 weight matrix: python docs/figures/method.py

L, S and the mask are those of `deftx.masks`; the change itself and what the sparse phase would learn are drawn at
random. Darker is larger in absolute value, so that nothing depends on colour.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from deftx.config import Denoise
from deftx.masks.denoise import denoise
from deftx.masks.select import select

SHAPE, RANK, RETENTION, K = (16, 12), 2, 0.06, 30
WIDTH, GAP, HEIGHT = 0.118, 0.078, 0.30
TOP, BOTTOM = 0.575, 0.075
LANGUAGE, TASK, PRETRAINED = "Blues", "Oranges", "Greys"


def change(seed: int) -> Tensor:
    """A weight change: two directions, a few large single entries, and noise."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = SHAPE
    smooth = torch.randn(rows, RANK, generator=draw) @ torch.randn(RANK, columns, generator=draw)
    spikes = torch.zeros(rows * columns)
    spikes[torch.randperm(rows * columns, generator=draw)[:11]] = 4.5
    return smooth + spikes.view(SHAPE) + 0.35 * torch.randn(SHAPE, generator=draw)


def parts(delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L, S, the mask, and a sparse vector with the mask's entries."""
    low = denoise(delta, Denoise(rank=str(RANK), retention=0)).values
    both = denoise(delta, Denoise(rank=str(RANK), retention=RETENTION)).values
    mask = torch.zeros(delta.numel())
    mask[select({"weight": both}, K)["weight"]] = 1
    mask = mask.view(SHAPE)
    learnt = delta * (0.7 + 0.6 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)))
    return low, both - low, mask, learnt * mask


def panel(left: int, bottom: float, values: Tensor, colours: str, title: str, caption: str) -> Axes:
    """One matrix, `left` panels from the left edge."""
    axes = plt.gcf().add_axes((0.02 + left * (WIDTH + GAP), bottom, WIDTH, HEIGHT))
    axes.imshow(values.abs(), cmap=colours, vmin=0, vmax=float(values.abs().max()), aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11, pad=5)
    axes.set_xlabel(caption, fontsize=8.5, labelpad=4)
    return axes


def between(left: int, bottom: float, sign: str, words: str = "") -> None:
    """A sign, and words above it, after the panel `left`."""
    x = 0.02 + left * (WIDTH + GAP) + WIDTH + GAP / 2
    plt.figtext(x, bottom + HEIGHT / 2, sign, ha="center", va="center", fontsize=17)
    plt.figtext(x, bottom + HEIGHT / 2 + 0.055, words, ha="center", va="bottom", fontsize=8.5)


def draw(path: Path) -> None:
    """Write the figure; the same bytes each time."""
    plt.rcParams.update({"svg.hashsalt": "method", "svg.fonttype": "path", "axes.linewidth": 0.6})
    plt.figure(figsize=(8.6, 5.6), facecolor="white")
    language = change(7)
    low, high, mask, phi = parts(language)
    task = parts(change(3))[3]
    pretrained = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))

    plt.figtext(0.02, TOP + HEIGHT + 0.07, "One vector, here a language's", fontsize=11, weight="bold")
    panel(0, TOP, language, LANGUAGE, "Δ = θ₁ − θ₀", "dense phase: change\nof all weights")
    between(0, TOP, "→", "SVD")
    panel(1, TOP, low, LANGUAGE, "L", f"low rank,\nhere r = {RANK}")
    between(1, TOP, "+")
    panel(2, TOP, high, LANGUAGE, "S", f"largest {RETENTION * 100:g} % of\nthe rest, Δ − L")
    between(2, TOP, "→", "largest\nk")
    panel(3, TOP, mask, PRETRAINED, "mask", "the k largest\nentries of |L + S|")
    between(3, TOP, "→", "train\nagain")
    panel(4, TOP, phi, LANGUAGE, "φ", "sparse phase: only\nthese, from the start")

    plt.figtext(0.02, BOTTOM + HEIGHT + 0.07, "A classifier for the target language", fontsize=11, weight="bold")
    panel(0, BOTTOM, pretrained, PRETRAINED, "θ₀", "pretrained\nweights")
    between(0, BOTTOM, "+")
    panel(1, BOTTOM, task, TASK, "φ of the task", "from labels in the\nsource language")
    between(1, BOTTOM, "+")
    panel(2, BOTTOM, phi, LANGUAGE, "φ of the language", "from its plain\ntext alone")
    between(2, BOTTOM, "→", "compose")
    panel(3, BOTTOM, pretrained + task / 3 + phi / 3, PRETRAINED, "θ", "graded on the target's\nlabelled sentences")
    words = "Here the numbers are made up.\nDarker: larger in absolute\nvalue. The same is done to\neach weight matrix."
    plt.figtext(0.02 + 4 * (WIDTH + GAP), BOTTOM + HEIGHT, words, va="top", fontsize=8.5, linespacing=1.5)
    plt.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))

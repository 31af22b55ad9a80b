"""How a step, the choice of k and denoising grow with the model: four sizes, a plot, and the exponent of each.

The exponent is the slope of log seconds over log parameters: 1 for work that visits each number once, more for
denoising, whose products grow with the hidden size and the rank too. The step is one sparse step of masked language
modelling on 4 x 128 tokens; the vocabulary is 50,000; denoising is at rank 90 % alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.deltas import delta_of, sizes
from benchmarks.denoise import factorise_all, our_mask
from benchmarks.measure import Options, fresh, timed
from benchmarks.models import Shape
from benchmarks.results import BenchmarkRow, command
from deftx.config import Denoise
from deftx.masks.select import select

VOCABULARY = 50_000
SHAPES = [(4, 256), (8, 512), (12, 768), (24, 1024)]
SMALL = [(1, 32), (2, 32), (2, 64), (3, 64)]
SHARE = 0.028
SETTING = Denoise(rank="90%", retention=0.05)


def rows(options: Options) -> list[BenchmarkRow]:
    """Seconds at each size, and the exponents."""
    works: dict[str, list[float]] = {}
    parameters = []
    for layers, hidden in SMALL if options.small else SHAPES:
        found = fresh("benchmarks.growth:seconds", options, layers=layers, hidden=hidden)
        parameters.append(found.pop("parameters"))
        for name, value in found.items():
            works.setdefault(name, []).append(value)
    if options.out is not None:
        plot(parameters, works, options.out / "growth.png")
    table = [
        BenchmarkRow(f"{name}, {count / 1e6:.0f} million parameters", "seconds", value)
        for name, values in works.items()
        for count, value in zip(parameters, values, strict=True)
    ]
    return [*table, *(BenchmarkRow(name, "exponent", exponent(parameters, values)) for name, values in works.items())]


def seconds(options: Options, layers: int, hidden: int) -> dict[str, float]:
    """The best of two of each work at one size, and its number of maskable parameters."""
    shape = shape_at(options, layers, hidden)
    count = sum(torch.Size(size).numel() for size in sizes(shape).values())
    delta, k = delta_of(shape), round(SHARE * count)
    works: dict[str, Callable[[], object]] = {
        "select": lambda: select(delta, k),
        "factorise, denoise and choose": lambda: our_mask(delta, factorise_all(delta), SETTING, k),
    }
    found = {name: min(timed(work) for _ in range(2)) for name, work in works.items()}
    delta.clear()
    step = sparse_step(options, shape, k)
    return {"parameters": count, **found, "sparse step": min(timed(step) for _ in range(3))}


def shape_at(options: Options, layers: int, hidden: int) -> Shape:
    """A model of this size; 64 entries a head."""
    vocabulary = 1000 if options.small else VOCABULARY
    return Shape(layers, hidden, max(hidden // 64, 1), 4 * hidden, vocabulary)


def sparse_step(options: Options, shape: Shape, k: int) -> Callable[[], object]:
    """One step of ours on 4 x 128 tokens."""
    from benchmarks.models import masked_lm, random_mask, text
    from deftx.config import Execution, Training
    from deftx.train.loop import Run
    from deftx.train.trainable import phase

    model, settings = masked_lm(shape), Training(max_steps=100, batch_size=4)
    trainable = phase(model, settings, random_mask(model, k))
    run = Run(model, text(shape, 8, 128), settings, 0, trainable, Execution(threads=options.threads))
    return run.train_step


def exponent(parameters: list[float], values: list[float]) -> float:
    """The slope of log seconds over log parameters, by least squares."""
    return float(np.polyfit(np.log(parameters), np.log(values), 1)[0])


def plot(parameters: list[float], works: dict[str, list[float]], path: Path) -> None:
    """Seconds over parameters, both logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for marker, (name, values) in zip("os^", works.items(), strict=True):
        axes.loglog(parameters, values, f"{marker}-", label=f"{name}: exponent {exponent(parameters, values):.2f}")
    axes.set_xticks(parameters, [f"{count / 1e6:,.0f}" for count in parameters])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="maskable parameters, millions", ylabel="seconds")
    figure.legend(loc="outside upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    command({"growth": rows}, __doc__)

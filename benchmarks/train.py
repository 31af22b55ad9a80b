"""A training step of each kind against the plain reference: time in turns, peak memory in a process of its own.

XLM-R base's shape; batch 8 x 256 for masked language modelling, 16 x 128 for classification. The reference takes
micro-batches of 4; ours takes 8 examples at once, in both the times and the peaks. The floor is the matrix products
over the measured rate plus the bytes of parameters, gradients and moments, each read and written once, over the
measured copy rate. Utilisation is the same products over the rate: the measured one, and for a GPU in bf16 its
datasheet's. Without bf16 hardware (a measured rate under twice float32's) nothing is required of bf16. Times are
medians of three rounds. A step of a small model, which is mostly Python, is measured against a loop such as
transformers' Trainer runs, and has to be level with it. What a GPU takes is measured in `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch

from benchmarks.measure import GIB, Options, Peak, fresh, interleaved, median, rates
from benchmarks.models import BASE, LARGE, TINY, Shape, classifier, masked_lm, random_mask, sentences, text
from benchmarks.reference import Reference, step_of_a_trainer
from benchmarks.results import BenchmarkRow, above, at_least, at_most, below, command
from deftx.config import PAPER_K_LANGUAGE, PAPER_K_TASK, Execution, Precision, Training
from deftx.train.loop import Run
from deftx.train.objectives import Objective
from deftx.train.trainable import phase


@dataclass(frozen=True)
class Work:
    """One kind of step, and what it must reach."""

    name: str
    batch: int
    length: int
    k: int | None
    speed: float
    memory: float
    task: bool = False
    shape: Shape = BASE

    def scaled(self, small: bool) -> Work:
        """For a tiny model: fewer tokens, and the same share of its entries."""
        return replace(self, length=16, k=None if self.k is None else 2000, shape=TINY) if small else self


WORKS = (
    Work("dense MLM step", 8, 256, None, 2.0, 0.8),
    Work("sparse MLM step", 8, 256, PAPER_K_LANGUAGE, 2.2, 0.6),
    Work("sparse classification step", 16, 128, PAPER_K_TASK, 1.2, 0.8, task=True),
)
OVER_FLOOR, REFERENCE_OVER_FLOOR, UTILISATION = 2.2, 6.0, 0.4
BF16_SPEED, BF16_OVER_FLOOR = 5.0, 3.3
AT_ONCE = 8
LEVEL, STEPS, ROUNDS = 0.95, 50, 5
"""A small model's step is level with a Trainer's: 5 % are noise. In so many rounds of so many steps."""
DATASHEET = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16 operations a second."""


def rows(options: Options) -> list[BenchmarkRow]:
    """Time and memory of every kind of step."""
    found: list[BenchmarkRow] = []
    for number, work in enumerate(WORKS):
        found += [*_times(options, number), _memory(options, number, work)]
    return found + [_small(options, task) for task in (False, True)]


def _small(options: Options, task: bool) -> BenchmarkRow:
    """A dense step of a model of two layers and hidden 64, 16 x 16 tokens, against a Trainer's."""
    name = "classification" if task else "MLM"
    work = Work(f"{name} step of two layers, hidden 64, 16 x 16", 16, 16, None, 0, 0, task, TINY)
    steps, generator = 2 if options.small else STEPS, np.random.default_rng(0)
    model, objective = _model(work)
    numbers = cycle([np.arange(first, first + work.batch) for first in (0, work.batch)])
    # its data loader puts every batch together too
    batches = (
        {key: tensor.to(options.device) for key, tensor in objective.batch(those, generator).items()}
        for those in numbers
    )
    theirs = step_of_a_trainer(model.to(options.device), batches)
    with closing(our_run(options, work, micro_batch=None)) as run:
        works = {"ours": run.train_step, "them": theirs}
        loops = {who: lambda step=step: [step() for _ in range(steps)] for who, step in works.items()}
        times = interleaved(loops, 1 if options.small else ROUNDS, 1, options.device)
    ours, plain = (1000 * median(times[who]) / steps for who in ("ours", "them"))
    row = BenchmarkRow(f"{work.name}, float32", "milliseconds", ours, plain, note="the reference is a Trainer's loop")
    return at_least(row, LEVEL)


def _times(options: Options, number: int) -> list[BenchmarkRow]:
    work = WORKS[number].scaled(options.small)
    reference = _reference(options, work)
    precisions: tuple[Precision, ...] = ("float32",) if work.task else ("float32", "bf16")
    seconds: dict[str, float] = {}
    their_times: list[float] = []
    for asked in precisions:
        with closing(our_run(options, work, asked)) as ours:
            works: dict[str, Callable[[], object]] = {"ours": ours.train_step, "them": lambda: reference(work.batch)}
            times = interleaved(works, 3, 1, options.device)
        seconds[asked] = median(times["ours"])
        their_times += times["them"]
    plain = rates(options.device, options.small).seconds(*needed(work, everywhere=True))
    theirs = median(their_times)
    # that ours is not held to a careless one
    found = [
        below(BenchmarkRow(f"{work.name}, reference", "times its own floor", theirs / plain), REFERENCE_OVER_FLOOR)
    ]
    for precision, ours_seconds in seconds.items():
        name, factor, over = f"{work.name}, {precision}", work.speed, OVER_FLOOR
        if precision == "bf16":
            factor, over = BF16_SPEED, BF16_OVER_FLOOR
        flop, bytes_ = needed(work)
        floor = rates(options.device, options.small).seconds(flop, bytes_, precision)
        row = BenchmarkRow(name, "seconds", ours_seconds, theirs, floor)
        both = [at_least(row, factor), below(BenchmarkRow(name, "times the floor", ours_seconds / floor), over)]
        wanted = precision == "float32" or _has_bf16(options)
        found += both if wanted else [replace(row, must="", met=None) for row in both]
        used = BenchmarkRow(name, "model FLOP utilisation", flop / ours_seconds / most_flop(options, precision))
        found.append(above(used, UTILISATION) if options.device == "cuda" and precision == "bf16" else used)
    return found


def most_flop(options: Options, precision: str) -> float:
    """Operations a second by which utilisation is counted: a known GPU's datasheet in bf16, else the measured rate."""
    if options.device == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name()
        for gpu, flop in DATASHEET.items():
            if gpu in name:
                return flop
    return float(getattr(rates(options.device, options.small), precision))


def _has_bf16(options: Options) -> bool:
    found = rates(options.device, options.small)
    return found.bf16 > 2 * found.float32


def _memory(options: Options, number: int, work: Work) -> BenchmarkRow:
    ours, plain = (fresh("benchmarks.train:peak", options, number=number, reference=who) for who in (False, True))
    return at_most(BenchmarkRow(f"{work.name}, float32", "GiB at the peak", ours / GIB, plain / GIB), work.memory)


def peak(options: Options, number: int, reference: bool, large: bool = False) -> int:
    """Most bytes of a process that makes a model and takes two steps; the reference's first is on one example."""
    work = replace(WORKS[number], shape=LARGE if large else BASE).scaled(options.small)
    with Peak(options.device) as found:
        if reference:
            step = _reference(options, work)
            step(1)  # the moments exist then
            step(work.batch)
        else:
            with closing(our_run(options, work)) as run:
                run.train_step()
                run.train_step()
    return found.total


def our_run(options: Options, work: Work, precision: Precision = "float32", micro_batch: int | None = AT_ONCE) -> Run:
    """A training run of ours, at its first step."""
    model, objective = _model(work)
    mask = None if work.k is None else random_mask(model, work.k)
    settings = Training(max_steps=1000, batch_size=work.batch, precision=precision)
    execution = Execution(device=options.device, threads=options.threads, micro_batch=micro_batch)
    return Run(model, objective, settings, 0, phase(model, settings, mask), execution)


def _reference(options: Options, work: Work) -> Callable[[int], object]:
    model, objective = _model(work)
    plain = Reference(model.to(options.device), None if work.k is None else random_mask(model, work.k))
    return lambda batch: plain.step(objective.batch(np.arange(batch), np.random.default_rng(0)))


def _model(work: Work) -> tuple[Any, Objective]:
    if work.task:
        return classifier(work.shape), sentences(work.shape, 2 * work.batch, work.length)
    return masked_lm(work.shape), text(work.shape, 4 * work.batch, work.length)


def needed(work: Work, everywhere: bool = False) -> tuple[float, float]:
    """What a step cannot do without: (floating-point operations of matrix products, bytes).

    Args:
        everywhere: as the reference goes about it: logits at all positions, moments of all weights.
    """
    shape, tokens = work.shape, work.batch * work.length
    body = 6 * shape.layers * (shape.layer_weights * tokens + 2 * work.batch * work.length**2 * shape.hidden)
    predicted = work.batch if work.task else tokens * (1 if everywhere else 0.15)
    output = 0 if work.task else 4 * predicted * shape.words
    head = 6 * predicted * shape.hidden**2
    layers = shape.layers * shape.layer_weights
    trained = shape.words + layers if work.k is None or everywhere else work.k
    gradients = trained if everywhere else layers if work.k is None else work.k
    bytes_ = 4 * (2 * 3 * trained + 2 * gradients + layers + (0 if work.task else shape.words))
    return body + output + head, bytes_


if __name__ == "__main__":
    command({"train": rows}, __doc__)

"""A training step of each kind against the plain reference: time in turns, peak memory in a process of its own.

XLM-R base's shape; batch 8 x 256 for masked language modelling, 16 x 128 for classification. The reference takes
micro-batches of 4; ours has the memory for the whole batch, whose matrix products are faster. Every row of the word
embedding counts as seen before, as after a few thousand steps, so that the moments of the dense phase are all there.
The floor is the matrix products over the measured rate plus the bytes of parameters, gradients and moments, each read
and written once, over the measured copy rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Options, Peak, fresh, interleaved, median, rates
from benchmarks.models import BASE, TINY, Shape, classifier, masked_lm, random_mask, sentences, text
from benchmarks.reference import Reference
from benchmarks.results import Row, at_least, at_most, below, command
from deftx.config import Execution, Training
from deftx.objectives import Objective
from deftx.trainable import phase
from deftx.training import Run

GIB = 2**30


@dataclass(frozen=True)
class Work:
    """One kind of step, and what it must reach."""

    name: str
    batch: int
    length: int
    k: int | None
    speed: float
    memory: float
    over_floor: float | None = None
    task: bool = False

    def scaled(self, small: bool) -> Work:
        """For a tiny model: fewer tokens, and the same share of its entries."""
        k = None if self.k is None else 2000
        return (
            Work(self.name, self.batch, 16, k, self.speed, self.memory, self.over_floor, self.task) if small else self
        )


WORKS = (
    Work("dense MLM step", 8, 256, None, 2.2, 0.7, 2.0),
    Work("sparse MLM step", 8, 256, 7_667_712, 2.6, 0.45, 1.7),
    Work("sparse classification step", 16, 128, 14_155_776, 1.8, 0.5, task=True),
)
BF16_SPEED, BF16_OVER_FLOOR = 5.0, 3.3


def rows(options: Options) -> list[Row]:
    """Time and memory of every kind of step."""
    found: list[Row] = []
    for number, work in enumerate(WORKS):
        found += [*_times(options, number), _memory(options, number, work)]
    return found


def _times(options: Options, number: int) -> list[Row]:
    work = WORKS[number].scaled(options.small)
    shape = TINY if options.small else BASE
    reference, ours = _reference(options, work), our_run(options, work)

    def at(precision: str) -> Callable[[], None]:
        def step() -> None:
            ours.settings = ours.settings.model_copy(update={"precision": precision})
            ours.advance()

        return step

    works: dict[str, Callable[[], object]] = {"reference": lambda: reference(work.batch), "float32": at("float32")}
    if not work.task:
        works["bf16"] = at("bf16")
    seconds = {name: median(times) for name, times in interleaved(works, 2, 1, options.device).items()}
    floors = {p: rates(options.device, options.small).seconds(*needed(shape, work), p) for p in ("float32", "bf16")}
    plain = Row(f"{work.name}, float32", "seconds", seconds["float32"], seconds["reference"], floors["float32"])
    found = [at_least(plain, work.speed)]
    if work.over_floor is not None:
        over = seconds["float32"] / floors["float32"]
        found.append(below(Row(f"{work.name}, float32", "times the floor", over), work.over_floor))
    if "bf16" in seconds:
        bf16 = Row(f"{work.name}, bf16", "seconds", seconds["bf16"], seconds["reference"], floors["bf16"])
        over = seconds["bf16"] / floors["bf16"]
        found += [
            at_least(bf16, BF16_SPEED),
            below(Row(f"{work.name}, bf16", "times the floor", over), BF16_OVER_FLOOR),
        ]
    return [Row(**{**vars(row), "met": None}) for row in found] if options.small else found


def _memory(options: Options, number: int, work: Work) -> Row:
    ours, plain = (fresh("benchmarks.train:peak", options, number=number, reference=who) for who in (False, True))
    row = at_most(Row(f"{work.name}, float32", "GiB at the peak", ours / GIB, plain / GIB), work.memory)
    return Row(**{**vars(row), "met": None}) if options.small else row


def peak(options: Options, number: int, reference: bool) -> int:
    """Most bytes of a process that makes a model and takes two steps, the first on one example: moments exist then."""
    work = WORKS[number].scaled(options.small)
    with Peak(options.device) as found:
        if reference:
            step = _reference(options, work)
            step(1)
            step(work.batch)
        else:
            run = our_run(options, work)
            for batch in (1, work.batch):
                run.settings = run.settings.model_copy(update={"batch_size": batch})
                run.advance()
    return found.total


def our_run(options: Options, work: Work, micro_batch: int | None = None) -> Run:
    """A training run of ours, at its first step."""
    model, objective = _model(options, work)
    mask = None if work.k is None else random_mask(model, work.k)
    settings = Training(max_steps=1000, batch_size=work.batch)
    execution = Execution(device=options.device, threads=options.threads, micro_batch=micro_batch)
    model.to(options.device)
    run = Run(model, objective, settings, 0, phase(model, settings, mask), execution)
    if run.optimizer.rows is not None:
        run.optimizer.rows.see(torch.arange(model.config.vocab_size))
    return run


def _reference(options: Options, work: Work) -> Callable[[int], object]:
    model, objective = _model(options, work)
    plain = Reference(model.to(options.device), None if work.k is None else random_mask(model, work.k))
    return lambda batch: plain.step(objective.batch(np.arange(batch), np.random.default_rng(0)))


def _model(options: Options, work: Work) -> tuple[Any, Objective]:
    shape = TINY if options.small else BASE
    if work.task:
        return classifier(shape), sentences(shape, 2 * work.batch, work.length)
    return masked_lm(shape), text(shape, 4 * work.batch, work.length)


def needed(shape: Shape, work: Work) -> tuple[float, float]:
    """What a step cannot do without: (floating-point operations of matrix products, bytes)."""
    tokens = work.batch * work.length
    body = 6 * shape.layers * (shape.layer_weights * tokens + 2 * work.batch * work.length**2 * shape.hidden)
    predicted = work.batch if work.task else 0.15 * tokens
    output = 0 if work.task else 4 * predicted * shape.words
    head = 6 * predicted * shape.hidden**2
    layers = shape.layers * shape.layer_weights
    trained = shape.words + layers if work.k is None else work.k
    gradients = layers if work.k is None else work.k
    bytes_ = 4 * (2 * 3 * trained + 2 * gradients + layers + (0 if work.task else shape.words))
    return body + output + head, bytes_


if __name__ == "__main__":
    command("train", rows, __doc__)

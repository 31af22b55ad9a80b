"""Trainings of a tiny model, as several tests of the loop need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.tiny import LABELS, make_classification, make_mlm
from torch import Tensor, nn

from deftx.config import Training
from deftx.masks.select import Indices
from deftx.models.load import load_classifier, load_masked_lm
from deftx.models.parameters import maskable
from deftx.train.loop import TrainResult, train
from deftx.train.objectives import Batch, Objective
from deftx.train.trainable import phase

SEED = 11

HARD = Training(
    max_steps=40, batch_size=4, learning_rate=3e-3, weight_decay=0.1, clip=0.5, warmup=0.2, validate_every=5,
    dropout=0.0, l1=50.0,
)  # fmt: skip
"""Everything on that could move a weight off the mask, clipping at nearly every step."""


def half_mask(model: nn.Module, share: float = 0.3, seed: int = 0) -> Indices:
    """Random entries of the word embedding and of all other maskable tensors but three."""
    generator = torch.Generator().manual_seed(seed)
    words, _, _, _, *others = maskable(model)
    names = [words, *others]
    chosen = {name: torch.rand(maskable(model)[name].numel(), generator=generator) < share for name in names}
    return {name: entries.nonzero().squeeze(1) for name, entries in chosen.items() if entries.any()}


def run(
    model: nn.Module, objective: Objective, settings: Training, mask: Indices | None = None, **options: Any
) -> TrainResult:
    return train(model, objective, settings, seed=SEED, trainable=phase(model, settings, mask), **options)


def batch_at(objective: Objective, step: int, size: int) -> Batch:
    """The batch of a step, from the definition: a permutation of each epoch, masks by (seed, step)."""
    per_epoch = -(-objective.examples // size)
    order = np.random.default_rng([SEED, 1, step // per_epoch]).permutation(objective.examples)
    place = step % per_epoch * size
    return objective.batch(order[place : place + size], np.random.default_rng([SEED, 2, step]))


class Always(Objective):
    """An objective whose validation improves at every step, so that the last weights are the best."""

    metric, higher_is_better = "valid_loss", False

    def __init__(self, inner: Objective, scores: Callable[[int], float] | None = None) -> None:
        self.inner, self.scores, self.calls = inner, scores or (lambda call: -float(call)), 0
        self.batch, self.loss, self.prepare_batch = inner.batch, inner.loss, inner.prepare_batch  # type: ignore[method-assign]

    @property
    def examples(self) -> int:
        return self.inner.examples

    def batch(self, numbers: Any, generator: Any) -> Batch:
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch) -> Tensor:
        raise NotImplementedError

    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        assert not model.training
        self.calls += 1
        return {"valid_loss": self.scores(self.calls)}


def both(kind: str, backbone: Path, dropout: float = 0.0) -> tuple[Any, Objective]:
    if kind == "mlm":
        return load_masked_lm(backbone, dropout=dropout), make_mlm()
    return load_classifier(backbone, LABELS, 1, dropout=dropout), make_classification()

"""The plain way to train a phase, that ours is measured against: straightforward and correct.

The Hugging Face model with SDPA, logits at all positions, micro-batches of 4 accumulated, torch AdamW(foreach) over all
weights that train, the gradient times a mask in the sparse phase, no L1. The output embedding is the frozen copy that
the method asks for. It computes what ours computes: `tests/test_reference.py` holds the two against each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deftx.backbones import head_of, maskable
from deftx.objectives import IGNORED, Batch
from deftx.select import Indices

MICRO_BATCH = 4


class Reference:
    """Plain training steps of one phase."""

    def __init__(
        self, model: Any, mask: Indices | None = None, rate: float = 5e-5, clip: float = 1.0, micro: int = MICRO_BATCH
    ) -> None:
        """Bind a model on its device; with a mask, only its entries change."""
        model.set_attn_implementation("sdpa")
        self._model, self._clip, self._micro = model.train(), clip, micro
        self._parameters = {**maskable(model), **head_of(model)}
        self._masks = {} if mask is None else {n: _dense(n, p, mask) for n, p in maskable(model).items()}
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=rate, weight_decay=0.0, foreach=True)

    def step(self, batch: Batch) -> float:
        """One step on a batch; the loss is the mean over all its labelled positions."""
        labelled = int((batch["labels"] != IGNORED).sum())
        total = 0.0
        for start in range(0, len(batch["labels"]), self._micro):
            part = {key: tensor[start : start + self._micro].to(self._model.device) for key, tensor in batch.items()}
            labels = part.pop("labels")
            logits = self._model(**part).logits
            loss = cross_entropy(
                logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED, reduction="sum"
            )
            (loss / labelled).backward()
            total += loss.item() / labelled
        for name, mask in self._masks.items():
            if (gradient := self._parameters[name].grad) is not None:
                gradient.mul_(mask)
        nn.utils.clip_grad_norm_(self._parameters.values(), self._clip, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total


def _dense(name: str, parameter: nn.Parameter, mask: Indices) -> Tensor:
    flat = torch.zeros(parameter.numel(), dtype=torch.bool)
    if name in mask:
        flat[mask[name]] = True
    return flat.view_as(parameter).to(parameter.device)

"""The plain way to train, choose, denoise and predict, that ours is measured against: straightforward and correct.

Training: the Hugging Face model with SDPA, logits at all positions, micro-batches of 4 accumulated, torch
AdamW(foreach) over all weights that train, the gradient times a mask in the sparse phase, no L1. The output embedding
is the frozen copy that the method asks for. It computes what ours computes: `tests/test_reference.py` and
`tests/test_measured.py` hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.models import PAD
from deftx.config import Denoise, share_of
from deftx.kernels.linear_cross_entropy import IGNORED
from deftx.masks.denoise import is_matrix
from deftx.masks.select import Indices
from deftx.models.parameters import head_of, maskable
from deftx.train.objectives import Batch, Encoded, pad

MICRO_BATCH = 4
BATCH, LONGEST = 64, 128


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


def step_of_a_trainer(
    model: Any, batches: Iterator[Batch], rate: float = 5e-5, clip: float = 1.0
) -> Callable[[], None]:
    """A training step as transformers' Trainer takes it by default, without its bookkeeping, on the next batch.

    Args:
        model: on its device; what does not train is frozen.
        batches: on the same device.
    """
    model.set_attn_implementation("sdpa")
    parameters = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)

    def step() -> None:
        model(**next(batches)).loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _dense(name: str, parameter: nn.Parameter, mask: Indices) -> Tensor:
    flat = torch.zeros(parameter.numel(), dtype=torch.bool)
    if name in mask:
        flat[mask[name]] = True
    return flat.view_as(parameter).to(parameter.device)


def plain_select(delta: dict[str, Tensor], k: int) -> Tensor:
    """`torch.topk` over the concatenated change: flat indices into it."""
    return torch.cat([tensor.reshape(-1) for tensor in delta.values()]).abs().topk(k, sorted=False).indices


def plain_masks(delta: dict[str, Tensor], settings: list[Denoise], k: int) -> Iterator[Tensor]:
    """One float32 `torch.linalg.svd` of each matrix, then for each setting L + S and the k largest entries."""
    factors = {
        name: torch.linalg.svd(tensor, full_matrices=False) for name, tensor in delta.items() if is_matrix(tensor)
    }
    for setting in settings:
        denoised = {}
        for name, tensor in delta.items():
            denoised[name] = _plain_denoise(tensor, factors[name], setting) if name in factors else tensor
        yield plain_select(denoised, k)


def _plain_denoise(matrix: Tensor, factors: tuple[Tensor, Tensor, Tensor], setting: Denoise) -> Tensor:
    left, values, right = factors
    rank = setting.rank.of(values.double())
    denoised = (left[:, :rank] * values[:rank]) @ right[:rank]
    number = share_of(setting.retention, matrix.numel())
    kept = (matrix - denoised).abs().view(-1).topk(number, sorted=False).indices
    denoised.view(-1)[kept] = matrix.view(-1)[kept]
    return denoised


@torch.no_grad()
def plain_predict(model: Any, encoded: Encoded, device: torch.device) -> NDArray[np.int64]:
    """Sentences in the order given, every batch padded to 128 tokens."""
    predicted = []
    for start in range(0, len(encoded), BATCH):
        batch = pad([*encoded.ids[start : start + BATCH], [PAD] * LONGEST], PAD)
        batch = {key: tensor[:-1].to(device) for key, tensor in batch.items()}
        predicted.append(model(**batch).logits.argmax(dim=-1).cpu().numpy())
    return np.concatenate(predicted)

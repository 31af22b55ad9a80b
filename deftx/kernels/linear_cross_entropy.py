"""Cross-entropy of a linear layer over a large vocabulary whose weights are frozen, without keeping its logits.

A quarter of a million logits for each masked position, their softmax and their gradient are most of what a masked LM
step keeps. The gradient needs only the softmax, so it is worked out in the forward pass, some positions at a time, and
what stays is the gradient of the inputs and of the bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

_CHUNK = 1 << 25
"""Logits that exist at once: 128 MiB in float32."""


def head_loss(head: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """The summed cross-entropy of a RoBERTa-like LM head: dense, GELU, LayerNorm, output embedding."""
    return linear_loss(head.layer_norm(gelu(head.dense(hidden))), head.decoder, labels)


def linear_loss(hidden: Tensor, output: nn.Linear, labels: Tensor) -> Tensor:
    """The cross-entropy of `output(hidden)` summed over positions, in float32 at least.

    Args:
        hidden: (positions, width).
        output: its weight may be frozen, then no logits are kept.
        labels: (positions,) class numbers.
    """
    if output.weight.requires_grad:
        return _sum(output(hidden), labels)
    if not torch.is_grad_enabled():
        parts = zip(hidden.split(_rows(output)), labels.split(_rows(output)), strict=True)
        return sum((_sum(output(some), wanted) for some, wanted in parts), hidden.new_zeros(()))
    loss: Tensor = _LabelledLoss.apply(hidden, output.weight, output.bias, labels)  # type: ignore[no-untyped-call]
    return loss


def _sum(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(widened(logits), labels, reduction="sum")


class _LabelledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        narrow, wide = weight.to(dtype), widened(hidden)
        loss, of_hidden, of_bias = wide.new_zeros(()), torch.empty_like(wide), torch.zeros_like(bias)
        rows = max(1, _CHUNK // len(weight))
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), rows):
                here = slice(start, start + rows)
                logits = torch.addmm(bias.to(dtype), hidden[here].to(dtype), narrow.T)
                logs = widened(logits).log_softmax(-1)
                del logits
                wanted = labels[here].unsqueeze(1)
                loss -= logs.gather(1, wanted).sum()
                slope = logs.exp_().scatter_add_(1, wanted, logs.new_full((len(logs), 1), -1.0))
                of_bias += slope.sum(0)
                of_hidden[here] = slope.to(dtype) @ narrow
                del logs, slope
        ctx.save_for_backward(of_hidden.to(hidden.dtype), of_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_bias = ctx.saved_tensors
        return of_hidden * gradient, None, of_bias * gradient, None


def _rows(output: nn.Linear) -> int:
    return max(1, _CHUNK // output.out_features)


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least, as losses are: a float64 model's stay in float64."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor

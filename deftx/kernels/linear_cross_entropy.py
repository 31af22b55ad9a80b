"""Fused linear cross-entropy: the loss of a frozen output layer over a large vocabulary, without keeping its logits.

A quarter of a million logits for each masked position, their softmax and their gradient are most of what a masked LM
step keeps. For hidden states H [positions, width], weight W [vocabulary, width], bias b [vocabulary], labels y:

    Z = H W^T + b                  L = sum_n (log sum_v exp Z_nv - Z_n,y_n)
    dL/dZ = softmax(Z) - onehot(y)
    dL/dH = dL/dZ W                dL/db = sum_n dL/dZ_n

None of it needs what comes above but the scalar that it is multiplied by. So both gradients are computed in the forward
pass, some positions at a time, and they are all that is kept; the backward pass multiplies. W is frozen: no dL/dW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

_CHUNK = 1 << 25
"""Logits that exist at once: 128 MiB in float32, of 134 positions with XLM-R's vocabulary."""


def lm_head_cross_entropy(head: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of a RoBERTa-like LM head (dense, GELU, LayerNorm, output embedding), summed over positions.

    Args:
        head: the `lm_head` of a model.
        hidden: [positions, width].
        labels: [positions] int64, the token ids to predict.

    Returns:
        A scalar, in float32 at least.
    """
    return fused_linear_cross_entropy(head.layer_norm(gelu(head.dense(hidden))), head.decoder, labels)


def fused_linear_cross_entropy(hidden: Tensor, output: nn.Linear, labels: Tensor) -> Tensor:
    """The cross-entropy of `output(hidden)` summed over positions: a scalar, in float32 at least.

    Args:
        hidden: [positions, width].
        output: the output layer, with a bias. Where its weight is frozen no logits are kept.
        labels: [positions] int64, the classes.
    """
    if output.weight.requires_grad:
        return _sum(output(hidden), labels)
    if not torch.is_grad_enabled():
        parts = zip(hidden.split(_rows(output)), labels.split(_rows(output)), strict=True)
        return sum((_sum(output(part), targets) for part, targets in parts), hidden.new_zeros(()))
    loss: Tensor = _FusedCrossEntropy.apply(hidden, output.weight, output.bias, labels)  # type: ignore[no-untyped-call]
    return loss


def _sum(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(widened(logits), labels, reduction="sum")


class _FusedCrossEntropy(torch.autograd.Function):
    """The formulas above, `rows` positions at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        narrow, wide = weight.to(dtype), widened(hidden)
        loss, d_hidden, d_bias = wide.new_zeros(()), torch.empty_like(wide), torch.zeros_like(bias)
        rows = max(1, _CHUNK // len(weight))
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), rows):
                here = slice(start, start + rows)
                logits = torch.addmm(bias.to(dtype), hidden[here].to(dtype), narrow.T)  # Z, [rows, vocabulary]
                log_p = widened(logits).log_softmax(-1)
                del logits
                targets = labels[here].unsqueeze(1)  # [rows, 1]
                loss -= log_p.gather(1, targets).sum()
                # dL/dZ, in the memory of the log-probabilities
                d_logits = log_p.exp_().scatter_add_(1, targets, log_p.new_full((len(log_p), 1), -1.0))
                d_bias += d_logits.sum(0)
                d_hidden[here] = d_logits.to(dtype) @ narrow
                del log_p, d_logits  # else they would live on beside those of the next positions
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_bias = ctx.saved_tensors
        return d_hidden * gradient, None, d_bias * gradient, None


def _rows(output: nn.Linear) -> int:
    """Positions whose logits exist at once."""
    return max(1, _CHUNK // output.out_features)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 where its dtype is narrower, else as it is: a float64 model keeps losses in float64."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor

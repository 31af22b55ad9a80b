"""Fused linear cross-entropy: the loss of a frozen output layer over a large vocabulary, without keeping its logits.

A quarter of a million logits for each masked position, their softmax and their gradient are most of what a masked LM
step keeps. For hidden states H [positions, width], weight W [vocabulary, width], bias b [vocabulary], labels y:

    Z = H W^T + b                  L = sum_n (log sum_v exp Z_nv - Z_n,y_n)
    dL/dZ = softmax(Z) - onehot(y)
    dL/dH = dL/dZ W                dL/db = sum_n dL/dZ_n

None of it needs what comes above but the scalar that it is multiplied by. So both gradients are computed in the forward
pass, some positions at a time, and they are all that is kept; the backward pass multiplies. W is frozen: no dL/dW.

A position whose label is -100 has no loss and no gradient, whatever its hidden state. W may have more rows than b: the
bias of the others counts as -inf, so that they get no probability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad

IGNORED = -100
"""The label of a position that is not predicted: torch's default `ignore_index`."""
_CHUNK = 1 << 25
"""Logits that exist at once: 128 MiB in float32, of 134 positions with XLM-R's vocabulary."""
_CHUNK_ON_GPU = 1 << 26
"""There, few large products: 268 positions."""


def fused_linear_cross_entropy(hidden: Tensor, output: nn.Linear, labels: Tensor) -> Tensor:
    """The cross-entropy of an output layer summed over positions: a scalar, in float32 at least.

    Args:
        hidden: [positions, width].
        output: the output layer, with a bias. Where its weight is frozen no logits are kept.
        labels: [positions] int64, the classes, or -100.
    """
    if output.weight.requires_grad:
        return sum_of_losses(output(hidden), labels)
    if torch.is_grad_enabled():
        loss: Tensor = _FusedCrossEntropy.apply(hidden, output.weight, output.bias, labels)  # type: ignore[no-untyped-call]
        return loss
    rows, bias = _rows(hidden, output.weight), _fitting(output.bias, output.weight)
    parts = zip(hidden.split(rows), labels.split(rows), strict=True)
    losses = (sum_of_losses(linear(part, output.weight, bias), targets) for part, targets in parts)
    return sum(losses, widened(hidden.new_zeros(())))


def sum_of_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of logits [positions, classes] summed over the positions whose label is not -100: a scalar."""
    return cross_entropy(widened(logits), labels, ignore_index=IGNORED, reduction="sum")


class _FusedCrossEntropy(torch.autograd.Function):
    """The formulas above, `rows` positions at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        narrow, wide, rows = weight.to(dtype), widened(hidden), _rows(hidden, weight)
        narrow_bias = _fitting(bias.to(dtype), weight)
        losses, d_hiddens, d_bias = [], [], None
        with torch.autocast(kind, enabled=False):
            for here, targets in zip(wide.split(rows), labels.split(rows), strict=True):
                kept = (targets != IGNORED).unsqueeze(1)  # [rows, 1]
                targets = targets.clamp(min=0).unsqueeze(1)
                logits = torch.addmm(narrow_bias, here.to(dtype), narrow.T)  # Z, [rows, vocabulary]
                log_p = logits.log_softmax(-1, dtype=wide.dtype)
                del logits
                chosen = log_p.gather(1, targets)
                losses.append(torch.where(kept, -chosen, 0.0).sum())
                # dL/dZ: where memory allows, in that of the log-probabilities
                d_logits = log_p.exp_().to(dtype)
                del log_p
                d_logits.scatter_(1, targets, (chosen.exp() - 1).to(dtype)).masked_fill_(~kept, 0.0)
                total = d_logits.sum(0, dtype=wide.dtype)
                d_bias = total if d_bias is None else d_bias + total
                d_hiddens.append(d_logits @ narrow)
                del d_logits
        assert d_bias is not None
        ctx.save_for_backward(torch.cat(d_hiddens).to(hidden.dtype), d_bias[: len(bias)].to(bias.dtype))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_bias = ctx.saved_tensors
        return d_hidden * gradient.to(d_hidden.dtype), None, d_bias * gradient, None


def _rows(hidden: Tensor, weight: Tensor) -> int:
    """Positions whose logits exist at once: in pieces of one size, as few as there can be."""
    most = max(1, (_CHUNK if weight.device.type == "cpu" else _CHUNK_ON_GPU) // len(weight))
    return max(1, -(-len(hidden) // max(1, -(-len(hidden) // most))))


def _fitting(bias: Tensor, weight: Tensor) -> Tensor:
    """The bias of every row of a weight."""
    return bias if len(bias) == len(weight) else pad(bias, (0, len(weight) - len(bias)), value=-torch.inf)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 where its dtype is narrower, else as it is: a float64 model keeps losses in float64."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor

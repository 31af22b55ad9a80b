"""Attention with dropped probabilities, drawn for each example (see `dropout`), that keeps none of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deftx.kernels.dropout import Draws, ExampleDropout
from deftx.kernels.linear_cross_entropy import widened

ATTENTION = "deftx"
"""Under this name transformers knows `attention`."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float = 1.0, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it; (examples, heads, tokens, width) -> (examples, tokens, heads, width)."""
    if dropout == 0.0:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **options)
    bias = None
    if attention_mask is not None:
        bias = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill_(~attention_mask, -torch.inf)
    found: Tensor = _Attention.apply(query, key, value, bias, scaling, module.dropout)  # type: ignore[no-untyped-call]
    return found, None


class _Attention(torch.autograd.Function):
    """Attention with dropped probabilities that keeps none of them: the backward pass computes and draws them again.

    A CPU takes example by example, whose scores stay in its cache; a GPU 16, so that scores never fill its memory.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: ExampleDropout
    ) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        for start, part in _parts(q):
            p = _probabilities(q[part], k[part], _of(bias, part), scale)
            kept = p.mul_(_factors(dropout, p, start)).to(q.dtype)
            torch.matmul(kept, v[part], out=out[part].transpose(1, 2))
        ctx.save_for_backward(q, k, v, out, bias)
        ctx.scale, ctx.dropout = scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, bias = ctx.saved_tensors
        found = [torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (q, k, v)]
        dq, dk, dv = (t.transpose(1, 2) for t in found)
        inner = (widened(gradient) * widened(out)).sum(-1).transpose(1, 2).unsqueeze(-1)  # = sum of P * dP over keys
        for start, part in _parts(q):
            above = gradient[part].transpose(1, 2)
            p = _probabilities(q[part], k[part], _of(bias, part), ctx.scale)
            factors = _factors(ctx.dropout, p, start)
            torch.matmul((p * factors).to(q.dtype).mT, above, out=dv[part])
            ds = widened(torch.matmul(above, v[part].mT)).mul_(factors)
            ds = ds.sub_(inner[part]).mul_(p).mul_(ctx.scale).to(q.dtype)
            torch.matmul(ds, k[part], out=dq[part])
            torch.matmul(ds.mT, q[part], out=dk[part])
        return dq, dk, dv, None, None, None


def _parts(q: Tensor) -> list[tuple[int, slice]]:
    size = 1 if q.device.type == "cpu" else 16
    return [(start, slice(start, start + size)) for start in range(0, len(q), size)]


def _of(bias: Tensor | None, part: slice) -> Tensor | None:
    return bias if bias is None or len(bias) == 1 else bias[part]


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores, in float32 at least."""
    scores = widened(torch.matmul(q, k.mT)).mul_(scale)
    return (scores if bias is None else scores.add_(bias)).softmax(-1)


def _factors(dropout: ExampleDropout, p: Tensor, start: int) -> Tensor:
    return dropout.draws.factors(dropout.site, p.shape, dropout.p, p.dtype, start)


def drop_by_example(model: Any, draws: Draws) -> None:
    """Replace every dropout of a Hugging Face model, that of attention probabilities included, where it has any."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and child.p > 0
    ]
    for parent, name, child in found:
        setattr(parent, name, ExampleDropout(child.p, draws))
    if found:
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.config._attn_implementation = ATTENTION

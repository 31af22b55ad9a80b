"""Scaled dot-product attention with dropout by example (see `dropout`) that keeps no probabilities.

For one example and one head, with Q [query, width], K and V [key, width], bias 0 or -inf, and the dropout factors
M [query, key] (0 or 1 / (1 - p)):

    S = scale * Q K^T + bias      P = softmax(S) over keys      O = (P * M) V

The backward pass computes P and draws M again. With G = dL/dO, and * by entries:

    dV = (P * M)^T G
    dP = (G V^T) * M
    dS = P * (dP - D)             the softmax's; D = sum over keys of P * dP, for each query
    dQ = scale * dS K             dK = scale * dS^T Q

D needs no probabilities: it is sum_j P_ij M_ij (G_i . V_j) = G_i . O_i, as in FlashAttention (Dao et al., 2022,
arXiv 2205.14135).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deftx.kernels.dropout import CounterRNG, ExampleDropout
from deftx.kernels.linear_cross_entropy import widened

ATTENTION = "deftx"
"""The name under which `attention` is registered with transformers."""

_EXAMPLES_ON_GPU = 16
"""Examples whose scores exist at once on a GPU: of a larger batch they would fill its memory."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention output, [batch, query, heads, width], and None for the weights: transformers' interface.

    Without dropout this is transformers' own `sdpa_attention_forward`.

    Args:
        module: the attention layer; its `dropout` is an `ExampleDropout` wherever `dropout` is not 0.
        query: [batch, heads, query, width].
        key: [batch, heads, key, width].
        value: [batch, heads, key, width].
        attention_mask: bool, broadcast to [batch, heads, query, key]; True where a key may be attended to.
        dropout: 0 outside training.
        scaling: the factor on Q K^T.
        **options: passed on where there is no dropout.
    """
    if dropout == 0.0:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **options)
    bias = None
    if attention_mask is not None:
        bias = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill_(~attention_mask, -torch.inf)
    output: Tensor = _Attention.apply(query, key, value, bias, scaling, module.dropout)  # type: ignore[no-untyped-call]
    return output, None


class _Attention(torch.autograd.Function):
    """The formulas above, a few examples at a time."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: ExampleDropout
    ) -> Tensor:
        # [batch, query, heads, width] in memory, as the output projection reads it
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        for start, part in _parts(q):
            p = _probabilities(q[part], k[part], _of(bias, part), scale)  # [part, heads, query, key]
            dropped = p.mul_(_factors(dropout, p, start)).to(q.dtype)  # P * M
            torch.matmul(dropped, v[part], out=out[part].transpose(1, 2))
        ctx.save_for_backward(q, k, v, out, bias)
        ctx.scale, ctx.dropout = scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, bias = ctx.saved_tensors
        # each [batch, tokens, heads, width] in memory, so that undoing the caller's transpose copies nothing
        buffers = [torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (q, k, v)]
        dq, dk, dv = (t.transpose(1, 2) for t in buffers)  # [batch, heads, tokens, width]
        d = (widened(gradient) * widened(out)).sum(-1).transpose(1, 2).unsqueeze(-1)  # [batch, heads, query, 1]
        for start, part in _parts(q):
            above = gradient[part].transpose(1, 2)  # G, [part, heads, query, width]
            p = _probabilities(q[part], k[part], _of(bias, part), ctx.scale)  # [part, heads, query, key]
            factors = _factors(ctx.dropout, p, start)  # M
            torch.matmul((p * factors).to(q.dtype).mT, above, out=dv[part])
            dp = widened(torch.matmul(above, v[part].mT)).mul_(factors)
            ds = dp.sub_(d[part]).mul_(p).mul_(ctx.scale).to(q.dtype)  # scale * dS
            torch.matmul(ds, k[part], out=dq[part])
            torch.matmul(ds.mT, q[part], out=dk[part])
        return dq, dk, dv, None, None, None


def _parts(q: Tensor) -> list[tuple[int, slice]]:
    """(first example, slice) of the examples computed at once: on a CPU one, whose scores stay in its cache."""
    size = 1 if q.device.type == "cpu" else _EXAMPLES_ON_GPU
    return [(start, slice(start, start + size)) for start in range(0, len(q), size)]


def _of(bias: Tensor | None, part: slice) -> Tensor | None:
    return bias if bias is None or len(bias) == 1 else bias[part]


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """P, [part, heads, query, key], in float32 at least."""
    scores = widened(torch.matmul(q, k.mT)).mul_(scale)
    return (scores if bias is None else scores.add_(bias)).softmax(-1)


def _factors(dropout: ExampleDropout, p: Tensor, start: int) -> Tensor:
    """M of the examples from number `start` on, of the shape and dtype of `p`."""
    return dropout.rng.factors(dropout.site, p.shape, dropout.p, p.dtype, start)


def drop_by_example(model: Any, rng: CounterRNG) -> None:
    """Replace every dropout of a Hugging Face model by `ExampleDropout`, that of attention probabilities included.

    A model without any dropout is left as it is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    dropouts = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and child.p > 0
    ]
    for parent, name, child in dropouts:
        setattr(parent, name, ExampleDropout(child.p, rng))
    if dropouts:
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.config._attn_implementation = ATTENTION

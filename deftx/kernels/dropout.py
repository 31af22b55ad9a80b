"""Dropout drawn for each example and not for each micro-batch.

What is dropped of an example depends on the run's seed, the step, the example's number in its batch and the place in
the model, and on nothing else: neither on which examples are computed together, nor on the device, nor on whether a
layer is computed once or again in the backward pass (gradient checkpointing). A draw is a hash of those numbers (two
rounds of multiply and xor-shift, 16 bits each), which costs less than torch's generator does on a CPU. A model that
drops by a function and not by a module (XGLM) keeps torch's own draws, which do depend on the micro-batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATTENTION = "deftx"
"""Under this name transformers knows `attention`."""


class Draws:
    """The keys of one step's draws: (sites, examples, 2), of which a micro-batch uses its examples'."""

    def __init__(self, seed: int) -> None:
        """Bind the run's seed."""
        self._seed, self._sites = seed, 0
        self._keys = torch.empty(0, 0, 2, dtype=torch.int32)
        self._first = 0

    def site(self) -> int:
        """The number of one more place in the model that draws."""
        self._sites += 1
        return self._sites - 1

    def begin(self, step: int, examples: int, device: torch.device) -> None:
        """Make the keys of a step, of so many examples."""
        if self._sites:
            generator = np.random.default_rng([self._seed, 3, step])
            # by example first: an example's keys do not depend on how many there are
            keys = generator.integers(-(2**31), 2**31, (examples, self._sites, 2), dtype=np.int32)
            self._keys = torch.from_numpy(keys).transpose(0, 1).contiguous().to(device, non_blocking=True)

    def at(self, first: int) -> None:
        """The examples computed next begin with number `first`."""
        self._first = first

    def dropped(self, site: int, shape: torch.Size, share: float, example: int = 0) -> Tensor:
        """Which entries are dropped: bool, of a shape whose first dimension are examples from number `example` on."""
        return (self._bits(site, shape, example) < _threshold(share)).view(shape)

    def factors(self, site: int, shape: torch.Size, share: float, dtype: torch.dtype, example: int = 0) -> Tensor:
        """The same as what to multiply by: 0 for what is dropped, 1 / (1 - share) for the rest."""
        bits = self._bits(site, shape, example)
        # many times faster on a CPU than filling by a mask
        kept = torch.ge(bits, _threshold(share), out=torch.empty(bits.shape, dtype=dtype, device=bits.device))
        return kept.mul_(1 / (1 - share)).view(shape)

    def _bits(self, site: int, shape: torch.Size, example: int) -> Tensor:
        start, entries = self._first + example, shape[1:].numel()
        return _hash(self._keys[site, start : start + shape[0]], (entries + 1) // 2).view(torch.int16)[:, :entries]


def _threshold(share: float) -> int:
    return round(share * 65536) - 32768


def _hash(keys: Tensor, count: int) -> Tensor:
    """`count` int32 draws for each row of keys (n, 2)."""
    x = torch.arange(count, dtype=torch.int32, device=keys.device) + keys[:, :1]
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D).add_(keys[:, 1:])
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(-0x7B935975)  # 0x846ca68b
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


class ExampleDropout(nn.Dropout):
    """Dropout by `Draws`; the first dimension of its input are the examples."""

    def __init__(self, p: float, draws: Draws) -> None:
        super().__init__(p)
        self.draws, self.site = draws, draws.site()

    def forward(self, input: Tensor) -> Tensor:
        """Drop entries in training and scale up the rest."""
        if not self.training or self.p == 0:
            return input
        dropped = self.draws.dropped(self.site, input.shape, self.p)
        return input.masked_fill(dropped, 0.0).mul_(1 / (1 - self.p))


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
        inner = (_wide(gradient) * _wide(out)).sum(-1).transpose(1, 2).unsqueeze(-1)  # = sum of P * dP over keys
        for start, part in _parts(q):
            above = gradient[part].transpose(1, 2)
            p = _probabilities(q[part], k[part], _of(bias, part), ctx.scale)
            factors = _factors(ctx.dropout, p, start)
            torch.matmul((p * factors).to(q.dtype).mT, above, out=dv[part])
            ds = _wide(torch.matmul(above, v[part].mT)).mul_(factors)
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
    scores = _wide(torch.matmul(q, k.mT)).mul_(scale)
    return (scores if bias is None else scores.add_(bias)).softmax(-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _factors(dropout: ExampleDropout, p: Tensor, start: int) -> Tensor:
    return dropout.draws.factors(dropout.site, p.shape, dropout.p, p.dtype, start)

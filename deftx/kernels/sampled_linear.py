"""Linear layers with a sampled weight gradient (SDDMM): it is computed for the entries that train and for no others.

With x [tokens, in], weight W [out, in], bias b [out] and G = dL/dy, [tokens, out]:

    y = x W^T + b      dL/dx = G W      dL/db = sum_t G_t      dL/dW_ij = sum_t G_ti x_tj

The last is a third of a layer's arithmetic, and one entry of it is the product of two columns over all tokens. Where
few entries train, these products by themselves take a third of the time of the whole G^T x on a CPU. Elsewhere (many
entries train, a small matrix, bf16, for which torch has no such kernel, and a GPU, where it was not measured) the whole
product is computed and the entries are taken from it: a gradient as large as the weight, but of one matrix at a time.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_LARGE = 1 << 18
"""Entries of the smallest matrix that is sampled, 512 x 512: a smaller one costs more in calls than in arithmetic."""
_FEW = 0.2
"""Largest share of entries that is sampled. Measured (docs/performance.md): 20 % take four fifths of the time of the
whole product, 30 % as long."""
_TOKENS = 512
"""Tokens taken at once, so that their columns of G and x stay in the cache: all at once is slower from 3 % of the
entries on (measured)."""


class SampledGradientLinear:
    """A linear layer whose frozen weight passes the gradient of some entries on to a vector of them."""

    def __init__(self, layer: nn.Linear, index: Tensor, values: nn.Parameter) -> None:
        """Replace the layer's forward pass until `close`.

        Args:
            layer: its weight is frozen here.
            index: [entries] int64 on the layer's device, ascending flat indices into its weight.
            values: [entries], the parameter that gets their gradient. The forward pass reads the weight, so whoever
                steps these has to write them there.
        """
        self._layer, self._index, self._values = layer, index, values
        layer.weight.requires_grad_(False)
        self._places = _zeros_at(layer.weight, index) if _pays(layer.weight, index) else None
        layer.forward = self._forward  # type: ignore[assignment]

    def close(self) -> None:
        """Give the layer its own forward pass back."""
        vars(self._layer).pop("forward", None)

    def _forward(self, x: Tensor) -> Tensor:
        weight, bias = self._layer.weight, self._layer.bias
        if not torch.is_grad_enabled():
            return linear(x, weight, bias)
        output: Tensor = _Linear.apply(x, weight, bias, self._values, self._gradient)  # type: ignore[no-untyped-call]
        return output

    def _gradient(self, above: Tensor, x: Tensor) -> Tensor:
        """dL/dW at the entries that train, [entries], from G [tokens, out] and x [tokens, in]."""
        if self._places is None or x.dtype != self._values.dtype:
            return (above.T @ x).view(-1)[self._index].to(self._values.dtype)
        total = self._places  # [out, in], sparse
        for gradient, inputs in zip(above.split(_TOKENS), x.split(_TOKENS), strict=True):
            # total + G^T x at the entries of total; the kernel reads columns of G and x, so each lies in one piece
            total = torch.sparse.sampled_addmm(total, gradient.T.contiguous(), inputs.T.contiguous().T)
        return total.values()


class _Linear(torch.autograd.Function):
    """The formulas above; x is [..., in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, gradient: Any) -> Tensor:
        out = linear(x, weight, bias)
        # under autocast `out` is narrower than `x`, and so are the products of the backward pass
        ctx.save_for_backward(x.to(out.dtype), weight)
        ctx.gradient, ctx.dtype = gradient, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, d_bias = None, None
        if ctx.needs_input_grad[0]:
            dx = (above @ weight.to(above.dtype)).to(ctx.dtype)
        flat = above.flatten(0, -2)  # G, [tokens, out]
        if ctx.needs_input_grad[2]:
            d_bias = flat.sum(0).to(weight.dtype)
        return dx, None, d_bias, ctx.gradient(flat, x.flatten(0, -2)), None


def _pays(weight: Tensor, index: Tensor) -> bool:
    """Whether sampling is faster than the whole product."""
    large = weight.numel() >= _LARGE and index.numel() <= _FEW * weight.numel()
    return large and weight.device.type == "cpu"


def _zeros_at(weight: Tensor, index: Tensor) -> Tensor:
    """A sparse CSR matrix [out, in] with an explicit zero at each of some ascending flat indices."""
    rows, width = weight.shape
    first = torch.searchsorted(index, torch.arange(rows + 1) * width)
    zeros = torch.zeros(len(index), dtype=weight.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            first.int(), (index % width).int(), zeros, size=(rows, width), check_invariants=True
        )

"""Linear layers of whose weight only chosen entries train: the gradient is computed for those entries alone.

The gradient of a weight is a third of a layer's arithmetic. Of one matrix entry it is the product of two columns, over
all tokens; where few entries train, those products by themselves take a third of the time of the whole matrix product
on a CPU. Elsewhere (many entries train, a small matrix, bf16, for which torch has no such kernel, and a GPU, where it
was not measured) the whole product is computed and the chosen entries are taken from it, so that a gradient as large as
the weight exists for one matrix at a time only.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_LARGE = 1 << 18
"""Entries from which a matrix is worth it: a small one costs more in calls than in arithmetic."""
_FEW = 0.2
"""The share of chosen entries up to which it pays; measured, as `_TOKENS` is (see docs/performance.md)."""
_TOKENS = 512
"""Tokens taken at once: their columns of both matrices stay in the cache."""


class SampledLinear:
    """A linear layer that gives the gradient of chosen entries of its weight to a vector of them."""

    def __init__(self, layer: nn.Linear, index: Tensor, values: nn.Parameter) -> None:
        """Compute through this object from now on, until `close`.

        Args:
            layer: its weight is frozen.
            index: flat indices of the chosen entries, ascending, on the layer's device.
            values: what they are; gets their gradient.
        """
        self._layer, self._index, self._values = layer, index, values
        layer.weight.requires_grad_(False)
        self._places = _zeros_at(layer.weight, index) if _pays(layer.weight, index) else None
        layer.forward = self._forward  # type: ignore[assignment]

    def close(self) -> None:
        """Compute as before."""
        vars(self._layer).pop("forward", None)

    def _forward(self, x: Tensor) -> Tensor:
        weight, bias = self._layer.weight, self._layer.bias
        if not torch.is_grad_enabled():
            return linear(x, weight, bias)
        found: Tensor = _Linear.apply(x, weight, bias, self._values, self._gradient)  # type: ignore[no-untyped-call]
        return found

    def _gradient(self, above: Tensor, x: Tensor) -> Tensor:
        """The gradient of the chosen entries: (tokens, out) and (tokens, in) -> (entries,)."""
        if self._places is None or x.dtype != self._values.dtype:
            return (above.T @ x).view(-1)[self._index].to(self._values.dtype)
        found = self._places
        for some, inputs in zip(above.split(_TOKENS), x.split(_TOKENS), strict=True):
            # as the kernel reads them: the two columns of an entry each in one piece
            found = torch.sparse.sampled_addmm(found, some.T.contiguous(), inputs.T.contiguous().T)
        return found.values()


class _Linear(torch.autograd.Function):
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
        of_x, of_bias = None, None
        if ctx.needs_input_grad[0]:
            of_x = (above @ weight.to(above.dtype)).to(ctx.dtype)
        flat = above.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0).to(weight.dtype)
        return of_x, None, of_bias, ctx.gradient(flat, x.flatten(0, -2)), None


def _pays(weight: Tensor, index: Tensor) -> bool:
    large = weight.numel() >= _LARGE and index.numel() <= _FEW * weight.numel()
    return large and weight.device.type == "cpu"


def _zeros_at(weight: Tensor, index: Tensor) -> Tensor:
    """A sparse matrix with a zero at each chosen entry."""
    rows, width = weight.shape
    first = torch.searchsorted(index, torch.arange(rows + 1) * width)
    zeros = torch.zeros(len(index), dtype=weight.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            first.int(), (index % width).int(), zeros, size=(rows, width), check_invariants=True
        )

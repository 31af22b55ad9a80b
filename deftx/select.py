"""The exact global top-k: which entries of a weight change are trained in the sparse phase (Algorithm 1, line 7).

Tensors are visited one at a time and never concatenated: two histograms over the bit patterns of |x| find the k-th
largest magnitude exactly, for non-negative floats order like their bits. No sorting, no copy of the delta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from deftx.errors import DataError

Indices = dict[str, Tensor]
"""Flat row-major indices of the chosen entries by tensor name: int64, ascending. Tensors without any are left out."""

_CHUNK = 1 << 24
_HALF = 16
_INFINITY = 0x7F800000


def select(delta: Mapping[str, Tensor], k: int) -> Indices:
    """The k entries of largest magnitude over all tensors together; ties go to the lowest flat index.

    Args:
        delta: weight change by name, float32, any shapes. The flat index runs through the tensors in the alphabetical
            order of their names; a lazy mapping is read three times, one tensor at a time.
        k: how many entries to choose, at least 1.

    Returns:
        Exactly k flat indices by name.

    Raises:
        DataError: when fewer than k entries differ from zero, or an entry is NaN or infinite (naming the tensor).
    """
    threshold, ties = _kth_largest(delta, k)
    chosen: Indices = {}
    for name in sorted(delta):
        tensor = delta[name]
        mask = torch.zeros(tensor.numel(), dtype=torch.bool)
        for start, bits in _bits(tensor):
            mask[start : start + bits.numel()] = bits > threshold
            equal = (bits == threshold).nonzero().squeeze(1)[:ties]
            mask[equal + start] = True
            ties -= equal.numel()
        if mask.any():
            chosen[name] = mask.nonzero().squeeze(1)
    return chosen


def non_zero(delta: Mapping[str, Tensor]) -> Indices:
    """All entries that differ from zero, as flat indices by name: the choice without magnitude pruning."""
    found = {name: delta[name].reshape(-1).nonzero().squeeze(1) for name in delta}
    return {name: index for name, index in found.items() if index.numel()}


def jaccard(a: Indices, b: Indices) -> float:
    """Size of the intersection over size of the union of two choices; 1 for two empty ones."""
    names = a.keys() | b.keys()
    empty = torch.empty(0, dtype=torch.int64)
    pairs = [(a.get(name, empty).numpy(), b.get(name, empty).numpy()) for name in sorted(names)]
    both = sum(np.intersect1d(x, y, assume_unique=True).size for x, y in pairs)
    either = sum(x.size + y.size for x, y in pairs) - both
    return both / either if either else 1.0


def _bits(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(offset, int32 bit patterns of |x|) in chunks of the flattened tensor."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK].to(device="cpu", dtype=torch.float32)
        yield start, chunk.abs().view(torch.int32)


def _kth_largest(delta: Mapping[str, Tensor], k: int) -> tuple[int, int]:
    """Bit pattern of the k-th largest magnitude, and how many entries equal to it are among the k."""
    high = torch.zeros(1 << _HALF, dtype=torch.int64)
    for name in delta:
        here = sum((torch.bincount(bits >> _HALF, minlength=1 << _HALF) for _, bits in _bits(delta[name])), high * 0)
        if here[_INFINITY >> _HALF :].any():
            raise DataError(f"the weight change of {name} holds NaN or infinite entries")
        high += here
    top, above = _bin_of(high, k)
    low = torch.zeros(1 << _HALF, dtype=torch.int64)
    for name in delta:
        for _, bits in _bits(delta[name]):
            low += torch.bincount(bits[bits >> _HALF == top] & 0xFFFF, minlength=1 << _HALF)
    bottom, more = _bin_of(low, k - above)
    threshold = (top << _HALF) | bottom
    if threshold == 0:
        raise DataError(f"only {above + more:,} entries of the weight change differ from zero; k = {k:,} asks for more")
    return threshold, k - above - more


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest value (0: there are fewer), and how many values lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)
    position = min(int(torch.searchsorted(from_top, torch.tensor(k))), histogram.numel() - 1)
    found = histogram.numel() - 1 - position
    return found, int(from_top[position] - histogram[found])

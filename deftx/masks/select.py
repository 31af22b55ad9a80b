"""The exact global top-k: which entries of a weight change are trained in the sparse phase (Algorithm 1, line 7).

Tensors are visited one at a time and never concatenated, sorted or copied. Non-negative floats order like their bit
patterns, so a radix select finds the k-th largest magnitude exactly: a histogram of the upper 16 bits of |x| gives the
bin it lies in, a histogram of the lower 16 bits within that bin gives the number itself, a third reading the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor

from deftx.errors import DataError

Indices = dict[str, Tensor]
"""Flat row-major indices of the chosen entries by tensor name: int64, ascending, where the tensors are.

Tensors without any are left out.
"""

Chunk = tuple[str, int, Tensor]
"""A piece of a flattened tensor: the tensor's name, where in it the piece begins, and the piece, float32."""

_CHUNK = 1 << 20
"""Entries visited at once: 4 MiB in float32, so that several operations on them stay in a processor's cache."""
_LOW_BITS = 16
"""Two histograms of 2^15 and 2^16 bins fit into the cache too; one of all 31 bits would not."""
_HIGH = 1 << 15
"""Upper halves of |x|: its sign bit is 0."""
_INFINITY = 0x7F80
"""Upper half of infinity: 8 exponent bits of 1. Those of NaN are not smaller, those of finite numbers are."""


def select(delta: Mapping[str, Tensor], k: int) -> Indices:
    """The k entries of largest magnitude over all tensors together: exactly k flat indices, by name.

    Ties go to the lowest flat index, which runs through the tensors in the alphabetical order of their names.

    Args:
        delta: weight change by name, float32, any shapes; a lazy mapping is read three times, one tensor at a time.
        k: how many entries to choose, at least 1.

    Raises:
        DataError: when fewer than k entries differ from zero, or an entry is NaN or infinite (naming the tensor).
    """
    indices: dict[str, list[Tensor]] = {}
    for name, index in largest(lambda: chain.from_iterable(chunks(name, delta[name]) for name in sorted(delta)), k):
        indices.setdefault(name, []).append(index)
    return {name: torch.cat(parts) for name, parts in indices.items()}


def non_zero(delta: Mapping[str, Tensor]) -> Indices:
    """All entries that differ from zero, as flat indices by name: the choice without magnitude pruning."""
    indices = {name: delta[name].reshape(-1).nonzero().squeeze(1) for name in delta}
    return {name: index for name, index in indices.items() if index.numel()}


def jaccard(a: Indices, b: Indices) -> float:
    """The Jaccard index of two choices, |a and b| / |a or b|; 1 for two empty ones."""
    both = sum(_shared(a[name], b[name]) for name in a.keys() & b.keys())
    either = sum(index.numel() for choice in (a, b) for index in choice.values()) - both
    return both / either if either else 1.0


def _shared(a: Tensor, b: Tensor) -> int:
    """How many numbers two ascending tensors without repeats share."""
    place = torch.searchsorted(a, b).clamp_(max=a.numel() - 1)
    return int((a[place] == b).sum()) if a.numel() else 0


def largest(read: Callable[[], Iterable[Chunk]], k: int) -> Iterator[tuple[str, Tensor]]:
    """The k entries of largest magnitude of a stream of numbers, chunk by chunk; ties go to those that come first.

    Args:
        read: begins a reading of the same chunks in the same order; called three times. Only the chunk at hand is kept,
            and in the last reading a chunk may be written to once its indices have been yielded.
        k: how many entries to choose, at least 1.

    Yields:
        A tensor's name and flat indices into it, ascending: for each chunk that holds some of the k.

    Raises:
        DataError: as `select`.
    """
    threshold, ties = _kth_largest(read, k)
    for name, start, chunk in read():
        bits = _bits(chunk)
        index = (bits >= threshold).nonzero().squeeze(1)
        equal = bits[index] == threshold
        if int(equal.sum()) > ties:
            index = index[~equal | (equal.cumsum(0) <= ties)]
        ties = max(ties - int(equal.sum()), 0)
        if index.numel():
            yield name, index + start


def chunks(name: str, tensor: Tensor) -> Iterator[Chunk]:
    """The chunks of a tensor, at most `_CHUNK` entries each."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield name, start, flat[start : start + _CHUNK]


def _bits(chunk: Tensor) -> Tensor:
    """The bit patterns of |x| as int32, [chunk], where the chunk is."""
    return chunk.float().abs().view(torch.int32)


def _kth_largest(read: Callable[[], Iterable[Chunk]], k: int) -> tuple[int, int]:
    """Bit pattern of the k-th largest magnitude, and how many entries equal to it are among the k."""
    high = torch.zeros(_HIGH, dtype=torch.int64)
    for name, _, chunk in read():
        counts = torch.bincount(_bits(chunk) >> _LOW_BITS, minlength=_HIGH).cpu()
        if counts[_INFINITY:].any():
            raise DataError(f"the weight change of {name} holds NaN or infinite entries")
        high += counts
    top, above = _bin_of(high, k)
    low = torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
    for _, _, chunk in read():
        bits = _bits(chunk)
        low += torch.bincount(bits[bits >> _LOW_BITS == top] & 0xFFFF, minlength=1 << _LOW_BITS).cpu()
    bottom, more = _bin_of(low, k - above)
    threshold = (top << _LOW_BITS) | bottom
    if threshold == 0:
        raise DataError(f"only {above + more:,} entries of the weight change differ from zero; k = {k:,} asks for more")
    return threshold, k - above - more


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest value (0: there are fewer), and how many values lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)  # values in the highest bin, in the two highest, ...
    position = min(int(torch.searchsorted(from_top, torch.tensor(k))), histogram.numel() - 1)
    number = histogram.numel() - 1 - position
    return number, int(from_top[position] - histogram[number])

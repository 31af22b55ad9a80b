"""Dropout from a counter-based random number generator, drawn for each example and not for each micro-batch.

What is dropped of an example depends on the run's seed, the step, the example's number in its batch and the place in
the model, and on nothing else: neither on which examples are computed together, nor on the device, nor on whether a
layer is computed once or again in the backward pass (gradient checkpointing). A draw is a hash of a key (of step, place
and example) and a counter (the entry), 16 bits an entry: cheaper on a CPU than torch's generator. A model that drops
by a function and not by a module (XGLM) keeps torch's own draws, which do depend on the micro-batches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class CounterRNG:
    """The counter-based RNG of every dropout in a model: for each step, a key for each site and example."""

    def __init__(self, seed: int) -> None:
        """Bind the run's seed."""
        self._seed, self._sites = seed, 0
        self._keys = torch.empty(0, 0, 2, dtype=torch.int32)  # [sites, examples, 2]
        self._first = 0

    def site(self) -> int:
        """The number of the next place in the model that draws, from 0."""
        self._sites += 1
        return self._sites - 1

    def begin(self, step: int, examples: int, device: torch.device) -> None:
        """Make the keys of a step, of so many examples."""
        if self._sites:
            # the stream of (seed, 3): the loop's own are 1 and 2, the validation mask's is 7
            generator = np.random.default_rng([self._seed, 3, step])
            # by example first: an example's keys do not depend on how many there are
            keys = generator.integers(-(2**31), 2**31, (examples, self._sites, 2), dtype=np.int32)
            self._keys = torch.from_numpy(keys).transpose(0, 1).contiguous().to(device, non_blocking=True)

    def at(self, first: int) -> None:
        """The examples computed next begin with number `first`."""
        self._first = first

    def dropped(self, site: int, shape: torch.Size, share: float, example: int = 0) -> Tensor:
        """Which entries are dropped, as bool of a shape.

        Args:
            site: a number that `site` gave.
            shape: its first dimension is the examples.
            share: the probability that an entry is dropped, taken to the nearest 1 / 65,536.
            example: number of the first example, counted from that of `at`.
        """
        return (self._bits(site, shape, example) < _threshold(share)).view(shape)

    def factors(self, site: int, shape: torch.Size, share: float, dtype: torch.dtype, example: int = 0) -> Tensor:
        """Factors to multiply by, for the arguments of `dropped`: 0 where dropped, else 1 / (1 - share)."""
        bits = self._bits(site, shape, example)
        # many times faster on a CPU than filling by a mask
        kept = torch.ge(bits, _threshold(share), out=torch.empty(bits.shape, dtype=dtype, device=bits.device))
        return kept.mul_(1 / (1 - share)).view(shape)

    def _bits(self, site: int, shape: torch.Size, example: int) -> Tensor:
        """Uniform int16, [examples, entries of an example]: each int32 of the hash gives two."""
        start, entries = self._first + example, shape[1:].numel()
        return _hash(self._keys[site, start : start + shape[0]], (entries + 1) // 2).view(torch.int16)[:, :entries]


def _threshold(share: float) -> int:
    """The int16 below which a share of all int16 lies."""
    return round(share * 65536) - 32768


def _hash(keys: Tensor, count: int) -> Tensor:
    """`count` pseudo-random int32 for each key: [examples, 2] -> [examples, count].

    lowbias32 of counter + first key, with the second key added between its two rounds. The multipliers 0x7FEB352D and
    0x846CA68B and the shifts 16, 15, 16 are those that a search for unbiased integer hashes ended on (C. Wellons, 2018,
    github.com/skeeto/hash-prospector). int32 products wrap modulo 2^32 as unsigned ones do.
    """
    # torch shifts int32 arithmetically: the masks clear the copies of the sign bit
    x = torch.arange(count, dtype=torch.int32, device=keys.device) + keys[:, :1]
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D).add_(keys[:, 1:])
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(-0x7B935975)  # 0x846CA68B - 2^32
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


class ExampleDropout(nn.Dropout):
    """`nn.Dropout` that draws from `CounterRNG`; the first dimension of its input is the examples."""

    def __init__(self, p: float, rng: CounterRNG) -> None:
        super().__init__(p)
        self.rng, self.site = rng, rng.site()

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with entries dropped and the rest scaled by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return input
        dropped = self.rng.dropped(self.site, input.shape, self.p)
        return input.masked_fill(dropped, 0.0).mul_(1 / (1 - self.p))

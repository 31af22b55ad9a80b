"""Made-up weight changes and vectors of a model's shape.

A change has every row of the word embedding non-zero, which is the hardest case: a language's own change is zero in the
rows of words that it never saw, and ours leaves those out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Options
from benchmarks.models import BASE, TINY, Shape, distinct
from deftx.masks.denoise import is_matrix
from deftx.sft.vector import SFTMetadata, SparseFineTuning

Delta = dict[str, Tensor]


def shape_of(options: Options) -> Shape:
    """What is measured: XLM-R base's shape, or a tiny one."""
    return TINY if options.small else BASE


def k_of(options: Options, k: int) -> int:
    """k, or the same share of a tiny model."""
    return k // 2000 if options.small else k


def sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The maskable parameters of an XLM-R: no LayerNorm, no head."""
    hidden, wide = shape.hidden, shape.feed_forward
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (shape.positions, hidden),
        "embeddings.token_type_embeddings.weight": (1, hidden),
    }
    dense = [("attention.self.query", hidden, hidden), ("attention.self.key", hidden, hidden)]
    dense += [("attention.self.value", hidden, hidden), ("attention.output.dense", hidden, hidden)]
    dense += [("intermediate.dense", wide, hidden), ("output.dense", hidden, wide)]
    for layer in range(shape.layers):
        for name, out, into in dense:
            found[f"encoder.layer.{layer}.{name}.weight"] = (out, into)
            found[f"encoder.layer.{layer}.{name}.bias"] = (out,)
    return found


def delta_of(shape: Shape, words: int | None = None, seed: int = 0) -> Delta:
    """A change with a falling spectrum: 32 directions over noise, of the size that training makes it.

    Args:
        words: rows of the word embedding that differ from zero, evenly spread; None: all.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 << 20, generator=generator)
    delta = {}
    for number, (name, size) in enumerate(sizes(shape).items()):
        tensor = _noise(noise, size, 1 + number % 5)
        if is_matrix(tensor):
            left, right = (torch.randn(size[side], 32, generator=generator) for side in (0, 1))
            tensor.addmm_(left, right.T, alpha=0.2)
        delta[name] = tensor.mul_(1e-4)
    if words is not None:
        embedding = delta["embeddings.word_embeddings.weight"]
        seen = torch.zeros(len(embedding), dtype=torch.bool)
        seen[torch.linspace(0, len(embedding) - 1, words).long()] = True
        embedding[~seen] = 0
    return delta


def vector_of(shape: Shape, k: int, seed: int = 0) -> SparseFineTuning:
    """A vector of k entries (but for rounding), evenly over all parameters, without a head."""
    generator = np.random.default_rng(seed)
    found = sizes(shape)
    share = k / sum(torch.Size(size).numel() for size in found.values())
    indices = {}
    for name, size in found.items():
        total = torch.Size(size).numel()
        indices[name] = torch.from_numpy(distinct(generator, total, max(1, round(total * share))))
    values = {name: torch.full((index.numel(),), 1e-3) for name, index in indices.items()}
    metadata = SFTMetadata(backbone="random", k=sum(index.numel() for index in indices.values()))
    return SparseFineTuning(indices, values, found, metadata)


def _noise(noise: Tensor, size: tuple[int, ...], times: int) -> Tensor:
    """Normal numbers, repeated after a million: drawing 277 million takes longer than what is measured."""
    flat = torch.empty(torch.Size(size).numel())
    for start in range(0, flat.numel(), noise.numel()):
        part = flat[start : start + noise.numel()]
        part.copy_(noise[: part.numel()]).mul_(0.7 + 0.1 * times)
    return flat.view(size)

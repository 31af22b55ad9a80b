"""Made-up weight changes and vectors of a model's shape, and the plain way to choose and denoise that ours is held to.

A change has every row of the word embedding non-zero, which is the hardest case: a language's own change is zero in the
rows of words that it never saw, and ours leaves those out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Options
from benchmarks.models import BASE, TINY, Shape
from deftx.config import Denoise, share_of
from deftx.denoise import is_matrix, rank_of
from deftx.sft import SFTMetadata, SparseFineTuning

Delta = dict[str, Tensor]
K_LANGUAGE, K_TASK = 7_667_712, 14_155_776
GIB = 2**30


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
        words: rows of the word embedding that differ from zero, evenly spread; none: all.
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
    """A vector of about k entries, evenly over all parameters, without a head."""
    generator = np.random.default_rng(seed)
    found = sizes(shape)
    share = k / sum(torch.Size(size).numel() for size in found.values())
    indices = {}
    for name, size in found.items():
        total = torch.Size(size).numel()
        indices[name] = torch.from_numpy(np.unique(generator.integers(0, total, max(1, round(total * share)))))
    values = {name: torch.full((index.numel(),), 1e-3) for name, index in indices.items()}
    metadata = SFTMetadata(backbone="random", k=sum(index.numel() for index in indices.values()))
    return SparseFineTuning(indices, values, found, metadata)


def plain_select(delta: Delta, k: int) -> Tensor:
    """`torch.topk` over the concatenated change: flat indices into it."""
    return torch.cat([tensor.reshape(-1) for tensor in delta.values()]).abs().topk(k, sorted=False).indices


def plain_masks(delta: Delta, settings: list[Denoise], k: int) -> Iterator[Tensor]:
    """One float32 `torch.linalg.svd` of each matrix, then for each setting L + S and the k largest entries."""
    factors = {
        name: torch.linalg.svd(tensor, full_matrices=False) for name, tensor in delta.items() if is_matrix(tensor)
    }
    for setting in settings:
        denoised = {}
        for name, tensor in delta.items():
            denoised[name] = _plain_denoise(tensor, factors[name], setting) if name in factors else tensor
        yield plain_select(denoised, k)


def _plain_denoise(matrix: Tensor, factors: tuple[Tensor, Tensor, Tensor], setting: Denoise) -> Tensor:
    left, values, right = factors
    rank = rank_of(setting.rank, values.double())
    denoised = (left[:, :rank] * values[:rank]) @ right[:rank]
    number = share_of(setting.retention, matrix.numel())
    kept = (matrix - denoised).abs().view(-1).topk(number, sorted=False).indices
    denoised.view(-1)[kept] = matrix.view(-1)[kept]
    return denoised


def _noise(noise: Tensor, size: tuple[int, ...], times: int) -> Tensor:
    """Normal numbers, repeated after a million: drawing 277 million takes longer than what is measured."""
    flat = torch.empty(torch.Size(size).numel())
    for start in range(0, flat.numel(), noise.numel()):
        part = flat[start : start + noise.numel()]
        part.copy_(noise[: part.numel()]).mul_(0.7 + 0.1 * times)
    return flat.view(size)

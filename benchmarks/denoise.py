"""Denoising the whole change at 4 ranks x 2 retentions and choosing k each time, against one float32 SVD pass.

What it must be: the Gram matrices (2 m n s operations in float64) and their eigenvectors once; for each setting
4 m n r operations in float32 for L, four readings of W and L for S, and the choice of k.
"""

from __future__ import annotations

import time

import torch

from benchmarks.deltas import Delta, delta_of, k_of, shape_of, sizes
from benchmarks.measure import GIB, Options, Peak, fresh, rates, timed
from benchmarks.models import Shape
from benchmarks.reference import plain_masks
from benchmarks.results import BenchmarkRow, above, at_least, below, command
from deftx.config import PAPER_K_LANGUAGE, Denoise
from deftx.masks.denoise import Factorisation, factorise, is_matrix, low_rank
from deftx.masks.mask import denoise_all
from deftx.masks.select import Indices, select
from deftx.rank import Rank

RANKS, RETENTIONS = ("50", "100", "300", "90%"), (0.05, 0.1)
SETTINGS = [Denoise(rank=rank, retention=retention) for rank in RANKS for retention in RETENTIONS]


def rows(options: Options) -> list[BenchmarkRow]:
    """Seconds, memory, the error of L and the ranks."""
    shape, k = shape_of(options), k_of(options, PAPER_K_LANGUAGE)
    found = _times(options, delta_of(shape), k)
    seen = shape.vocabulary // 12  # of the words, about what a language's own text holds
    began = time.perf_counter()
    our_masks(delta_of(shape, seen), SETTINGS, k)
    found.append(BenchmarkRow(f"the same, {seen:,} words seen", "seconds", time.perf_counter() - began))
    beyond = fresh("benchmarks.denoise:peak", options) / GIB
    error, ranks = accuracy(shape)
    return [
        *found,
        below(BenchmarkRow("denoise and choose, one setting at a time", "GiB beyond the change", beyond), 1.5),
        below(BenchmarkRow("L against a float64 SVD", "relative error", error), 1e-6),
        above(BenchmarkRow("ranks by variance as of a float64 SVD", "share", ranks), 1),
    ]


def _times(options: Options, delta: Delta, k: int) -> list[BenchmarkRow]:
    masks: list[Indices] = []
    svd_factors: dict[str, Factorisation] = {}
    once = timed(lambda: svd_factors.update(factorise_all(delta)))
    each = timed(lambda: masks.extend(our_mask(delta, svd_factors, setting, k) for setting in SETTINGS))
    plain = timed(lambda: [mask.numel() for mask in plain_masks(delta, SETTINGS, k)])
    work, total = "denoise at 4 ranks x 2 retentions, 8 masks", once + each
    whole = BenchmarkRow(work, "seconds", total, plain, needed(options, delta, svd_factors))
    return [
        at_least(whole, 1.5),
        below(BenchmarkRow(work, "seconds", total), 60),
        BenchmarkRow("of that: factorise", "seconds", once),
        BenchmarkRow("of that: a setting", "seconds", each / len(SETTINGS)),
    ]


def factorise_all(delta: Delta) -> dict[str, Factorisation]:
    """The factors of every matrix."""
    return {name: factorise(tensor, name) for name, tensor in delta.items() if is_matrix(tensor)}


def our_mask(delta: Delta, svd_factors: dict[str, Factorisation], setting: Denoise, k: int) -> Indices:
    """What a sparse stage does before it trains."""
    return select(denoise_all(delta, setting, svd_factors.__getitem__)[0], k)


def our_masks(delta: Delta, settings: list[Denoise], k: int) -> list[Indices]:
    """Everything: factorised once, then a mask for each setting."""
    svd_factors = factorise_all(delta)
    return [our_mask(delta, svd_factors, setting, k) for setting in settings]


def peak(options: Options) -> int:
    """Most bytes beyond the change itself."""
    delta = delta_of(shape_of(options))
    with Peak() as found:
        our_masks(delta, SETTINGS[-1:], k_of(options, PAPER_K_LANGUAGE))
    return found.bytes


def needed(options: Options, delta: Delta, svd_factors: dict[str, Factorisation]) -> float:
    """The floor in seconds: the products, and reading W once for the factors and W and L once for each setting."""
    rate, total = rates("cpu", options.small), 0.0
    for name, factor in svd_factors.items():
        (m, n), s = delta[name].shape, factor.singular_values.numel()
        total += rate.seconds(2.0 * m * n * s, 4.0 * m * n, "float64")
        for setting in SETTINGS:
            total += rate.seconds(4.0 * m * n * setting.rank.of(factor.singular_values), 8.0 * m * n)
    return total


def accuracy(shape: Shape) -> tuple[float, float]:
    """The largest relative error of L over matrices of each shape, and the share of ranks by variance that agree."""
    some = Shape(1, shape.hidden, shape.heads, shape.feed_forward, min(shape.vocabulary, 6000), shape.positions)
    delta = delta_of(some)
    worst, agree, asked = 0.0, 0, 0
    for name in sizes(some):
        if not is_matrix(matrix := delta[name]):
            continue
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        factor = factorise(matrix)
        for setting in map(Rank.parse, ("50%", "90%", "99%")):
            asked, agree = asked + 1, agree + (setting.of(factor.singular_values) == setting.of(values))
        for rank in (Rank.parse(setting).of(values) for setting in (*RANKS, "99%")):
            exact = (left[:, :rank] * values[:rank]) @ right[:rank]
            worst = max(worst, float((low_rank(matrix, factor, rank) - exact).norm() / exact.norm()))
    return worst, agree / asked


if __name__ == "__main__":
    command({"denoise": rows}, __doc__)

"""SVD denoising of a weight change: W <- L + S (Section 3.1 of the paper; Algorithm 1, lines 4-6).

L is the truncated SVD, from the Gram matrix of the smaller side: its eigenvectors are found in float64, kept and
multiplied in float32, which is closer to a float64 SVD than a float32 SVD is, and faster. S is the largest share of the
entries of |W - L|. A matrix is factorised once for any number of settings, and rows of words that training never saw
cost nothing. What is a matrix and what is left alone (biases) is decided here; which entries then train is decided in
`select`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deftx.config import Denoise, share_of
from deftx.errors import DataError
from deftx.masks.select import Chunk, chunks, largest

_ROWS = 8192


@dataclass(frozen=True)
class Factorisation:
    """Half of an SVD, from which L follows for every rank.

    Attributes:
        singular_values: (s,) float64, descending, s = min(m, n).
        vectors: (s, s) float32, the singular vectors of the smaller side (the rows' side of a square) as columns.
    """

    singular_values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Denoised:
    """A denoised matrix and how far denoising went.

    Attributes:
        values: (m, n) float32, L + S.
        rank: the rank of L.
        nonzero_retention: entries of S over the non-zero entries of W - L; 1 where W - L is zero.
        energy_retention: squared entries of S over those of W - L; 1 where W - L is zero.
    """

    values: Tensor
    rank: int
    nonzero_retention: float
    energy_retention: float


def factorise(matrix: Tensor, name: str = "") -> Factorisation:
    """Singular values and the vectors of the smaller side of a matrix.

    Args:
        matrix: (m, n), any float dtype; read in blocks of rows as float64.
        name: of the parameter, for the error.

    Raises:
        DataError: when an entry is NaN or infinite.
    """
    tall = matrix if _is_tall(matrix) else matrix.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in tall.split(_ROWS):
        block = rows[_present(rows)].double()
        gram.addmm_(block.T, block)
    if not bool(gram.isfinite().all()):
        what = f"the weight change of {name}" if name else "a weight change"
        raise DataError(f"{what} of shape {tuple(matrix.shape)} holds NaN or infinite entries")
    values, vectors = torch.linalg.eigh(gram)
    return Factorisation(values.clamp(min=0).sqrt().flip(0), vectors.flip(1).float().contiguous())


def low_rank(matrix: Tensor, factorisation: Factorisation, rank: int) -> Tensor:
    """L: the best approximation of `matrix` of a rank (Eckart-Young).

    Args:
        matrix: (m, n) float32.
        rank: 1 to min(m, n); at min(m, n) the matrix itself is returned, so that no rounding becomes a residual.

    Returns:
        (m, n) float32. Rows of zeros of a tall matrix stay exactly zero.
    """
    if rank >= min(matrix.shape):
        return matrix
    kept = factorisation.vectors[:, :rank].to(matrix)
    if not _is_tall(matrix):
        return kept @ (kept.T @ matrix)
    low = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for rows, target in zip(matrix.split(_ROWS), low.split(_ROWS), strict=True):
        torch.mm(rows @ kept, kept.T, out=target)
    return low


def denoise(matrix: Tensor, settings: Denoise, factorisation: Factorisation | None = None) -> Denoised:
    """L + S of one matrix.

    Args:
        matrix: (m, n) float32 weight change.
        settings: rank, retention and what the retention is a share of.
        factorisation: of this very matrix, where several settings are tried.
    """
    factorisation = factorisation or factorise(matrix)
    rank = settings.rank.of(factorisation.singular_values)
    number = share_of(settings.retention, matrix.numel()) if settings.retention_of == "numel" else None
    present = _present(matrix)
    # of a matrix that is no longer tall the vectors would be of the other side
    if not _is_tall(matrix) or not matrix.shape[1] <= int(present.sum()) < matrix.shape[0]:
        return _denoise(matrix, low_rank(matrix, factorisation, rank), rank, number, settings.retention)
    rows = matrix[present]
    found = _denoise(rows, low_rank(rows, factorisation, rank), rank, number, settings.retention)
    values = torch.zeros_like(matrix)
    values[present] = found.values
    return replace(found, values=values)


def _denoise(matrix: Tensor, low: Tensor, rank: int, number: int | None, retention: float) -> Denoised:
    """L + S, made in place of L. `number`: how many entries of W - L are kept, or none for a share of the non-zero."""

    def residual() -> Iterator[Chunk]:
        for (name, start, part), (_, _, approximation) in zip(chunks("", matrix), chunks("", low), strict=True):
            yield name, start, part - approximation

    present, energy = 0, 0.0
    for _, _, part in residual():
        present += int(part.count_nonzero())
        energy += float(part.dot(part))
    if present == 0:
        return Denoised(matrix.clone(), rank, 1.0, 1.0)
    number = min(share_of(retention, present) if number is None else number, present)
    if number == 0:
        return Denoised(low, rank, 0.0, 0.0)
    whole, values, kept = matrix.reshape(-1), low.view(-1), 0.0
    for _, index in largest(residual, number):
        index = index.to(matrix.device)
        chosen = whole.index_select(0, index)
        kept += float((chosen - values.index_select(0, index)).double().square().sum())
        # L + (W - L) is W: taking W itself spares S a rounding
        values.index_copy_(0, index, chosen)
    # squares of entries below 1e-23 are zero in float32
    return Denoised(low, rank, number / present, kept / energy if kept < energy else 1.0)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a weight change is denoised: linear weights and embeddings are, biases and single rows are not."""
    return tensor.dim() == 2 and min(tensor.shape) > 1


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] >= matrix.shape[1]


def _present(rows: Tensor) -> Tensor:
    """Which rows have an entry that differs from zero: (m,) bool."""
    return rows.any(dim=1)

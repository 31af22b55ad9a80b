"""SVD denoising of a weight change: W <- L + S (Section 3.1 of the paper; Algorithm 1, lines 4-6).

L is the truncated SVD of rank r, S the largest share of the entries of |W - L|. With W = U Sigma V^T, [m, n]:

    m >= n:  W^T W = V Sigma^2 V^T,  L = U_r Sigma_r V_r^T = W V_r V_r^T
    m < n:   W W^T = U Sigma^2 U^T,  L = U_r U_r^T W

So the eigenvectors of the smaller side's Gram matrix give L for every rank: a matrix is factorised once for any number
of settings. They are computed in float64, since squaring costs half of the digits, and kept and multiplied in float32:
closer to a float64 SVD than a float32 SVD is, and faster. Rows of words that training never saw are zero and cost
nothing. What is a matrix and what is left alone (biases) is decided here; which entries then train is decided in
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
"""Rows taken at once: 48 MiB as float64 at XLM-R base's width, where the word embedding as a whole takes 1.4 GiB."""


@dataclass(frozen=True)
class Factorisation:
    """The half of an SVD of an m x n matrix from which L follows for every rank.

    Attributes:
        singular_values: [s] float64, descending, s = min(m, n).
        vectors: [s, s] float32, singular vectors as columns, in that order: V where m >= n, else U.
    """

    singular_values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Denoised:
    """A denoised matrix and how far denoising went.

    Attributes:
        values: [m, n] float32, L + S.
        rank: the rank of L.
        nonzero_retention: entries of S over the non-zero entries of W - L; 1 where W - L is zero.
        energy_retention: squared entries of S over those of W - L; 1 where W - L is zero.
    """

    values: Tensor
    rank: int
    nonzero_retention: float
    energy_retention: float


def factorise(matrix: Tensor, name: str = "") -> Factorisation:
    """The singular values of a matrix, and the singular vectors of its smaller side.

    Args:
        matrix: [m, n], any float dtype; read in blocks of rows as float64.
        name: of the parameter, for the error.

    Raises:
        DataError: when an entry is NaN or infinite.
    """
    tall = matrix if _is_tall(matrix) else matrix.T  # [max(m, n), s]
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in tall.split(_ROWS):
        block = rows[_present(rows)].double()
        gram.addmm_(block.T, block)
    if not bool(gram.isfinite().all()):
        subject = f"the weight change of {name}" if name else "a weight change"
        raise DataError(f"{subject} of shape {tuple(matrix.shape)} holds NaN or infinite entries")
    values, vectors = torch.linalg.eigh(gram)  # ascending; the smallest may come out a little below 0
    return Factorisation(values.clamp(min=0).sqrt().flip(0), vectors.flip(1).float().contiguous())


def low_rank(matrix: Tensor, factorisation: Factorisation, rank: int) -> Tensor:
    """L, [m, n] float32: the best approximation of a matrix of a rank (Eckart-Young).

    Rows of zeros of a matrix with m >= n stay exactly zero.

    Args:
        matrix: [m, n] float32.
        factorisation: of this matrix, or of one that has rows of zeros in addition.
        rank: from 1; from min(m, n) on the matrix itself is returned, so that no rounding becomes a residual.
    """
    if rank >= min(matrix.shape):
        return matrix
    leading = factorisation.vectors[:, :rank].to(matrix)  # [s, rank]
    if not _is_tall(matrix):
        return leading @ (leading.T @ matrix)
    low = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for rows, target in zip(matrix.split(_ROWS), low.split(_ROWS), strict=True):
        torch.mm(rows @ leading, leading.T, out=target)
    return low


def denoise(matrix: Tensor, settings: Denoise, factorisation: Factorisation | None = None) -> Denoised:
    """L + S of a matrix, and how far it is from the matrix.

    Args:
        matrix: [m, n] float32 weight change.
        settings: rank, retention and what the retention is a share of.
        factorisation: of this matrix; None: it is computed.
    """
    factorisation = factorisation or factorise(matrix)
    rank = settings.rank.of(factorisation.singular_values)
    number = share_of(settings.retention, matrix.numel()) if settings.retention_of == "numel" else None
    present = _present(matrix)
    # Rows of zeros are left out where the matrix stays tall without them: V is the same, and L there is zero. With
    # fewer rows than columns `low_rank` would take V for U.
    if not _is_tall(matrix) or not matrix.shape[1] <= int(present.sum()) < matrix.shape[0]:
        return _denoise(matrix, low_rank(matrix, factorisation, rank), rank, number, settings.retention)
    rows = matrix[present]
    denoised = _denoise(rows, low_rank(rows, factorisation, rank), rank, number, settings.retention)
    values = torch.zeros_like(matrix)
    values[present] = denoised.values
    return replace(denoised, values=values)


def _denoise(matrix: Tensor, low: Tensor, rank: int, number: int | None, retention: float) -> Denoised:
    """L + S, in the memory of L.

    Args:
        matrix: [m, n] float32.
        low: [m, n] float32, L; overwritten.
        rank: of L, for the result.
        number: entries of S; None: the share `retention` of the non-zero entries of W - L.
        retention: looked at where `number` is None.
    """

    def residual() -> Iterator[Chunk]:  # W - L chunk by chunk: it never exists as a whole
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
    flat, values, kept_energy = matrix.reshape(-1), low.view(-1), 0.0
    for _, index in largest(residual, number):
        index = index.to(matrix.device)
        chosen = flat.index_select(0, index)
        kept_energy += float((chosen - values.index_select(0, index)).double().square().sum())
        # L + (W - L) is W: W itself is taken, without a rounding
        values.index_copy_(0, index, chosen)
    # `energy` is summed in float32, where squares of entries below 1e-23 vanish: it may come out below `kept_energy`
    return Denoised(low, rank, number / present, kept_energy / energy if kept_energy < energy else 1.0)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a weight change is denoised: linear weights and embeddings are, biases and single rows are not."""
    return tensor.dim() == 2 and min(tensor.shape) > 1


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] >= matrix.shape[1]


def _present(rows: Tensor) -> Tensor:
    """Which rows have an entry that differs from zero: [m] bool."""
    return rows.any(dim=1)

"""SVD denoising of a weight change: W <- L + S (Section 3.1 of the paper; Algorithm 1, lines 4-6).

L is the truncated SVD, from the Gram matrix of the smaller side in float64: 1e-14 from a float64 SVD and faster than a
float32 one. S is the largest share of the entries of |W - L|. A matrix is factorised once for any number of ranks.
What is a matrix and what is left alone (biases) is decided here; which entries then train is decided in `select`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.config import Denoise, share_of
from deftx.errors import DataError
from deftx.select import select

_ROWS = 8192


@dataclass(frozen=True)
class Factorisation:
    """Half of an SVD, from which L follows for every rank.

    Attributes:
        singular_values: (s,) float64, descending, s = min(m, n).
        vectors: (s, s) float64, the singular vectors of the smaller side as columns.
    """

    singular_values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Denoised:
    """A denoised matrix and how far denoising went.

    Attributes:
        values: (m, n) float32, L + S.
        rank: the rank of L.
        entries_kept: entries of S over the non-zero entries of W - L; 1 where W - L is zero.
        energy_kept: squared entries of S over those of W - L; 1 where W - L is zero.
    """

    values: Tensor
    rank: int
    entries_kept: float
    energy_kept: float


def factorise(matrix: Tensor) -> Factorisation:
    """Singular values and the vectors of the smaller side of a matrix.

    Args:
        matrix: (m, n), any float dtype; read in blocks of rows as float64.

    Raises:
        DataError: when an entry is NaN or infinite.
    """
    tall = _tall(matrix)
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in tall.split(_ROWS):
        block = rows.double()
        gram.addmm_(block.T, block)
    if not bool(gram.isfinite().all()):
        raise DataError(f"a weight change of shape {tuple(matrix.shape)} holds NaN or infinite entries")
    values, vectors = torch.linalg.eigh(gram)
    return Factorisation(values.clamp(min=0).sqrt().flip(0), vectors.flip(1))


def rank_of(setting: str, singular_values: Tensor) -> int:
    """The rank that a setting stands for in one matrix.

    Args:
        setting: `100`, clamped to min(m, n), or `90%`: the smallest rank whose squared singular values sum to at least
            90 % of the total; `100%` is full rank.
        singular_values: (s,) float64, descending.
    """
    full = singular_values.numel()
    if not setting.endswith("%"):
        return min(int(setting), full)
    share = float(setting[:-1]) / 100
    if share >= 1:
        return full
    energy = singular_values.square().cumsum(0)
    return min(int(torch.searchsorted(energy, share * energy[-1])) + 1, full)


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
    kept = factorisation.vectors[:, :rank]
    tall = torch.cat([((rows.double() @ kept) @ kept.T).to(matrix.dtype) for rows in _tall(matrix).split(_ROWS)])
    return tall if matrix.shape[0] >= matrix.shape[1] else tall.T.contiguous()


def denoise(matrix: Tensor, settings: Denoise, factorisation: Factorisation | None = None) -> Denoised:
    """L + S of one matrix.

    Args:
        matrix: (m, n) float32 weight change.
        settings: rank, retention and what the retention is a share of.
        factorisation: of this very matrix, where several settings are tried.
    """
    factorisation = factorisation or factorise(matrix)
    rank = rank_of(settings.rank, factorisation.singular_values)
    low = low_rank(matrix, factorisation, rank)
    residual = (matrix - low).reshape(-1)
    present = int(residual.count_nonzero())
    if present == 0:
        return Denoised(matrix.clone(), rank, 1.0, 1.0)
    total = residual.numel() if settings.retention_of == "numel" else present
    number = min(share_of(settings.retention, total), present)
    values = low.reshape(-1)
    energy = 0.0
    if number:
        index = select({"residual": residual}, number)["residual"].to(matrix.device)
        # L + (W - L) is W: taking W itself spares S a rounding
        values[index] = matrix.reshape(-1)[index]
        energy = float(residual[index].double().square().sum() / residual.double().square().sum())
    return Denoised(values.view_as(matrix), rank, number / present, energy)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a weight change is denoised: linear weights and embeddings are, biases and single rows are not."""
    return tensor.dim() == 2 and min(tensor.shape) > 1


def _tall(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T

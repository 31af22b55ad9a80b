"""From the weight change of a dense phase to a mask: factorise each matrix once, denoise all, choose k entries.

The dense phase publishes the SVD factors (singular values, and the vectors of the smaller side in float32: 4 s^2 bytes
for a matrix whose smaller side is s, 175 MB for XLM-R base), so that no sparse phase factorises anything. One matrix is
in `denoise`, the choice in `select`, and the order of the steps (Algorithm 1) in `phases`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deftx.config import Denoise, resolve_k
from deftx.errors import DataError
from deftx.masks.denoise import Factorisation, denoise, factorise, is_matrix
from deftx.masks.select import Indices, jaccard, non_zero, select
from deftx.stages.files import SINGULAR_VALUES, SINGULAR_VECTORS
from deftx.stages.settings import SparseSettings
from deftx.stages.store import Store
from deftx.tensor_files import LazyTensors

SVDFactors = Callable[[str], Factorisation]
"""The factorisation of each matrix, by the name of its parameter."""


def save_svd_factors(delta: Mapping[str, Tensor], folder: Path) -> None:
    """Factorise every matrix of a weight change where it is, and write singular values and vectors into a folder.

    Raises:
        DataError: when an entry of any tensor is NaN or infinite (naming the tensor).
    """
    svd_factors: dict[str, Factorisation] = {}
    for name in delta:
        tensor = delta[name]
        if is_matrix(tensor):
            svd_factors[name] = factorise(tensor, name)
        elif not bool(tensor.isfinite().all()):
            raise DataError(f"the weight change of {name} holds NaN or infinite entries")
    save_file({name: factor.singular_values for name, factor in svd_factors.items()}, folder / SINGULAR_VALUES)
    save_file({name: factor.vectors for name, factor in svd_factors.items()}, folder / SINGULAR_VECTORS)


def svd_factors_of(store: Store, address: str, device: str = "cpu") -> SVDFactors:
    """The SVD factors that a dense stage published; those of a matrix are read when it is looked up.

    Args:
        device: where the vectors are needed.
    """
    singular_values = LazyTensors(store.fetch(address, SINGULAR_VALUES))
    singular_vectors = LazyTensors(store.fetch(address, SINGULAR_VECTORS), device)
    return lambda name: Factorisation(singular_values[name], singular_vectors[name])


def denoise_all(
    delta: Mapping[str, Tensor], settings: Denoise, svd_factors: SVDFactors
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The denoised weight change: L + S of every matrix, biases as they are; and for each matrix how far it went.

    Args:
        delta: the weight change, float32 tensors by name.
        settings: rank and retention.
        svd_factors: of every matrix in it.

    Returns:
        The tensors by name, and one record for each matrix: its `name`, `rank`, `rank_share` (the rank over the full
        one), `nonzero_retention` and `energy_retention` (see `Denoised`).
    """
    values: dict[str, Tensor] = {}
    facts = []
    for name in delta:
        tensor = delta[name]
        if not is_matrix(tensor):
            values[name] = tensor
            continue
        result = denoise(tensor, settings, svd_factors(name))
        values[name] = result.values
        facts.append(
            {
                "name": name,
                "rank": result.rank,
                "rank_share": result.rank / min(tensor.shape),
                "nonzero_retention": result.nonzero_retention,
                "energy_retention": result.energy_retention,
            }
        )
    return values, facts


def choose(
    delta: Mapping[str, Tensor], denoised: Mapping[str, Tensor], settings: SparseSettings
) -> tuple[Indices, float | None]:
    """The mask of the sparse phase, and its overlap with LT-SFT's mask, that of the same change without denoising.

    At an overlap (Jaccard) of 1 denoising has changed nothing; it is None where `settings.k` is None, which takes every
    non-zero entry.

    Args:
        delta: the weight change, float32 tensors by name.
        denoised: L + S by the same names; `delta` itself for LT-SFT.
        settings: for k.

    Raises:
        DataError: when fewer than k entries of the denoised change differ from zero.
        ConfigError: when k is larger than the number of entries.
    """
    if settings.k is None:
        return non_zero(denoised), None
    k = resolve_k(settings.k, sum(delta[name].numel() for name in delta))
    mask = select(denoised, k)
    if denoised is delta:
        return mask, 1.0
    # L may have non-zero entries where the change is zero, so the change may have fewer than k
    changed = sum(int(delta[name].count_nonzero()) for name in delta)
    return mask, jaccard(mask, select(delta, min(k, changed)))


def mask_size(mask: Indices) -> int:
    """How many entries a mask has."""
    return sum(index.numel() for index in mask.values())

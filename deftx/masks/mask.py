"""From the change of a dense phase to a mask: factorise each matrix once, denoise them all, choose k entries.

The dense phase publishes the factorisation (singular values, and the vectors of the smaller side in float32: 4 s^2
bytes for a matrix whose smaller side is s, 175 MB for XLM-R base), so that no sparse phase factorises anything.
One matrix is in `denoise`, the choice itself in `select`; what happens in the phases is in `phases`.
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
from deftx.stages.files import SPECTRA, VECTORS
from deftx.stages.settings import SparseSettings
from deftx.stages.store import Store
from deftx.tensor_files import LazyTensors

Factors = Callable[[str], Factorisation]
"""The factorisation of a matrix by its parameter's name."""


def save_factors(delta: Mapping[str, Tensor], folder: Path) -> None:
    """Factorise every matrix of a weight change, and write what the sparse phases need of it.

    Raises:
        DataError: when an entry of any tensor is NaN or infinite (naming the tensor).
    """
    factors: dict[str, Factorisation] = {}
    for name in delta:
        tensor = delta[name]
        if is_matrix(tensor):
            factors[name] = factorise(tensor, name)
        elif not bool(tensor.isfinite().all()):
            raise DataError(f"the weight change of {name} holds NaN or infinite entries")
    save_file({name: factor.singular_values for name, factor in factors.items()}, folder / SPECTRA)
    save_file({name: factor.vectors for name, factor in factors.items()}, folder / VECTORS)


def factors_of(store: Store, address: str) -> Factors:
    """The factors that a dense stage published, each read when it is asked for."""
    spectra, vectors = (LazyTensors(store.fetch(address, name)) for name in (SPECTRA, VECTORS))
    return lambda name: Factorisation(spectra[name], vectors[name])


def denoise_all(
    delta: Mapping[str, Tensor], settings: Denoise, factors: Factors
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """L + S of every matrix, biases as they are; and how far denoising went in each matrix."""
    values: dict[str, Tensor] = {}
    facts = []
    for name in delta:
        tensor = delta[name]
        if not is_matrix(tensor):
            values[name] = tensor
            continue
        result = denoise(tensor, settings, factors(name))
        values[name] = result.values
        facts.append(
            {"name": name, "rank": result.rank, "rank_share": result.rank / min(tensor.shape),
             "nonzero_retention": result.nonzero_retention, "energy_retention": result.energy_retention}
        )  # fmt: skip
    return values, facts


def choose(
    delta: Mapping[str, Tensor], denoised: Mapping[str, Tensor], settings: SparseSettings
) -> tuple[Indices, float | None]:
    """The mask, and its overlap with LT-SFT's mask from the same delta: denoising is never a silent no-op.

    The overlap is None where nothing is pruned.

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
    # L fills in rows of zeros, so the delta itself may have fewer entries than k
    changed = sum(int(delta[name].count_nonzero()) for name in delta)
    return mask, jaccard(mask, select(delta, min(k, changed)))


def mask_size(mask: Indices) -> int:
    """How many entries a mask has."""
    return sum(index.numel() for index in mask.values())

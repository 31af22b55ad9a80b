"""The vectors of a sweep: how far denoising went, which entries the masks hold, and the spectra of their dense changes.

Read from manifests, from the masks of the chosen vectors, and from the singular values that dense phases keep. What is
missing or damaged is left out: no dense phase is trained again for a picture.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deftx.config import Denoise
from deftx.errors import StoreError
from deftx.stages.files import SFT, SINGULAR_VALUES, TENSORS
from deftx.stages.kinds import format_denoise, kind_of
from deftx.stages.manifest import Manifest
from deftx.stages.store import Store
from orchestrator.record.sweep import GradeRow, State

log = logging.getLogger("deftx")

SFT_COLUMNS = [
    "subject", "setting", "chosen", "k", "mean_rank", "nonzero_retention", "energy_retention", "jaccard_lt_sft",
    "seconds", "address",
]  # fmt: skip
TASK = "task"
_MASK = f"{SFT}/{TENSORS}"
MATRICES = {
    "word embeddings": r"(word_embeddings|embed_tokens)\.weight$",
    "attention query": r"(query|q_proj)\.weight$",
    "FFN": r"(intermediate\.dense|fc1)\.weight$",
}
"""The matrices whose spectra are drawn; where every layer has one, that of the middle layer."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix of a dense phase's change.

    Attributes:
        values: descending, as many as the smaller side of the matrix.
        rank: the rank at which the chosen SFT was denoised; None when that is not on record.
    """

    subject: str
    matrix: str
    values: NDArray[np.float64]
    rank: int | None

    @property
    def cumulative(self) -> NDArray[np.float64]:
        """Share of the squared singular values in the first 0, 1, ... of them; all 0 for a matrix of zeros."""
        sums = np.concatenate([[0.0], np.square(self.values.astype(np.float64)).cumsum()])
        return sums / sums[-1] if sums[-1] > 0 else sums


@dataclass(frozen=True)
class Mask:
    """The entries that an SFT changes.

    Attributes:
        sizes: the number of entries of each parameter.
        bits: of each parameter, one bit for each entry, packed into bytes; set where the entry changes.
    """

    subject: str
    sizes: dict[str, int]
    bits: dict[str, NDArray[np.uint8]]

    @property
    def k(self) -> int:
        """The number of entries that change."""
        return _ones(self.bits)


@dataclass(frozen=True)
class Overlap:
    """The Jaccard overlap of two masks (intersection over union), and what two masks drawn at random would have."""

    value: float
    chance: float


def read_sfts(store: Store, state: State) -> pd.DataFrame:
    """A table with a line for each published SFT of any row, those of the chosen row first; columns are `SFT_COLUMNS`.

    Shares lie between 0 and 1. What a manifest does not tell is NaN, such as the rank of an LT-SFT vector, which has
    no rank. `seconds` are those of the sparse stage alone.
    """
    chosen = _addresses(state.chosen_row) if state.chosen_row else []
    addresses = dict.fromkeys([*chosen, *(address for row in state.rows for address in _addresses(row))])
    manifests = [manifest for manifest in map(store.manifest, addresses) if manifest and _is_sft(manifest)]
    lines = [_line(manifest, state, manifest.address in chosen) for manifest in manifests]
    return pd.DataFrame(lines, columns=SFT_COLUMNS).astype({"k": "Int64"})


def chosen_spectra(store: Store, state: State) -> list[Spectrum]:
    """The spectra behind the task SFT and the first language SFT of the chosen combination."""
    sparse = list(_chosen(store, state))
    task = [(subject, manifest) for subject, manifest in sparse if subject == TASK]
    languages = [(subject, manifest) for subject, manifest in sparse if subject != TASK]
    return [
        spectrum for subject, manifest in [*task[:1], *languages[:1]] for spectrum in _spectra(store, subject, manifest)
    ]


def chosen_masks(store: Store, state: State) -> list[Mask]:
    """The masks of the chosen combination: its languages' in their order, then the task's."""
    with_mask = [(subject, sparse) for subject, sparse in _chosen(store, state) if _MASK in sparse.files]
    return [mask for subject, sparse in with_mask for mask in _masks(store, subject, sparse.address)]


def overlap(a: Mask, b: Mask) -> Overlap:
    """The Jaccard overlap of two masks, and what chance would give.

    Of two masks of k1 and k2 entries drawn at random from the same N, the intersection is expected to have
    E = k1 * k2 / N entries, hence a Jaccard overlap of about E / (k1 + k2 - E). Where the two could choose from other
    parameters (a task with frozen embeddings), N1 and N2 entries of which N12 are common, it is
    E = k1 * k2 * N12 / (N1 * N2). A mask could choose from the parameters in which it holds any entry.
    """
    common = a.sizes.keys() & b.sizes.keys()
    both = _ones({name: a.bits[name] & b.bits[name] for name in common})
    sizes = (sum(a.sizes.values()), sum(b.sizes.values()), sum(a.sizes[name] for name in common))
    return Overlap(both / (a.k + b.k - both), chance_overlap(a.k, b.k, *sizes))


def chance_overlap(k1: int, k2: int, n1: int, n2: int, common: int) -> float:
    """The Jaccard overlap of two masks drawn at random: E / (k1 + k2 - E) with E = k1 * k2 * common / (n1 * n2)."""
    expected = k1 * k2 * common / (n1 * n2)
    return expected / (k1 + k2 - expected)


def _addresses(row: GradeRow) -> list[str]:
    return [*row.language_sfts.values(), *([row.task_sft] if row.task_sft else [])]


def _chosen(store: Store, state: State) -> Iterator[tuple[str, Manifest]]:
    """(subject, manifest) of each published sparse stage of the chosen row, languages first."""
    row = state.chosen_row
    sfts = {**row.language_sfts, **({TASK: row.task_sft} if row.task_sft else {})} if row else {}
    for subject, address in sfts.items():
        if (manifest := store.manifest(address)) is not None and _is_sft(manifest):
            yield subject, manifest


def _is_sft(manifest: Manifest) -> bool:
    return kind_of(manifest.kind).makes_sft


def _spectra(store: Store, subject: str, sparse: Manifest) -> Iterator[Spectrum]:
    dense = store.manifest(sparse.identity.get("inputs", {}).get("dense", ""))
    if dense is None or SINGULAR_VALUES not in dense.files:
        return
    from safetensors.numpy import load_file

    try:
        values = load_file(store.fetch(dense.address, SINGULAR_VALUES))
    except StoreError as error:
        log.warning("no spectra of %s in the report: %s", subject, error)
        return
    ranks = {matrix["name"]: matrix["rank"] for matrix in sparse.details.get("matrices", [])}
    for title, pattern in MATRICES.items():
        if names := sorted((name for name in values if re.search(pattern, name)), key=_by_layer):
            name = names[len(names) // 2]
            yield Spectrum(subject, title, values[name], ranks.get(name))


def _by_layer(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _masks(store: Store, subject: str, address: str) -> Iterator[Mask]:
    from deftx.sft.vector import SparseFineTuning  # torch is slow to import

    try:
        sft = SparseFineTuning.from_folder(store.fetch_folder(address, SFT))
    except StoreError as error:
        log.warning("no mask of %s in the report: %s", subject, error)
        return
    sizes = {name: int(np.prod(shape)) for name, shape in sft.shapes.items()}
    yield Mask(subject, sizes, {name: _packed(index.numpy(), sizes[name]) for name, index in sft.indices.items()})


def _packed(index: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    flags = np.zeros(size, dtype=np.bool_)
    flags[index] = True
    return np.packbits(flags)


def _ones(bits: Mapping[str, NDArray[np.uint8]]) -> int:
    return sum(int(np.bitwise_count(part).sum()) for part in bits.values())


def _line(manifest: Manifest, state: State, chosen: bool) -> dict[str, Any]:
    settings: Mapping[str, Any] = manifest.identity.get("settings", {})
    denoise = settings.get("denoise")
    entry = state.stages.get(manifest.address)
    return {
        **manifest.facts.metrics(),
        "address": manifest.address,
        "subject": entry.subject if entry else manifest.label.split(" · ")[0],
        "setting": format_denoise(Denoise.model_validate(denoise) if denoise else None),
        "seconds": manifest.seconds,
        "chosen": chosen,
    }

"""The vectors of a sweep as their manifests describe them: how far denoising went and how far the mask is LT-SFT's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from deftx.config import Denoise
from deftx.stages import denoise_words
from deftx.store import Manifest, Store
from orchestrator.record import Row, State

VECTOR_COLUMNS = [
    "subject", "setting", "chosen", "k", "mean_rank", "entries_kept", "energy_kept", "jaccard_lt_sft", "seconds",
    "address",
]  # fmt: skip


def read_vectors(store: Store, state: State) -> pd.DataFrame:
    """One line for each published sparse stage of any row, those of the chosen row first; columns `VECTOR_COLUMNS`.

    Shares lie between 0 and 1. What a manifest does not tell is NaN: an LT-SFT vector has no rank. `seconds` are
    those of the sparse stage alone.
    """
    chosen = _addresses(state.chosen_row) if state.chosen_row else []
    addresses = dict.fromkeys([*chosen, *(address for row in state.rows for address in _addresses(row))])
    manifests = [found for address in addresses if (found := store.manifest(address)) and found.kind == "sparse"]
    lines = [_line(found, state, found.address in chosen) for found in manifests]
    return pd.DataFrame(lines, columns=VECTOR_COLUMNS).astype({"k": "Int64"})


def _addresses(row: Row) -> list[str]:
    return [*row.language_sfts.values(), *([row.task_sft] if row.task_sft else [])]


def _line(manifest: Manifest, state: State, chosen: bool) -> dict[str, Any]:
    settings: Mapping[str, Any] = manifest.identity.get("settings", {})
    denoise = settings.get("denoise")
    entry = state.stages.get(manifest.address)
    return {
        **manifest.metrics,
        "address": manifest.address,
        "subject": entry.subject if entry else manifest.label.split(" · ")[0],
        "setting": denoise_words(Denoise.model_validate(denoise) if denoise else None),
        "seconds": manifest.seconds,
        "chosen": chosen,
    }

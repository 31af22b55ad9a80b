"""A `pytorch_diff.bin` as composable-sft writes it, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from deftx.sft.composable import FILE


def encode(dense: torch.Tensor) -> dict[str, Any]:
    """As composable-sft writes it: gaps of the column-major flat index, the first one a numpy scalar."""
    flat = dense.numpy().flatten(order="F")
    (where,) = flat.nonzero()
    steps: list[Any] = [where[0], *(int(step) for step in np.diff(where))]
    return {"size": dense.size(), "index_steps": steps, "values": torch.from_numpy(flat[where])}


def write(folder: Path, diffs: dict[str, Any], head: dict[str, Any] | None = None) -> Path:
    torch.save({"diffs": diffs, "abs": head or {}}, folder / FILE)
    return folder

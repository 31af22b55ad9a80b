"""Reads published composable-sft vectors (`pytorch_diff.bin`; Ansell et al., 2022). Read only: we save safetensors.

The file is a pickle of {'diffs': {name: {'size', 'index_steps', 'values'}}, 'abs': {name: tensor}}. It is loaded with
weights_only and a list of the few numpy types it needs, so no code in it is executed. `index_steps` are the gaps of the
column-major flat index. Where it comes from it does not say.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deftx.errors import DataError, reason
from deftx.sft.entries import Entries, check_entries, check_head, countable

FILE = "pytorch_diff.bin"
_PREFIXES = ("roberta.", "xlm_roberta.", "bert.", "deberta.", "model.")
_WRONG = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
"""What Python and torch raise where a value is of another type than is expected."""


def load(path: Path) -> Entries:
    """The entries and the head of a `pytorch_diff.bin`.

    Raises:
        DataError: when it is not such a file, or holds anything but tensors and numbers.
    """
    content, most = _unpickle(path), path.stat().st_size
    indices, values, shapes = {}, {}, {}
    try:
        for full_name, encoded in content["diffs"].items():
            name = _base_name(full_name)
            shape, steps, numbers = _shape(encoded["size"]), encoded["index_steps"], torch.as_tensor(encoded["values"])
            _check_count(most, len(steps), numbers.numel())
            if not numbers.is_floating_point():
                raise ValueError(f"values of {numbers.dtype}")
            index, value = _decode(steps, numbers.float(), shape)
            check_entries(str(path), full_name, index, value, shape)
            indices[name], values[name], shapes[name] = index, value, shape
        head = {str(name): torch.as_tensor(tensor) for name, tensor in content.get("abs", {}).items()}
        _check_count(most, *(tensor.numel() for tensor in head.values()))
    except _WRONG as error:
        raise DataError(f"{path}: not a composable-sft vector: {error!r}") from None
    check_head(str(path), head)
    return Entries(indices, values, shapes, head)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that a `pytorch_diff.bin` changes, by name in the base model.

    Raises:
        DataError: when it is not such a file.
    """
    try:
        diffs = _unpickle(path, values=False)["diffs"].items()
        return {_base_name(name): _shape(encoded["size"]) for name, encoded in diffs}
    except _WRONG as error:
        raise DataError(f"{path}: not a composable-sft vector: {error!r}") from None


def _unpickle(path: Path, *, values: bool = True) -> dict[str, Any]:
    scalar = np.int64(0).__reduce__()[0]
    empty = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, np.ndarray, type(np.dtype("int64")), type(np.dtype("int32"))]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (empty, f"{module}._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu" if values else "meta", weights_only=True)
    except UnpicklingError:  # in whose words torch advises to let the code run
        more = "there is more than tensors and numbers in it, and no code of a pickle is run"
        raise DataError(f"{path}: refused: {more}") from None
    except Exception as error:  # what torch's unpickler raises on foreign bytes has no common ancestor
        raise DataError(f"{path}: refused or unreadable: {reason(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("diffs"), dict):
        raise DataError(f"{path}: not a composable-sft vector: no 'diffs' in it")
    return content


def _shape(sizes: Any) -> tuple[int, ...]:
    return countable(tuple(int(size) for size in sizes[:9]))


def _check_count(most: int, *counts: int) -> None:
    """Check that there are no more numbers than bytes in the file: strides of 0 repeat one without end."""
    if counts and max(counts) > most:
        raise ValueError(f"{max(counts):,} numbers in {most:,} bytes")


def _decode(steps: Any, values: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Column-major gaps to ascending row-major indices; values follow. int64 throughout: 2^31 entries do occur."""
    columns = np.cumsum(np.asarray([int(step) for step in steps], dtype=np.int64))
    if columns.shape != values.shape:
        raise ValueError(f"{columns.size} indices for {tuple(values.shape)} values")
    if columns.size and (columns.min() < 0 or columns.max() >= math.prod(shape)):
        raise ValueError(f"index {int(columns.max())} lies outside a tensor of shape {shape}")
    rows = np.ravel_multi_index(np.unravel_index(columns, shape, order="F"), shape)
    order = np.argsort(rows)
    return torch.from_numpy(rows[order].astype(np.int64)), values[torch.from_numpy(order)]


def _base_name(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)

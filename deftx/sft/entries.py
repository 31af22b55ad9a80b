"""The plain content of an SFT without its metadata: chosen entries, their values, a head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deftx.errors import DataError, shortened
from deftx.masks.select import Indices


@dataclass(frozen=True)
class Entries:
    """Chosen entries by parameter, their values and shapes, and a head: a `SparseFineTuning` without its metadata."""

    indices: Indices
    values: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    head: dict[str, Tensor]


def countable(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter whose entries int64 can number.

    Raises:
        ValueError: for another shape.
    """
    if len(shape) > 8 or any(length < 1 for length in shape) or math.prod(shape) >= 2**63:
        raise ValueError(f"no parameter has the shape {shortened(shape)}")
    return shape


def check_entries(where: str, name: str, index: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
    """Check that indices are ascending, within the shape and one for each finite value.

    Raises:
        DataError: naming the file and the tensor.
    """
    size = math.prod(shape)
    if index.dim() != 1 or index.shape != values.shape:
        raise DataError(f"{where}: {name}: {tuple(index.shape)} indices for {tuple(values.shape)} values")
    if index.numel() and (int(index[0]) < 0 or int(index[-1]) >= size or bool((index[1:] <= index[:-1]).any())):
        raise DataError(f"{where}: {name}: indices must ascend within 0 and {size - 1}")
    if not bool(values.isfinite().all()):
        raise DataError(f"{where}: {name}: values are NaN or infinite")


def check_head(where: str, head: Mapping[str, Tensor]) -> None:
    """Check that a head consists of finite floating-point numbers.

    Raises:
        DataError: naming the file and the tensor.
    """
    for name, values in head.items():
        if not values.is_floating_point():
            raise DataError(f"{where}: head/{name} is {values.dtype}; floating-point numbers are expected")
        if not bool(values.isfinite().all()):
            raise DataError(f"{where}: head/{name}: values are NaN or infinite")

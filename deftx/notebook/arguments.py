"""What a notebook hands over, looked at before anything is made of it: objects of any class come that way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deftx.errors import ConfigError, reason

PathLike = str | Path
"""A folder, file, URL or hub id."""


def path_of(name: str, value: object) -> str:
    """A path, URL or hub id as text.

    Args:
        name: what errors call it.

    Raises:
        ConfigError: for anything else, such as a table or a model that is in memory.
    """
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name}: a path, URL or hub id, not {type(value).__name__}")
    if not str(value).strip():
        raise ConfigError(f"{name}: is empty; a path, URL or hub id is expected")
    return str(value)


def list_of_labels(value: object) -> tuple[str, ...]:
    """Labels in the order given.

    Raises:
        ConfigError: for a set, which has no order, for text, whose parts are letters, and for arrays of any library.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"labels: a list such as ['negative', 'positive'], not {type(value).__name__}")
    return tuple(value)


def check_device(name: str) -> None:
    """Check that torch can compute on a device, before hours of reading lead up to it.

    Raises:
        ConfigError: when it cannot.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device: {name!r} cannot be computed on here: {reason(error)}") from None

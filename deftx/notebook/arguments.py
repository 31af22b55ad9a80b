"""What a notebook hands over, looked at before anything is made of it: objects of any class come that way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from deftx.config import Execution
from deftx.errors import ConfigError

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


def execution_of(value: object) -> Execution:
    """How to carry stages out; whether torch can compute on the device is not looked at.

    Args:
        value: an `Execution`; None: on this machine's GPU where it has one, in as many threads as torch would take.

    Raises:
        ConfigError: for anything else.
    """
    if value is None:
        return Execution(device="cuda" if torch.cuda.is_available() else "cpu", threads=torch.get_num_threads())
    if not isinstance(value, Execution):
        raise ConfigError(f"execution: a deftx.Execution, such as Execution(threads=8), not {type(value).__name__}")
    return value

"""The names, shapes and kinds of the weights in a model's folder, from the headers of its files: no weight is read.

Which files are a model's is decided as transformers decides it when it loads them. A header is read by safetensors,
which refuses one that is longer than its file or than 100 MB; a pickle by torch's restricted unpickler onto the `meta`
device, where tensors have no storage. Which names a model expects is in `outline`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import safe_open

from deftx.errors import DataError, reason
from deftx.foreign import json_object, small_file

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files with which a model's weights begin, in the order in which transformers looks for them."""
_INDEX = ".index.json"


class Header(NamedTuple):
    """What is known of a weight without reading it."""

    shape: tuple[int, ...]
    floating: bool
    """Whether it consists of floating-point numbers, not of whole numbers as a quantised weight does."""

    @classmethod
    def of(cls, shape: Iterable[int], dtype: str) -> Header:
        """That of a tensor by what a safetensors file says of it."""
        return cls(tuple(shape), dtype.startswith(("F", "BF")))


Headers = Mapping[str, Header]


def headers_of(folder: Path) -> Headers:
    """The headers of the weights of the model in a folder, by their names in its files.

    Raises:
        DataError: when there are no weights, or a file of them is missing, torn or none.
    """
    found: dict[str, Header] = {}
    for path in _files_of(folder):
        found |= headers_in(path)
    return found


def headers_in(path: Path) -> Headers:
    """The headers in one file: `*.safetensors`, or a pickle of tensors by name.

    Raises:
        DataError: when the file is torn, or no such file.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's about a pickle that it then refuses
            return dict(_safe(path) if path.suffix == ".safetensors" else _pickled(path))
    except Exception as error:  # what torch's unpickler raises on foreign bytes has no common ancestor
        raise DataError(f"{path}: torn, or no file of weights: {_why(path, error)}") from None


def _files_of(folder: Path) -> list[Path]:
    path = folder / "config.json"
    config = json_object(small_file(path), path) if path.is_file() else {}
    named = config.get("transformers_weights")
    wanted = [named] if isinstance(named, str) else WEIGHTS
    first = next((folder / name for name in wanted if _is_file(folder, name)), None)
    if first is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise DataError(f"{folder}: no weights there: none of {', '.join(wanted)}; found: {found}")
    if not first.name.endswith(_INDEX):
        return [first]
    shards = json_object(small_file(first), first).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise DataError(f"{first}: no index of weights: `weight_map` from names to files is missing")
    names = dict.fromkeys(shards.values())
    if missing := [name for name in names if not _is_file(folder, name)]:
        which = f"names {missing[0]}, which is not there"
        raise DataError(f"{first}: {which} ({len(missing)} of {len(names)} are missing)")
    return [folder / name for name in names]


def _is_file(folder: Path, name: str) -> bool:
    """Whether a folder has a file of that name; a name may be one that no file can have."""
    with suppress(OSError, ValueError):
        return (folder / name).is_file()
    return False


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "there is more than tensors in it, and no code of a pickle is run"
    return "it is empty" if path.is_file() and not path.stat().st_size else reason(error).split(". ")[0]


def _safe(path: Path) -> Iterator[tuple[str, Header]]:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            yield name, Header.of(part.get_shape(), part.get_dtype())


def _pickled(path: Path) -> Iterator[tuple[str, Header]]:
    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        content = torch.load(path, map_location="meta", weights_only=True)  # as torch saved before 1.6
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__}, no weights by name")
    for name, weight in content.items():
        if isinstance(weight, torch.Tensor):
            yield str(name), Header(tuple(weight.shape), weight.is_floating_point())

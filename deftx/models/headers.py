"""The names, shapes and kinds of the weights in a model's folder, from the headers of its files: no weight is read.

Which files are a model's is decided as transformers decides it when it loads them. A header is read by safetensors,
which refuses one that is longer than its file or than 100 MB; a pickle by torch's restricted unpickler onto the `meta`
device, where tensors have no storage. Which names a model expects is in `outline`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from deftx.errors import DataError, reason

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
        return dict(_safe(path) if path.suffix == ".safetensors" else _pickled(path))
    except Exception as error:  # what torch's unpickler raises on foreign bytes has no common ancestor
        raise DataError(f"{path}: torn, or no file of weights: {_why(path, error)}") from None


def _files_of(folder: Path) -> list[Path]:
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("transformers_weights")
    wanted = [named] if isinstance(named, str) else WEIGHTS
    first = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if first is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise DataError(f"{folder}: no weights there: none of {', '.join(wanted)}; found: {there}")
    if not first.name.endswith(_INDEX):
        return [first]
    shards = _json(first).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise DataError(f"{first}: no index of weights: `weight_map` from names to files is missing")
    paths = [folder / name for name in dict.fromkeys(shards.values())]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(f"{first}: names {missing[0]}, which is not there ({len(missing)} of {len(paths)} are missing)")
    return paths


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "there is more than tensors in it, and no code of a pickle is run"
    return "it is empty" if path.is_file() and not path.stat().st_size else reason(error).split(". ")[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {reason(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content


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

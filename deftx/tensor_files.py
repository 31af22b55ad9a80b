"""Tensors on disk instead of a second time in memory: a run's start, and its best checkpoint so far.

Files are safetensors, written and read one tensor at a time; `safetensors.torch.save_file` holds the bytes of them all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from deftx.atomic import replacing

_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.int64: "I64"}
Change = Callable[[str, Tensor], Tensor]


def write(path: Path, tensors: Mapping[str, Tensor], change: Change | None = None) -> None:
    """Write a safetensors file, one tensor at a time.

    Args:
        tensors: by name, on any device.
        change: what to write in place of each tensor: of the same shape and type.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            here = (change(name, tensor.detach()) if change else tensor.detach()).cpu().contiguous()
            file.write(here.reshape(-1).view(torch.uint8).numpy().data)


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from disk when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open a file; only its header is read."""
        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._names)


class Kept(Mapping[str, Tensor]):
    """Tensors kept in a temporary file, which goes with the object; empty at first."""

    def __init__(self) -> None:
        """Make the folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="deftx-", ignore_cleanup_errors=True)
        self._tensors: Mapping[str, Tensor] = {}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what is kept; nothing is changed when writing fails."""
        path = Path(self._folder.name) / "tensors"
        with replacing(path) as beside:
            write(beside, tensors)
        self._tensors = LazyTensors(path)

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._tensors)

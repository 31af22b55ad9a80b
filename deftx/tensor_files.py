"""Safetensors files written and read one tensor at a time: a run's start, and its best checkpoint so far.

`safetensors.torch.save_file` holds the bytes of all tensors in memory, which for these would be a second model.
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
"""From a tensor's name and the tensor to another of its shape and dtype."""


def write(path: Path, tensors: Mapping[str, Tensor], change: Change | None = None) -> None:
    """Write a safetensors file, one tensor at a time.

    Args:
        path: where to; a file there is overwritten.
        tensors: by name, on any device; float32, float64, bfloat16 or int64.
        change: what to write in place of each tensor; None: the tensor itself.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            written = (change(name, tensor.detach()) if change else tensor.detach()).cpu().contiguous()
            file.write(written.reshape(-1).view(torch.uint8).numpy().data)


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from disk when it is asked for."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open a file; only its header is read.

        Args:
            device: where the tensors are read to.
        """
        self._file = safe_open(path, framework="pt", device=device)
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
    """Tensors kept in a temporary file, which is removed with the object; empty at first."""

    def __init__(self) -> None:
        """Make a temporary folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="deftx-", ignore_cleanup_errors=True)
        self._tensors: Mapping[str, Tensor] = {}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these tensors in place of those before, which stay when writing fails."""
        path = Path(self._folder.name) / "tensors"
        with replacing(path) as temporary:
            write(temporary, tensors)
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

"""Tensors on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import same_bits

from deftx.tensor_files import Kept, LazyTensors, write

TENSORS = {
    "a": torch.randn(3, 5), "b.c": torch.arange(7), "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5),
    "transposed": torch.randn(4, 2).T, "parameter": torch.nn.Parameter(torch.randn(6)),
}  # fmt: skip


def test_what_is_written_is_a_safetensors_file(tmp_path: Path) -> None:
    write(tmp_path / "file", TENSORS)
    expected = {name: tensor.detach() for name, tensor in TENSORS.items()}
    assert same_bits(load_file(tmp_path / "file"), expected)
    assert same_bits(dict(LazyTensors(tmp_path / "file")), expected)


def test_a_change_is_made_on_the_way(tmp_path: Path) -> None:
    write(tmp_path / "file", TENSORS, lambda name, tensor: tensor * 2 if name == "a" else tensor)
    assert torch.equal(load_file(tmp_path / "file")["a"], TENSORS["a"] * 2)


def test_what_is_kept_is_the_latest_and_goes_with_its_object() -> None:
    kept = Kept()
    assert len(kept) == 0
    for _ in range(2):
        latest = {"a": torch.randn(4)}
        kept.keep(latest)
    latest["a"][0] += 0.0
    assert torch.equal(kept["a"], latest["a"])
    folder = Path(kept._folder.name)
    assert folder.is_dir()
    del kept
    assert not folder.exists()


def test_a_failed_writing_leaves_what_was_kept() -> None:
    kept = Kept()
    kept.keep({"a": torch.ones(2)})
    with pytest.raises(KeyError):
        kept.keep({"a": torch.ones(2, dtype=torch.complex64)})
    assert kept["a"].tolist() == [1, 1]

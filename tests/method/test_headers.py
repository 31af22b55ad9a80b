"""Names and shapes of weights by their files' headers, of every form that a model is published in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import PICKLED, write_pickled
from transformers import AutoModelForMaskedLM

from deftx.errors import DataError
from deftx.models.headers import Header, headers_of

SAFE, INDEX = "model.safetensors", "model.safetensors.index.json"


def copied(backbone: Path, folder: Path) -> Path:
    return Path(shutil.copytree(backbone, folder / "copy"))


def test_one_file_shards_and_pickles_old_and_new_have_the_same_headers(backbone: Path, tmp_path: Path) -> None:
    weights = load_file(backbone / SAFE)
    expected = {name: Header(tuple(weight.shape), True) for name, weight in weights.items()}
    AutoModelForMaskedLM.from_pretrained(backbone).save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    old = write_pickled(backbone, tmp_path / "old")
    torch.save(weights, old / PICKLED, _use_new_zipfile_serialization=False)
    forms = [
        backbone, tmp_path / "sharded", write_pickled(backbone, tmp_path / "pickled"),
        write_pickled(backbone, tmp_path / "shards", 3), old,
    ]  # fmt: skip
    assert len([*(tmp_path / "sharded").glob("*.safetensors")]) > 2
    assert [headers_of(form) for form in forms] == [expected] * 5


def test_whole_numbers_are_told_from_floating_ones(tmp_path: Path) -> None:
    kinds = torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool
    tensors = {str(kind): torch.zeros(2, 0, dtype=kind) for kind in kinds}
    save_file(tensors, tmp_path / SAFE)
    safe = headers_of(tmp_path)
    assert {name: header.floating for name, header in safe.items()} == {
        "torch.float32": True, "torch.bfloat16": True, "torch.float8_e4m3fn": True, "torch.int8": False,
        "torch.bool": False,
    }  # fmt: skip
    (tmp_path / SAFE).unlink()
    torch.save(tensors, tmp_path / PICKLED)
    assert headers_of(tmp_path) == safe


def test_the_files_are_those_that_transformers_would_load(backbone: Path, tmp_path: Path) -> None:
    folder = copied(backbone, tmp_path)
    (folder / PICKLED).write_bytes(b"the same again")
    assert headers_of(folder) == headers_of(backbone)
    (folder / SAFE).rename(folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    assert headers_of(folder) == headers_of(backbone)


class Code:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


def pickled(content: Any, folder: Path) -> bytes:
    torch.save(content, folder / "content")
    return (folder / "content").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (SAFE, b"", "it is empty"),
        (SAFE, (10**15).to_bytes(8, "little") + b"{}", "header too large"),
        (SAFE, (90).to_bytes(8, "little") + b'{"a":', "invalid header length"),
        (PICKLED, b"", "it is empty"),
        (PICKLED, b"torn", "torn, or no file of weights"),
        (PICKLED, Code(), "more than tensors in it, and no code of a pickle is run"),
        (PICKLED, [torch.zeros(1)], "a list, no weights by name"),
        (INDEX, b"{", "not JSON"),
        (INDEX, b"[]", "not a JSON object"),
        (INDEX, b"{}", "no index of weights: `weight_map`"),
        (INDEX, b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}', r"names 1.* \(2 of 2 are missing\)"),
        ("tf_model.h5", b"", "no weights there: none of model.safetensors, .*; found: tf_model.h5"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path, name: str, content: Any, words: str) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / name).write_bytes(content if isinstance(content, bytes) else pickled(content, tmp_path))
    with pytest.raises(DataError, match=f"broken.*{words}"):
        headers_of(folder)


@pytest.mark.parametrize("name", [SAFE, PICKLED])
def test_a_torn_download_is_no_model(backbone: Path, tmp_path: Path, name: str) -> None:
    folder = copied(backbone, tmp_path) if name == SAFE else write_pickled(backbone, tmp_path / "copy")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"copy/{name}: torn, or no file of weights: "):
        headers_of(folder)

"""What fuzzing found, each by itself: a traceback, or memory without end, that is now an error in words."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.composable_files import write
from support.tiny import make_tokenizer
from test_fuzz import MODELS, STAGE, problems_of, write_storage

from deftx.errors import ConfigError, DataError, StoreError
from deftx.models.headers import headers_of
from deftx.models.load import load_tokenizer
from deftx.sft.composition import read_chosen
from deftx.sft.vector import SparseFineTuning
from deftx.stages.manifest import MANIFEST
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder
from orchestrator.space.load import load_space


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("text", ['note: "\\ud800"', '"\\udfff": 1', 'first: [{a: "\\ud800"}]'])
def test_half_a_character_in_a_space_is_told_by_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "space.yaml").write_text(f"seed: 1\n{text}\n")
    with pytest.raises(ConfigError, match="on line 2 has half a character in it"):
        load_space(str(tmp_path / "space.yaml"))


def test_one_number_that_stands_for_millions_is_refused(tmp_path: Path) -> None:
    """A tensor whose strides are 0 has any shape in a few bytes."""
    endless = torch.zeros(1).expand(2**34)
    for entry, head in (({"size": (2**34,), "index_steps": [0], "values": endless}, {}), ({}, {"a": endless})):
        with pytest.raises(DataError, match=r"17,179,869,184 numbers in [\d,]+ bytes"):
            SparseFineTuning.from_pretrained(write(tmp_path, {"w": entry} if entry else {}, head))


def test_a_shape_is_of_a_few_lengths_above_0(tmp_path: Path) -> None:
    for size in ((-2, -2), (0, 4), (2**40, 2**23), (1,) * 9, torch.zeros(1).expand(2**40)):
        vector = write(tmp_path, {"w": {"size": size, "index_steps": [], "values": torch.ones(0)}})
        with pytest.raises(DataError, match="no parameter has the shape"):
            SparseFineTuning.from_pretrained(vector)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_values_and_heads_are_floating_point_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.ones(2, dtype=dtype)
    for diffs, head in (({"w": {"size": (2,), "index_steps": [0, 1], "values": numbers}}, {}), ({}, {"b": numbers})):
        with pytest.raises(DataError, match=str(dtype).removeprefix("torch.")):
            SparseFineTuning.from_pretrained(write(tmp_path, diffs, head))


def test_torch_says_nothing_of_a_pickle_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_diff.bin").write_bytes(pickle.dumps(warnings.warn, protocol=4))
    with warnings.catch_warnings(action="error"), pytest.raises(DataError, match="no code of a pickle is run"):
        SparseFineTuning.from_pretrained(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    MODELS["a model"].write(tmp_path / "model")
    return tmp_path / "model"


def test_a_wrong_type_in_a_config_is_told_with_its_value(model: Path) -> None:
    edit(model / "config.json", lambda config: config.update(hidden_size="x"))
    (told, *_) = problems_of(model)
    assert told.endswith(
        "Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected int, got str (value: 'x')"
    )


def test_a_file_of_json_that_is_larger_than_any_is_not_read(model: Path) -> None:
    with (model / "config.json").open("ab") as file:
        file.truncate(2**23 + 1)
    with pytest.raises(DataError, match=r"config.json: 8,388,609 bytes; 8,388,608 at most"):
        headers_of(model)


@pytest.mark.parametrize("name", ["a" * 300, "../model/model.safetensors", "a\0b"])
def test_an_index_names_files_of_its_folder(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / "w.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(DataError, match="which is not there"):
        headers_of(model)


@pytest.mark.parametrize("form", ["single", "pair"])
def test_a_tokenizer_that_panics_when_it_is_used_is_none(tmp_path: Path, form: str) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    edit(
        tmp_path / "tokenizer.json",
        lambda content: content["post_processor"][form][0].update(SpecialToken={"id": "x", "type_id": 0}),
    )
    with pytest.raises(DataError, match="no tokenizer there"):
        load_tokenizer(tmp_path)


def test_a_tokenizers_longest_input_is_a_number(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda content: content.update(model_max_length="x"))
    with pytest.raises(DataError, match="no tokenizer there"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["a" * 256, "a\0b", "../x", "/x"])
def test_a_manifest_names_files_that_can_be(tmp_path: Path, name: str) -> None:
    write_storage(tmp_path / "s")
    edit(
        tmp_path / "s/stages" / STAGE.address / MANIFEST,
        lambda content: content["files"].update({name: {"size": 1, "sha256": ""}}),
    )
    with pytest.raises(StoreError, match="which is not in the stage's folder"):
        Store(str(tmp_path / "s")).published(STAGE.address)


@pytest.mark.parametrize("wrong", [{}, {"rank_l": "2", "rank_t": "2", "retention_l": "", "retention_t": 0.1}])
def test_a_row_of_a_combination_has_its_parameters(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write_storage(tmp_path / "s")
    edit(tmp_path / "s/sweeps/s/state.json", lambda content: content["rows"][0].update(parameters=wrong))
    with pytest.raises(StoreError, match="a combination has two ranks and two shares"):
        SweepFolder(Store(str(tmp_path / "s")), "s").state()


def test_what_was_chosen_is_not_nested_without_end(tmp_path: Path) -> None:
    write_storage(tmp_path / "s")
    (tmp_path / "s/sweeps/s/chosen.json").write_text('{"a":' * 5000)
    with pytest.raises(DataError, match=r"chosen\.json: not what a sweep writes: not JSON"):
        read_chosen(str(tmp_path / "s/sweeps/s"), "ace")

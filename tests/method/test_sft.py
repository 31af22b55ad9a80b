"""SparseFineTuning on disk: what comes back is what was saved, in 8 bytes an entry, and a spoilt file is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file, save_file
from support.tiny import same_bits
from torch import Tensor

from deftx.errors import DataError, HubError
from deftx.sft.vector import SFTMetadata, SparseFineTuning
from deftx.stages.files import METADATA, TENSORS

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def make(delta: dict[str, Tensor], indices: dict[str, Tensor], **metadata: object) -> SparseFineTuning:
    k = sum(index.numel() for index in indices.values())
    head = {"lm_head.bias": torch.tensor([1.0, -0.0])}
    return SparseFineTuning.from_delta(delta, indices, SFTMetadata(backbone="tiny", k=k, **metadata), head)  # type: ignore[arg-type]


def make_small() -> SparseFineTuning:
    delta = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([0.5, -0.5])}
    return make(delta, {"a.weight": torch.tensor([1, 4, 11]), "b": torch.tensor([1])}, rank="90%", retention=0.05)


@given(
    st.dictionaries(
        st.sampled_from(["w", "encoder.0.w", "b/c"]),
        arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=floats),
    ),
    st.data(),
)
@settings(max_examples=30)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[str, np.ndarray], data: st.DataObject
) -> None:
    delta = {name: torch.from_numpy(part.copy()) for name, part in parts.items()}
    indices = {}
    for name, part in parts.items():
        picked = data.draw(st.sets(st.integers(0, part.size - 1)))
        if picked:
            indices[name] = torch.tensor(sorted(picked))
    sft = make(delta, indices)
    folder = tmp_path_factory.mktemp("sft")
    sft.save_pretrained(folder)
    loaded = SparseFineTuning.from_pretrained(folder)
    assert same_bits(loaded.indices, sft.indices)
    assert same_bits(loaded.values, sft.values)
    assert same_bits(loaded.head, sft.head)
    assert (loaded.shapes, loaded.metadata, len(loaded)) == (sft.shapes, sft.metadata, len(sft))


def test_from_delta_takes_the_chosen_entries() -> None:
    sft = make_small()
    assert {name: values.tolist() for name, values in sft.values.items()} == {"a.weight": [1, 4, 11], "b": [-0.5]}
    assert sft.shapes == {"a.weight": (3, 4), "b": (2,)}
    assert len(sft) == sft.metadata.k == 4


def test_a_file_takes_at_most_8_2_bytes_an_entry(tmp_path: Path) -> None:
    names = [f"encoder.layer.{layer}.attention.self.query.weight" for layer in range(12)]
    delta = {name: torch.randn(400, 300) for name in names}
    sft = make(delta, {name: torch.arange(0, 120_000, 5) for name in names})
    sft.save_pretrained(tmp_path)
    assert (tmp_path / TENSORS).stat().st_size <= 8.2 * len(sft)


def test_bf16_takes_at_most_6_2_bytes_an_entry_and_rounds_the_values_alone(tmp_path: Path) -> None:
    names = [f"encoder.layer.{layer}.attention.self.query.weight" for layer in range(12)]
    delta = {name: torch.randn(400, 300, generator=torch.Generator().manual_seed(1)) for name in names}
    sft = make(delta, {name: torch.arange(0, 120_000, 5) for name in names})
    sft.save_pretrained(tmp_path, values="bf16")
    assert (tmp_path / TENSORS).stat().st_size <= 6.2 * len(sft)
    loaded = SparseFineTuning.from_pretrained(tmp_path)
    assert same_bits(loaded.indices, sft.indices)
    assert same_bits(loaded.head, sft.head)
    assert same_bits(loaded.values, {name: value.bfloat16().float() for name, value in sft.values.items()})


def test_a_value_that_bf16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    sft = make({"w": torch.tensor([1.0, 3.4e38])}, {"w": torch.tensor([0, 1])})
    with pytest.raises(DataError, match="w: a value is too large for bf16"):
        sft.save_pretrained(tmp_path, values="bf16")
    sft.save_pretrained(tmp_path)
    assert same_bits(SparseFineTuning.from_pretrained(tmp_path).values, sft.values)


def test_indices_beyond_32_bits_survive(tmp_path: Path) -> None:
    index = torch.tensor([0, 2**31 - 1, 2**31, 2**40])
    metadata = SFTMetadata(backbone="huge", k=4)
    SparseFineTuning({"w": index}, {"w": torch.ones(4)}, {"w": (2**21, 2**20)}, metadata).save_pretrained(tmp_path)
    assert SparseFineTuning.from_pretrained(tmp_path).indices["w"].tolist() == index.tolist()


def test_the_same_vector_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_small().save_pretrained(tmp_path / name)
    for file in (TENSORS, METADATA):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def spoil(folder: Path, **tensors: Tensor) -> None:
    content = load_file(folder / TENSORS)
    save_file({**content, **tensors}, folder / TENSORS)


@pytest.mark.parametrize(
    ("key", "tensor", "reason"),
    [
        ("indices/a.weight", torch.tensor([1, 4, 12]), "within 0 and 11"),
        ("indices/a.weight", torch.tensor([-1, 4, 11]), "within 0 and 11"),
        ("indices/a.weight", torch.tensor([4, 1, 11]), "must ascend"),
        ("indices/a.weight", torch.tensor([4, 4, 11]), "must ascend"),
        ("indices/a.weight", torch.tensor([4, 11]), r"\(2,\) indices for \(3,\) values"),
        ("values/a.weight", torch.tensor([1.0, float("nan"), 1.0]), "NaN or infinite"),
        ("values/b", torch.tensor([float("inf")]), "NaN or infinite"),
        ("values/other", torch.tensor([1.0]), "name different parameters"),
        ("stray", torch.tensor([1.0]), "unknown tensor stray"),
    ],
)
def test_a_vector_that_contradicts_itself_is_refused_by_file_and_tensor(
    tmp_path: Path, key: str, tensor: Tensor, reason: str
) -> None:
    make_small().save_pretrained(tmp_path)
    spoil(tmp_path, **{key: tensor})
    with pytest.raises(DataError, match=reason) as caught:
        SparseFineTuning.from_pretrained(tmp_path)
    assert TENSORS in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_torn_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    make_small().save_pretrained(tmp_path)
    content = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(content[:keep])
    with pytest.raises(DataError, match=TENSORS):
        SparseFineTuning.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        "", "{", "[]", "null", "{}", '{"shapes": {}}', '{"metadata": {}, "shapes": {}}',
        '{"metadata": {"backbone": "b", "k": 4, "surprise": 1}, "shapes": {}}',
        '{"metadata": {"backbone": "b", "k": 4}, "shapes": {"b": ["two"]}}',
    ],
)  # fmt: skip
def test_metadata_that_is_not_an_sfts_is_refused_by_name(tmp_path: Path, record: str) -> None:
    make_small().save_pretrained(tmp_path)
    (tmp_path / METADATA).write_text(record)
    with pytest.raises(DataError, match=METADATA):
        SparseFineTuning.from_pretrained(tmp_path)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    make_small().save_pretrained(tmp_path)
    (tmp_path / METADATA).unlink()
    with pytest.raises(DataError, match=f"{METADATA}: missing"):
        SparseFineTuning.from_pretrained(tmp_path)


def test_a_shape_that_the_tensors_do_not_name_is_refused(tmp_path: Path) -> None:
    make_small().save_pretrained(tmp_path)
    record = json.loads((tmp_path / METADATA).read_text())
    record["shapes"]["c"] = [1]
    (tmp_path / METADATA).write_text(json.dumps(record))
    with pytest.raises(DataError, match="different parameters"):
        SparseFineTuning.from_pretrained(tmp_path)


def test_a_folder_that_is_no_vector_and_a_name_that_is_no_hub_id_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        SparseFineTuning.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="not an SFT"):
        SparseFineTuning.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        SparseFineTuning.from_pretrained(tmp_path / "gone")
    with pytest.raises(HubError, match="nobody/nothing"):
        SparseFineTuning.from_pretrained("nobody/nothing")


def rewritten(folder: Path, **changes: object) -> Path:
    """A small vector whose sft.json says something else."""
    make_small().save_pretrained(folder)
    record = json.loads((folder / METADATA).read_text())
    for key, value in changes.items():
        (record if key == "shapes" else record["metadata"])[key] = value
    (folder / METADATA).write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"k": 999}, r"sft.json: k is 999, but sft.safetensors has 4 entries"),
        ({"k": -9}, r"sft.json: not the metadata of an SFT: metadata.k: .*greater than or equal to 0"),
        ({"shapes": {"a.weight": [-3, -4], "b": [2]}}, r"shapes.a.weight.0: .*greater than or equal to 1"),
        ({"shapes": {"a.weight": [3.0, 4], "b": [2]}}, r"shapes.a.weight.0: .*valid integer"),
        ({"shapes": {"a.weight": [10**30, 4], "b": [2]}}, r"shapes.a.weight.0: "),
        ({"shapes": {"a.weight": [float("inf"), 4], "b": [2]}}, r"shapes.a.weight.0: "),
        ({"shapes": {"a.weight": [1] * 9, "b": [2]}}, r"shapes.a.weight: .*at most 8 items"),
    ],
)
def test_a_vector_is_whole(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        SparseFineTuning.from_pretrained(rewritten(tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("indices/b", torch.tensor([1.0]), "indices/b is torch.float32; int32 or int64 is expected"),
        ("values/b", torch.tensor([1]), "values/b is torch.int64; floating-point numbers are expected"),
        ("head/lm_head.bias", torch.tensor([1, 2]), "head/lm_head.bias is torch.int64; floating-point"),
        ("head/lm_head.bias", torch.tensor([1.0, float("nan")]), "head/lm_head.bias: values are NaN or infinite"),
    ],
)
def test_a_vector_of_other_types_or_without_numbers_is_refused(
    tmp_path: Path, name: str, tensor: Tensor, complaint: str
) -> None:
    make_small().save_pretrained(tmp_path)
    spoil(tmp_path, **{name: tensor})
    with pytest.raises(DataError, match=complaint):
        SparseFineTuning.from_pretrained(tmp_path)


def test_metadata_nested_without_end_or_a_folder_is_refused(tmp_path: Path) -> None:
    make_small().save_pretrained(tmp_path)
    (tmp_path / METADATA).write_text('{"metadata": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"sft.json: not the metadata of an SFT"):
        SparseFineTuning.from_pretrained(tmp_path)
    (tmp_path / METADATA).unlink()
    (tmp_path / METADATA).mkdir()
    with pytest.raises(DataError, match=r"sft.json: cannot be read: Is a directory"):
        SparseFineTuning.from_pretrained(tmp_path)

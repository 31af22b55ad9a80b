"""Published composable-sft vectors: a file written by hand decodes exactly, and a hostile one runs nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.composable_files import encode, write
from support.encoders import CONFIGS, write_encoder
from support.tiny import LABELS, MASK, make_tokenizer, same_bits, weights_of
from transformers import AutoModelForSequenceClassification, BertForPreTraining

from deftx.errors import DataError
from deftx.models.load import load_classifier, load_masked_lm
from deftx.models.parameters import base_of
from deftx.sft.classifier import load_composed
from deftx.sft.composable import FILE
from deftx.sft.compose import apply, composed
from deftx.sft.vector import SparseFineTuning


def dense_of(sft: SparseFineTuning, name: str) -> torch.Tensor:
    flat = torch.zeros(sft.shapes[name]).reshape(-1)
    flat[sft.indices[name]] = sft.values[name]
    return flat.reshape(sft.shapes[name])


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    # row-major [[0, 7], [5, 0], [0, 9]]: column-major indices 1 (5), 3 (7), 5 (9)
    by_hand = {"size": torch.Size([3, 2]), "index_steps": [np.int64(1), 2, 2], "values": torch.tensor([5.0, 7.0, 9.0])}
    sft = SparseFineTuning.from_pretrained(write(tmp_path, {"roberta.pooler.weight": by_hand}))
    assert {name: index.tolist() for name, index in sft.indices.items()} == {"pooler.weight": [1, 2, 5]}
    assert sft.values["pooler.weight"].tolist() == [7.0, 5.0, 9.0]
    assert sft.shapes == {"pooler.weight": (3, 2)}
    assert (sft.metadata.backbone_basis, sft.metadata.fingerprint, sft.metadata.k) == ("asserted", None, 3)


@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 4, 5), (2, 3, 2, 3)])
def test_column_major_gaps_of_any_number_of_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.4)
    sft = SparseFineTuning.from_pretrained(write(tmp_path, {"w": encode(dense)}))
    assert torch.equal(dense_of(sft, "w"), dense)


@pytest.mark.parametrize("prefix", ["roberta.", "bert.", ""])
def test_the_base_models_prefix_is_dropped(tmp_path: Path, prefix: str) -> None:
    name = f"{prefix}encoder.layer.0.output.dense.weight"
    sft = SparseFineTuning.from_pretrained(write(tmp_path, {name: encode(torch.eye(2))}))
    assert list(sft.indices) == ["encoder.layer.0.output.dense.weight"]


def test_gaps_as_a_tensor_or_array_and_values_of_half_precision(tmp_path: Path) -> None:
    for steps in (torch.tensor([1, 2]), np.array([1, 2])):
        values = torch.tensor([0.5, -2.0], dtype=torch.float16)
        folder = write(tmp_path, {"w": {"size": (2, 2), "index_steps": steps, "values": values}})
        assert dense_of(SparseFineTuning.from_pretrained(folder), "w").tolist() == [[0.0, 0.0], [0.5, -2.0]]


def test_it_is_added_to_a_backbone_with_its_head_at_hand(tmp_path: Path, backbone: Path) -> None:
    model = load_masked_lm(backbone)
    name = "embeddings.word_embeddings.weight"
    before = dict(base_of(model).named_parameters())[name].detach().clone()
    dense = torch.zeros_like(before)
    dense[MASK, 3], dense[len(make_tokenizer()) - 1, 0] = 0.25, -1.0
    head = {"classifier.dense.weight": torch.ones(16, 16)}
    sft = SparseFineTuning.from_pretrained(write(tmp_path, {f"roberta.{name}": encode(dense)}, head))
    apply(model, sft)
    assert torch.equal(dict(base_of(model).named_parameters())[name], before + dense)
    assert torch.equal(sft.head["classifier.dense.weight"], torch.ones(16, 16))


@pytest.mark.parametrize(
    "bad",
    [
        {"size": (2, 2), "index_steps": [4], "values": torch.ones(1)},
        {"size": (2, 2), "index_steps": [-1], "values": torch.ones(1)},
        {"size": (2, 2), "index_steps": [1, 0], "values": torch.ones(2)},
        {"size": (2, 2), "index_steps": [1, 1], "values": torch.ones(1)},
        {"size": (2, 2), "index_steps": [1], "values": torch.ones(2)},
        {"size": (2, 2), "index_steps": [1], "values": torch.tensor([float("nan")])},
        {"size": (2, 2), "index_steps": ["x"], "values": torch.ones(1)},
        {"index_steps": [1], "values": torch.ones(1)},
        {"size": (2, 2)},
        "text",
    ],
)
def test_an_entry_that_contradicts_itself_is_refused_by_file(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(DataError, match=FILE):
        SparseFineTuning.from_pretrained(write(tmp_path, {"w": bad}))


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04 torn", pickle.dumps({"diffs": 1}), pickle.dumps([1])]
)
def test_a_file_that_is_no_vector_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=FILE):
        SparseFineTuning.from_pretrained(tmp_path)


def test_a_torn_or_altered_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"w": encode(torch.randn(20, 20))})
    content = (tmp_path / FILE).read_bytes()
    for cut in (10, len(content) // 2, len(content) - 1):
        (tmp_path / FILE).write_bytes(content[:cut])
        with pytest.raises(DataError, match=FILE):
            SparseFineTuning.from_pretrained(tmp_path)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "executed"
    diffs = {"w": {"size": (2,), "index_steps": [Hostile(mark)], "values": torch.ones(1)}}
    torch.save({"diffs": diffs, "abs": {}}, tmp_path / FILE, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="refused"):
        SparseFineTuning.from_pretrained(tmp_path)
    assert not mark.exists()
    torch.load(tmp_path / FILE, weights_only=False)  # the file does bite where code may run
    assert mark.exists()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a pooler, as mBERT is published."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertForPreTraining(CONFIGS["bert"]()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def changed(folder: Path, *names: str) -> dict[str, Any]:
    """A change of some weights at a few places, as it is published."""
    weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    deltas = {}
    for name in names:
        delta = torch.randn(weights[name].shape, generator=generator)
        deltas[name] = torch.where(torch.rand(delta.shape, generator=generator) < 0.2, delta, 0.0)
    return deltas


def test_a_published_vector_of_a_bert_brings_its_classifiers_first_layer_as_a_change_of_the_pooler(
    bert: Path, tmp_path: Path
) -> None:
    """theta0's pooler and its entries are the first layer, `abs` the second: as LT-SFT trained them."""
    weights = load_file(bert / "model.safetensors")
    deltas = changed(bert, "bert.encoder.layer.0.output.dense.weight", "bert.pooler.dense.weight")
    head = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.randn(3)}
    write(tmp_path, {name: encode(delta) for name, delta in deltas.items()}, head)
    task = SparseFineTuning.from_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    for name, parameter in plain.named_parameters():
        value = head[name] if name in head else weights[name] + deltas.get(name, 0.0)
        parameter.data.copy_(value)
    ids = torch.tensor([[0, 7, 8, 9, 2]])
    model = load_classifier(bert, LABELS, seed=5).eval()
    before = weights_of(model)
    with composed(model, task):
        assert torch.equal(model(ids).logits, plain(ids).logits)
    assert same_bits(weights_of(model), before)
    exported, _ = load_composed(bert, task, None, LABELS, (1.0, 1.0), 16)
    assert torch.equal(exported(ids).logits, plain(ids).logits)


def test_a_published_vector_of_a_bert_needs_the_pooler_that_it_changes(bert: Path, tmp_path: Path) -> None:
    deltas = changed(bert, "bert.pooler.dense.weight")
    head = {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)}
    write(tmp_path, {name: encode(delta) for name, delta in deltas.items()}, head)
    task = SparseFineTuning.from_pretrained(tmp_path)
    poolerless = write_encoder(tmp_path / "backbone", "bert")
    with pytest.raises(
        DataError, match=r"the vector changes pooler.dense.weight, which is not in this backbone's files"
    ):
        load_composed(poolerless, task, None, LABELS, (1.0, 1.0), 16)


def test_a_published_language_vector_of_a_bert_is_added_as_it_is(bert: Path, tmp_path: Path) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    (delta,) = changed(bert, name).values()
    write(tmp_path, {name: encode(delta)}, {"cls.predictions.bias": torch.randn(50)})
    language = SparseFineTuning.from_pretrained(tmp_path)
    model = load_classifier(bert, LABELS, seed=5)
    expected = load_file(bert / "model.safetensors")[name] + delta
    with composed(model, language=language):
        assert torch.equal(model.get_input_embeddings().weight, expected)


def test_a_vector_that_training_starts_from_leaves_the_pooler_as_it_was_drawn(bert: Path, tmp_path: Path) -> None:
    """A pooler is a layer of the head, and heads are not part of the start."""
    name, pooler = "bert.encoder.layer.0.output.dense.weight", "bert.pooler.dense.weight"
    write(tmp_path, {key: encode(delta) for key, delta in changed(bert, name, pooler).items()})
    model = load_classifier(bert, LABELS, seed=5)
    before = weights_of(model)
    apply(model, SparseFineTuning.from_pretrained(tmp_path))
    moved = {key for key, weight in weights_of(model).items() if not torch.equal(weight, before[key])}
    assert moved == {name}

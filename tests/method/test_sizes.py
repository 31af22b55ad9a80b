"""The size of a backbone without its weights: the shipped table made again, other shapes, and configs that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import make_config, write_backbone
from transformers import XLMRobertaForMaskedLM

from deftx.models import sizes
from deftx.models.load import load_masked_lm
from deftx.models.parameters import embeddings_of, maskable
from deftx.models.sizes import Size, remade, size_of, size_of_folder, size_of_repository

BASE: dict[str, Any] = {
    "model_type": "xlm-roberta", "vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1,
    "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
}  # fmt: skip


@pytest.fixture
def table_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is built."""

    def refuse(config: object) -> Size:
        pytest.fail(f"not in the table: {config}")

    monkeypatch.setattr(sizes, "size_by_definition", refuse)


def test_the_shipped_table_is_what_the_definition_makes() -> None:
    assert remade() == json.loads(Path(sizes.__file__).with_name("sizes.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("table_only")
@pytest.mark.parametrize(
    ("names", "entries", "layers"),
    [
        (["FacebookAI/xlm-roberta-base", "xlm-roberta-base", "intfloat/multilingual-e5-base"], 277_414_656, 12),
        (["FacebookAI/xlm-roberta-large", "xlm-roberta-large"], 558_740_480, 24),
    ],
)
def test_published_backbones_are_known_by_name(names: list[str], entries: int, layers: int) -> None:
    for name in names:
        found = size_of_repository(name)
        assert found is not None
        assert (found.maskable, found.layers, found.vocabulary) == (entries, layers, 250_002)
    assert size_of_repository("somebody/else") is None


@pytest.mark.usefixtures("table_only")
@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("google-bert/bert-base-multilingual-cased", 85_017_600, 119_547 * 768),
        ("microsoft/mdeberta-v3-base", 85_017_600, 251_000 * 768),
        ("jhu-clsp/mmBERT-base", 22 * (4 * 768 * 768 + 3 * 768 * 1152), 256_000 * 768),  # 110 M in arXiv 2509.06888
        ("jhu-clsp/mmBERT-small", 22 * (4 * 384 * 384 + 3 * 384 * 1152), 256_000 * 384),  # 42 M
    ],
)
def test_other_architectures_have_the_sizes_that_are_published(name: str, body: int, words: int) -> None:
    found = size_of_repository(name)
    assert found is not None
    assert found.body == body
    assert 0 <= found.embeddings - words <= 514 * 768  # positions and types, where they are learnt


@pytest.mark.usefixtures("table_only")
def test_a_folder_of_a_known_shape_is_in_the_table_as_transformers_writes_it(tmp_path: Path) -> None:
    shape = {name: value for name, value in BASE.items() if name != "model_type"}
    make_config(**shape, num_labels=3, hidden_dropout_prob=0.2).save_pretrained(tmp_path)
    assert size_of_folder(tmp_path) == size_of_repository("xlm-roberta-base")


def test_another_shape_is_that_of_its_weights(tmp_path: Path) -> None:
    for number, changes in enumerate(({}, {"type_vocab_size": 2}, {"is_decoder": True, "add_cross_attention": True})):
        model = load_masked_lm(write_backbone(tmp_path / str(number), **changes))
        entries = {name: parameter.numel() for name, parameter in maskable(model).items()}
        body = sum(count for name, count in entries.items() if name not in embeddings_of(model))
        assert size_of_folder(tmp_path / str(number)) == Size(sum(entries.values()), body, 50, 16, 2)


def test_a_decoder_is_not_taken_for_the_encoder_of_its_shape() -> None:
    encoder, decoder = size_of(BASE), size_of({**BASE, "is_decoder": True, "add_cross_attention": True})
    assert encoder is not None
    assert decoder is not None
    assert decoder.maskable - encoder.maskable == 12 * 4 * (768 * 768 + 768)
    assert size_of({**BASE, "add_cross_attention": False}) == encoder


def test_no_weights_are_made() -> None:
    """On the CPU these embeddings alone would take 4 TiB."""
    found = size_of({**BASE, "vocab_size": 2**20, "hidden_size": 2**20, "num_attention_heads": 1})
    assert found is not None
    assert found.embeddings == (2**20 + 514 + 1) * 2**20


def test_a_shape_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    made = sizes.size_by_definition
    monkeypatch.setattr(sizes, "size_by_definition", lambda config: built.append(config) or made(config))
    config = {**BASE, "num_hidden_layers": 3, "num_labels": 7}
    assert [size_of(config) for _ in range(3)] == [made(config)] * 3
    assert len(built) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1001},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 2.5},
        {"num_hidden_layers": "12x"},
        {"num_hidden_layers": None},
        {"num_hidden_layers": [10**9]},
        {"type_vocab_size": 3, "parts": {"num_labels": [10**9]}},
        {"vocab_size": 2**63, "type_vocab_size": 3},
        {"vocab_size": -5},
        {"hidden_size": "x"},
        {"hidden_size": [768]},
        {"hidden_size": float("nan")},
        {"hidden_size": float("inf")},
        {"hidden_size": 770},
        {"type_vocab_size": 3, "num_labels": 10**9},
        {"type_vocab_size": 3, "num_attention_heads": 0},
        {"type_vocab_size": 3, "pad_token_id": 10**6},
        {"model_type": "no such type"},
        {"model_type": "gpt2"},
        {"model_type": ["xlm-roberta"]},
        {"model_type": None},
    ],
    ids=str,
)
def test_a_config_that_is_none_has_no_size(changes: dict[str, Any]) -> None:
    assert size_of({**BASE, **changes}) is None


@pytest.mark.parametrize("content", [None, b"", b"torn", b"[]", b"12", b"{}", b"\xff", b"[" * 100_000, b'{"a":' * 900])
def test_a_folder_without_a_config_has_no_size(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert size_of_folder(tmp_path) is None


def test_a_config_that_is_nested_too_deep_has_no_size(tmp_path: Path) -> None:
    """Where Python gives up depends on how deep the caller is."""
    for depth in range(400, 1000, 4):
        (tmp_path / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
        assert size_of_folder(tmp_path) is None


def test_a_backbone_pre_trained_here_is_planned_as_it_is_made() -> None:
    import torch

    from deftx.method.pretrain import new_model
    from deftx.stages.settings import BackboneSettings

    sizes = {"vocabulary": 311, "layers": 3, "hidden": 24, "heads": 3, "block": 9}
    settings = BackboneSettings(**sizes, texts=(), tokenizer_texts=(), seed=0)
    with torch.device("meta"):
        model = new_model(settings.vocabulary, settings, seed=0)
    assert isinstance(model, XLMRobertaForMaskedLM)
    found = size_of({"model_type": "xlm-roberta", **settings.config})
    assert found is not None
    assert found.maskable == sum(parameter.numel() for parameter in maskable(model).values())
    assert (found.vocabulary, found.layers, found.hidden) == (311, 3, 24)

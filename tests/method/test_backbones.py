"""Which weights may train, which head a backbone gets, and what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny import LABELS, PAD, VOCABULARY, make_config, same_bits, write_backbone
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertForMaskedLM, XLMRobertaForMaskedLM

from deftx.errors import DataError
from deftx.models.load import cut_length, load_classifier, load_masked_lm, load_tokenizer, longest_input
from deftx.models.parameters import base_of, embeddings_of, fingerprint, head_of, maskable

WORDS = "embeddings.word_embeddings.weight"


def on_meta(**shape: int) -> Any:
    with torch.device("meta"):
        return XLMRobertaForMaskedLM(
            make_config(vocab_size=250_002, max_position_embeddings=514, pad_token_id=PAD, **shape)
        )


@pytest.mark.parametrize(
    ("shape", "entries"),
    [
        (
            {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
            277_414_656,
        ),
        (
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            558_740_480,
        ),
    ],
    ids=["base", "large"],
)
def test_maskable_entries_of_xlm_r(shape: dict[str, int], entries: int) -> None:
    found = maskable(on_meta(**shape))
    assert sum(parameter.numel() for parameter in found.values()) == entries
    assert entries == count_by_hand(shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"])


def count_by_hand(hidden: int, layers: int, feed_forward: int) -> int:
    """Word, position and token-type embeddings; four attention matrices, two of the FFN, and their biases."""
    embeddings = (250_002 + 514 + 1) * hidden
    attention = 4 * (hidden * hidden + hidden)
    return embeddings + layers * (attention + 2 * hidden * feed_forward + feed_forward + hidden)


def test_the_embeddings_are_maskable_although_transformers_names_them_after_the_decoder() -> None:
    tied = XLMRobertaForMaskedLM(make_config())
    found = maskable(tied)
    assert found[WORDS] is tied.get_input_embeddings().weight
    assert embeddings_of(tied) == {
        WORDS,
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
    }
    assert len({id(parameter) for parameter in found.values()}) == len(found)


def test_layer_norms_are_frozen_by_type_whatever_their_name(backbone: Path) -> None:
    model = load_masked_lm(backbone)
    layer = base_of(model).encoder.layer[0].output  # type: ignore[union-attr]
    layer.scaling, layer.LayerNorm = layer.LayerNorm, nn.Linear(2, 2)
    names = maskable(model)
    assert not [name for name in names if "scaling" in name]
    assert "encoder.layer.0.output.LayerNorm.weight" in names
    frozen = {name for name, p in base_of(load_masked_lm(backbone)).named_parameters() if not p.requires_grad}
    assert frozen == set(weights_named(backbone, "LayerNorm"))


def weights_named(folder: Path, part: str) -> list[str]:
    return [name for name, _ in base_of(load_masked_lm(folder)).named_parameters() if part in name]


def test_the_heads(backbone: Path) -> None:
    lm, classifier = load_masked_lm(backbone), load_classifier(backbone, LABELS, seed=0)
    assert set(head_of(lm)) == {
        "lm_head.bias", "lm_head.dense.weight", "lm_head.dense.bias", "lm_head.layer_norm.weight",
        "lm_head.layer_norm.bias",
    }  # fmt: skip
    assert set(head_of(classifier)) == {
        "classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias",
    }  # fmt: skip
    assert classifier.config.id2label == dict(enumerate(LABELS))
    for model in (lm, classifier):
        assert all(parameter.requires_grad for parameter in head_of(model).values())
        assert not {id(p) for p in head_of(model).values()} & {id(p) for p in maskable(model).values()}


def test_the_output_embedding_is_an_untied_frozen_copy(backbone: Path) -> None:
    model = load_masked_lm(backbone)
    decoder, words = model.lm_head.decoder.weight, model.get_input_embeddings().weight
    assert torch.equal(decoder, words)
    assert decoder.data_ptr() != words.data_ptr()
    assert not decoder.requires_grad
    assert model.lm_head.decoder.bias is model.lm_head.bias


def test_without_an_lm_head_one_has_to_be_named(headless: Path) -> None:
    with pytest.raises(DataError, match=r"me5: has no LM head; set lm_head to a donor"):
        load_masked_lm(headless)


def test_a_donors_lm_head_on_its_own_embeddings(backbone: Path, headless: Path) -> None:
    model, donor = load_masked_lm(headless, lm_head=backbone), load_masked_lm(backbone)
    assert same_bits(detached(head_of(model)), detached(head_of(donor)))
    assert torch.equal(model.lm_head.decoder.weight, model.get_input_embeddings().weight)
    assert not torch.equal(model.lm_head.decoder.weight, donor.lm_head.decoder.weight)
    assert not model.lm_head.decoder.weight.requires_grad


def detached(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in parameters.items()}


def test_a_donor_of_another_shape_is_refused_by_name(tmp_path: Path, headless: Path) -> None:
    donor = write_backbone(tmp_path / "donor", hidden_size=8)
    with pytest.raises(DataError, match="donor: its LM head does not fit"):
        load_masked_lm(headless, lm_head=donor)


def test_a_random_lm_head_is_drawn_from_its_seed_alone(backbone: Path, headless: Path) -> None:
    heads = []
    for folder, seed in ((headless, 1), (headless, 1), (backbone, 1), (headless, 2)):
        torch.manual_seed(len(heads))
        heads.append(detached(head_of(load_masked_lm(folder, lm_head="random", seed=seed))))
    assert same_bits(heads[0], heads[1])
    assert same_bits(heads[0], heads[2])  # nothing of the backbone's own head is left
    assert not torch.equal(heads[0]["lm_head.dense.weight"], heads[3]["lm_head.dense.weight"])
    assert not heads[0]["lm_head.bias"].any()
    assert bool((heads[0]["lm_head.layer_norm.weight"] == 1).all())


def test_a_classifier_is_drawn_from_its_seed_alone(backbone: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(heads))
        heads.append(detached(head_of(load_classifier(backbone, LABELS, seed=seed))))
    assert same_bits(heads[0], heads[1])
    assert not torch.equal(heads[0]["classifier.out_proj.weight"], heads[2]["classifier.out_proj.weight"])
    assert float(heads[0]["classifier.dense.weight"].std()) == pytest.approx(0.1, rel=0.2)  # initializer_range


def test_dropout_is_the_backbones_own_unless_it_is_given(backbone: Path) -> None:
    def rates(model: nn.Module) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}

    assert rates(load_masked_lm(backbone)) == {0.1}
    assert rates(load_masked_lm(backbone, dropout=0.0)) == {0.0}
    assert rates(load_classifier(backbone, LABELS, 0, dropout=0.25)) == {0.25}


def test_the_fingerprint_is_of_the_base_models_weights(backbone: Path, headless: Path) -> None:
    model = load_masked_lm(backbone)
    assert model.deftx_fingerprint == fingerprint(model) == load_classifier(backbone, LABELS, 3).deftx_fingerprint
    assert load_masked_lm(headless, lm_head="random").deftx_fingerprint != model.deftx_fingerprint
    with torch.no_grad():
        head_of(model)["lm_head.bias"].add_(1)
    assert fingerprint(model) == model.deftx_fingerprint
    with torch.no_grad():
        weight = base_of(model).encoder.layer[1].output.dense.weight  # type: ignore[union-attr]
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1.0))
    assert fingerprint(model) != model.deftx_fingerprint


def copied(backbone: Path, folder: Path) -> Path:
    return Path(shutil.copytree(backbone, folder / "broken"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"torn"])
def test_a_folder_that_is_no_model_is_refused_by_name(
    backbone: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    folder = copied(backbone, tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"broken.*(not a model that can|no weights there|no file of weights)"):
        load_masked_lm(folder)


def test_weights_that_lack_a_tensor_are_refused_by_its_name(backbone: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(backbone, tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = "roberta.encoder.layer.1.output.dense.bias"
    save_file({name: w for name, w in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=gone):
        load_masked_lm(folder)


def test_a_model_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    small = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=VOCABULARY, **small)).save_pretrained(tmp_path)
    with pytest.raises(
        DataError, match=r"config\.json: model_type: 'distilbert' is no encoder .*; valid: xlm-roberta, .*bert"
    ):
        load_masked_lm(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"torn"])
def test_a_backbone_has_to_carry_its_tokenizer(backbone: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = copied(backbone, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="no tokenizer there"):
        load_tokenizer(folder)


def test_a_model_reads_as_many_tokens_as_it_has_positions_for(backbone: Path) -> None:
    roberta = load_masked_lm(backbone)
    longest = torch.full((1, longest_input(roberta)), 7)
    assert longest.shape == (1, 38)
    roberta(longest)
    with pytest.raises((IndexError, RuntimeError)):
        roberta(torch.cat([longest, longest[:, :1]], dim=1))
    small = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    assert longest_input(BertModel(BertConfig(max_position_embeddings=20, **small))) == 20
    endless = nn.Module()
    endless.config = SimpleNamespace()
    assert longest_input(endless) == sys.maxsize


def test_texts_are_cut_to_what_the_model_reads_and_not_without_a_word(
    backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_classifier(backbone, ("no", "yes"), seed=0)
    reads = longest_input(model)
    assert (cut_length(8, model), cut_length(reads, model)) == (8, reads)
    assert not caplog.messages
    assert cut_length(reads + 1, model) == reads
    assert caplog.messages == [f"max_length is {reads + 1}, but the backbone reads {reads} tokens: texts are cut there"]

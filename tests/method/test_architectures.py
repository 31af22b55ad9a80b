"""Every architecture: what trains, what is frozen, which head it gets, and that transformers computes the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.encoders import CONFIGS, write_encoder
from support.tiny import END, LABELS, PAD, START, make_mlm, make_sft, same_bits, weights_of
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertForPreTraining

from deftx.errors import DataError
from deftx.models.architectures import ARCHITECTURES, lm_head_of
from deftx.models.load import load_classifier, load_masked_lm, longest_input
from deftx.models.parameters import base_of, embeddings_of, encoder_of, fingerprint, head_of, maskable, pooler_of
from deftx.sft.compose import composed

KINDS = list(CONFIGS)
ROBERTAS = ("xlm-roberta", "roberta", "camembert")
WORDS = {"modernbert": "embeddings.tok_embeddings.weight"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in KINDS}


def ids(length: int = 12, rows: int = 3) -> torch.Tensor:
    tokens = torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, -1] = START, END
    return tokens


def test_every_architecture_is_tried_here() -> None:
    tried = {CONFIGS[kind]().model_type for kind in KINDS}
    assert not [a for a in ARCHITECTURES if not tried & set(a.model_types)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_train_is_all_of_the_encoder_but_its_norms(folders: dict[str, Path], kind: str) -> None:
    model = load_masked_lm(folders[kind])
    norms = {
        f"{place}.{name}"
        for place, module in base_of(model).named_modules() if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    }  # fmt: skip
    assert norms
    assert maskable(model).keys() == {name for name, _ in base_of(model).named_parameters()} - norms
    assert WORDS.get(kind, "embeddings.word_embeddings.weight") in embeddings_of(model)
    trained = {id(p) for p in (*maskable(model).values(), *head_of(model).values())}
    left = {name for name, p in model.named_parameters() if id(p) not in trained}
    output = next(name for name, p in model.named_parameters() if p is lm_head_of(model).decoder.weight)  # type: ignore[union-attr]
    assert {name.removeprefix(f"{model.base_model_prefix}.") for name in left} == norms | {output}


class RMSNorm(nn.Module):
    """As transformers' own models define it: no subclass of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))


@pytest.mark.parametrize("norm", [nn.RMSNorm(16), nn.LayerNorm(16, bias=False), RMSNorm()])
def test_norms_of_every_type_are_frozen(folders: dict[str, Path], norm: nn.Module) -> None:
    model = load_masked_lm(folders["modernbert"])
    before = set(maskable(model))
    base_of(model).extra = norm
    assert set(maskable(model)) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_lm_head_computes_what_transformers_computes(folders: dict[str, Path], kind: str) -> None:
    plain = AutoModelForMaskedLM.from_pretrained(folders[kind]).eval()
    model = load_masked_lm(folders[kind]).eval()
    head, hidden = lm_head_of(model), base_of(model)(ids()).last_hidden_state
    assert head is not None
    assert torch.equal(head.decoder(head.transform(hidden)), plain(ids()).logits)
    words = model.get_input_embeddings().weight
    assert torch.equal(head.decoder.weight, words)
    assert head.decoder.weight is not words
    assert not head.decoder.weight.requires_grad
    assert "decoder.weight" not in " ".join(head_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_embedding_that_was_never_tied_is_kept(tmp_path: Path, kind: str) -> None:
    if kind == "deberta-v3":
        pytest.skip("its output embedding is the input embedding")
    write_encoder(tmp_path, kind, tie_word_embeddings=False)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    model = load_masked_lm(tmp_path).eval()
    head = lm_head_of(model)
    assert head is not None
    assert not torch.equal(head.decoder.weight, model.get_input_embeddings().weight)
    assert torch.equal(head.decoder.weight, plain.get_output_embeddings().weight)
    hidden = base_of(model)(ids()).last_hidden_state
    assert torch.equal(head.decoder(head.transform(hidden)), plain(ids()).logits)
    assert not head.decoder.weight.requires_grad
    assert len(head_of(model)) == len(head.trained())


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_ones_own_a_random_one_and_a_donors(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    headless = write_encoder(tmp_path / "headless", kind, lm_head=False, seed=7)
    with pytest.raises(DataError, match="has no LM head; set lm_head to a donor"):
        load_masked_lm(headless)
    one, other = (load_masked_lm(headless, "random", seed=seed) for seed in (0, 1))
    donated, donor = load_masked_lm(headless, folders[kind]), load_masked_lm(folders[kind])
    heads = {name: lm_head_of(m).trained() for name, m in  # type: ignore[union-attr]
             {"one": one, "other": other, "donated": donated, "donor": donor}.items()}  # fmt: skip
    assert not torch.equal(heads["one"]["dense.weight"], heads["other"]["dense.weight"])
    assert bool((heads["one"]["norm.weight"] == 1).all())
    assert not bool(heads["one"]["bias"].any())
    assert same_bits(detached(heads["donated"]), detached(heads["donor"]))
    for model in (one, donated):
        assert torch.equal(lm_head_of(model).decoder.weight, model.get_input_embeddings().weight)  # type: ignore[union-attr]


def detached(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in parameters.items()}


def test_a_donor_may_be_of_another_architecture(folders: dict[str, Path], tmp_path: Path) -> None:
    headless = write_encoder(tmp_path, "bert", lm_head=False)
    models = load_masked_lm(headless, folders["xlm-roberta"]), load_masked_lm(folders["xlm-roberta"])
    assert same_bits(*(detached(lm_head_of(model).trained()) for model in models))  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"its LM head does not fit: dense.bias is none, and"):
        load_masked_lm(headless, folders["modernbert"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_classifier_is_transformers_own_and_drawn_from_its_seed_alone(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    write_encoder(tmp_path / "headless", kind, lm_head=False, seed=0)
    models = [load_classifier(folders[kind], LABELS, seed) for seed in (0, 0, 1)]
    models.append(load_classifier(tmp_path / "headless", LABELS, 0))
    heads = [detached(head_of(model)) for model in models]
    assert same_bits(heads[0], heads[1])
    assert same_bits(heads[0], heads[3])
    layers = [name for name in heads[0] if name.endswith("weight") and heads[0][name].dim() == 2]
    assert len(layers) == 2
    assert all(not torch.equal(heads[0][name], heads[2][name]) for name in layers)
    assert not torch.equal(heads[0][layers[0]][:3], heads[0][layers[1]])
    models[0].save_pretrained(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(plain(ids()).logits, models[0].eval()(ids()).logits)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "xlm-roberta"])
def test_the_classifier_is_two_layers_on_the_first_token(folders: dict[str, Path], kind: str) -> None:
    model = load_classifier(folders[kind], LABELS, 0).eval().double()
    first = base_of(model)(ids()).last_hidden_state[:, 0]
    named = dict(model.named_parameters())
    layers = {
        "bert": ("bert.pooler.dense", "classifier"), "deberta-v2": ("pooler.dense", "classifier"),
        "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    }[kind]  # fmt: skip
    for layer in layers:
        first = first @ named[f"{layer}.weight"].T + named[f"{layer}.bias"]
        first = first.tanh() if layer == layers[0] else first
    assert torch.allclose(model(ids()).logits, first, atol=1e-12)


def test_modernberts_classifier_has_its_norm(folders: dict[str, Path]) -> None:
    model = load_classifier(folders["modernbert"], LABELS, 0).eval()
    assert list(head_of(model)) == ["head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"]
    assert bool((model.head.norm.weight == 1).all())  # drawn anew: the checkpoint's is the LM head's


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_fits_the_classifier_as_it_fits_the_language_model(folders: dict[str, Path], kind: str) -> None:
    lm, classifier = load_masked_lm(folders[kind]), load_classifier(folders[kind], LABELS, 0)
    assert lm.deftx_fingerprint == classifier.deftx_fingerprint == fingerprint(lm)
    assert encoder_of(lm).keys() == encoder_of(classifier).keys()
    before, logits = weights_of(classifier), classifier.eval()(ids()).logits
    with composed(classifier, language=make_sft(lm)):
        assert not torch.equal(classifier(ids()).logits, logits)
    assert same_bits(weights_of(classifier), before)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_by_the_names_that_the_architecture_has_for_it(folders: dict[str, Path], kind: str) -> None:
    for load in (load_masked_lm, lambda folder, **options: load_classifier(folder, LABELS, 0, **options)):
        model = load(folders[kind], dropout=0.25)
        shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
        assert shares == {0.25} or shares == {0.25, 0.0}, shares
    model = load_classifier(folders[kind], LABELS, 0, dropout=0.0).train()
    assert torch.equal(model(ids()).logits, model(ids()).logits)
    varies = load_classifier(folders[kind], LABELS, 0, dropout=0.5).train()
    assert not torch.equal(varies(ids()).logits, varies(ids()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_tokens_as_it_reads_and_not_one_more(folders: dict[str, Path], kind: str) -> None:
    model = load_masked_lm(folders[kind]).eval()
    reads = longest_input(model)
    endless = dict.fromkeys(("deberta-v2", "deberta-v3"), sys.maxsize)
    assert reads == {**dict.fromkeys(ROBERTAS, 38), **endless}.get(kind, 40)
    long = torch.full((1, min(reads, 90)), 7)
    assert bool(base_of(model)(long).last_hidden_state.isfinite().all())
    if kind in (*ROBERTAS, "bert"):
        with pytest.raises((IndexError, RuntimeError)):
            base_of(model)(torch.full((1, reads + 1), 7))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(folders: dict[str, Path], kind: str) -> None:
    """Relative positions, rotary embeddings and windows are of the tokens that are there."""
    model = load_masked_lm(folders[kind]).double().eval()
    alone = base_of(model)(ids(20, 1)).last_hidden_state
    padded = torch.cat([ids(20, 1), torch.full((1, 9), PAD)], dim=1)
    mask = (torch.arange(29) < 20).long()[None]
    assert torch.allclose(base_of(model)(padded, attention_mask=mask).last_hidden_state[:, :20], alone, atol=1e-12)


def test_a_window_hides_what_lies_outside_it(tmp_path: Path) -> None:
    """With windows alone a token of two layers sees eight tokens to either side, and none beyond."""
    write_encoder(tmp_path, "modernbert", layer_types=["sliding_attention"] * 2)
    model = load_masked_lm(tmp_path).eval()
    one = ids(30, 1)
    other = one.clone()
    other[0, 20] = (other[0, 20] - 4) % 45 + 5
    moved = (base_of(model)(one).last_hidden_state != base_of(model)(other).last_hidden_state).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(12, 29))


def test_rotary_positions_are_relative(folders: dict[str, Path]) -> None:
    """Moved along together, tokens attend to one another as before."""
    model = base_of(load_masked_lm(folders["modernbert"])).double().eval()
    states = [model(ids(rows=1), position_ids=torch.arange(12)[None] + by).last_hidden_state for by in (0, 9)]
    # transformers computes sines and cosines in float32
    assert torch.allclose(*states, atol=1e-5)


def test_a_published_v3_checkpoint_is_loaded_with_its_own_lm_head(tmp_path: Path) -> None:
    """Their config.json does not say that the head is v3's; transformers would draw v2's at random."""
    write_encoder(tmp_path, "deberta-v3")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["legacy"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    head = lm_head_of(load_masked_lm(tmp_path))
    assert head is not None
    assert torch.equal(head.dense.weight, weights["lm_predictions.lm_head.dense.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_classifier_is_a_backbone_whatever_its_labels(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind](num_labels=5))
    model.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path, LABELS, 0)
    assert loaded.config.num_labels == 3
    assert loaded.deftx_fingerprint == fingerprint(model)
    assert same_bits(detached(encoder_of(loaded)), detached(encoder_of(model)))


def test_an_encoder_of_another_shape_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(folders["bert"] / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    weights[name] = weights[name][:, :20].contiguous()
    (tmp_path / "config.json").write_text((folders["bert"] / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=rf"{name} has shape \(16, 20\), but .* \(16, 24\)"):
        load_masked_lm(tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_no_numbers_are_named_when_they_are_loaded(
    folders: dict[str, Path], tmp_path: Path, value: float
) -> None:
    weights = load_file(folders["xlm-roberta"] / "model.safetensors")
    weights[name := "roberta.encoder.layer.0.output.dense.weight"][0, :2] = value
    (tmp_path / "config.json").write_text((folders["xlm-roberta"] / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=f"2 of the 384 weights of {name} are NaN") as told:
        load_masked_lm(tmp_path)
    assert "learning rate" not in str(told.value)


def test_the_names_of_a_bert_that_was_pretrained_on_two_tasks(tmp_path: Path) -> None:
    """Its file has a pooler and a next-sentence head; the LM head is there."""
    BertForPreTraining(CONFIGS["bert"]()).save_pretrained(tmp_path)
    assert not pooler_of(load_masked_lm(tmp_path))
    classifier = load_classifier(tmp_path, LABELS, 0)
    kept = load_file(tmp_path / "model.safetensors")["bert.pooler.dense.weight"]
    assert torch.equal(classifier.deftx_pooler["pooler.dense.weight"], kept)
    assert not torch.equal(pooler_of(classifier)["pooler.dense.weight"], kept)


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_transformers_loss(folders: dict[str, Path], kind: str) -> None:
    objective, model = make_mlm(), load_masked_lm(folders[kind]).double().eval()
    plain = AutoModelForMaskedLM.from_pretrained(folders[kind]).double().eval()
    batch = objective.batch(np.arange(4), np.random.default_rng(0))
    with torch.no_grad():
        logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        theirs = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        assert float(objective.loss(model, batch)) == pytest.approx(float(theirs), abs=1e-10)

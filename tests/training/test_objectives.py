"""The losses against the plain ones, and the masks against their definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from support.tiny import (
    LABELS,
    MASK,
    PAD,
    SPECIAL,
    VOCABULARY,
    make_blocks,
    make_classification,
    make_encoded,
    make_masking,
    make_mlm,
    make_tokenizer,
)
from torch.nn.functional import cross_entropy

from deftx.config import Metric
from deftx.kernels import linear_cross_entropy
from deftx.models.load import load_classifier, load_masked_lm
from deftx.train.objectives import IGNORED, Classification, Encoded, Masking, encode, pad, predict


@pytest.fixture(scope="module")
def masked_lm(backbone: Path) -> Any:
    return load_masked_lm(backbone, dropout=0.0).eval()


@pytest.fixture(scope="module")
def classifier(backbone: Path) -> Any:
    """Its weights are large, so that its predictions differ."""
    model = load_classifier(backbone, LABELS, seed=1, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits at every position, as the Hugging Face model computes them."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(
        logits.view(-1, logits.shape[-1]), batch["labels"].view(-1), ignore_index=-100, reduction="sum"
    )


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_at_masked_positions_is_the_plain_loss_with_its_gradients(masked_lm: Any) -> None:
    objective = make_mlm()
    batch = objective.batch(np.arange(8), generator())
    ours, plain = objective.loss(masked_lm, batch), plain_loss(masked_lm, batch)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    one, other = gradients(masked_lm, ours), gradients(masked_lm, plain)
    assert one.keys() == other.keys()
    assert "lm_head.decoder.weight" not in one
    whole = torch.cat([gradient.flatten() for gradient in other.values()]).norm()
    for name in one:
        assert float((one[name] - other[name]).norm()) <= 1e-6 * float(whole), name


def test_the_mlm_validation_loss_is_the_mean_over_all_masked_positions(masked_lm: Any) -> None:
    objective = make_mlm(valid=21)
    found = objective.validate(masked_lm, torch.device("cpu"))["valid_loss"]
    fixed = make_masking().mask(make_blocks(valid=21).valid, np.random.default_rng([3, 7]))
    fixed["attention_mask"] = torch.from_numpy(make_blocks(valid=21).valid != PAD).long()
    expected = plain_loss(masked_lm, fixed).item() / int((fixed["labels"] != -100).sum())
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_validation_mask_is_fixed_by_its_seed(masked_lm: Any) -> None:
    device = torch.device("cpu")
    assert make_mlm().validate(masked_lm, device) == make_mlm().validate(masked_lm, device)


def test_masks_are_80_10_10_of_the_share_within_binomial_bounds() -> None:
    blocks = generator().integers(0, VOCABULARY, (2000, 50)).astype(np.int32)
    share = 0.15
    batch = make_masking(share).mask(blocks, generator(1))
    labels, inputs = batch["labels"].numpy(), batch["input_ids"].numpy()
    plain, chosen = ~np.isin(blocks, list(SPECIAL)), labels != IGNORED
    assert within(chosen.sum(), plain.sum(), share)
    assert not (chosen & ~plain).any()
    assert (labels[chosen] == blocks[chosen]).all()
    assert (inputs[~chosen] == blocks[~chosen]).all()
    to_mask = (inputs == MASK) & chosen
    changed = chosen & (inputs != blocks) & ~to_mask
    # a random word may be <mask> or the very word that stood there
    assert within(to_mask.sum(), chosen.sum(), 0.8 + 0.1 / VOCABULARY)
    assert within(changed.sum(), chosen.sum(), 0.1 * (1 - 2 / VOCABULARY))


def within(count: int, total: int, share: float) -> bool:
    """Whether a count is what chance makes of a share in all but one case in a million."""
    low, high = binom.ppf([5e-7, 1 - 5e-7], total, share)
    return bool(low <= count <= high)


def test_whole_word_masking_masks_whole_words_at_the_share() -> None:
    starts = np.arange(VOCABULARY) % 3 != 0  # ids divisible by 3 continue a word
    masking = Masking(0.3, MASK, VOCABULARY, SPECIAL, starts)
    blocks = make_blocks(train=600, length=30).train
    chosen = masking.mask(blocks, generator(2))["labels"].numpy() != IGNORED
    words = 0
    masked = 0
    for row, picks in zip(blocks, chosen, strict=True):
        for place, token in enumerate(row):
            if token in SPECIAL:
                assert not picks[place]
            elif not starts[token] and row[place - 1] not in SPECIAL:
                assert picks[place] == picks[place - 1]
            else:
                words, masked = words + 1, masked + picks[place]
    assert within(masked, words, 0.3)


def test_a_batch_is_cut_after_its_longest_block() -> None:
    objective = make_mlm()
    batch = objective.batch(np.array([0, 2]), generator())  # both end in four of padding
    assert {key: tuple(tensor.shape) for key, tensor in batch.items()} == dict.fromkeys(batch, (2, 8))
    assert objective.batch(np.array([0, 1]), generator())["input_ids"].shape == (2, 12)


def test_attention_follows_the_true_tokens_even_where_padding_is_drawn_as_a_random_word() -> None:
    objective = make_mlm(share=0.9, train=400)
    batch = objective.batch(np.arange(400), generator())
    true = torch.from_numpy(make_blocks(train=400).train)
    assert bool(((batch["input_ids"] == PAD) & (true != PAD)).any())  # it does happen
    assert torch.equal(batch["attention_mask"], (true != PAD).long())


def test_a_batch_without_any_masked_position_has_no_loss(masked_lm: Any) -> None:
    objective = make_mlm()
    batch = objective.batch(np.arange(2), generator())
    batch["labels"].fill_(IGNORED)
    loss = objective.loss(masked_lm, batch)
    assert (loss.item(), objective.num_targets(batch)) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(masked_lm, loss).values())


def test_classification_loss_is_cross_entropy_by_hand(classifier: Any) -> None:
    objective = make_classification()
    batch = objective.batch(np.arange(7), generator())
    encoded = make_encoded(20, 1)
    expected = 0.0
    for ids, label in zip(encoded.ids[:7], encoded.labels[:7], strict=True):  # one by one: no padding at all
        logits = classifier(torch.tensor([ids])).logits[0].double().tolist()
        expected += math.log(sum(math.exp(logit) for logit in logits)) - logits[int(label)]
    assert objective.loss(classifier, batch).item() == pytest.approx(expected, rel=1e-5)
    assert objective.num_targets(batch) == 7


def test_predictions_come_in_order_whatever_the_lengths(classifier: Any) -> None:
    encoded = make_encoded(80, 5)
    expected = [int(classifier(torch.tensor([ids])).logits.argmax()) for ids in encoded.ids]
    assert len(set(expected)) == 3
    assert predict(classifier, encoded, PAD, torch.device("cpu")).tolist() == expected


def test_the_classification_metric_is_the_benchmarks(classifier: Any) -> None:
    objective = make_classification(valid=30)
    valid = make_encoded(30, 2)
    right = (predict(classifier, valid, PAD, torch.device("cpu")) == valid.labels).mean()
    assert objective.validate(classifier, torch.device("cpu")) == {"valid_score": right}


def test_padding_by_hand() -> None:
    padded = pad([[5, 6, 7], [8]], PAD)
    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_sentences_and_pairs_are_encoded_and_cut() -> None:
    tokenizer = make_tokenizer()
    assert encode(tokenizer, ["w0 w1 w2", "w3"], None, [1, 0], 4).ids == ([0, 5, 6, 2], [0, 8, 2])
    pairs = encode(tokenizer, ["w0 w1"], ["w2"], [2], 128)
    assert (pairs.ids, pairs.labels.tolist(), len(pairs)) == (([0, 5, 6, 2, 2, 7, 2],), [2], 1)


def test_no_examples_have_no_predictions(classifier: Any) -> None:
    empty = Encoded((), np.empty(0, dtype=np.int64))
    assert predict(classifier, empty, PAD, torch.device("cpu")).tolist() == []


@pytest.mark.parametrize("chunk", [1, 7 * VOCABULARY, 1 << 25])
def test_a_loss_in_chunks_is_the_loss_of_all_logits_with_its_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "_CHUNK", chunk)
    torch.manual_seed(0)
    output = torch.nn.Linear(8, VOCABULARY)
    output.weight.requires_grad_(False)
    hidden, labels = torch.randn(23, 8, requires_grad=True), torch.randint(0, VOCABULARY, (23,))
    plain = cross_entropy(output(hidden), labels, reduction="sum")
    expected = torch.autograd.grad(plain * 0.3, (hidden, output.bias))
    ours = linear_cross_entropy.fused_linear_cross_entropy(hidden, output, labels)
    found = torch.autograd.grad(ours * 0.3, (hidden, output.bias))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert linear_cross_entropy.fused_linear_cross_entropy(hidden, output, labels).item() == pytest.approx(
            plain.item(), rel=1e-6
        )


def test_a_loss_under_autocast_is_the_plain_one_under_autocast() -> None:
    torch.manual_seed(0)
    output = torch.nn.Linear(16, VOCABULARY)
    output.weight.requires_grad_(False)
    hidden, labels = torch.randn(9, 16, requires_grad=True), torch.randint(0, VOCABULARY, (9,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = cross_entropy(output(hidden).float(), labels, reduction="sum")
        ours = linear_cross_entropy.fused_linear_cross_entropy(hidden, output, labels)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    one, other = (torch.autograd.grad(loss, hidden)[0] for loss in (ours, plain))
    torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("numbers", [[0, 1], [1, 3], [0, 2]], ids=["padding", "none", "cut"])
def test_what_is_worked_out_beforehand_changes_no_loss(masked_lm: Any, numbers: list[int]) -> None:
    objective = make_mlm()
    batch = objective.batch(np.array(numbers), generator())
    prepared = objective.prepare_batch(batch)
    assert ("attention_mask" in prepared) == (numbers == [0, 1])
    assert objective.loss(masked_lm, prepared).item() == pytest.approx(plain_loss(masked_lm, batch).item(), rel=1e-6)


NEVER = "no training row is labelled {!r}, so that the classifier never learns it"
AS_ZERO = "no validation row is labelled {!r}, which macro F1 counts as 0, so that not even a perfect model scores 100"


@pytest.mark.parametrize(
    ("train", "valid", "metric", "said"),
    [
        ((0, 1, 2), (2, 1, 0), "macro_f1", []),
        ((0, 2), (2, 1, 0), "macro_f1", [NEVER.format("neutral")]),
        ((0, 1, 2), (1,), "macro_f1", [AS_ZERO.format("negative"), AS_ZERO.format("positive")]),
        ((0, 1, 2), (1,), "accuracy", []),
    ],
)
def test_a_label_without_rows_is_warned_of(
    train: tuple[int, ...], valid: tuple[int, ...], metric: Metric, said: list[str]
) -> None:
    sides = [Encoded(tuple([5] for _ in labels), np.array(labels)) for labels in (train, valid)]
    assert Classification(*sides, LABELS, metric, PAD).warnings == said
    assert make_mlm().warnings == []

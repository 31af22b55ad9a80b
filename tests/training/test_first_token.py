"""The last layer at `<s>` alone, against transformers' own model in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models import Shape, classifier, masked_lm, sentences
from deftx.config import Training
from deftx.kernels.last_layer import FirstTokenLayer, read_first_token_only
from deftx.train.loop import train
from deftx.train.objectives import pad
from deftx.train.trainable import phase

SHAPE = Shape(2, 16, 2, 24, vocabulary=50, positions=40)
SENTENCES = [[0, 7, 8, 9, 2], [0, 11, 2], [0, 5, 6, 7, 8, 9, 2]]


def two() -> tuple[nn.Module, nn.Module]:
    """Transformers' own, and the same that reads the first token only; no dropout."""
    plain = classifier(SHAPE).double()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ours = copy.deepcopy(plain)
    read_first_token_only(ours)
    return plain.train(), ours.train()


def inputs(padded: bool) -> dict[str, Tensor]:
    return pad(SENTENCES if padded else [SENTENCES[0]] * 3, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
def test_logits_and_gradients_are_those_of_the_whole_layer(padded: bool, attention: str) -> None:
    plain, ours = two()
    for model in (plain, ours):
        model.set_attn_implementation(attention)  # type: ignore[operator]
        logits = model(**inputs(padded)).logits
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    torch.testing.assert_close(ours(**inputs(padded)).logits, plain(**inputs(padded)).logits, rtol=0, atol=1e-12)
    expected = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=0, atol=1e-12)


def test_it_computes_one_token_in_training_and_all_in_evaluation() -> None:
    _, ours = two()
    body = ours.roberta
    assert body(**inputs(True)).last_hidden_state.shape == (3, 1, 16)  # type: ignore[operator]
    assert body.eval()(**inputs(True)).last_hidden_state.shape == (3, 7, 16)  # type: ignore[operator, union-attr]


def test_a_classifier_trains_with_it() -> None:
    plain, objective = classifier(SHAPE), sentences(SHAPE, 8, 6)
    settings = Training(max_steps=2, batch_size=4)
    train(plain, objective, settings, seed=0, trainable=lambda: phase(plain, settings))
    assert isinstance(plain.roberta.encoder.layer[-1], FirstTokenLayer)
    assert not any(isinstance(layer, FirstTokenLayer) for layer in plain.roberta.encoder.layer[:-1])


def test_grades_are_transformers_own_to_the_last_bit() -> None:
    plain, ours = two()
    assert torch.equal(ours.eval()(**inputs(True)).logits, plain.eval()(**inputs(True)).logits)


def test_a_copy_computes_with_its_own_weights() -> None:
    _, ours = two()
    other = copy.deepcopy(ours)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not torch.equal(ours(**inputs(True)).logits, other(**inputs(True)).logits)


def test_a_model_of_another_kind_is_left_alone() -> None:
    model = masked_lm(SHAPE)
    read_first_token_only(model)
    assert not any(isinstance(module, FirstTokenLayer) for module in model.modules())

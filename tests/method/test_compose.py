"""theta0 + a phi_T + b phi_L: the exact sum, and the model bit-identical afterwards whatever happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import LABELS, make_sft, same_bits, weights_of

from deftx.errors import DataError
from deftx.models.load import load_classifier, load_masked_lm
from deftx.models.parameters import base_of, head_of
from deftx.sft.compose import apply, check_fits, composed
from deftx.sft.vector import SparseFineTuning


@pytest.fixture
def model(backbone: Path) -> Any:
    return load_classifier(backbone, LABELS, seed=1)


def with_head(model: Any, sft: SparseFineTuning, seed: int = 5) -> SparseFineTuning:
    generator = torch.Generator().manual_seed(seed)
    head = {name: torch.randn(p.shape, generator=generator) for name, p in head_of(model).items()}
    return replace(sft, head=head)


def dense_of(sft: SparseFineTuning, name: str, shape: torch.Size) -> torch.Tensor:
    flat = torch.zeros(shape.numel())
    if name in sft.indices:
        flat[sft.indices[name]] = sft.values[name]
    return flat.reshape(shape)


def test_the_sum_is_exact_and_the_task_head_replaces_the_models(model: Any) -> None:
    task, language = with_head(model, make_sft(model, seed=1)), make_sft(model, seed=2)
    base = {name: p.detach().clone() for name, p in base_of(model).named_parameters()}
    with composed(model, task, language, weights=(0.5, -2.0)):
        for name, parameter in base_of(model).named_parameters():
            expected = base[name] + 0.5 * dense_of(task, name, parameter.shape)
            expected = expected - 2.0 * dense_of(language, name, parameter.shape)
            torch.testing.assert_close(parameter, expected, rtol=2.4e-7, atol=1e-6)
        assert same_bits({name: p.detach() for name, p in head_of(model).items()}, dict(task.head))


def test_a_language_vectors_head_is_not_used(model: Any) -> None:
    language = with_head(model, make_sft(model))
    before = {name: p.detach().clone() for name, p in head_of(model).items()}
    with composed(model, language=language):
        assert same_bits({name: p.detach() for name, p in head_of(model).items()}, before)


def test_200_rounds_leave_every_bit_as_it_was(model: Any) -> None:
    with torch.no_grad():  # signed zeros, tiny and huge numbers are kept too
        next(base_of(model).parameters()).view(-1)[:4] = torch.tensor([-0.0, 1e-42, 3e38, 1e-30])
    before = weights_of(model)
    for round_ in range(200):
        task, language = with_head(model, make_sft(model, seed=round_)), make_sft(model, seed=1000 + round_)
        with composed(model, task, language):
            pass
    assert same_bits(weights_of(model), before)


def test_adding_and_subtracting_would_not_do(model: Any) -> None:
    before, sft = weights_of(model), make_sft(model)
    for _ in range(20):
        apply(model, sft)
        apply(model, sft, -1.0)
    assert not same_bits(weights_of(model), before)


def test_an_exception_inside_leaves_every_bit_as_it_was(model: Any) -> None:
    before = weights_of(model)
    with (
        pytest.raises(KeyboardInterrupt),
        composed(model, with_head(model, make_sft(model, seed=1)), make_sft(model, seed=2)),
    ):
        raise KeyboardInterrupt
    assert same_bits(weights_of(model), before)


def bad_vectors(model: Any) -> dict[str, SparseFineTuning]:
    """Vectors that do not fit: some are found out before anything is added, some only while it is."""
    good = make_sft(model, seed=2)
    name = list(good.indices)[-1]
    return {
        "does not have": replace(good, shapes={**good.shapes, "gone.weight": (2,)}),
        "has shape": replace(good, shapes={**good.shapes, name: (3, 3)}),
        "index": replace(good, indices={**good.indices, name: good.indices[name] + 10**6}),
        "contradicts itself": replace(good, values={**good.values, name: torch.ones(good.values[name].numel() + 1)}),
    }


@pytest.mark.parametrize("reason", ["does not have", "has shape", "index", "contradicts itself"])
def test_a_bad_second_vector_leaves_every_bit_as_it_was(model: Any, reason: str) -> None:
    before = weights_of(model)
    with (
        pytest.raises((DataError, IndexError, RuntimeError), match=reason),
        composed(model, with_head(model, make_sft(model)), bad_vectors(model)[reason]),
    ):
        raise AssertionError("not reached")
    assert same_bits(weights_of(model), before)


def test_a_head_that_does_not_fit_leaves_every_bit_as_it_was(model: Any, backbone: Path) -> None:
    before = weights_of(model)
    two_labels = load_classifier(backbone, LABELS[:2], seed=1)
    task = with_head(two_labels, make_sft(two_labels))
    with (
        pytest.raises(DataError, match=r"classifier.out_proj.weight \(2, 16\); the model has \(3, 16\)"),
        composed(model, task),
    ):
        pass
    assert same_bits(weights_of(model), before)


def test_a_vector_of_another_backbone_is_refused_by_fingerprint(model: Any, backbone: Path) -> None:
    here = str(model.deftx_fingerprint)
    check_fits(model, make_sft(model, fingerprint=here))
    check_fits(model, make_sft(model, fingerprint=None))
    with pytest.raises(DataError, match=f"fingerprint {'0' * 12}, but this backbone's is {here[:12]}"):
        check_fits(model, make_sft(model, fingerprint="0" * 64))


def test_apply_is_for_good_and_leaves_the_head(model: Any) -> None:
    sft = with_head(model, make_sft(model))
    before = weights_of(model)
    apply(model, sft, 3.0)
    for name, parameter in base_of(model).named_parameters():
        dense = dense_of(sft, name, parameter.shape)
        torch.testing.assert_close(parameter, before[f"roberta.{name}"] + 3.0 * dense, rtol=2.4e-7, atol=1e-6)
    assert all(torch.equal(p, before[name]) for name, p in head_of(model).items())


def test_a_vector_learnt_with_an_lm_head_fits_the_classifier_of_the_same_backbone(model: Any, backbone: Path) -> None:
    masked = load_masked_lm(backbone)
    assert masked.deftx_fingerprint == model.deftx_fingerprint
    check_fits(model, make_sft(masked, fingerprint=masked.deftx_fingerprint))

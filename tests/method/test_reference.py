"""The plain reference of the training benchmark computes what ours computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import weights_of
from support.trainings import Always, batch_at, both, half_mask, run

from benchmarks import memory
from benchmarks.models import BASE, LARGE, Shape, masked_lm, random_mask
from benchmarks.reference import Reference, step_of_a_trainer
from benchmarks.train import WORKS, needed
from deftx.config import Training
from deftx.masks.select import Indices
from deftx.models.attention import masks_where_given
from deftx.models.parameters import maskable


@pytest.mark.parametrize("kind", ["mlm", "classification"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_the_reference_and_ours_take_the_same_steps(backbone: Path, kind: str, sparse: bool) -> None:
    (ours, objective), (theirs, _) = both(kind, backbone), both(kind, backbone)
    mask: Indices | None = half_mask(ours) if sparse else None
    settings = Training(max_steps=4, batch_size=8, learning_rate=1e-2)
    run(ours.double(), Always(objective), settings, mask)
    plain = Reference(theirs.double(), mask)
    for step in range(4):
        plain._optimizer.param_groups[0]["lr"] = 1e-2 * (4 - step) / 4
        plain.step(batch_at(objective, step, 8))
    expected = weights_of(theirs)
    for name, weight in weights_of(ours).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlm", "classification"])
def test_a_trainers_step_is_that_of_the_reference(backbone: Path, kind: str) -> None:
    (model, objective), (same, _) = both(kind, backbone), both(kind, backbone)
    batches = [batch_at(objective, step, 8) for step in range(3)]
    step, plain = step_of_a_trainer(model.double(), iter(batches), rate=1e-2), Reference(same.double(), rate=1e-2)
    for batch in batches:
        step()
        plain.step(batch)
    expected, start = weights_of(same), weights_of(both(kind, backbone)[0])
    assert any(not torch.equal(weight, start[name].double()) for name, weight in expected.items())
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_shapes_and_masks_are_as_large_as_they_say() -> None:
    shape = Shape(2, 16, 2, 24, vocabulary=50, positions=40)
    model = masked_lm(shape)
    found = maskable(model)
    assert sum(p.numel() for n, p in found.items() if p.dim() == 2 and "embeddings" not in n) == 2 * shape.layer_weights
    assert found["embeddings.word_embeddings.weight"].numel() == shape.words
    mask = random_mask(model, 500)
    assert 480 < sum(index.numel() for index in mask.values()) < 520
    assert all(bool((index.diff() > 0).all()) for index in mask.values())
    assert (BASE.words, LARGE.words) == (250_002 * 768, 250_002 * 1024)


def test_the_arithmetic_of_a_step_by_hand() -> None:
    flop, _ = needed(WORKS[0])
    layer = 4 * 768 * 768 + 2 * 768 * 3072
    tokens = 8 * 256
    forward = 12 * (2 * layer * tokens + 8 * 2 * 2 * 256 * 256 * 768)
    head = 0.15 * tokens * (4 * 250_002 * 768 + 6 * 768 * 768)
    assert flop == pytest.approx(3 * forward + head)
    assert flop == pytest.approx(1.33e12, rel=0.02)
    assert np.isclose(needed(WORKS[1])[0], flop)
    everywhere = needed(WORKS[0], everywhere=True)[0]
    assert everywhere == pytest.approx(3 * forward + tokens * (4 * 250_002 * 768 + 6 * 768 * 768))


@pytest.mark.parametrize("drops", [True, False])
def test_the_activations_of_the_layers_are_what_the_backward_pass_is_left_with(drops: bool) -> None:
    """On a CPU, where a hidden dropout keeps a float32 mask, and attention its probabilities only where it drops."""
    shape = Shape(3, 16, 2, 24, vocabulary=50, positions=40)
    found = {layers: kept_bytes(replace(shape, layers=layers), drops) for layers in (1, 3)}
    assert found[3] - found[1] == memory.activations(shape, 4, 12, drops_attention=drops) * 2 // 3


def kept_bytes(shape: Shape, drops_attention: bool) -> int:
    """Bytes that a forward pass in training keeps besides the model's own, each piece of memory once."""
    model = masked_lm(shape).train()
    for layer in model.roberta.encoder.layer:
        assert layer.attention.self.dropout.p == 0.1
        layer.attention.self.dropout.p *= drops_attention
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.numel():
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(5, 50, (4, 12))
    with masks_where_given(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.roberta(ids).last_hidden_state.sum()
    total = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    return total


def test_bytes_of_the_full_shapes() -> None:
    layer, head, output = 12 * 7_084_800, 768 * 768 + 3 * 768 + 250_002, 250_048 * 768
    body, linear, k = 277_414_656, layer + 768 * 768 + 768, 7_667_712
    dense, sparse = memory.parts(BASE, None), memory.parts(BASE, k)
    assert dense.delta == sparse.delta == 4 * body
    assert (dense.weights, dense.moments, dense.best) == (
        4 * (body + head + output),
        8 * (body + head),
        dense.moments / 2,
    )
    assert sparse.weights - dense.weights == 12 * (k + head)
    assert (sparse.moments, sparse.best) == (8 * (k + head), 4 * (k + head))
    # 768 x 768 is put side by side, 768 x 3072 is not
    assert dense.gradients == 4 * (body + head)
    assert sparse.gradients == dense.gradients + 8 * (k + head) + 4 * 12 * 4 * 768 * 768
    assert dense.activations == 12 * 2048 * 4 * (10 * 768 + 2 * 3072 + 4 + 3 * 12 * 256)
    assert dense.total == dense.weights + 12 * (body + head) + dense.activations + 2**28
    narrow, few = memory.parts(BASE, None, gpu=True), memory.parts(BASE, k, gpu=True)
    assert narrow.weights == 4 * (body + head) + 2 * linear + 2 * output
    assert narrow.gradients == 4 * (body + head - linear) + 2 * linear + 4 * linear
    assert few.gradients == 4 * (body + head - linear) + 2 * linear + 2 * linear + 8 * (k + head)
    assert narrow.activations == 12 * 2048 * (26 * 768 + 4 * 3072 + 16 + 4 * 12)
    assert narrow.total == narrow.weights + 12 * (body + head) + narrow.gradients
    task, classifier = memory.parts(BASE, None, examples=16, length=128, task=True), 768 * 768 + 768 + 3 * 769
    assert (task.weights, task.moments, task.logits) == (4 * (body + classifier), 8 * (body + classifier), 0)
    assert task.activations == 12 * 2048 * 4 * (10 * 768 + 2 * 3072 + 4 + 3 * 12 * 128)
    assert task.kept == 5 * 4 * (body + classifier) + task.activations == task.total + task.gradients
    large = memory.parts(LARGE, None)
    assert large.delta == 4 * 558_740_480
    assert large.moments == 8 * (558_740_480 + 1024 * 1024 + 3 * 1024 + 250_002)
    for shape in memory.SHAPES.values():
        for entries in (None, k):
            most = memory.largest_batch(shape, entries)
            there, beyond = (memory.parts(shape, entries, True, examples).total for examples in (most, most + 1))
            assert there <= memory.A100 < beyond

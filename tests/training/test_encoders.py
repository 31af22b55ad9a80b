"""The step of every architecture: recorded as one, in padded batches, pairs with their segments, and its gradients."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.encoders import CONFIGS, write_encoder
from support.recorder import CopyFromTheCPU, OnAGPU, Recorder
from support.tiny import END, LABELS, PAD, START, make_encoded, make_mlm, make_tokenizer, same_bits, weights_of
from support.trainings import HARD, SEED, half_mask
from tokenizers.processors import TemplateProcessing
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

from deftx.config import Execution
from deftx.models.architectures import lm_head_of
from deftx.models.load import load_classifier, load_masked_lm, reads_segments
from deftx.models.parameters import base_of
from deftx.train.capture import Eager, Runner
from deftx.train.loop import Run
from deftx.train.objectives import Classification, Objective, encode, predict
from deftx.train.trainable import phase

KINDS = [kind for kind in CONFIGS if kind not in ("xlm-roberta", "roberta", "camembert")]  # theirs is in test_step
SETTINGS = HARD.model_copy(update={"max_steps": 16, "l1": 0.0, "validate_every": 8})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in KINDS}


def pairs(model: Any) -> Classification:
    """Two texts of 2 to 15 words each, as a tokenizer gives them: batches of several lengths."""
    generator = np.random.default_rng(3)
    first, second = ([generator.integers(5, 50, generator.integers(2, 15)).tolist() for _ in range(22)] for _ in "12")
    ids = tuple([0, *one, 2, *other, 2] for one, other in zip(first, second, strict=True))
    types = tuple([0] * (len(one) + 2) + [1] * (len(other) + 1) for one, other in zip(first, second, strict=True))
    encoded = replace(make_encoded(22, 1), ids=ids, segments=types if reads_segments(model) else None)
    return Classification(encoded, encoded, LABELS, "accuracy", 1)


def start(folder: Path, objective: str, dropout: float) -> tuple[Any, Objective]:
    if objective == "mlm":
        return load_masked_lm(folder, dropout=dropout), make_mlm(train=18, length=24)
    model = load_classifier(folder, LABELS, 1, dropout=dropout)
    return model, pairs(model)


def trained(
    folder: Path, objective: str, precision: Any, runner: Runner
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    model, data = start(folder, objective, 0.2)
    settings = SETTINGS.model_copy(update={"precision": precision})
    trainable = phase(model, settings, half_mask(model))
    with closing(Run(model, data, settings, SEED, trainable, Execution(), runner)) as run:
        while run.step < SETTINGS.max_steps:
            run.train_step()
            if run.step % SETTINGS.validate_every == 0:
                run.validate()
        run.load_best()
    return weights_of(model), run.result.curve


@pytest.mark.parametrize(("objective", "precision"), [("mlm", "float32"), ("pairs", "float32"), ("pairs", "bf16")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_recorded_step_equals_the_eager_one_bit_for_bit(
    folders: dict[str, Path], kind: str, objective: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operation of it waits for a value, so that a GPU can capture it."""
    # as while a graph is captured: DeBERTa looks at the first step's ids else, to warn of padding without a mask
    monkeypatch.setattr("transformers.modeling_utils.is_tracing", lambda *_: True)
    expected, curve = trained(folders[kind], objective, precision, Eager())
    found, same = trained(folders[kind], objective, precision, Recorder())
    assert curve == same
    assert same_bits(found, expected)


@pytest.mark.parametrize("objective", ["mlm", "pairs"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_is_copied_from_the_cpu_within_a_step(
    tmp_path: Path, kind: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU could not capture it."""
    monkeypatch.setattr("transformers.modeling_utils.is_tracing", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # nothing is known of this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model, data = start(write_encoder(tmp_path, kind), objective, 0.2)
    trainable = phase(model, SETTINGS)
    with closing(Run(model, data, SETTINGS, SEED, trainable, Execution())) as run:
        parts = [run._ready(step).parts[0] for step in range(3)]
        assert any("attention_mask" in part for part in parts)
        model.to("meta")  # which makes other parameters
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert len(parameters) >= len(trainable.parameters)  # a bias of two names has become two
        for part in parts:
            part = {name: tensor.to("meta") for name, tensor in part.items()}
            with OnAGPU():
                loss = data.loss(model, part)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            unused = sum(gradient is None for gradient in gradients)
            assert unused < 5 and all(g.device.type == "meta" for g in gradients if g is not None)


def test_what_is_copied_from_the_cpu_is_seen() -> None:
    there = torch.ones(3, device="meta")
    with OnAGPU():
        there * torch.tensor(2.0)
        for copies in (lambda: there * torch.tensor(2.0).type_as(there), lambda: there[torch.tensor([0, 1])]):
            with pytest.raises(CopyFromTheCPU):
                copies()


@pytest.mark.parametrize("objective", ["mlm", "pairs"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_gradients_are_those_of_transformers_own_forward(
    folders: dict[str, Path], kind: str, objective: str
) -> None:
    """On a batch with padding and filler, in float64, by the whole model's own forward pass and torch's own loss."""
    model, data = start(folders[kind], objective, 0.0)
    model.double()
    plain = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with closing(Run(model, data, SETTINGS, SEED, phase(model, SETTINGS), Execution())) as run:
        ready = run._ready(0)
        run._step._targets.fill_(ready.targets)
        found = dict(zip(run._step.weights.names, run._step._gradients_of(ready.parts[0]), strict=True))
        numbers = run._order[1][: SETTINGS.batch_size]
    batch = data.batch(numbers, np.random.default_rng([SEED, 2, 0]))
    labels = batch.pop("labels")
    prefix, named = f"{model.base_model_prefix}.", dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in plain.items():
        assert torch.equal(named[name], parameter)
    wanted: dict[str, Any] = {name: named.get(name.removeprefix("head/"), named.get(prefix + name)) for name in found}
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    logits = model(**batch).logits
    if kind == "deberta-v3" and (head := lm_head_of(model)):  # transformers multiplies by the input embedding there
        logits = head.decoder(head.transform(base_of(model)(**batch).last_hidden_state))
    loss = cross_entropy(logits.flatten(0, -2), labels.flatten())
    assert loss.dtype == torch.float64
    gradients = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    for name, gradient in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "objective"), [("bert", "pairs"), ("deberta-v3", "mlm"), ("modernbert", "pairs")])
def test_the_loss_compiles_as_one_graph_for_each_shape(folders: dict[str, Path], kind: str, objective: str) -> None:
    model, data = start(folders[kind], objective, 0.2)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    with closing(Run(model, data, SETTINGS, SEED, phase(model, SETTINGS), Execution())) as run:
        run._step._compiled = torch.compile(run._step._mean_loss, fullgraph=True, dynamic=False, backend=counter)
        for _ in range(12):
            run.train_step()
        shapes = len(run._step._inputs)
    assert counter.frame_count == shapes <= 5


def paired_tokenizer() -> Any:
    """One that says which of two texts a token is of, as BERT's does."""
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return tokenizer


def test_pairs_are_read_with_the_segments_that_the_tokenizer_gives_them(folders: dict[str, Path]) -> None:
    """And predicted as by transformers itself, so that an exported classifier says what was graded."""
    tokenizer, model = paired_tokenizer(), load_classifier(folders["bert"], LABELS, 1).eval()
    first, second = ["w1 w2 w3", "w4", "w5 w6"], ["w7", "w8 w9 w10 w11", "w1 w12"]
    encoded = encode(tokenizer, first, second, [0, 1, 2], 16, reads_segments(model))
    assert encoded.segments is not None
    assert encoded.segments[1] == [0, 0, 0, 1, 1, 1, 1, 1]
    plain = tokenizer(first, second, padding=True, return_tensors="pt")
    assert torch.equal(encoded.padded([0, 1, 2], PAD)["token_type_ids"], plain["token_type_ids"])
    logits = model(**plain).logits
    assert predict(model, encoded, PAD, torch.device("cpu")).tolist() == logits.argmax(-1).tolist()
    assert not torch.equal(logits, model(plain["input_ids"], attention_mask=plain["attention_mask"]).logits)


@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert"])
def test_a_model_without_segments_is_given_none(folders: dict[str, Path], kind: str) -> None:
    """Also with a tokenizer that makes some, such as a RoBERTa's with BERT's vocabulary."""
    model = load_classifier(folders[kind], LABELS, 1)
    assert encode(paired_tokenizer(), ["w1"], ["w2"], [0], 16, reads_segments(model)).segments is None
    assert encode(paired_tokenizer(), ["w1"], None, [0], 16, True).segments is None

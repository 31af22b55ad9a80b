"""The static step: what is recorded once and replayed without Python equals what Python does, to the bit."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import subprocess
import sys
import threading
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.recorder import Recorder
from support.tiny import make_encoded, make_mlm, same_bits, weights_of
from support.trainings import HARD, SEED, Always, both, half_mask
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.models import Shape, classifier, masked_lm, random_mask, sentences, text
from deftx.config import Execution, Training
from deftx.errors import DataError, OutOfMemory, TrainingError
from deftx.masks.select import Indices
from deftx.train.ahead import Ahead
from deftx.train.capture import Eager, Runner
from deftx.train.loop import Run, train
from deftx.train.objectives import IGNORED, Batch, Classification, MaskedLanguageModelling, Objective
from deftx.train.trainable import Trainable, phase

SETTINGS = HARD.model_copy(update={"max_steps": 50, "l1": 0.0, "validate_every": 10})
LABELS = ("negative", "neutral", "positive")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Lengths(Classification):
    """Sentences of 3 to 30 words: batches of several lengths."""

    def __init__(self, train: int = 22) -> None:
        generator = np.random.default_rng(3)
        ids = tuple([0, *generator.integers(5, 50, generator.integers(3, 30)).tolist(), 2] for _ in range(train))
        encoded = replace(make_encoded(train, 1), ids=ids)
        super().__init__(encoded, make_encoded(12, 2), LABELS, "accuracy", 1)


class Cramped(MaskedLanguageModelling):
    """Room for two predicted positions at once: every batch takes more."""

    def _room(self, positions: int, predicted: int) -> int:
        return min(-(-max(predicted, 1) // 2) * 2, positions)


def objective_of(kind: str) -> Objective:
    if kind == "lengths":
        return Lengths()
    if kind == "cramped":
        made = make_mlm(train=18)
        made.__class__ = Cramped
        return made
    return make_mlm(train=18)  # of which the last batch of four is filled


def trained(
    backbone: Path, kind: str, runner: Runner | None, settings: Training = SETTINGS, sparse: bool = True,
    execution: Execution | None = None, interrupt: Path | None = None, dropout: float = 0.2,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], Run]:  # fmt: skip
    """The weights after a run with validations, through a checkpoint if a file for it is given."""
    model, _ = both("classification" if kind == "lengths" else "mlm", backbone, dropout)
    mask: Indices | None = half_mask(model) if sparse else None
    execution = execution or Execution()
    run = Run(model, objective_of(kind), settings, SEED, phase(model, settings, mask), execution, runner)
    with closing(run):
        while run.step < settings.max_steps:
            run.train_step()
            if run.step % settings.validate_every == 0:
                run.validate()
            if interrupt is not None and run.step == 23:
                run.save(interrupt)
                run.train_step()  # forgotten again
                run.restore(interrupt)
        run.load_best()
    return weights_of(model.cpu()), run.result.curve, run


@pytest.mark.parametrize("kind", ["mlm", "cramped", "lengths"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_recorded_step_equals_the_eager_one_bit_for_bit(
    backbone: Path, kind: str, sparse: bool, precision: Any, micro_batch: int | None, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"precision": precision, "l1": 50.0 if micro_batch else 0.0})
    execution = Execution(micro_batch=micro_batch)
    expected, curve, _ = trained(backbone, kind, Eager(), settings, sparse, execution)
    recorder = Recorder()
    found, same, _ = trained(backbone, kind, recorder, settings, sparse, execution, tmp_path / "checkpoint")
    assert curve == same
    assert same_bits(found, expected)
    assert recorder.replays >= 50


def test_each_length_and_each_number_of_positions_is_a_recording_of_its_own(backbone: Path) -> None:
    keys = {}
    for kind in ("lengths", "cramped", "mlm"):
        recorder = Recorder()
        recorder.close = lambda: None  # type: ignore[method-assign]
        trained(backbone, kind, recorder)
        keys[kind] = {tuple(dict(key)["input_ids"]) for key in recorder.tapes}
        assert len(recorder.tapes) > 1 or kind == "mlm"
    assert keys["lengths"] == {(4, 16), (4, 24), (4, 30)}  # no batch is longer than the longest sentence
    assert keys["cramped"] == {(4, 8), (4, 12)}  # a batch of blocks that all end in padding is shorter


def test_no_position_is_lost_where_more_are_predicted_than_there_is_room_for(backbone: Path) -> None:
    model, _ = both("mlm", backbone)
    plain, cramped = objective_of("mlm"), objective_of("cramped")
    batch = plain.batch(np.arange(8), np.random.default_rng(0))
    labelled = int((batch["labels"] != IGNORED).sum())
    for objective in (plain, cramped):
        filled = objective.prepare_batch(dict(batch), 8)
        assert int((filled["targets"] != IGNORED).sum()) == labelled
        assert len(filled["places"].unique()) == len(filled["places"])
        assert objective.loss(model.eval(), filled).item() == pytest.approx(
            plain.loss(model.eval(), dict(batch)).item(), rel=1e-6
        )


@pytest.mark.parametrize("kind", ["mlm", "classification"])
def test_what_fills_a_batch_changes_neither_loss_nor_gradient(backbone: Path, kind: str) -> None:
    model, objective = both(kind, backbone)
    model.eval()
    batch = objective.batch(np.arange(3), np.random.default_rng(0))
    plain, filled = objective.prepare_batch(dict(batch)), objective.prepare_batch(dict(batch), 8)
    assert len(filled["input_ids"]) == 8
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = [objective.loss(model, inputs) for inputs in (plain, filled)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlm", "classification"])
def test_nan_in_what_fills_a_batch_reaches_nothing(backbone: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = both(kind, backbone)
    model.eval()
    batch = objective.batch(np.arange(3), np.random.default_rng(0))
    filled = objective.prepare_batch(batch, 5)
    parameters = [p for p in (model.lm_head if kind == "mlm" else model.classifier).parameters() if p.requires_grad]
    base = model.roberta
    clean = torch.autograd.grad(objective.loss(model, filled), parameters)

    def spoil(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.clone()
        output.last_hidden_state[3:] = float("nan")  # the copies
        return output

    base.register_forward_hook(spoil)
    loss = objective.loss(model, filled)
    assert bool(loss.isfinite())
    if kind == "mlm":  # a classifier's head computes each example by itself: only its loss is asked for
        for one, other in zip(torch.autograd.grad(loss, parameters), clean, strict=True):
            assert torch.equal(one, other)


def persistent(run: Run) -> dict[str, int]:
    """The address of every tensor that stays."""
    step = run._step
    tensors = {
        **step.state(), "flat": step.weights._flat, "narrow": step.weights._narrow, "best": run._best,
        "rate": step._rate, "bad": step._bad, "bad_step": step._bad_step, "noticed": step.noticed,
        "targets": step._targets,
        **dict(run._model.named_parameters()),
        **{f"gradient {n}": gradient for n, gradient in enumerate(step._gradients)},
    }  # fmt: skip
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor.numel()}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_nothing_that_stays_ever_moves(backbone: Path, tmp_path: Path, sparse: bool, precision: Any) -> None:
    model, objective = both("mlm", backbone)
    settings = SETTINGS.model_copy(update={"precision": precision})
    trainable = phase(model, settings, half_mask(model) if sparse else None)
    with closing(Run(model, objective, settings, SEED, trainable, Execution(micro_batch=2))) as run:
        before = persistent(run)
        for _ in range(2):
            run.train_step()
        run.validate()
        run.save(tmp_path / "file")
        run.restore(tmp_path / "file")
        run.load_best()
        assert persistent(run) == before
        for name, parameter in trainable.parameters.items():
            offset = parameter.data_ptr() - parameter.untyped_storage().data_ptr()
            assert offset % (256 if parameter.dtype == torch.bfloat16 else 512) == 0, name
            is_linear = name.endswith("weight") and ("dense" in name or "attention.self" in name)
            if precision == "bf16" and is_linear:
                assert parameter.dtype == torch.bfloat16
        assert len(model.lm_head.decoder.weight) % 64 == 0


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_linear_layers_of_a_sparse_phase_in_bf16_wait_on_the_cpu(backbone: Path, precision: Any) -> None:
    model, objective = both("mlm", backbone)
    settings = SETTINGS.model_copy(update={"precision": precision})
    trainable = phase(model, settings, half_mask(model))
    before = {name: parameter.detach().clone() for name, parameter in trainable.parameters.items()}
    with closing(Run(model, objective, settings, SEED, trainable, Execution())) as run:
        for _ in range(3):
            run.train_step()
        weights = run._step.weights
        narrow = [name for name, parameter in trainable.parameters.items() if parameter.dtype == torch.bfloat16]
        assert bool(narrow) == (precision == "bf16")
        assert len(weights._waiting) == sum(-(-before[name].numel() // 128) * 128 for name in narrow)
        wide = dict(weights.by_name())
        assert sum(value.untyped_storage().data_ptr() == weights._waiting.data_ptr() for value in wide.values()) == len(
            narrow
        )
        for name, parameter in trainable.parameters.items():
            assert torch.equal(wide[name].to(parameter.dtype), parameter)
            assert wide[name].dtype == torch.float32 and not torch.equal(wide[name], before[name])
        after = {name: value.clone() for name, value in wide.items()}
    for name, parameter in trainable.parameters.items():
        assert torch.equal(parameter, after[name])


def test_a_model_comes_back_whole(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    before = weights_of(model)
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    with closing(Run(model, objective, settings, SEED, phase(model, settings), Execution())):
        pass
    assert same_bits(weights_of(model), before)
    storages = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(storages)) == len(storages)


def test_the_output_embedding_with_rows_added_gives_the_same_loss_and_gradient(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    batch = objective.prepare_batch(objective.batch(np.arange(4), np.random.default_rng(0)))
    body = dict(model.named_parameters())
    names = [name for name, parameter in body.items() if parameter.requires_grad]
    losses, gradients = [], []
    settings = Training(max_steps=1, batch_size=4)
    for padded in (False, True):
        run = Run(model, objective, settings, SEED, phase(model, settings), Execution()) if padded else None
        assert len(model.lm_head.decoder.weight) == (64 if padded else 50)
        loss = objective.loss(model.eval(), batch)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, [body[name] for name in names]))
        with torch.no_grad():
            assert objective.loss(model, batch).item() == pytest.approx(loss.item(), rel=1e-6)
        if run is not None:
            run.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_run_that_cannot_go_the_way_of_its_checkpoint_starts_over(backbone: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 6, "validate_every": 3})
    kept = tmp_path / "kept"

    class Checkpoints:
        def save(self, file: Path) -> None:
            kept.write_bytes(file.read_bytes())

        def load(self, folder: Path) -> Path | None:
            return kept if kept.is_file() else None

    def weights(execution: Execution, checkpoints: Checkpoints | None = None) -> dict[str, torch.Tensor]:
        model, objective = both("mlm", backbone, 0.2)
        result = train(
            model, objective, settings, seed=SEED, trainable=phase(model, settings), execution=execution,
            checkpoints=checkpoints,
        )  # fmt: skip
        assert result.way["micro_batch"] == str(execution.micro_batch or settings.batch_size)
        return weights_of(model)

    weights(Execution(checkpoint_seconds=1e-9), Checkpoints())  # its last checkpoint is of its last step
    other = Execution(micro_batch=2)
    assert same_bits(weights(other, Checkpoints()), weights(other))
    assert not same_bits(weights(other), weights(Execution()))


def test_a_gpu_that_is_too_small_is_told_what_to_set(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = both("mlm", backbone)

    class Full(Always):
        def __init__(self, inner: Objective) -> None:
            super().__init__(inner)
            del self.loss

        def loss(self, model: Any, batch: Batch) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 14 * 2**30)
    before = weights_of(model)
    with pytest.raises(OutOfMemory) as told:
        train(model, Full(objective), SETTINGS, seed=SEED, trainable=phase(model, SETTINGS))
    assert str(told.value) == (
        "the GPU has too little memory for 4 examples at once: this stage held 14.0 GiB and needs 2.50 GiB on top, and "
        "1.0 of 16.0 GiB are free; in the stage's `resources` set a smaller micro_batch, gradient_checkpointing: true, "
        "or a larger share of the GPU (gpu)"
    )
    assert same_bits(weights_of(model), before)


class Poisoned(Always):
    """One training block whose hidden states become NaN from a step on."""

    def __init__(self, inner: Objective, step: int) -> None:
        super().__init__(inner)
        self.at, self.made = step, 0
        plain = inner.prepare_batch

        def prepare(batch: Batch, examples: int | None = None) -> Batch:
            self.made += 1
            return {**plain(batch, examples), "poison": torch.tensor(float("nan") if self.made == step else 1.0)}

        self.prepare_batch = prepare  # type: ignore[method-assign]
        self.loss = lambda model, batch: inner.loss(model, batch) * batch["poison"]  # type: ignore[method-assign]


@pytest.mark.parametrize("make", [Eager, Recorder])
def test_nothing_is_stepped_from_a_bad_step_on(backbone: Path, make: Any, tmp_path: Path) -> None:
    model, objective = both("mlm", backbone)
    run = Run(model, Poisoned(objective, 4), SETTINGS, SEED, phase(model, SETTINGS), Execution(), make())
    run._ready = cached(run._ready)  # type: ignore[method-assign]
    for _ in range(3):
        run.train_step()
    before = {name: tensor.clone() for name, tensor in run._step.state().items() if name != "losses"}
    for step in (3, 4):  # as a GPU takes them before anyone has looked
        ready = run._ready(step)
        run._step.run(ready.parts, ready.targets, 1e-3, ready.seeds)
        assert same_bits({n: t for n, t in run._step.state().items() if n != "losses"}, before)
    told = r"the loss became nan at step 4; the first .* gradient of "
    with pytest.raises(TrainingError, match=told):
        run.save(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    with pytest.raises(TrainingError, match=told):
        run.validate()
    run.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_bad_though_its_gradient_is_one(backbone: Path, value: float) -> None:
    model, objective = both("mlm", backbone)

    class Constant(Always):
        def __init__(self, inner: Objective) -> None:
            super().__init__(inner)
            self.loss = lambda model, batch: inner.loss(model, batch) + value  # type: ignore[method-assign]

    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step 1; "):
        train(model, Constant(objective), SETTINGS, seed=SEED, trainable=phase(model, SETTINGS))


def test_a_weight_that_is_no_number_is_never_kept(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    with closing(Run(model, Always(objective), SETTINGS, SEED, phase(model, SETTINGS), Execution())) as run:
        run.train_step()
        name = run._step.weights.names[3]
        dict(run._step.weights.by_name())[name].view(-1)[0] = float("inf")
        with pytest.raises(TrainingError, match=f"{name} became NaN or infinite by step 1; lower"):
            run.validate()


def test_a_restored_run_forgets_a_bad_step(backbone: Path, tmp_path: Path) -> None:
    model, objective = both("mlm", backbone)
    with closing(Run(model, Poisoned(objective, 3), SETTINGS, SEED, phase(model, SETTINGS), Execution())) as run:
        run.train_step()
        run.save(tmp_path / "checkpoint")
        run.train_step()
        with pytest.raises(TrainingError):
            run.train_step()
        run.restore(tmp_path / "checkpoint")
        assert run.step == 1
        run.train_step()
        assert math.isfinite(run.validate()["train_loss"])


@pytest.mark.parametrize("where", ["zeros_like", "empty_like"])
def test_a_model_comes_back_whole_where_there_is_no_room_for_a_run(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model, objective = both("mlm", backbone)
    before = weights_of(model)

    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(torch, where, full)
        Run(model, objective, settings, SEED, phase(model, settings), Execution())
    assert same_bits(weights_of(model), before)
    assert model.config._attn_implementation == "sdpa"
    storages = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(storages)) == len(storages)


def test_nothing_that_a_run_held_outlives_it(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    run = Run(model, objective, SETTINGS, SEED, phase(model, SETTINGS), Execution(micro_batch=2))
    run.train_step()
    held = [weakref.ref(run._step), weakref.ref(run._step.weights.values), weakref.ref(run._best)]
    gc.disable()
    try:
        run.close()
        del run
        assert [ref() for ref in held] == [None, None, None]
    finally:
        gc.enable()


def test_nothing_to_train_is_an_error(backbone: Path) -> None:
    model, objective = both("mlm", backbone)
    settings = SETTINGS.model_copy(update={"freeze_lm_head": True})
    with pytest.raises(DataError, match="nothing trains"):
        train(model, objective, settings, seed=SEED, trainable=phase(model, settings, {}))


def test_micro_batches_draw_differently(backbone: Path) -> None:
    model, objective = both("mlm", backbone, 0.3)
    with closing(Run(model, objective, SETTINGS, SEED, phase(model, SETTINGS), Execution(micro_batch=1))) as run:
        ready, again = run._ready(0), run._ready(1)
        assert len({*ready.seeds, *again.seeds}) == 8
        run._step._targets.fill_(1.0)
        same = dict(ready.parts[0])
        losses = []
        for seed in (*ready.seeds[:2], ready.seeds[0]):
            run._step._generator.manual_seed(seed)
            losses.append(float(run._step._mean_loss(same)))
        assert losses[0] == losses[2] != losses[1]


def test_batches_made_ahead_change_nothing(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, curve, _ = trained(backbone, "lengths", None)

    def ahead(run: Run) -> Any:
        if run._ahead is None:
            run._ahead = Ahead(run._ready, range(run.step, run.result.steps))
        return run._ahead.take()

    monkeypatch.setattr(Run, "_next", ahead)
    found, same, run = trained(backbone, "lengths", None, interrupt=tmp_path / "checkpoint")
    assert curve == same and same_bits(found, expected)
    assert run._ahead is None
    assert not [thread for thread in threading.enumerate() if thread.name == "deftx-batches"]


def test_ahead_keeps_the_order_and_ends_with_an_error_that_stays() -> None:
    made = Ahead(lambda number: number * 10, range(20))
    assert [made.take() for _ in range(20)] == [number * 10 for number in range(20)]
    for _ in range(2):
        with pytest.raises(IndexError, match="no further batch"):
            made.take()
    made.close()


def test_what_goes_wrong_ahead_is_raised_where_it_is_taken() -> None:
    made = Ahead(lambda number: 12 // (3 - number), range(20))
    assert [made.take() for _ in range(3)] == [4, 6, 12]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            made.take()
    made.close()
    full = Ahead(lambda number: number, range(1000))
    assert full.take() == 0
    full.close()  # while the maker waits for room
    assert not full._thread.is_alive()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["DebertaV2", "Bert", "Electra", "DistilBert"])
def test_other_architectures_take_the_step_of_their_own_forward_pass(kind: str, attention: str) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 40, "pad_token_id": 1, "num_labels": 3,
    }  # fmt: skip
    if kind == "DistilBert":
        sizes = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "num_labels": 3}
    if kind == "DebertaV2" and attention == "sdpa":
        pytest.skip("it has an attention of its own")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model.config._attn_implementation = attention
    for module in model.modules():
        if "Dropout" in type(module).__name__:
            module.p = module.drop_prob = 0.0
    objective, settings = Lengths(), Training(max_steps=4, batch_size=4)
    parameters = dict(model.named_parameters())
    execution = Execution()
    with closing(Run(model, objective, settings, SEED, Trainable(parameters), execution, Recorder())) as run:
        for step in range(3):
            numbers = run._order[1] if run._order[0] == 0 else np.random.default_rng([SEED, 1, 0]).permutation(22)
            batch = objective.batch(numbers[step * 4 : step * 4 + 4], np.random.default_rng(0))
            with torch.no_grad():
                plain = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            expected = torch.nn.functional.cross_entropy(plain, batch["labels"]).item()
            run.train_step()
            assert run._step.take_losses() == pytest.approx(expected, rel=1e-5)


def cached(function: Any) -> Any:
    """The same answer for the same number."""
    answers: dict[int, Any] = {}
    return lambda step: answers[step] if step in answers else answers.setdefault(step, function(step))


DEEP = Shape(12, 64, 4, 128, vocabulary=2000)


@pytest.mark.parametrize(("precision", "most"), [("float32", 700), ("bf16", 1100)])
@pytest.mark.parametrize("kind", ["dense", "sparse", "classification"])
def test_operations_that_a_step_dispatches(kind: str, precision: Any, most: int) -> None:
    """Attention counts as one operation forward and one backward, as SDPA's is on a GPU: its own dropout is off."""
    model = classifier(DEEP) if kind == "classification" else masked_lm(DEEP)
    objective = sentences(DEEP, 64, 16) if kind == "classification" else text(DEEP, 64, 16)
    for module in model.roberta.encoder.modules():
        if type(module).__name__ == "XLMRobertaSelfAttention":
            module.dropout.p = 0.0
    settings = Training(max_steps=5, batch_size=16, precision=precision)
    mask = None if kind == "dense" else random_mask(model, 20_000)
    recorder = Recorder()
    with closing(Run(model, objective, settings, 0, phase(model, settings, mask), Execution(), recorder)) as run:
        run.train_step()
        (tape,) = recorder.tapes.values()
        assert tape.count["_scaled_dot_product_flash_attention_for_cpu"] == 12
        assert 500 < sum(tape.count.values()) <= most


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["mlm", "cramped", "lengths"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_graph_equals_the_eager_step_on_the_same_gpu_bit_for_bit(
    backbone: Path, kind: str, sparse: bool, precision: Any, micro_batch: int | None, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"precision": precision, "l1": 50.0 if micro_batch else 0.0})
    execution = Execution(device="cuda", micro_batch=micro_batch)
    expected, curve, _ = trained(backbone, kind, Eager(), settings, sparse, execution)
    found, same, run = trained(backbone, kind, None, settings, sparse, execution, tmp_path / "checkpoint")
    assert run.way["steps"] == "graph"
    assert curve == same
    assert same_bits(found, expected)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["mlm", "lengths"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_a_gpu_takes_the_same_steps_as_a_cpu_where_nothing_is_drawn(backbone: Path, kind: str, sparse: bool) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, _ = both("classification" if kind == "lengths" else "mlm", backbone)
        mask = half_mask(model) if sparse else None
        train(
            model.double(), Always(objective_of(kind)), SETTINGS, seed=SEED, trainable=phase(model, SETTINGS, mask),
            execution=Execution(device=device),
        )  # fmt: skip
        found.append(weights_of(model.cpu()))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=0, atol=1e-6)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_step_on_a_gpu_is_waited_for_nowhere(sparse: bool, micro_batch: int | None) -> None:
    model, settings = masked_lm(DEEP), Training(max_steps=20, batch_size=4, precision="bf16")
    trainable = phase(model, settings, random_mask(model, 20_000) if sparse else None)
    execution = Execution(device="cuda", micro_batch=micro_batch)
    with closing(Run(model, text(DEEP, 64, 16), settings, SEED, trainable, execution)) as run:
        run.train_step()
        assert run.way["steps"] == "graph"
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                run.train_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["dense", "sparse", "classification"])
def test_two_processes_on_one_gpu_give_the_same_bits(kind: str) -> None:
    code = f"from training.test_step import bits; print(bits({kind!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    outputs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].split()[-1]) == 64


def bits(kind: str) -> str:
    """The SHA-256 of what 20 steps of bf16 with dropout make of a model of six layers."""
    shape = Shape(6, 256, 4, 512, vocabulary=5000)
    model = classifier(shape) if kind == "classification" else masked_lm(shape)
    objective = sentences(shape, 64, 64) if kind == "classification" else text(shape, 64, 64)
    settings = Training(max_steps=20, batch_size=8, precision="bf16", validate_every=10)
    trainable = phase(model, settings, None if kind == "dense" else random_mask(model, 100_000))
    train(model, objective, settings, seed=SEED, trainable=trainable, execution=Execution(device="cuda"))
    digest = hashlib.sha256()
    for weight in weights_of(model.cpu()).values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, gpu])])
@pytest.mark.parametrize("kind", ["mlm", "classification"])
def test_gradients_in_bf16_lie_within_2_percent_of_those_in_float64(kind: str, device: str) -> None:
    shape, gradients = Shape(4, 128, 4, 256, vocabulary=1000), []
    objective: Objective = sentences(shape, 64, 24) if kind == "classification" else text(shape, 64, 24)
    for precision in ("float32", "bf16"):
        model = classifier(shape) if kind == "classification" else masked_lm(shape)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        settings = Training(max_steps=5, batch_size=16, precision=precision)
        model = model.double() if precision == "float32" else model
        place = device if precision == "bf16" else "cpu"
        with closing(Run(model, objective, settings, SEED, phase(model, settings), Execution(device=place))) as run:
            ready = run._ready(0)
            run._step._targets.fill_(ready.targets)
            inputs = {name: tensor.to(place) for name, tensor in ready.parts[0].items()}
            gathered = run._step.weights.gather(run._step._gradients_of(inputs))
            by_name = dict(zip(run._step.weights.names, gathered, strict=True))
            gradients.append(torch.cat([by_name[name].double().cpu() for name in sorted(by_name)]))
    exact, narrow = gradients
    assert 1e-4 < float((narrow - exact).norm() / exact.norm()) < 2e-2


@pytest.mark.parametrize("kind", ["mlm", "lengths"])
def test_the_loss_compiles_as_one_graph_for_each_shape(backbone: Path, kind: str) -> None:
    model, _ = both("classification" if kind == "lengths" else "mlm", backbone, 0.2)
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    with closing(Run(model, objective_of(kind), settings, SEED, phase(model, settings), Execution())) as run:
        run._step._compiled = torch.compile(run._step._mean_loss, fullgraph=True, dynamic=False, backend=counter)
        for _ in range(50):
            run.train_step()
        shapes = len(run._step._inputs)
    assert counter.frame_count == shapes <= 4

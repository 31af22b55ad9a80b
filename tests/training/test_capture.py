"""How functions are carried out: a capture that fails, what is captured first, what is computed again."""

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.encoders import CONFIGS, write_encoder
from support.recorder import Recorder, Tape
from support.tiny import LABELS, make_encoded, make_mlm, same_bits, weights_of
from support.trainings import HARD, SEED, Always, half_mask
from transformers import XLMRobertaForMaskedLM

from deftx.config import Execution
from deftx.errors import OutOfMemory
from deftx.models.load import load_classifier, load_masked_lm
from deftx.train import capture
from deftx.train.capture import Eager, Graphs
from deftx.train.loop import Run, train
from deftx.train.memory import memory_errors
from deftx.train.objectives import Batch, Classification, Encoded, Objective
from deftx.train.trainable import Trainable, phase

SETTINGS = HARD.model_copy(update={"max_steps": 12, "validate_every": 6})
CUDA = torch.device("cuda")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeCUDA:
    """What `Graphs` calls of CUDA, noted. A capture ends with an error, if one is given; the pool may be closed then.

    In torch 2.11 a capture whose end fails has left its pool open.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: str | None = None, closes: bool = False) -> None:
        self.calls: list[str] = []
        self.error, self.closed, self.closes = error, True, closes
        stream = SimpleNamespace(wait_stream=lambda other: None)
        generator = SimpleNamespace(
            clone_state=lambda: "clone", graphsafe_set_state=lambda state: self.calls.append(f"generator: {state}")
        )
        monkeypatch.setattr(capture, "generator_of", lambda device: generator)
        for name, stub in {
            "graph_pool_handle": lambda: (0, 7), "Stream": lambda device: stream,
            "current_stream": lambda device: stream, "stream": lambda stream: nullcontext(),
            "synchronize": lambda device: None, "empty_cache": lambda: None, "current_device": lambda: 0,
            "CUDAGraph": lambda: self,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stub)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_releasePool", lambda *pool: self.calls.append(f"release {pool}"), raising=False
        )
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert pool == (0, 7) and capture_error_mode == "thread_local"
        self.calls.append("begin")
        self.closed = False

    def capture_end(self) -> None:
        self.calls.append("end")
        self.closed = self.error is None or self.closes
        if self.error is not None:
            raise RuntimeError(self.error)

    def end_pool(self, device: int, pool: object) -> None:
        assert (device, pool) == (0, (0, 7))
        if self.closed:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.calls.append("end pool")
        self.closed = True

    def replay(self) -> None:
        self.calls.append("replay")


def test_a_graph_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, called = FakeCUDA(monkeypatch), []
    graphs = Graphs(CUDA)
    graphs.prepare("key", lambda: called.append("called"))
    assert (graphs.way, called) == ("graph", ["called", "called"])  # by itself, then while it is captured
    graphs.run("key", lambda: called.append("never"))
    assert cuda.calls == ["begin", "end", "replay"]
    assert "never" not in called


@pytest.mark.parametrize("raises", [True, False], ids=["within", "at its end"])
@pytest.mark.parametrize("closes", [False, True], ids=["torch 2.11", "later"])
def test_what_cannot_be_captured_runs_as_python_after_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raises: bool, closes: bool
) -> None:
    cuda, called = FakeCUDA(monkeypatch, "operation failed due to a previous error during capture", closes), []

    def function() -> None:
        called.append("called")
        if raises and cuda.calls[-1:] == ["begin"]:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs = Graphs(CUDA)
    with caplog.at_level(logging.WARNING):
        for key in ("one", "two"):
            graphs.prepare(key, function)
            graphs.run(key, function)
    assert graphs.way == "eager"
    why = "operation not permitted when stream is capturing" if raises else cuda.error
    assert [record.getMessage() for record in caplog.records] == [
        f"a training step cannot be captured as a CUDA graph and runs slower, as Python: {why}"
    ]
    pool = [] if closes else ["end pool", "release (0, (0, 7))"]
    assert cuda.calls == ["begin", "end", *pool, "generator: clone"]
    assert cuda.closed
    assert called == ["called"] * 5  # twice for the capture that failed, and a call of each otherwise


@pytest.mark.parametrize("end", [None, "operation failed due to a previous error during capture"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_no_reason_to_go_on_as_python(
    monkeypatch: pytest.MonkeyPatch, error: Exception, end: str | None
) -> None:
    cuda = FakeCUDA(monkeypatch, end)

    def function() -> None:
        if cuda.calls[-1:] == ["begin"]:
            raise error

    graphs = Graphs(CUDA)
    with pytest.raises(type(error)) as told:
        graphs.prepare("key", function)
    assert told.value is error
    assert graphs.way == "graph"
    assert cuda.closed and cuda.calls[-1] == "generator: clone"  # half of it at once is tried in the same process


def test_four_steps_are_under_way_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCUDA(monkeypatch)
    under_way: list[object] = []

    class Event:
        def record(self) -> None:
            under_way.append(self)

        def synchronize(self) -> None:
            if self in under_way:
                assert under_way.pop(0) is self

    monkeypatch.setattr(torch.cuda, "Event", Event)
    graphs, most = Graphs(CUDA), []
    for _ in range(10):
        graphs.end_step()
        most.append(len(under_way))
    assert most == [1, 2, 3, *[4] * 7]


@pytest.mark.parametrize(
    "error",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
    ],
)
def test_a_librarys_word_for_too_little_memory_is_told_too(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 14 * 2**30)
    with (
        pytest.raises(OutOfMemory, match=r"held 14\.0 GiB and needs more on top, and 0\.5 of 16\.0 GiB are free"),
        memory_errors(SETTINGS, Execution(device="cuda:1")),
    ):
        raise RuntimeError(error)
    with pytest.raises(RuntimeError, match="illegal"), memory_errors(SETTINGS, Execution()):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(("precision", "narrow"), [("float32", False), ("bf16", True)])
def test_validation_is_in_the_phases_precision(backbone: Path, precision: Any, narrow: bool) -> None:
    model, objective = start("mlm", backbone)
    settings = SETTINGS.model_copy(update={"precision": precision})
    seen: list[bool] = []

    def validate(model: Any, device: torch.device) -> dict[str, float]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return {"valid_loss": 1.0}

    objective.validate = validate  # type: ignore[method-assign]
    with closing(Run(model, objective, settings, SEED, phase(model, settings), Execution())) as run:
        run.train_step()
        run.validate()
    assert seen == [narrow]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_a_full_gpu_has_no_room_for_gets_memory_of_its_own_on_the_cpu(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    model, objective = start("mlm", backbone)
    settings = SETTINGS.model_copy(update={"precision": precision})
    trainable = phase(model, settings, half_mask(model))
    run = Run(model, objective, settings, SEED, trainable, Execution())
    plain = torch.Tensor.to

    def to(tensor: torch.Tensor, where: Any, *rest: Any, **how: Any) -> torch.Tensor:
        if isinstance(where, torch.device) and how.get("copy"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(tensor, where, *rest, **how)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "to", to)
        run.close()
    storages = [parameter.untyped_storage() for parameter in trainable.parameters.values()]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    sizes = [parameter.numel() * 4 for parameter in trainable.parameters.values()]
    assert [storage.nbytes() for storage in storages] == sizes


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x[x > 0], lambda x: x.masked_select(x > 0), lambda x: x.index_put_((x > 0,), torch.tensor(0.0)),
        lambda x: x.long().bincount(), lambda x: x.unique(), lambda x: x.unique_consecutive(), lambda x: x.nonzero(),
        lambda x: x.repeat_interleave(x.long()), lambda x: torch.equal(x, x), lambda x: torch.allclose(x, x),
        lambda x: float(x[0]),
    ],
)  # fmt: skip
def test_the_recorder_sees_what_a_gpu_would_be_waited_for(waits: Any) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    with Tape():
        x[torch.tensor([0, 2])].repeat_interleave(2)  # whose shapes are known
    with pytest.raises(AssertionError, match="waits for"), Tape():
        waits(x)


@pytest.mark.parametrize("where", ["to", "cat"])
def test_a_sparse_phase_in_bf16_that_finds_no_room_leaves_the_model_whole(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model, objective = start("mlm", backbone)
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    before, trainable = weights_of(model), phase(model, settings, half_mask(model))

    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(model if where == "to" else torch, where, full)
        Run(model, objective, settings, SEED, trainable, Execution())
    assert same_bits(weights_of(model), before)
    storages = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(storages)) == len(storages)


def start(kind: str, folder: Path, dropout: float = 0.2) -> tuple[Any, Objective]:
    """A model and data: sentences of 3 to 20 tokens, or blocks of 24 of which most are half padding."""
    if kind == "mlm":
        objective = make_mlm(train=18, length=24)
        objective._blocks[3:, 12:] = objective.pad_id
        return load_masked_lm(folder, dropout=dropout), objective
    generator = np.random.default_rng(3)
    ids = tuple([0, *generator.integers(5, 50, number).tolist(), 2] for number in range(1, 19))
    train = Encoded(ids, make_encoded(18, 1).labels)
    model = load_classifier(folder, LABELS, 1, dropout=dropout)
    return model, Classification(train, make_encoded(12, 2), LABELS, "accuracy", 1)


@pytest.mark.parametrize(("kind", "length"), [("mlm", 24), ("classification", 20)])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_largest_batch_is_captured_first_and_changes_nothing(
    backbone: Path, kind: str, length: int, micro_batch: int | None
) -> None:
    found = []
    for largest_first in (False, True):
        model, objective = start(kind, backbone)
        recorder, execution = Recorder(), Execution(micro_batch=micro_batch)
        trainable = phase(model, SETTINGS, half_mask(model))
        with closing(Run(model, objective, SETTINGS, SEED, trainable, execution, recorder)) as run:
            if largest_first:
                run.prepare_largest()
                (key,) = recorder.tapes
                assert dict(key)["input_ids"] == (micro_batch or 4, length) == dict(key)["attention_mask"]
            for _ in range(SETTINGS.max_steps):
                run.train_step()
            lengths = [dict(key)["input_ids"][1] for key in recorder.tapes if key != "apply"]
            assert max(lengths) == length and len(set(lengths)) > 1
        found.append(weights_of(model))
    assert same_bits(*found)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_that_are_computed_again_give_the_same_bits(tmp_path: Path, kind: str, precision: Any) -> None:
    settings = SETTINGS.model_copy(update={"precision": precision, "max_steps": 4})
    folder, found, layers = write_encoder(tmp_path, kind), [], []
    for again in (False, True):
        model, objective = start("classification", folder)
        calls: list[object] = []
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        train(
            model, Always(objective), settings, seed=SEED, trainable=phase(model, settings, half_mask(model)),
            execution=Execution(gradient_checkpointing=again),
        )  # fmt: skip
        found.append(weights_of(model))
        layers.append(len(calls))
    assert same_bits(*found)
    assert layers[1] >= layers[0] + 2 * settings.max_steps  # a norm at least of each of two layers, at each step


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("l1", [0.0, 50.0])
def test_a_pre_training_is_recorded_too(backbone: Path, precision: Any, l1: float) -> None:
    """All of it trains: the norms, and the output embedding, which is the input embedding."""
    settings, found = SETTINGS.model_copy(update={"precision": precision, "l1": l1}), []
    for runner in (Eager(), Recorder()):
        _, objective = start("mlm", backbone)
        model: Any = XLMRobertaForMaskedLM.from_pretrained(backbone, hidden_dropout_prob=0.2)
        assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
        trainable = Trainable(dict(model.named_parameters()))
        with closing(Run(model, objective, settings, SEED, trainable, Execution(), runner)) as run:
            for _ in range(settings.max_steps):
                run.train_step()
        found.append(weights_of(model))
    assert same_bits(*found)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("objective", ["mlm", "classification"])
def test_every_architecture_is_captured_and_equals_its_eager_step(
    tmp_path: Path, kind: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as while a graph is captured: DeBERTa looks at the first step's ids else, to warn of padding without a mask
    monkeypatch.setattr("transformers.modeling_utils.is_tracing", lambda *_: True)
    folder, found = write_encoder(tmp_path, kind), []
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    for runner in (Eager(), None):
        model, data = start(objective, folder)
        trainable = phase(model, settings, half_mask(model))
        with closing(Run(model, data, settings, SEED, trainable, Execution(device="cuda"), runner)) as run:
            for _ in range(settings.max_steps):
                run.train_step()
            assert run.way["steps"] == ("eager" if runner else "graph")
        found.append(weights_of(model.cpu()))
    assert same_bits(*found)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_that_are_computed_again_on_a_gpu_give_the_same_bits(tmp_path: Path, kind: str) -> None:
    settings = SETTINGS.model_copy(update={"precision": "bf16", "max_steps": 4})
    folder, found = write_encoder(tmp_path, kind), []
    for again in (False, True):
        model, objective = start("classification", folder)
        result = train(
            model, Always(objective), settings, seed=SEED, trainable=phase(model, settings, half_mask(model)),
            execution=Execution(device="cuda", gradient_checkpointing=again),
        )  # fmt: skip
        assert result.way["steps"] == ("eager" if again else "graph")
        found.append(weights_of(model.cpu()))
    assert same_bits(*found)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["mlm", "classification"])
def test_batches_of_any_length_with_a_mask_or_without_are_waited_for_nowhere(backbone: Path, kind: str) -> None:
    model, objective = start(kind, backbone)
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    trainable = phase(model, settings, half_mask(model))
    with closing(Run(model, objective, settings, SEED, trainable, Execution(device="cuda"))) as run:
        for _ in range(settings.max_steps):
            run.train_step()
        assert run.way["steps"] == "graph" and len(run._step._inputs) > 1
        run._end_ahead()
        run.step = 0  # the same batches again, of shapes that are captured
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(settings.max_steps):
                run.train_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("waits", [False, True], ids=["captured", "cannot be captured"])
def test_a_stage_leaves_no_memory_behind(
    backbone: Path, waits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a capture fails, after which torch 2.11 would free nothing any more."""
    reserved = []
    for _ in range(3):
        model, objective = start("mlm", backbone)
        plain = objective.loss

        def loss(model: Any, batch: Batch, plain: Any = plain) -> torch.Tensor:
            loss: torch.Tensor = plain(model, batch)
            return loss * float(batch["input_ids"].max() > 0) if waits else loss

        objective.loss = loss  # type: ignore[method-assign]
        ballast = torch.empty(2**28, device="cuda")  # of the ordinary pool
        result = train(
            model, objective, SETTINGS, seed=SEED, trainable=phase(model, SETTINGS), execution=Execution(device="cuda")
        )
        assert result.way["steps"] == ("eager" if waits else "graph")
        del ballast, model
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] <= reserved[0] < 2**26
    assert len([record for record in caplog.records if "cannot be captured" in record.getMessage()]) == 3 * waits

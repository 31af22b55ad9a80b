"""The training loop, one for both phases: the dense phase has no mask, the sparse phase has one.

What trains is in `trainable`, one step in `step`. Every random choice at a step is a function of (seed, step), so a run
that continues from a checkpoint equals one that was never interrupted. What is dropped depends also on the way a run
goes: on the micro-batches, the kind of device, the versions of torch and transformers. A checkpoint of a run that went
another way is left alone: the run starts over. Whether steps are captured as graphs changes no bit.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deftx.config import Execution, Training
from deftx.errors import DataError, TrainingError
from deftx.models.attention import masks_where_given, positions_on_the_device
from deftx.train.ahead import Ahead
from deftx.train.capture import ATTENTION, Runner, runner_for
from deftx.train.leave import Left, asked, heeding
from deftx.train.memory import memory_errors
from deftx.train.objectives import Batch, Objective
from deftx.train.step import Step
from deftx.train.trainable import Trainable
from deftx.train.turn import turn

log = logging.getLogger("deftx")

CurvePoint = dict[str, float]
Report = Callable[[CurvePoint], None]
State = dict[str, Any]


class Checkpoints(Protocol):
    """Where a running stage keeps its latest checkpoint (see `deftx.stages.checkpoint.Checkpoint`)."""

    def save(self, file: Path) -> None:
        """Keep a copy of a checkpoint file in place of the one before."""

    def load(self, folder: Path) -> Path | None:
        """The latest checkpoint file, or None; one that has to be downloaded is put into `folder`."""


@dataclass
class TrainResult:
    """The result of a training run.

    Attributes:
        steps: optimiser steps of the whole run.
        best_step: the step after which validation was best, from 1; 0 before the first validation.
        best: the validation metrics at that step.
        curve: a point for each validation: `step`, `train_loss` and the validation metrics.
        way: how the run went, in words, as far as its draws may depend on it.
    """

    steps: int
    best_step: int = 0
    best: CurvePoint = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    way: dict[str, str] = field(default_factory=dict)


def train(
    model: nn.Module,
    objective: Objective,
    settings: Training,
    *,
    seed: int,
    trainable: Trainable,
    execution: Execution | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
) -> TrainResult:
    """The result of training a model, which is left at its best checkpoint by validation.

    On a GPU that other trainings share it waits for its turn.

    Args:
        model: moved to the execution's device and left there.
        objective: the loss, its data and its validation.
        settings: steps, batches, optimiser and precision.
        seed: of batches, masks and dropout.
        trainable: what trains, see `phase`. Everything else is frozen.
        execution: device, micro-batch and the like; by default a CPU and whole batches.
        checkpoints: where to continue from and to save to; None: nowhere.
        report: called at the start with `step` and `steps`, where the run begins and ends; then with each point of
            the curve.

    Raises:
        TrainingError: when a loss or a weight is NaN or infinite; names the step. The model is left as the last step
            made it, and may be trained again.
        DataError: when there is nothing to train on.
        OutOfMemory: of a GPU or of this process; names what was needed and what to set.
        Left: when this process was asked to leave, after a checkpoint was kept.
    """
    if objective.examples == 0:
        raise DataError("there are no training examples")
    execution = execution or Execution()
    with turn(torch.device(execution.device)), _gradient_checkpointing(model, execution.gradient_checkpointing):
        with memory_errors(settings, execution):
            run = Run(model, objective, settings, seed, trainable, execution)
        # closed after a failure too, so that the model can be trained again
        with closing(run), memory_errors(settings, execution):
            _drive(run, settings, execution, checkpoints, report)
        result = run.result
        del run  # with what it has on a GPU, before another training's turn
    return result


def _drive(
    run: Run, settings: Training, execution: Execution, checkpoints: Checkpoints | None, report: Report | None
) -> None:
    """Take the steps of a run, with validations and checkpoints between, and leave the model at its best."""
    if checkpoints is not None:
        with TemporaryDirectory(prefix="deftx-") as folder:
            if (file := checkpoints.load(Path(folder))) is not None:
                run.restore(file)
    if report is not None:
        report({"step": float(run.step), "steps": float(run.result.steps)})
    saved = time.monotonic()
    with heeding() if checkpoints is not None else nullcontext():
        while run.step < run.result.steps:
            run.train_step()
            if run.step % settings.validate_every == 0 or run.step == run.result.steps:
                point = run.validate()
                if report is not None:
                    report(point)
            if checkpoints is None:
                continue
            leaves = asked()
            if leaves or time.monotonic() - saved > execution.checkpoint_seconds:
                with TemporaryDirectory(prefix="deftx-") as folder:
                    run.save(Path(folder) / "checkpoint")
                    checkpoints.save(Path(folder) / "checkpoint")
                saved = time.monotonic()
            if leaves:
                raise Left(f"left after step {run.step} of {run.result.steps}, which the store has as a checkpoint")
    run.load_best()


@contextmanager
def _gradient_checkpointing(model: Any, on: bool) -> Iterator[None]:
    """Within the block only each layer's input is kept for the backward pass, which computes the rest again."""
    if not on:
        yield
        return
    cached = getattr(model.config, "use_cache", None)
    try:
        model.config.use_cache = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it names a successor that older releases lack
            model.gradient_checkpointing_enable({"use_reentrant": False})
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_disable()
        model.config.use_cache = cached


class Run:
    """The state of one training run, which a checkpoint holds. `train` drives it; a benchmark may step it by hand."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Training,
        seed: int,
        trainable: Trainable,
        execution: Execution,
        runner: Runner | None = None,
        compiled: bool = False,
    ) -> None:
        """Move the model to its device, freeze what does not train, and put it in training mode.

        Args:
            runner: carries out the steps; None: graphs on a GPU, else Python.
            compiled: whether torch.compile makes the kernels of the loss and its gradients.
        """
        self._model, self._objective, self.settings, self._seed = model, objective, settings, seed
        self._device = torch.device(execution.device)
        self._examples = min(settings.batch_size, max(objective.examples, 1))
        """Of a batch."""
        self._micro_batch = min(execution.micro_batch or self._examples, self._examples)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))  # epoch, its permutation
        self._ahead: Ahead[_Ready] | None = None
        with ExitStack() as stack:
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
            self._runner = runner or runner_for(self._device, execution.gradient_checkpointing)
            biased = stack.enter_context(masks_where_given(model))
            positions_on_the_device(model)
            self._step = Step(
                model, objective, settings, trainable, self._device, self._runner,
                self._micro_batch < self._examples, compiled, biased,
            )  # fmt: skip
            stack.callback(self._step.close)
            self._best = torch.empty_like(self._step.weights.values)
            stack.callback(self._end_ahead)
            self._open = stack.pop_all()
        self._validated = 0
        self.step = 0
        self.result = TrainResult(settings.steps(objective.examples), way=self.way)
        model.train()

    @property
    def way(self) -> dict[str, str]:
        """How the run goes, as far as its draws may depend on it."""
        return {
            "steps": self._runner.way,
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "attention": ", ".join(backend.name.lower() for backend in ATTENTION),
            "micro_batch": str(self._micro_batch),
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
        }

    def train_step(self) -> None:
        """Take one optimiser step.

        Raises:
            TrainingError: when the loss or the gradient is NaN or infinite; on a GPU it is noticed some steps later.
        """
        ready = self._next()
        rate = self.settings.learning_rate * schedule(self.step, self.result.steps, self.settings.warmup)
        self._step.run(ready.parts, ready.targets, rate, ready.seeds)
        self.step += 1
        if self._step.noticed:
            self._stop_for_bad_step()

    def prepare_largest(self) -> None:
        """Capture what the largest batch takes, so that a GPU without room for it is told before the first step.

        Smaller batches take the same memory then; captured before it they would leave it too little in one piece.
        """
        batch = self._objective.batch(self._objective.largest(self._micro_batch), np.random.default_rng(0))
        self._step.prepare(self._objective.prepare_batch(batch, self._micro_batch))

    def repeat(self) -> None:
        """Compute the last step again on the same batch, by graphs where there are any: for a benchmark."""
        self._step.repeat()

    def validate(self) -> CurvePoint:
        """The next point of the curve: the model is validated, and kept if it is the best so far.

        Raises:
            TrainingError: when a loss since the last validation, the validation metric or a weight is NaN or infinite.
        """
        mean = self._step.take_losses() / max(self.step - self._validated, 1)
        if self._step.noticed:
            self._stop_for_bad_step()
        self._validated = self.step
        self._model.eval()
        with torch.no_grad(), self._step.autocast():
            metrics = self._objective.validate(self._model, self._device)
        self._model.train()
        point = {"step": float(self.step), "train_loss": mean, **metrics}
        self.result.curve.append(point)
        self.result.way = self.way  # what could not be captured was known only now
        if not math.isfinite(metrics[self._objective.metric]):
            self._stop(self._objective.metric, metrics[self._objective.metric], self.step, self._bad_values())
        if self._improves(metrics):
            if (bad := self._bad_values()) is not None:
                raise TrainingError(f"{bad} became NaN or infinite by step {self.step}; lower the learning rate")
            self.result.best, self.result.best_step = metrics, self.step
            self._best.copy_(self._step.weights.values)
        return point

    def load_best(self) -> None:
        """Put the model back to its best checkpoint, in evaluation mode."""
        if self.result.best_step < self.step:
            self._step.weights.load(self._best)
        self._model.eval()

    def save(self, file: Path) -> None:
        """Write everything a run needs to continue.

        Raises:
            TrainingError: when the loss or the gradient became NaN or infinite since anyone has looked.
        """
        if self._step.what_went_bad()[2]:
            self._stop_for_bad_step()
        state: State = {
            "way": self.way,
            "step": self.step,
            "validated": self._validated,
            "tensors": {name: tensor.cpu() for name, tensor in self._step.state().items()},
            "best": self._best.cpu() if self.result.best_step else None,
            "best_step": self.result.best_step,
            "best_metrics": self.result.best,
            "curve": self.result.curve,
        }
        torch.save(state, file)

    def restore(self, file: Path) -> None:
        """Take over the state that `save` wrote; of a run that went another way nothing is taken."""
        state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        # a graph computes the same bits as its operations by themselves
        if {**(way := state.get("way") or {}), "steps": ""} != {**self.way, "steps": ""}:
            log.info("a checkpoint was found of a run that went another way (%s, here %s): starting over",
                     way, self.way)  # fmt: skip
            return
        self._end_ahead()
        self.step, self._validated = state["step"], state["validated"]
        self._step.load(state["tensors"])
        if state["best"] is not None:
            self._best.copy_(state["best"])
        self.result = TrainResult(
            self.result.steps, state["best_step"], state["best_metrics"], state["curve"], self.result.way
        )

    def close(self) -> None:
        """End the thread that makes batches, and give the model's parameters memory of their own."""
        self._open.close()

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _next(self) -> _Ready:
        """What the next step takes, made ahead where a GPU computes meanwhile; a CPU would only be shared with it."""
        if self._device.type == "cpu":
            return self._ready(self.step)
        if self._ahead is None:
            self.prepare_largest()
            self._ahead = Ahead(self._ready, range(self.step, self.result.steps))
        return self._ahead.take()

    def _ready(self, step: int) -> _Ready:
        """What a step takes, in memory that a GPU copies from by itself."""
        size, examples = self.settings.batch_size, self._objective.examples
        epoch, place = divmod(step, -(-examples // size))
        # streams of random numbers by their second key: 1 the order of an epoch, 2 a step's batch, 3 its dropout
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(examples))
        numbers = self._order[1][place * size : (place + 1) * size]
        batch = self._objective.batch(numbers, np.random.default_rng([self._seed, 2, step]))
        targets, parts = max(self._objective.num_targets(batch), 1), []
        for start in range(0, len(numbers), self._micro_batch):
            part = {key: tensor[start : start + self._micro_batch] for key, tensor in batch.items()}
            part = self._objective.prepare_batch(part, self._micro_batch)
            if self._device.type == "cuda":
                part = {key: tensor.pin_memory() for key, tensor in part.items()}
            parts.append(part)
        seeds = [np.random.SeedSequence([self._seed, 3, step, number]) for number in range(len(parts))]
        return _Ready(parts, targets, [int(seed.generate_state(1, np.uint64)[0]) >> 1 for seed in seeds])

    def _stop_for_bad_step(self) -> NoReturn:
        self._end_ahead()
        name, value, step = self._step.what_went_bad()
        # nothing was stepped since, so the step can be computed again
        ready = self._ready(step - 1)
        self._stop(name, value, step, next(self._step.no_numbers(ready.parts, ready.targets, ready.seeds), None))

    def _bad_values(self) -> str | None:
        """The name of the first parameter with a value that is NaN or infinite; of what trains alone."""
        # the largest magnitude: looking at each by itself would take as much memory again as there are weights
        if math.isfinite(torch.linalg.vector_norm(self._step.weights.values, math.inf)):
            return None
        return next(name for name, value in self._step.weights.by_name() if not bool(value.isfinite().all()))

    def _stop(self, name: str, value: float, step: int, tensor: str | None) -> NoReturn:
        where = f"; the first tensor that is no number: {tensor}" if tensor else ""
        raise TrainingError(f"the {name} became {value} at step {step}{where}; lower the learning rate")

    def _improves(self, metrics: CurvePoint) -> bool:
        if not self.result.best_step:
            return True
        new, old = metrics[self._objective.metric], self.result.best[self._objective.metric]
        return new > old if self._objective.higher_is_better else new < old


@dataclass(frozen=True)
class _Ready:
    """A step's micro-batches on the CPU, their labelled positions together, and the seeds of their draws."""

    parts: list[Batch]
    targets: int
    seeds: list[int]


def schedule(step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate at a step: linear up to 1 over the warm-up, then linear down towards 0.

    Args:
        step: from 0 to steps - 1; the first step is never at 0.
        steps: of the whole run.
        warmup: share of the steps that rise.
    """
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(steps - rising, 1)

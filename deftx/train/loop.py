"""The training loop, one for both phases: the dense phase has no mask, the sparse phase has one.

What trains is in `trainable`, how it is stepped in `optimizer`. Every random choice at a step is a function of
(seed, step), so a run that continues from a checkpoint equals one that was never interrupted. What is dropped of an
example depends on its number in the batch too, so micro-batches and gradient checkpointing change nothing.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deftx.config import Execution, Training
from deftx.errors import DataError, TrainingError
from deftx.kernels.attention import drop_by_example
from deftx.kernels.dropout import CounterRNG
from deftx.tensor_files import Kept
from deftx.train.objectives import Batch, Objective
from deftx.train.optimizer import Optimizer
from deftx.train.trainable import Trainable

CurvePoint = dict[str, float]
Report = Callable[[CurvePoint], None]
State = dict[str, Any]

_STEPS_UNCHECKED = 50
"""Steps of a GPU between looks at its losses and norms: each look waits for it."""


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
    """

    steps: int
    best_step: int = 0
    best: CurvePoint = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)


def train(
    model: nn.Module,
    objective: Objective,
    settings: Training,
    *,
    seed: int,
    trainable: Callable[[], Trainable],
    execution: Execution | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
) -> TrainResult:
    """The result of training a model, which is left at its best checkpoint by validation.

    Args:
        model: moved to the execution's device and left there.
        objective: the loss, its data and its validation.
        settings: steps, batches, optimiser and precision.
        seed: of batches, masks and dropout.
        trainable: makes what trains, see `phase`; called once the model is on its device. Everything else is frozen.
        execution: device, micro-batch and the like; by default a CPU and whole batches.
        checkpoints: where to continue from and to save to; None: nowhere.
        report: called at the start with `step` and `steps`, where the run begins and ends; then with each point of
            the curve.

    Raises:
        TrainingError: when a loss or a weight is NaN or infinite; names the step. The model is left as the last step
            made it, and may be trained again.
        DataError: when there is nothing to train on.
    """
    if objective.examples == 0:
        raise DataError("there are no training examples")
    execution = execution or Execution()
    model.to(execution.device)
    # closed after a failure too, so that the model can be trained again
    with closing(trainable()) as trained, _gradient_checkpointing(model, execution.gradient_checkpointing):
        run = Run(model, objective, settings, seed, trained, execution)
        if checkpoints is not None:
            with TemporaryDirectory(prefix="deftx-") as folder:
                if (file := checkpoints.load(Path(folder))) is not None:
                    run.restore(file)
        if report is not None:
            report({"step": float(run.step), "steps": float(run.result.steps)})
        saved = time.monotonic()
        while run.step < run.result.steps:
            run.train_step()
            if run.step % settings.validate_every == 0 or run.step == run.result.steps:
                point = run.validate()
                if report is not None:
                    report(point)
            if checkpoints is not None and time.monotonic() - saved > execution.checkpoint_seconds:
                with TemporaryDirectory(prefix="deftx-") as folder:
                    run.save(Path(folder) / "checkpoint")
                    checkpoints.save(Path(folder) / "checkpoint")
                saved = time.monotonic()
        run.load_best()
    return run.result


@contextmanager
def _gradient_checkpointing(model: Any, on: bool) -> Iterator[None]:
    """Within the block only each layer's input is kept for the backward pass, which computes the rest again."""
    if not on:
        yield
        return
    cached, model.config.use_cache = getattr(model.config, "use_cache", None), False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it names a successor that older releases lack
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_disable()
        model.config.use_cache = cached


class Run:
    """The state of one training run, which a checkpoint holds. `train` drives it; a benchmark may step it by hand.

    The model keeps its `ExampleDropout`, and a classifier its `FirstTokenLayer`, after the run.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Training,
        seed: int,
        trainable: Trainable,
        execution: Execution,
    ) -> None:
        """Freeze what does not train, replace the model's dropout, and put the model in training mode."""
        self._model, self._objective, self.settings, self._seed = model, objective, settings, seed
        _freeze_all_but(model, trainable)
        self._trainable, self._execution, self._device = trainable, execution, torch.device(execution.device)
        self.optimizer = Optimizer(trainable, settings, sum(parameter.numel() for parameter in model.parameters()))
        self._rng = CounterRNG(seed)
        drop_by_example(model, self._rng)
        objective.patch_model(model)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))  # epoch, its permutation
        self._best = Kept()
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self.step = 0
        self.result = TrainResult(settings.steps(objective.examples))
        model.train()

    def train_step(self) -> None:
        """Take one optimiser step.

        Raises:
            TrainingError: when the loss or the gradient is NaN or infinite; on a GPU it is noticed some steps later.
        """
        batch = self._batch()
        self._trainable.begin(batch.get("input_ids"))
        self._rng.begin(self.step, len(batch["labels"]), self._device)
        num_targets = max(self._objective.num_targets(batch), 1)
        self._losses.append(torch.stack([self._backward(*part, num_targets) for part in self._parts(batch)]).sum())
        waits = self._device.type != "cpu"  # a GPU is not waited for in every step
        if not waits:
            self._check_steps()
        self._norms.append(self.optimizer.step(schedule(self.step, self.result.steps, self.settings.warmup)))
        self.step += 1
        if not waits or self.step % _STEPS_UNCHECKED == 0:
            self._check_steps()

    def validate(self) -> CurvePoint:
        """The next point of the curve: the model is validated, and kept if it is the best so far.

        Raises:
            TrainingError: when a loss since the last validation, the validation metric or a weight is NaN or infinite.
        """
        self._check_steps()
        mean = torch.stack(self._losses).mean()
        self._model.eval()
        with torch.no_grad(), self._autocast():
            metrics = self._objective.validate(self._model, self._device)
        self._model.train()
        point = {"step": float(self.step), "train_loss": float(mean), **metrics}
        self._losses.clear()
        self._norms.clear()
        self.result.curve.append(point)
        if not math.isfinite(metrics[self._objective.metric]):
            self._stop(self._objective.metric, metrics[self._objective.metric], self.step)
        if self._improves(metrics):
            self._check_values()
            self.result.best, self.result.best_step = metrics, self.step
            if self.step < self.result.steps:  # the last checkpoint is where the model is already
                self._best.keep(self._trainable.values)
        return point

    def load_best(self) -> None:
        """Put the model back to its best checkpoint, in evaluation mode.

        To train it further by a loop of your own, load it again: its dropout and last layer stay replaced.
        """
        if self.result.best_step < self.step:
            self._trainable.load(self._best)
        self._model.eval()

    def save(self, file: Path) -> None:
        """Write everything a run needs to continue; no tensor is copied in memory on a CPU."""
        state: State = {
            "step": self.step,
            "values": {name: value.detach().cpu() for name, value in self._trainable.values.items()},
            "optimizer": self.optimizer.state_dict(),
            "best": dict(self._best),
            "best_step": self.result.best_step,
            "best_metrics": self.result.best,
            "curve": self.result.curve,
            "losses": _stacked(self._losses),
            "norms": _stacked(self._norms),
        }
        torch.save(state, file)

    def restore(self, file: Path) -> None:
        """Take over the state that `save` wrote; tensors are read one at a time."""
        state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        self.step = state["step"]
        if state["best"]:
            self._best.keep(state["best"])
        self._trainable.load(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._losses, self._norms = (list(state[name].to(self._device)) for name in ("losses", "norms"))
        self.result = TrainResult(self.result.steps, state["best_step"], state["best_metrics"], state["curve"])

    def _batch(self) -> Batch:
        """The batch of this step; the last one of an epoch may be smaller."""
        size, examples = self.settings.batch_size, self._objective.examples
        epoch, place = divmod(self.step, -(-examples // size))
        # streams of random numbers by their second key: 1 the order of an epoch, 2 a step's batch, 3 its dropout
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(examples))
        numbers = self._order[1][place * size : (place + 1) * size]
        return self._objective.batch(numbers, np.random.default_rng([self._seed, 2, self.step]))

    def _parts(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """The micro-batches of a batch, each with the number of its first example; copied to the device."""
        size = self._execution.micro_batch or len(batch["labels"])
        for start in range(0, len(batch["labels"]), size):
            part = self._objective.prepare_batch({key: tensor[start : start + size] for key, tensor in batch.items()})
            if self._device.type == "cuda":  # pinned memory is copied while the GPU computes
                part = {key: tensor.pin_memory() for key, tensor in part.items()}
            yield start, {key: tensor.to(self._device, non_blocking=True) for key, tensor in part.items()}

    def _backward(self, first: int, part: Batch, num_targets: int) -> Tensor:
        """The micro-batch's share of the batch's loss, a scalar, after its backward pass."""
        self._rng.at(first)
        with self._autocast():
            # over the labelled positions of the whole batch, so that the parts add up to its mean
            loss = self._objective.loss(self._model, part) / num_targets
        loss.backward()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _check_steps(self) -> None:
        """Raise for the first step since the last validation whose loss or gradient was NaN or infinite."""
        first = self.step - len(self._norms)
        for name, values in (("loss", self._losses), ("norm of the gradient", self._norms)):
            if (where := (~_stacked(values).isfinite()).nonzero()).numel():
                step = int(where[0])
                self._stop(name, values[step].item(), first + step + 1)

    def _check_values(self) -> None:
        """Raise for a weight that is NaN or infinite: the last step's effect is in no loss yet."""
        for name, value in self._trainable.values.items():
            if not bool(value.isfinite().all()):
                raise TrainingError(f"{name} became NaN or infinite by step {self.step}; lower the learning rate")

    def _stop(self, name: str, value: float, step: int) -> NoReturn:
        tensor = next(_no_numbers(self._trainable), None)
        where = f"; the first tensor that is no number: {tensor}" if tensor else ""
        raise TrainingError(f"the {name} became {value} at step {step}{where}; lower the learning rate")

    def _improves(self, metrics: CurvePoint) -> bool:
        if not self.result.best_step:
            return True
        new, old = metrics[self._objective.metric], self.result.best[self._objective.metric]
        return new > old if self._objective.higher_is_better else new < old


def _freeze_all_but(model: nn.Module, trainable: Trainable) -> None:
    """Let autograd compute gradients for what trains only, and drop those of before."""
    trained = {id(parameter) for name, parameter in trainable.parameters.items() if name not in trainable.replaced}
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in trained)


def _no_numbers(trainable: Trainable) -> Iterator[str]:
    """The names of values, then of gradients, that are NaN or infinite somewhere."""
    for name, value in trainable.values.items():
        if not bool(value.isfinite().all()):
            yield name
    for name, holder in trainable.gradients().items():
        if holder.grad is not None and not bool(holder.grad.isfinite().all()):
            yield f"the gradient of {name}"


def _stacked(values: list[Tensor]) -> Tensor:
    return torch.stack(values).cpu() if values else torch.empty(0)


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

"""ONE loop for both phases: the dense phase has no mask, the sparse phase has one.

With a mask, the optimiser never sees the weights: it steps a vector of the chosen entries, gathered from the gradient
and scattered back, so entries off the mask stay bit-identical whatever weight decay, momentum and clipping do, and
moments exist for the chosen entries only. Every random choice at a step is a function of (seed, step), so a run that
continues from a checkpoint equals one that was never interrupted.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deftx.backbones import embeddings_of, head_of, maskable
from deftx.config import Execution, Training
from deftx.errors import DataError, TrainingError
from deftx.objectives import Batch, Objective
from deftx.select import Indices

Point = dict[str, float]
Report = Callable[[Point], None]
State = dict[str, Any]


class Checkpoints(Protocol):
    """Where a running stage keeps its latest checkpoint (see `deftx.store.Checkpoint`)."""

    def save(self, content: bytes) -> None:
        """Keep it."""

    def load(self) -> bytes | None:
        """The latest one, or none."""


@dataclass
class Outcome:
    """What a training run found; the model is left at its best checkpoint.

    Attributes:
        steps: optimiser steps of the whole run.
        best_step: after which of them validation was best.
        best: the validation metrics there.
        curve: a point for each validation: `step`, `train_loss` and the validation metrics.
    """

    steps: int
    best_step: int = 0
    best: Point = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)


class Trainable:
    """What a run trains: whole tensors, or chosen entries of them.

    `values` are the optimiser's parameters by name. Without an index a value is the model's own parameter; with one it
    is the vector of the chosen entries.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], index: Indices | None = None) -> None:
        """Bind the parameters.

        Args:
            parameters: what trains, by name.
            index: flat indices of the entries that train, for the tensors of which not all do.
        """
        self.parameters = dict(parameters)
        self._index = {name: entries.to(self.parameters[name].device) for name, entries in (index or {}).items()}
        self.values = {name: self._value(name, parameter) for name, parameter in self.parameters.items()}

    def _value(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if name not in self._index:
            return parameter
        return nn.Parameter(parameter.detach().view(-1)[self._index[name]])

    def gather(self) -> None:
        """Move the gradient of the chosen entries to the optimiser's vectors, and drop the rest of it."""
        for name, index in self._index.items():
            parameter = self.parameters[name]
            self.values[name].grad = None if parameter.grad is None else parameter.grad.view(-1)[index]
            parameter.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """Write the optimiser's vectors into the model."""
        for name, index in self._index.items():
            self.parameters[name].view(-1)[index] = self.values[name]

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set every value, and the model with it."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.scatter()

    def copy(self) -> dict[str, Tensor]:
        """The values now, on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.values.items()}


def body_of(model: nn.Module, settings: Training) -> dict[str, nn.Parameter]:
    """The base model's parameters that train, by base-model name: the maskable ones that no setting freezes."""
    frozen = embeddings_of(model) if settings.freeze_embeddings else set()
    return {name: parameter for name, parameter in maskable(model).items() if name not in frozen}


def phase(model: nn.Module, settings: Training, mask: Indices | None = None) -> Trainable:
    """What a phase trains: the body (the dense phase) or the masked entries of it (the sparse phase), and the head."""
    body = body_of(model, settings)
    if mask is not None:
        body = {name: parameter for name, parameter in body.items() if name in mask}
    frozen_head = settings.freeze_lm_head and hasattr(model, "lm_head")
    head = {} if frozen_head else {f"head/{name}": parameter for name, parameter in head_of(model).items()}
    return Trainable({**body, **head}, mask)


def train(
    model: nn.Module,
    objective: Objective,
    settings: Training,
    *,
    seed: int,
    what: Callable[[], Trainable],
    execution: Execution | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
) -> Outcome:
    """Train a model and leave it at its best checkpoint by validation.

    Args:
        model: moved to the execution's device and left there.
        what: what trains, see `phase`; called once the model is on its device. Everything else is frozen.
        seed: of batches, masks and dropout.
        checkpoints: where to continue from and to save to.
        report: called with each point of the curve.

    Raises:
        TrainingError: when a loss or a weight is NaN or infinite; names the step. Nothing is kept of the run.
        DataError: when there is nothing to train on.
    """
    if objective.examples == 0:
        raise DataError("there are no training examples")
    execution = execution or Execution()
    model.to(execution.device)
    run = _Run(model, objective, settings, seed, what(), execution)
    if checkpoints is not None and (content := checkpoints.load()) is not None:
        run.restore(content)
    saved = time.monotonic()
    while run.step < run.outcome.steps:
        run.advance()
        if run.step % settings.validate_every == 0 or run.step == run.outcome.steps:
            point = run.validate()
            if report is not None:
                report(point)
        if checkpoints is not None and time.monotonic() - saved > execution.checkpoint_seconds:
            checkpoints.save(run.state())
            saved = time.monotonic()
    run.keep_best()
    return run.outcome


class _Run:
    """The state of one training run: what a checkpoint holds."""

    def __init__(
        self, model: nn.Module, objective: Objective, settings: Training, seed: int, what: Trainable, how: Execution
    ) -> None:
        self._model, self._objective, self._settings, self._seed = model, objective, settings, seed
        wanted = {id(parameter) for parameter in what.parameters.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        self._what, self._how, self._device = what, how, torch.device(how.device)
        self._optimizer = torch.optim.AdamW(
            list(what.values.values()), lr=settings.learning_rate, betas=settings.betas,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self._start = {n: v.detach().clone() for n, v in what.values.items()} if settings.effective_l1 else {}
        self._size = sum(parameter.numel() for parameter in model.parameters())
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))
        self._best: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self.step = 0
        self.outcome = Outcome(settings.steps(objective.examples))
        model.train()

    def advance(self) -> None:
        """One optimiser step."""
        torch.manual_seed(_mix(self._seed, self.step))
        batch = self._batch()
        labelled = max(self._objective.labelled(batch), 1)
        loss = torch.stack([self._backward(part, labelled) for part in self._parts(batch)]).sum()
        self._losses.append(loss)
        if self._device.type == "cpu" or self.step % 50 == 0:
            self._check("loss", loss, self.step + 1)
        self._what.gather()
        self._pull_to_start()
        torch.nn.utils.clip_grad_norm_(self._what.values.values(), self._settings.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * schedule(self.step, self.outcome.steps, self._settings.warmup)
        self._optimizer.step()
        self._what.scatter()
        self._optimizer.zero_grad()
        self.step += 1

    def validate(self) -> Point:
        """Grade the model as it is, keep it if it is the best so far, and add a point to the curve."""
        mean = torch.stack(self._losses).mean()
        self._check("loss", mean, self.step)
        self._model.eval()
        with torch.no_grad(), self._autocast():
            metrics = self._objective.validate(self._model, self._device)
        self._model.train()
        point = {"step": float(self.step), "train_loss": float(mean), **metrics}
        self._losses.clear()
        self.outcome.curve.append(point)
        self._check(self._objective.metric, torch.tensor(metrics[self._objective.metric]), self.step)
        if self._improves(metrics):
            self.outcome.best, self.outcome.best_step, self._best = metrics, self.step, self._what.copy()
            self._check_best()
        return point

    def keep_best(self) -> None:
        """Leave the model at the best checkpoint, in evaluation mode."""
        self._what.load(self._best)
        self._model.eval()

    def state(self) -> bytes:
        """Everything a run needs to continue."""
        losses = torch.stack(self._losses).cpu() if self._losses else torch.empty(0)
        state: State = {
            "step": self.step, "values": self._what.copy(), "optimizer": self._optimizer.state_dict(),
            "best": self._best, "best_step": self.outcome.best_step, "best_metrics": self.outcome.best,
            "curve": self.outcome.curve, "losses": losses,
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, content: bytes) -> None:
        """Continue from `state`."""
        state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        self.step, self._best = state["step"], state["best"]
        self._what.load(state["values"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._losses = list(state["losses"].to(self._device))
        self.outcome = Outcome(self.outcome.steps, state["best_step"], state["best_metrics"], state["curve"])

    def _batch(self) -> Batch:
        size, examples = self._settings.batch_size, self._objective.examples
        epoch, place = divmod(self.step, -(-examples // size))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(examples))
        numbers = self._order[1][place * size : (place + 1) * size]
        return self._objective.batch(numbers, np.random.default_rng([self._seed, 2, self.step]))

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self._how.micro_batch or len(batch["labels"])
        starts = range(0, len(batch["labels"]), size)
        return [{key: t[start : start + size].to(self._device) for key, t in batch.items()} for start in starts]

    def _backward(self, part: Batch, labelled: int) -> Tensor:
        with self._autocast():
            # the mean over the whole batch's labelled positions, whatever the micro-batch
            loss = self._objective.loss(self._model, part) / labelled
        loss.backward()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._settings.precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def _pull_to_start(self) -> None:
        """The gradient of lambda * sum |theta - start| / (number of model parameters)."""
        for name, start in self._start.items():
            value = self._what.values[name]
            if value.grad is not None:
                value.grad.add_((value - start).sign(), alpha=self._settings.effective_l1 / self._size)

    @staticmethod
    def _check(name: str, value: Tensor, step: int) -> None:
        if not math.isfinite(value.item()):
            raise TrainingError(f"the {name} became {value.item()} at step {step}; lower the learning rate")

    def _check_best(self) -> None:
        """A last step may spoil weights after the last loss was seen."""
        for name, value in self._best.items():
            if not bool(value.isfinite().all()):
                raise TrainingError(f"{name} became NaN or infinite by step {self.step}; lower the learning rate")

    def _improves(self, metrics: Point) -> bool:
        if not self._best:
            return True
        new, old = metrics[self._objective.metric], self.outcome.best[self._objective.metric]
        return new > old if self._objective.higher_is_better else new < old


def schedule(step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate at a step (from 0): linear up over the warm-up, then linear down to 0."""
    rising = int(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(steps - rising, 1)


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, 3, step]).generate_state(1, np.uint64)[0] >> 1)

"""One optimiser step as a fixed sequence of operations on tensors that never move: forward, backward, clipping, AdamW.

    g    = gradients of the batch's mean loss at what trains (`weights`)        over the micro-batches: G += g
    g   += lambda / N * sign(val - start)                                       the L1 term, where there is one
    norm = ||g||                       bad = 1 from the first step on whose norm or loss is NaN or infinite
    val  = AdamW(val, g / max(norm / clip, 1)), unless bad                      then the model's weights from val

A batch is copied into inputs that are made once for each shape. So the operations can be captured and replayed
(`capture`). Nothing here waits for a value: that a step went wrong is seen afterwards, and as nothing is stepped from
a bad step on, the weights are still those before it. Which batch is next, and validation, are in `loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deftx.config import Training
from deftx.train.capture import Runner, exact, generator_of
from deftx.train.objectives import Batch, Objective
from deftx.train.trainable import Trainable
from deftx.train.weights import Weights

State = dict[str, Tensor]
_APPLY = "apply"
"""The key of the function that steps on gradients which were added up."""
_EPSILON = 1e-8
"""AdamW's."""
_CLIP_EPSILON = 1e-6
"""Added to the norm that is clipped, as `torch.nn.utils.clip_grad_norm_` does."""


class Step:
    """The state of an optimisation, and the functions that change it.

    Attributes:
        weights: what trains.
        noticed: [] on the CPU, the number of the first bad step from 1, or 0; on a GPU as of a few steps ago.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Training,
        trainable: Trainable,
        device: torch.device,
        runner: Runner,
        accumulates: bool = False,
        compiled: bool = False,
        biased: bool = True,
    ) -> None:
        """Make every tensor that stays: moments of zero, and the start where the L1 term pulls to it.

        Args:
            model: moved to the device; its trained parameters become views (see `Weights`).
            objective: the loss.
            settings: learning rate, betas, weight decay, clipping, L1 and precision.
            trainable: what trains.
            device: where it trains.
            runner: carries out the functions.
            accumulates: whether a batch comes in several parts.
            compiled: whether the loss and its gradients are compiled, by torch.compile.
            biased: whether the model's attention reads a mask as a bias on its scores; else it is given as it is.
        """
        self._model, self._objective, self._settings = model, objective, settings
        self._device, self._runner, self._biased = device, runner, biased
        size = sum(parameter.numel() for parameter in model.parameters())
        self.weights = Weights(model, trainable, device, settings.precision == "bf16")
        self._compiled = torch.compile(self._mean_loss, fullgraph=True, dynamic=False) if compiled else None
        try:
            self._make_tensors(size, accumulates)
        except BaseException:
            self.close()
            raise

    def _make_tensors(self, size: int, accumulates: bool) -> None:
        settings, device, values = self._settings, self._device, self.weights.values
        self._values = self.weights.views(values)
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._means, self._squares = self.weights.views(self._mean), self.weights.views(self._square)
        self._gradients = self.weights.views(torch.zeros_like(values)) if accumulates else []
        self._pull = settings.effective_l1 / size
        self._start = self.weights.views(values.clone()) if self._pull else []
        self._rate, self._steps, self._targets, self._bad, self._bad_step = (
            torch.zeros((), dtype=torch.float32, device=device) for _ in range(5)
        )
        self._what_went_bad = torch.zeros(2, dtype=torch.float64, device=device)
        self._loss, self._losses = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.noticed = torch.zeros(()).pin_memory() if device.type == "cuda" else torch.zeros(())
        self._generator = generator_of(device)
        self._inputs: dict[Any, Batch] = {}
        self._prepared: set[Any] = set()
        self._last: list[Any] = []

    def run(self, parts: Sequence[Batch], targets: int, rate: float, seeds: Sequence[int]) -> None:
        """Take a step.

        Args:
            parts: the batch, or its micro-batches, of `Objective.prepare_batch` on the CPU.
            targets: labelled positions of all of them.
            rate: the learning rate.
            seeds: of the draws in each part.
        """
        keys = [self.prepare(part) for part in parts]
        if self._gradients:
            self._prepare(_APPLY)
        self._rate.fill_(rate)
        self._targets.fill_(targets)
        for key, part, seed in zip(keys, parts, seeds, strict=True):
            for name, tensor in self._inputs[key].items():
                tensor.copy_(part[name], non_blocking=True)
            self._generator.manual_seed(seed)
            self._runner.run(key, self._function(key))
        if self._gradients:
            self._runner.run(_APPLY, self._function(_APPLY))
        self._runner.end_step()
        self._last = keys

    def prepare(self, part: Batch) -> Any:
        """The key under which a part of these shapes is computed, for which the inputs and what is captured exist."""
        key = self._key(part)
        self._prepare(key)
        return key

    def repeat(self) -> None:
        """Carry out the functions of the last step again on what their inputs hold."""
        for key in [*self._last, _APPLY] if self._gradients else self._last:
            self._runner.run(key, self._function(key))

    def take_losses(self) -> float:
        """The sum of the losses since the last call. Waits for them."""
        total = float(self._losses)
        self._losses.zero_()
        return total

    def what_went_bad(self) -> tuple[str, float, int]:
        """(what, its value, step from 1): the loss or the norm of the gradient that was no number first; step 0: none.

        Waits for the steps that are under way.
        """
        loss, norm = self._what_went_bad.tolist()
        name, value = ("norm of the gradient", norm) if math.isfinite(loss) else ("loss", loss)
        return name, value, int(self._bad_step)

    def no_numbers(self, parts: Sequence[Batch], targets: int, seeds: Sequence[int]) -> Iterator[str]:
        """The names of values, then of a batch's gradients, that are NaN or infinite somewhere. No step can follow."""
        self._runner.close()  # a GPU may have no room for this beside its graphs
        for name, value in self.weights.by_name():
            if not bool(value.isfinite().all()):
                yield name
        self._targets.fill_(targets)
        for part, seed in zip(parts, seeds, strict=True):
            self._generator.manual_seed(seed)
            with exact():
                gradients = self._gradients_of({name: tensor.to(self._device) for name, tensor in part.items()})
            for name, gradient in zip(self.weights.names, gradients, strict=True):
                if not bool(gradient.isfinite().all()):
                    yield f"the gradient of {name}"

    def state(self) -> State:
        """What a checkpoint holds: the tensors themselves."""
        return {
            "values": self.weights.values, "mean": self._mean, "square": self._square, "steps": self._steps,
            "losses": self._losses,
        }  # fmt: skip

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Take over the tensors of `state`; those here stay where they are."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        for number in (self._bad, self._bad_step, self.noticed):
            number.zero_()
        self.weights.write_back()

    def autocast(self) -> AbstractContextManager[Any]:
        """Within the block the model computes in the settings' precision."""
        if self._settings.precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()

    def close(self) -> None:
        """Free what was captured, and give the model's parameters memory of their own. May be called twice."""
        try:
            self._runner.close()
        finally:
            self._compiled = None  # it holds this object, and with it every tensor
            self.weights.close()

    def _prepare(self, key: Any) -> None:
        """Let the runner see a function for the first time. It may carry it out, as a bad step, which leaves no trace.

        A step that is bad from the start changes no value and no moment; the numbers that it does change are put back.
        """
        if key in self._prepared:
            return
        numbers = [self._bad, self._bad_step, self._what_went_bad, self._steps, self._loss, self._losses]
        before = [number.clone() for number in numbers]
        self._bad.fill_(1.0)
        try:
            self._runner.prepare(key, self._function(key))
        finally:
            for number, kept in zip(numbers, before, strict=True):
                number.copy_(kept)
            for gradient in self._gradients:  # they were zero
                gradient.zero_()
        self._prepared.add(key)

    # -- what is captured ---------------------------------------------------------------------------------------------

    def _key(self, part: Batch) -> Any:
        """The key of a part's shapes, for which inputs are made here once."""
        key = tuple((name, tuple(tensor.shape)) for name, tensor in part.items())
        if key not in self._inputs:
            # their first content is this part's: a row without any token would make NaN while the step is prepared
            self._inputs[key] = {
                name: tensor.to(self._device, non_blocking=True, copy=True) for name, tensor in part.items()
            }
        return key

    def _function(self, key: Any) -> Callable[[], None]:
        """What is carried out under a key."""
        if key == _APPLY:
            return self._apply_accumulated
        return partial(self._accumulate if self._gradients else self._whole, self._inputs[key])

    def _whole(self, inputs: Batch) -> None:
        self._apply(self.weights.gather(self._gradients_of(inputs)))

    def _accumulate(self, inputs: Batch) -> None:
        torch._foreach_add_(self._gradients, self.weights.gather(self._gradients_of(inputs)))

    def _apply_accumulated(self) -> None:
        self._apply(self._gradients)
        torch._foreach_zero_(self._gradients)

    def _gradients_of(self, inputs: Batch) -> tuple[Tensor, ...]:
        """The gradients of a part's share of the mean loss, in the order of `weights.parameters`."""
        loss: Tensor = (self._compiled or self._mean_loss)(inputs)
        gradients = torch.autograd.grad(loss, self.weights.parameters, materialize_grads=True)
        self._loss += loss.detach()
        return gradients

    def _mean_loss(self, inputs: Batch) -> Tensor:
        """The summed loss over the labelled positions of the whole batch, so that the parts add up to its mean."""
        with self.autocast():
            mean: Tensor = self._objective.loss(self._model, self._with_bias(inputs)) / self._targets
        return mean

    def _with_bias(self, inputs: Batch) -> Batch:
        """The inputs with their attention mask as a bias, 0 or -inf, which every layer would make again otherwise.

        It is [batch, 1, 1, tokens], in the precision of the scores that it is added to.
        """
        if not self._biased or (mask := inputs.get("attention_mask")) is None:
            return inputs
        dtype = torch.bfloat16 if self._settings.precision == "bf16" else self.weights.values.dtype
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, -torch.inf)
        return {**inputs, "attention_mask": bias[:, None, None, :]}

    @torch.no_grad()
    def _apply(self, gradients: list[Tensor]) -> None:
        if self._start:
            # lambda / N * sign(theta - theta_0): N counts all the model's entries; at theta_0 itself the sign is 0
            pull = torch._foreach_sub(self._values, self._start)
            torch._foreach_sign_(pull)
            torch._foreach_add_(gradients, pull, alpha=self._pull)
        norm = torch.nn.utils.get_total_norm(gradients)
        newly = torch.logical_and(~(norm + self._loss).isfinite(), self._bad == 0)
        self._what_went_bad.copy_(torch.where(newly, torch.stack([self._loss, norm.double()]), self._what_went_bad))
        self._bad_step.copy_(torch.where(newly, self._steps + 1, self._bad_step))
        self._bad.copy_(torch.logical_or(newly, self._bad != 0))
        self._steps += 1 - self._bad
        beta1, beta2 = self._settings.betas
        torch._fused_adamw_(
            self._values, gradients, self._means, self._squares, [], [self._steps] * len(gradients),
            lr=self._rate, beta1=beta1, beta2=beta2, weight_decay=self._settings.weight_decay, eps=_EPSILON,
            amsgrad=False, maximize=False,
            grad_scale=((norm + _CLIP_EPSILON) / self._settings.clip).clamp(min=1.0).float(), found_inf=self._bad,
        )  # fmt: skip
        self.weights.write_back()
        self._losses += self._loss
        self._loss.zero_()
        self.noticed.copy_(self._bad_step, non_blocking=True)

"""One optimiser step: the L1 term, gradient clipping, and AdamW on what trains. No losses here, and no schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deftx.config import Training
from deftx.kernels.embedding_rows import RowAdamW
from deftx.train.trainable import Trainable


class Optimizer:
    """AdamW over what a phase trains: torch's fused one, and `RowAdamW` for a word embedding that trains whole."""

    def __init__(self, trainable: Trainable, settings: Training, size: int) -> None:
        """Begin with moments of zero, and note where the L1 term pulls to.

        Args:
            trainable: what is stepped.
            settings: learning rate, betas, weight decay, clipping and L1.
            size: the number of all the model's entries, trained or not, by which the L1 term is divided.
        """
        self._trainable, self._settings, self._size = trainable, settings, size
        whole = dict(trainable.values)
        self.rows: RowAdamW | None = None
        if trainable.rows is not None and trainable.values[trainable.words] is trainable.rows.table.weight:
            table = whole.pop(trainable.words).detach()
            self.rows = RowAdamW(table, settings.betas, settings.weight_decay)
        self._adamw = torch.optim.AdamW(
            list(whole.values()),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._start = {n: v.detach().clone() for n, v in trainable.values.items()} if settings.effective_l1 else {}

    def step(self, factor: float) -> Tensor:
        """The L2 norm of the whole gradient before clipping, after a step on it; all gradients are dropped then.

        Where the norm is NaN or infinite, a CPU has stepped nothing. A GPU has, and the weights are spoilt: to know the
        norm beforehand, every step would have to wait for the GPU.

        Args:
            factor: on the learning rate.
        """
        holders = self._trainable.gradients()
        self._add_l1_gradient()
        norm = torch.nn.utils.get_total_norm([holder.grad for holder in holders.values() if holder.grad is not None])
        if norm.device.type == "cpu" and not norm.isfinite():
            return norm  # before clipping, which would spread a NaN over all gradients
        torch.nn.utils.clip_grads_with_norm_(holders.values(), self._settings.clip, norm)
        rate = self._settings.learning_rate * factor
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        if self.rows is not None and self._trainable.rows is not None:
            rows = self._trainable.rows
            gradient = rows.leaf.grad if rows.leaf.grad is not None else torch.zeros_like(rows.leaf)
            self.rows.step(rows.ids, gradient, rate)
            rows.leaf.grad = None
        self._trainable.scatter()
        self._adamw.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The states of both optimisers, for a checkpoint."""
        return {"adamw": self._adamw.state_dict(), "rows": self.rows.state_dict() if self.rows else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of `state_dict`."""
        self._adamw.load_state_dict(state["adamw"])
        if self.rows is not None:
            self.rows.load_state_dict(state["rows"])

    @torch.no_grad()
    def _add_l1_gradient(self) -> None:
        """Add lambda / N * sign(theta - theta_0), the gradient of the L1 term lambda / N * sum |theta - theta_0|.

        N is the number of all the model's entries, theta_0 what trains as it was at the start. At theta_0 itself the
        sign is 0.
        """
        for name, start in self._start.items():
            value = self._trainable.values[name]
            if value.grad is not None:
                value.grad.add_((value - start).sign(), alpha=self._settings.effective_l1 / self._size)

"""The word embedding by the rows that a batch looks up, so that no gradient of the whole table ever exists.

A quarter of a million rows take 768 MB at XLM-R base's width, and a step looks up about a thousand of them. The rows of
a batch become a small leaf tensor, looked up in the table's place by a forward hook. `RowAdamW` is AdamW on rows: the
moments of every row ever looked up keep moving it, as in torch's AdamW over the whole table. Which rows a batch has is
worked out on the CPU, where the batch is made, so that a GPU is never waited for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

_CHUNK = {"cpu": 1 << 20}
"""Entries stepped at once: four tensors of so many fit into a processor's cache."""
_CHUNK_ELSEWHERE = 1 << 25


class Rows:
    """The rows of an embedding that a batch looks up, as a leaf whose gradient is theirs alone."""

    def __init__(self, table: nn.Embedding) -> None:
        """Look up through this object from now on, until `close`."""
        self.table = table
        self.ids = self._there = torch.empty(0, dtype=torch.int64)
        self.leaf = torch.empty(0)
        self._hook = table.register_forward_hook(self._lookup)

    def take(self, input_ids: Tensor) -> None:
        """Begin with the rows of a batch (token ids on the CPU); its micro-batches add up in the leaf's gradient."""
        self.ids = input_ids.unique()
        self.leaf = self._read(self.ids).requires_grad_()
        self._there = self.ids.to(self.leaf.device, non_blocking=True)

    def close(self) -> None:
        """Look up in the table again."""
        self._hook.remove()

    def _read(self, ids: Tensor) -> Tensor:
        return self.table.weight.detach()[ids.to(self.table.weight.device, non_blocking=True)]

    def _lookup(self, table: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self._embed(self.leaf, self._there, inputs[0]) if table.training else output

    def _embed(self, rows: Tensor, ids: Tensor, input_ids: Tensor) -> Tensor:
        found = embedding(torch.searchsorted(ids, input_ids), rows)
        padding = self.table.padding_idx
        if padding is None or not found.requires_grad:
            return found
        # torch gives the padding row no gradient
        return torch.where((input_ids == padding).unsqueeze(-1), found.detach(), found)


class MaskedRows(Rows):
    """Rows of a table of which only chosen entries train: those are laid over what the table holds.

    The table itself stays as it is until `close`, so that its memory can be the output embedding's too.
    """

    def __init__(self, table: nn.Embedding, index: Tensor, values: nn.Parameter) -> None:
        """Bind the chosen entries.

        Args:
            index: their flat indices in the table, ascending, on the CPU.
            values: what they are.
        """
        super().__init__(table)
        self._index, self._values = index, values
        self._entries = self._places = torch.empty(0, dtype=torch.int64)

    def gather(self) -> None:
        """Give the chosen entries their part of the rows' gradient: 0 for those of other rows."""
        if self.leaf.grad is not None:
            self._values.grad = torch.zeros_like(self._values)
            self._values.grad[self._entries] = self.leaf.grad.view(-1)[self._places]
            self.leaf.grad = None

    def _read(self, ids: Tensor) -> Tensor:
        rows, device = super()._read(ids), self.table.weight.device
        entries, places = _entries_in(self._index, ids, self.table.embedding_dim)
        self._entries, self._places = (t.to(device, non_blocking=True) for t in (entries, places))
        rows.view(-1)[self._places] = self._values.detach()[self._entries]
        return rows

    def _lookup(self, table: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if table.training:
            return super()._lookup(table, inputs, output)
        ids = inputs[0].cpu().unique()
        return self._embed(self._read(ids), ids.to(output.device), inputs[0])


def _entries_in(index: Tensor, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Which chosen entries lie in some rows of a table, and where: (numbers into `index`, flat places in the rows)."""
    first = torch.searchsorted(index, ids * width)
    counts = torch.searchsorted(index, (ids + 1) * width) - first
    row = torch.repeat_interleave(torch.arange(len(ids)), counts)
    entries = torch.arange(len(row)) + (first - counts.cumsum(0) + counts)[row]
    return entries, index[entries] + (row - ids[row]) * width


class RowAdamW:
    """AdamW over a whole table from gradients of rows; a row has moments from the batch on that first looks it up."""

    def __init__(self, table: Tensor, betas: tuple[float, float], weight_decay: float, eps: float = 1e-8) -> None:
        """Bind the table, which is changed in place."""
        self._table, self._betas, self._decay, self._eps = table, betas, weight_decay, eps
        self._chunk = max(1, _CHUNK.get(table.device.type, _CHUNK_ELSEWHERE) // table.shape[1])
        self._slot = torch.full((len(table),), -1, dtype=torch.int64)
        self._rows = torch.empty(0, dtype=torch.int64)
        self._moments: list[tuple[Tensor, Tensor]] = []
        self._step = 0

    @torch.no_grad()
    def step(self, ids: Tensor, gradient: Tensor, rate: float) -> None:
        """One step from the gradient of the rows `ids` (distinct, on the CPU); all others' is zero."""
        self._step += 1
        if self._decay:
            self._table.mul_(1 - rate * self._decay)
        slots, order = self.see(ids).sort()
        bounds = torch.searchsorted(slots, torch.arange(len(self._moments) + 1) * self._chunk).tolist()
        order, slots = (t.to(gradient.device, non_blocking=True) for t in (order, slots))
        for number in range(len(self._moments)):
            here = slice(bounds[number], bounds[number + 1])
            self._step_chunk(number, slots[here] - number * self._chunk, gradient[order[here]], rate)

    def _step_chunk(self, number: int, places: Tensor, gradient: Tensor, rate: float) -> None:
        rows = self._rows[number * self._chunk : (number + 1) * self._chunk].to(self._table.device, non_blocking=True)
        mean, square = (moment[: len(rows)] for moment in self._moments[number])
        (beta1, beta2), step = self._betas, self._step
        mean.mul_(beta1).index_add_(0, places, gradient, alpha=1 - beta1)
        square.mul_(beta2).index_add_(0, places, gradient.square(), alpha=1 - beta2)
        divisor = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(self._eps)
        self._table[rows] = self._table[rows].addcdiv_(mean, divisor, value=-rate / (1 - beta1**step))

    def see(self, ids: Tensor) -> Tensor:
        """Where the moments of some rows are kept; those of rows never seen before begin at zero."""
        new = ids[self._slot[ids] < 0]
        self._slot[new] = torch.arange(len(self._rows), len(self._rows) + len(new))
        self._rows = torch.cat([self._rows, new])
        while len(self._moments) * self._chunk < len(self._rows):
            self._moments.append((self._zeros(), self._zeros()))
        return self._slot[ids]

    def _zeros(self) -> Tensor:
        return torch.zeros(self._chunk, self._table.shape[1], dtype=self._table.dtype, device=self._table.device)

    def state_dict(self) -> dict[str, Any]:
        """All it knows, for a checkpoint."""
        return {"step": self._step, "rows": self._rows, "moments": [list(pair) for pair in self._moments]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._step, self._rows = state["step"], state["rows"]
        self._slot[self._rows] = torch.arange(len(self._rows))
        self._moments = [(mean.to(self._table), square.to(self._table)) for mean, square in state["moments"]]
        if self._moments:  # made on another device, they may be of another size
            self._chunk = len(self._moments[0][0])

"""Lookup and AdamW of a word embedding by the rows of a batch: no gradient of the whole table ever exists.

A quarter of a million rows take 768 MB at XLM-R base's width, and a step looks up about a thousand of them. The rows of
a batch become a small leaf tensor, which a forward hook looks up in place of the table. With E [vocabulary, width], the
distinct token ids u of a batch and the leaf R = E[u],

    output[t] = E[id_t] = R[j] where u_j = id_t,      dL/dR[j] = sum of dL/doutput[t] over the tokens t with id_t = u_j,

which are the rows u of dL/dE; its other rows are zero. Autograd adds up dL/dR over the micro-batches. Which rows a
batch has is computed on the CPU, where the batch is made, so that a GPU is never waited for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

_CHUNK = {"cpu": 1 << 20}
"""Entries stepped at once: four float32 tensors of 4 MiB (row, two moments, divisor) fit into a processor's cache."""
_CHUNK_ELSEWHERE = 1 << 25
"""A GPU wants few large kernels: 128 MiB a tensor."""


class Rows:
    """A lookup that reads the rows of a batch from a leaf tensor, whose gradient is the gradient of those rows.

    Attributes:
        table: the embedding, whose weight is read and takes no gradient.
        ids: [rows] int64 on the CPU, ascending: the distinct token ids of the batch.
        leaf: [rows, width], the rows of the table with these ids.
    """

    def __init__(self, table: nn.Embedding) -> None:
        """Hook the embedding's forward pass, until `close`."""
        self.table = table
        self.ids = self._there = torch.empty(0, dtype=torch.int64)  # `_there`: on the table's device
        self.leaf = torch.empty(0)
        self._hook = table.register_forward_hook(self._lookup)

    def take(self, input_ids: Tensor) -> None:
        """Make the leaf of a batch, whose micro-batches then add up in its gradient.

        Args:
            input_ids: int64 on the CPU, the token ids of the whole batch, of any shape.
        """
        self.ids = input_ids.unique()
        self.leaf = self._read(self.ids).requires_grad_()
        self._there = self.ids.to(self.leaf.device, non_blocking=True)

    def close(self) -> None:
        """Remove the hook: the embedding reads its own weight again."""
        self._hook.remove()

    def _read(self, ids: Tensor) -> Tensor:
        return self.table.weight.detach()[ids.to(self.table.weight.device, non_blocking=True)]

    def _lookup(self, table: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self._embed(self.leaf, self._there, inputs[0]) if table.training else output

    def _embed(self, rows: Tensor, ids: Tensor, input_ids: Tensor) -> Tensor:
        """The embeddings of some tokens, [..., width], from the rows [rows, width] with these ascending ids."""
        output = embedding(torch.searchsorted(ids, input_ids), rows)
        padding = self.table.padding_idx
        if padding is None or not output.requires_grad:
            return output
        # nn.Embedding gives its padding row no gradient
        return torch.where((input_ids == padding).unsqueeze(-1), output.detach(), output)


class MaskedRows(Rows):
    """`Rows` of a table of which only some entries train: a vector holds them and overlays the rows that are read.

    Until `close` the table is not written to, so that a frozen output embedding can share its memory.
    """

    def __init__(self, table: nn.Embedding, index: Tensor, values: nn.Parameter) -> None:
        """Hook the embedding and bind the entries that train.

        Args:
            index: [entries] int64 on the CPU, ascending flat indices into the table.
            values: [entries], the entries themselves.
        """
        super().__init__(table)
        self._index, self._values = index, values
        self._entries = self._places = torch.empty(0, dtype=torch.int64)

    def gather(self) -> None:
        """Turn the leaf's gradient into that of `values`: dL/dvalues[i] = dL/dR at the place of entry i.

        It is 0 for entries in rows that the batch does not look up.
        """
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
        ids = inputs[0].cpu().unique()  # in evaluation a batch is not announced by `take`
        return self._embed(self._read(ids), ids.to(output.device), inputs[0])


def _entries_in(index: Tensor, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions in `index` of the entries that lie in some rows of a table, and their flat places in those rows.

    Args:
        index: [entries] ascending flat indices into the table.
        ids: [rows] ascending row numbers.
        width: of a row.

    Returns:
        Two int64 tensors [entries in these rows].
    """
    # the entries of row ids[r] are index[first[r] : first[r] + counts[r]]
    first = torch.searchsorted(index, ids * width)
    counts = torch.searchsorted(index, (ids + 1) * width) - first
    row = torch.repeat_interleave(torch.arange(len(ids)), counts)  # r of each of them
    before = counts.cumsum(0) - counts  # entries in the rows before
    entries = torch.arange(len(row)) + (first - before)[row]
    # row ids[r] of the table is row r of those read
    return entries, index[entries] + (row - ids[row]) * width


class RowAdamW:
    """AdamW (Loshchilov and Hutter, 2019) over a whole table, from the gradients of the rows of each batch.

    At step t, with the gradient g of a row (zero where the batch does not look it up), as in `torch.optim.AdamW`:

        m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
        row <- (1 - rate decay) row - rate / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)

    A row that no batch has looked up has m = v = 0, which move it nowhere: moments exist from the first lookup on, in
    chunks of rows in the order of that lookup. From then on they move the row in every step.
    """

    def __init__(self, table: Tensor, betas: tuple[float, float], weight_decay: float, eps: float = 1e-8) -> None:
        """Bind the table, which is changed in place."""
        self._table, self._betas, self._decay, self._eps = table, betas, weight_decay, eps
        self._chunk = max(1, _CHUNK.get(table.device.type, _CHUNK_ELSEWHERE) // table.shape[1])
        self._slot = torch.full((len(table),), -1, dtype=torch.int64)  # of a row, -1: never looked up
        self._rows = torch.empty(0, dtype=torch.int64)  # the inverse: the row of each slot
        self._moments: list[tuple[Tensor, Tensor]] = []  # m and v of each chunk of slots, [chunk, width]
        self._step = 0

    @torch.no_grad()
    def step(self, ids: Tensor, gradient: Tensor, rate: float) -> None:
        """Step the whole table.

        Args:
            ids: [rows] int64 on the CPU, distinct.
            gradient: [rows, width], of the rows `ids`; that of all others is zero.
            rate: the learning rate.
        """
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
        """Step the rows of one chunk; `places` [looked up] are those with a gradient, [looked up, width]."""
        rows = self._rows[number * self._chunk : (number + 1) * self._chunk].to(self._table.device, non_blocking=True)
        mean, square = (moment[: len(rows)] for moment in self._moments[number])
        (beta1, beta2), step = self._betas, self._step
        mean.mul_(beta1).index_add_(0, places, gradient, alpha=1 - beta1)
        square.mul_(beta2).index_add_(0, places, gradient.square(), alpha=1 - beta2)
        divisor = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(self._eps)
        self._table[rows] = self._table[rows].addcdiv_(mean, divisor, value=-rate / (1 - beta1**step))

    def see(self, ids: Tensor) -> Tensor:
        """The slots of some rows, [rows] int64; rows that have none yet get one, with moments of zero."""
        new = ids[self._slot[ids] < 0]
        self._slot[new] = torch.arange(len(self._rows), len(self._rows) + len(new))
        self._rows = torch.cat([self._rows, new])
        while len(self._moments) * self._chunk < len(self._rows):
            self._moments.append((self._zeros(), self._zeros()))
        return self._slot[ids]

    def _zeros(self) -> Tensor:
        return torch.zeros(self._chunk, self._table.shape[1], dtype=self._table.dtype, device=self._table.device)

    def state_dict(self) -> dict[str, Any]:
        """The step, the rows in the order of their slots, and their moments: for a checkpoint."""
        return {"step": self._step, "rows": self._rows, "moments": [list(pair) for pair in self._moments]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of `state_dict`."""
        self._step, self._rows = state["step"], state["rows"]
        self._slot[self._rows] = torch.arange(len(self._rows))
        self._moments = [(mean.to(self._table), square.to(self._table)) for mean, square in state["moments"]]
        if self._moments:  # made on another device, they may be of another size
            self._chunk = len(self._moments[0][0])

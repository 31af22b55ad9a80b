"""The weights that train, in one flat buffer: a model's parameters are views of it while it trains.

    flat     W, in the model's precision; each parameter begins at a multiple of 128 entries
    narrow   S, bfloat16: the linear layers' part of W as matrix products read it, where they are computed in bfloat16
    waiting  that part of W in a sparse phase, on the CPU: no step reads it
    values   what an optimiser steps: W itself in a dense phase, its chosen entries W[idx] in a sparse one

With a mask the optimiser never sees the weights, so the entries off it stay bit-identical whatever weight decay,
momentum and clipping do. After a step `write_back` puts the values into W, and what changed into S: no product casts a
weight that trains. It allocates nothing that stays and waits for no value. Losses and optimisers are elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deftx.errors import DataError
from deftx.masks.select import Indices
from deftx.models.architectures import lm_head_of
from deftx.train.capture import deterministic
from deftx.train.trainable import Trainable

_ALIGNMENT = 128
"""Entries: 256 bytes even of bfloat16, as the kernels of matrix products want them."""
_LARGE = 1 << 20
"""Entries of a parameter whose gradient is read where it lies; the gradients of others are put side by side first."""
_OUTPUT_ROWS = 64
"""XLM-R's 250,002 output rows are no multiple of 8, which halves the rate of their products on a GPU."""


@dataclass(frozen=True)
class _Part:
    """A stretch of the flat buffer, `start` to `stop`, and where its trained entries lie in `values`.

    Attributes:
        names: of the parameters in it, in order.
        index: [entries] int64, those that train, ascending and counted from `start`; empty where all do.
        place: where they are in `values`.
    """

    names: list[str]
    start: int
    stop: int
    index: Tensor
    place: slice


class Weights:
    """The trained parameters of a model as views of flat buffers on a device, until `close`.

    Attributes:
        names: of the parameters that train, in the order of `parameters`.
        parameters: what gradients are taken of; views of W or S.
        values: [entries], what is stepped.
    """

    def __init__(self, model: nn.Module, trainable: Trainable, device: torch.device, narrow: bool) -> None:
        """Move the model to the device and its trained parameters into the buffers; freeze the others.

        Args:
            model: changed in place.
            trainable: what trains.
            device: where it trains.
            narrow: whether matrix products are computed in bfloat16.

        Raises:
            DataError: when nothing trains.
        """
        by_name = dict(trainable.parameters)
        if not by_name:
            raise DataError("nothing trains: the mask is empty, and the settings freeze everything else")
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self._moved: list[str] = []
        self._device = device
        _freeze_all_but(model, by_name)
        self._output = _FrozenOutput(model)
        try:
            self._output.pad(device, narrow)
            self._move(model, by_name, trainable.index, device, narrow)
        except BaseException:  # a GPU without room for all of it, above all
            self.close()
            raise

    def _move(
        self,
        model: nn.Module,
        by_name: dict[str, nn.Parameter],
        mask: Indices | None,
        device: torch.device,
        narrow: bool,
    ) -> None:
        products = _linear(model) if narrow else set()
        groups = _groups(by_name, products)
        self.names = [name for group in groups for name in group]
        self.parameters = [by_name[name] for name in self.names]
        sizes = {name: -(-by_name[name].numel() // _ALIGNMENT) * _ALIGNMENT for name in self.names}
        self._start = dict(zip(self.names, _sums(sizes[name] for name in self.names), strict=False))
        self._shapes = {name: by_name[name].shape for name in self.names}
        linear = [name for name in groups[0] if id(by_name[name]) in products]
        wide, split = self.parameters[0].dtype, sum(sizes[name] for name in linear)
        self._sparse = mask is not None
        self._waiting = torch.zeros(split if self._sparse else 0, dtype=wide)
        self._flat = torch.zeros(sum(sizes.values()) - len(self._waiting), dtype=wide, device=device)
        self.values = self._flat
        for name, parameter in by_name.items():
            parameter.data = self._wide(name).copy_(parameter.detach())
            self._moved.append(name)
        self._narrow = torch.zeros(split, dtype=torch.bfloat16, device=device)
        self._narrow.copy_(self._waiting if self._sparse else self._flat[:split])
        for name in linear:
            by_name[name].data = self._view(self._narrow, name)
        model.to(device)
        self._parts = self._divided(groups, sizes, mask)
        if self._sparse:
            chosen = ((self._stretch(part), part.index) for part in self._parts)
            self.values = torch.cat(
                [whole.index_select(0, index.to(whole.device)).to(device) for whole, index in chosen]
            )

    def views(self, whole: Tensor) -> list[Tensor]:
        """A tensor like `values` as a list of vectors, in the order of `gather`."""
        return [whole] if self._sparse else [self._view(whole, name).view(-1) for name in self.names]

    def gather(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of `views(values)`, in the precision of `values`.

        Args:
            gradients: of `parameters`, in the shape and dtype of each.
        """
        left, gathered = list(gradients), []
        for part in self._parts:
            here, left = left[: len(part.names)], left[len(part.names) :]
            if self._sparse:
                whole = here[0].reshape(-1) if len(here) == 1 else self._side_by_side(part, here, here[0].dtype)
                gathered.append(whole.index_select(0, part.index).to(self.values.dtype))
            elif here[0].dtype == self.values.dtype:
                gathered += [gradient.reshape(-1) for gradient in here]
            else:
                whole = self._side_by_side(part, here, self.values.dtype)
                gathered += [self._view(whole, name, part.start).view(-1) for name in part.names]
        return [torch.cat(gathered)] if self._sparse else gathered

    @torch.no_grad()
    def write_back(self) -> None:
        """Make the parameters what `values` are."""
        if not self._sparse:
            self._narrow.copy_(self._flat[: len(self._narrow)])
            return
        with deterministic(False):  # the places are distinct
            for part in self._parts:
                whole = self._narrow if self._waits(part) else self._stretch(part)
                whole.index_copy_(0, part.index, self.values[part.place].to(whole.dtype))

    @torch.no_grad()
    def load(self, values: Tensor) -> None:
        """Set `values`, and the parameters with them."""
        self.values.copy_(values)
        self.write_back()

    def by_name(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter that trains, in the precision of `values`."""
        self._settle()
        return ((name, self._wide(name)) for name in self.names)

    @torch.no_grad()
    def close(self) -> None:
        """Give each parameter memory of its own, in the model's precision, and forget all. May be called twice.

        On a GPU that is full, what no longer fits is left on the CPU.
        """
        self._output.close()
        by_name = dict(zip(self.names, self.parameters, strict=True))
        if self._moved:
            self._settle()
        while self._moved:
            view = self._wide(self._moved[-1])
            try:
                by_name[self._moved[-1]].data = view.to(self._device, copy=True)
            except torch.OutOfMemoryError:
                by_name[self._moved[-1]].data = view.to("cpu", copy=True)
            self._moved.pop()
        self.names, self.parameters, self._parts = [], [], []
        self.values = self._flat = self._narrow = self._waiting = torch.empty(0)

    def _settle(self) -> None:
        """Make what waits on the CPU what `values` are; in a move that failed halfway there are none."""
        if len(self._waiting) and self.values is not self._flat:
            first = self._parts[0]
            self._waiting.index_copy_(0, first.index.cpu(), self.values[first.place].cpu())

    def _waits(self, part: _Part) -> bool:
        return part.start < len(self._waiting)

    def _stretch(self, part: _Part) -> Tensor:
        """A part of W."""
        before = len(self._waiting)
        return self._waiting if self._waits(part) else self._flat[part.start - before : part.stop - before]

    def _wide(self, name: str) -> Tensor:
        """A parameter's place in W."""
        before = len(self._waiting)
        return self._view(self._waiting, name) if self._start[name] < before else self._view(self._flat, name, before)

    def _view(self, whole: Tensor, name: str, origin: int = 0) -> Tensor:
        start, shape = self._start[name] - origin, self._shapes[name]
        return whole[start : start + shape.numel()].view(shape)

    def _side_by_side(self, part: _Part, gradients: list[Tensor], dtype: torch.dtype) -> Tensor:
        """The gradients of a part in one vector, laid out as in W; what lies between them is never read."""
        whole = torch.empty(part.stop - part.start, dtype=dtype, device=self._flat.device)
        torch._foreach_copy_([self._view(whole, name, part.start) for name in part.names], gradients)
        return whole

    def _divided(self, groups: list[list[str]], sizes: dict[str, int], mask: Indices | None) -> list[_Part]:
        parts, begin = [], 0
        for names in groups:
            start = self._start[names[0]]
            stop, index = start + sum(sizes[name] for name in names), torch.empty(0, dtype=torch.int64)
            if mask is not None:
                chosen = [self._start[name] - start + _entries(mask.get(name), self._shapes[name]) for name in names]
                index = torch.cat(chosen).to(self._flat.device)
            parts.append(_Part(names, start, stop, index, slice(begin, begin + len(index))))
            begin += len(index)
        return parts


def _entries(chosen: Tensor | None, shape: torch.Size) -> Tensor:
    return torch.arange(shape.numel()) if chosen is None else chosen.cpu()


def _sums(sizes: Iterable[int]) -> Iterator[int]:
    """Where each of some stretches begins that lie side by side."""
    return itertools.accumulate(sizes, initial=0)


def _groups(parameters: dict[str, nn.Parameter], linear: set[int]) -> list[list[str]]:
    """The names as they lie in memory: those of linear layers together, each large one alone, the others together."""
    narrow = [name for name, parameter in parameters.items() if id(parameter) in linear]
    large = [n for n, parameter in parameters.items() if n not in narrow and parameter.numel() >= _LARGE]
    small = [name for name in parameters if name not in narrow and name not in large]
    return [group for group in (narrow, *([name] for name in large), small) if group]


def _linear(model: nn.Module) -> set[int]:
    """The parameters of linear layers that no other kind of module uses, by id."""
    inside, outside = set(), set()
    for module in model.modules():
        ids = {id(parameter) for parameter in module.parameters(recurse=False)}
        if type(module) is nn.Linear:
            inside |= ids
        else:
            outside |= ids
    return inside - outside


def _freeze_all_but(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    trained = {id(parameter) for parameter in parameters.values()}
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in trained)


class _FrozenOutput:
    """The output embedding of an LM head, where it is frozen: with rows of zeros added, in the products' precision.

    Its loss leaves out the rows without a bias (see `kernels.linear_cross_entropy`).
    """

    def __init__(self, model: nn.Module) -> None:
        head = lm_head_of(model)
        frozen = head is not None and not head.decoder.weight.requires_grad
        self._weight: Tensor | None = head.decoder.weight if head is not None and frozen else None
        self._own: Tensor | None = None

    def pad(self, device: torch.device, narrow: bool) -> None:
        """Move it to the device with its further rows. Where bfloat16 rounds it, the original waits on the CPU."""
        if self._weight is None:
            return
        own = self._weight.detach()
        rows, dtype = -(-len(own) // _OUTPUT_ROWS) * _OUTPUT_ROWS, torch.bfloat16 if narrow else own.dtype
        padded = torch.zeros(rows, own.shape[1], dtype=dtype, device=device)
        padded[: len(own)].copy_(own)
        self._own = own.cpu() if narrow else padded[: len(own)]
        self._weight.data = padded

    def close(self) -> None:
        """Put the output embedding back. May be called twice."""
        if self._weight is not None and self._own is not None:
            try:
                self._weight.data = self._own.to(self._weight.device, copy=True)
            except torch.OutOfMemoryError:
                self._weight.data = self._own.cpu()
        self._weight = self._own = None

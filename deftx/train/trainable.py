"""What a phase trains: whole tensors, or chosen entries of them. No optimiser here, and no data.

With chosen entries the optimiser never sees the weights: it steps a vector of the chosen entries, so entries off the
mask stay bit-identical whatever weight decay, momentum and clipping do, and moments exist for the chosen entries only.
The gradients of the whole model never exist together: of a linear layer and of the word embedding that of the chosen
entries alone is computed (`sampled_linear`, `embedding_rows`); of any other parameter they are gathered, and its
gradient dropped, as soon as the backward pass has finished with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deftx.config import Training
from deftx.kernels.embedding_rows import MaskedRows, Rows
from deftx.kernels.sampled_linear import SampledLinear
from deftx.masks.select import Indices
from deftx.models.parameters import base_of, embeddings_of, head_of, maskable


class Trainable:
    """Parameters that train, by name, and the values that an optimiser steps.

    Attributes:
        parameters: the model's.
        values: without an index a value is the model's own parameter; with one, the vector of the chosen entries.
        rows: of the word embedding, where it is looked up by the rows of a batch.
        words: its name; empty where there is none.
        replaced: names of those parameters that take no gradient themselves: rows or entries stand for them.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], index: Indices | None = None, table: nn.Embedding | None = None,
        output: nn.Linear | None = None, layers: Mapping[str, nn.Linear] | None = None,
    ) -> None:  # fmt: skip
        """Bind the parameters; `close` when done.

        Args:
            parameters: what trains.
            index: flat indices of the entries that train, for the tensors of which not all do.
            table: the word embedding, to be looked up by rows; its weight is one of `parameters`.
            output: a frozen output embedding: where it equals a table of chosen entries, they share their memory.
            layers: linear layers by the name of their weight: of one with an index, the gradient of its entries alone
                is computed.
        """
        self.parameters = dict(parameters)
        self._index = {name: entries.to(self.parameters[name].device) for name, entries in (index or {}).items()}
        self.values = {name: self._value(name, parameter) for name, parameter in self.parameters.items()}
        self.words = next((n for n, p in parameters.items() if table is not None and p is table.weight), "")
        self.rows = self._rows(table) if table is not None and self.words else None
        self._shared = output if output is not None and self._share(output) else None
        others = [name for name in self._index if name != self.words or self.rows is None]
        linear = {name: layer for name, layer in (layers or {}).items() if name in others}
        self._sampled = [SampledLinear(layer, self._index[n], self.values[n]) for n, layer in linear.items()]
        self.replaced = {*linear, *([self.words] if self.rows is not None else [])}
        self._hooks = [self._gather_early(name) for name in others if name not in linear]

    def begin(self, input_ids: Tensor | None) -> None:
        """Begin a step, with the token ids of its whole batch on the CPU."""
        if self.rows is not None and input_ids is not None:
            self.rows.take(input_ids)

    def gradients(self) -> Mapping[str, Tensor]:
        """What holds a gradient after the backward pass, by name; the entries of the mask alone, where there is one."""
        if isinstance(self.rows, MaskedRows):
            self.rows.gather()
        elif self.rows is not None:
            return {**self.values, self.words: self.rows.leaf}
        return self.values

    @torch.no_grad()
    def scatter(self) -> None:
        """Write the optimiser's vectors into the model; entries laid over the word embedding need no writing."""
        for name, index in self._index.items():
            if name != self.words or self.rows is None:
                self.parameters[name].view(-1)[index] = self.values[name].detach()

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set every value, and the model with it."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.scatter()

    @torch.no_grad()
    def close(self) -> None:
        """Every value in its place, no hook, no memory shared; what was frozen stays so. May be called twice."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._sampled:
            layer.close()
        if self.rows is not None:
            self.rows.close()
            self.rows = None
        if self._shared is not None:
            self.parameters[self.words].data = self._shared.weight.detach().clone()
            self._shared = None
        self.scatter()

    def _value(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if name not in self._index:
            return parameter
        return nn.Parameter(parameter.detach().view(-1)[self._index[name]])

    def _rows(self, table: nn.Embedding) -> Rows:
        if self.words not in self._index:
            return Rows(table)
        return MaskedRows(table, self._index[self.words].cpu(), self.values[self.words])

    def _share(self, output: nn.Linear) -> bool:
        if not isinstance(self.rows, MaskedRows) or output.weight.requires_grad:
            return False
        table = self.parameters[self.words]
        if not torch.equal(table, output.weight):
            return False
        table.data = output.weight.data
        return True

    def _gather_early(self, name: str) -> Any:
        index, value = self._index[name], self.values[name]

        def gather(parameter: Tensor) -> None:
            assert parameter.grad is not None
            chosen = parameter.grad.view(-1)[index]
            value.grad = chosen if value.grad is None else value.grad.add_(chosen)
            parameter.grad = None

        # a run before may have frozen it, and what is frozen takes no hook
        return self.parameters[name].requires_grad_().register_post_accumulate_grad_hook(gather)


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
    # the L1 term of a dense phase pulls at every row in every step
    by_rows = mask is not None or not settings.effective_l1
    output = getattr(getattr(model, "lm_head", None), "decoder", None)
    return Trainable({**body, **head}, mask, word_embedding(model) if by_rows else None, output, linear_layers(model))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The base model's linear layers that do no more than that, by the name of their weight."""
    found = [(name, m) for name, m in base_of(model).named_modules() if type(m) is nn.Linear]
    return {f"{name}.weight": layer for name, layer in found if len(_users(model, layer.weight)) == 1}


def word_embedding(model: nn.Module) -> nn.Embedding | None:
    """The base model's table of words; none where another module uses its weight too, or it does more than look up."""
    table = base_of(model).get_input_embeddings()  # type: ignore[operator]
    # a subclass may do more: XGLM's scales what it looks up
    return table if type(table) is nn.Embedding and len(_users(model, table.weight)) == 1 else None


def _users(model: nn.Module, weight: Tensor) -> list[nn.Module]:
    return [m for m in model.modules() if any(p is weight for p in m._parameters.values())]

"""What a phase trains: whole tensors, or the entries of a mask. No optimiser here, and no data.

With a mask the optimiser never sees the weights: it steps a vector of the entries that train, so the others stay
bit-identical whatever weight decay, momentum and clipping do, and moments exist for these entries only. The gradients
of the whole model never exist together: for a linear layer and the word embedding only that of the mask's entries is
computed (`sampled_linear`, `embedding_rows`); for any other parameter it is gathered from the whole gradient, which is
dropped as soon as the backward pass has finished with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deftx.config import Training
from deftx.kernels.embedding_rows import MaskedRows, Rows
from deftx.kernels.sampled_linear import SampledGradientLinear
from deftx.masks.select import Indices
from deftx.models.parameters import base_of, embeddings_of, head_of, maskable


class Trainable:
    """The parameters of a model that train, and the tensors that an optimiser steps for them.

    Attributes:
        parameters: the model's parameters that train, whole or in part, by name.
        values: what is stepped, by the same names: the parameter itself, or [entries] where only a part of it trains.
        rows: the row lookup of the word embedding, or None where it is not looked up by rows.
        words: the word embedding's name in `parameters`; "" where `rows` is None from the start.
        replaced: the names whose parameter takes no gradient itself, since rows or entries take it in its place.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        index: Indices | None = None,
        table: nn.Embedding | None = None,
        output: nn.Linear | None = None,
        layers: Mapping[str, nn.Linear] | None = None,
    ) -> None:
        """Bind the parameters and hook the model until `close`.

        Args:
            parameters: what trains, by name.
            index: by name, [entries] ascending flat indices of the entries that train; a parameter without one trains
                whole.
            table: the word embedding, to be looked up by rows if its weight is one of `parameters`.
            output: the output embedding. Where it is frozen and equal to a table with an index, the two share memory.
            layers: the linear layers, by the name of their weight: with an index, their gradient is sampled.
        """
        self.parameters = dict(parameters)
        self._index = {name: entries.to(self.parameters[name].device) for name, entries in (index or {}).items()}
        self.values = {name: self._value(name, parameter) for name, parameter in self.parameters.items()}
        self.words = next((n for n, p in parameters.items() if table is not None and p is table.weight), "")
        self.rows = self._rows(table) if table is not None and self.words else None
        self._shared = output if output is not None and self._share(output) else None
        others = [name for name in self._index if name != self.words or self.rows is None]
        linear = {name: layer for name, layer in (layers or {}).items() if name in others}
        self._sampled = [SampledGradientLinear(layer, self._index[n], self.values[n]) for n, layer in linear.items()]
        self.replaced = {*linear, *([self.words] if self.rows is not None else [])}
        self._hooks = [self._gather_early(name) for name in others if name not in linear]

    def begin(self, input_ids: Tensor | None) -> None:
        """Begin a step.

        Args:
            input_ids: token ids of the whole batch on the CPU; None where the model is fed no token ids.
        """
        if self.rows is not None and input_ids is not None:
            self.rows.take(input_ids)

    def gradients(self) -> Mapping[str, Tensor]:
        """The tensors whose `.grad` the backward pass has filled, by name: the values, or the leaf of the rows."""
        if isinstance(self.rows, MaskedRows):
            self.rows.gather()
        elif self.rows is not None:
            return {**self.values, self.words: self.rows.leaf}
        return self.values

    @torch.no_grad()
    def scatter(self) -> None:
        """Write the entries that were stepped into the model; `MaskedRows` reads the word embedding's by itself."""
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
        """Remove every hook, end the sharing of memory and write all entries into the model. May be called twice.

        What was frozen stays frozen.
        """
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
        """What is stepped for a parameter: itself, or a copy of the entries that train, [entries]."""
        if name not in self._index:
            return parameter
        return nn.Parameter(parameter.detach().view(-1)[self._index[name]])

    def _rows(self, table: nn.Embedding) -> Rows:
        if self.words not in self._index:
            return Rows(table)
        return MaskedRows(table, self._index[self.words].cpu(), self.values[self.words])

    def _share(self, output: nn.Linear) -> bool:
        """Free the memory of the word embedding by reading the output embedding's, where the two are equal."""
        if not isinstance(self.rows, MaskedRows) or output.weight.requires_grad:
            return False
        table = self.parameters[self.words]
        if not torch.equal(table, output.weight):
            return False
        table.data = output.weight.data
        return True

    def _gather_early(self, name: str) -> Any:
        """A hook that moves a parameter's gradient to the entries that train once it is complete, and frees it."""
        index, value = self._index[name], self.values[name]

        def gather(parameter: Tensor) -> None:
            assert parameter.grad is not None
            part = parameter.grad.view(-1)[index]  # [entries]
            value.grad = part if value.grad is None else value.grad.add_(part)
            parameter.grad = None

        # a parameter that an earlier run has frozen takes no hook
        return self.parameters[name].requires_grad_().register_post_accumulate_grad_hook(gather)


def body_of(model: nn.Module, settings: Training) -> dict[str, nn.Parameter]:
    """The maskable parameters that no setting freezes, by their names in the base model."""
    frozen = embeddings_of(model) if settings.freeze_embeddings else set()
    return {name: parameter for name, parameter in maskable(model).items() if name not in frozen}


def phase(model: nn.Module, settings: Training, mask: Indices | None = None) -> Trainable:
    """What a phase trains: the body (dense phase) or the mask's entries of it (sparse phase), and the whole head.

    The head's names begin with `head/`.
    """
    body = body_of(model, settings)
    if mask is not None:
        body = {name: parameter for name, parameter in body.items() if name in mask}
    frozen_head = settings.freeze_lm_head and hasattr(model, "lm_head")
    head = {} if frozen_head else {f"head/{name}": parameter for name, parameter in head_of(model).items()}
    # the L1 term of a dense phase moves every row of the word embedding in every step
    by_rows = mask is not None or not settings.effective_l1
    output = getattr(getattr(model, "lm_head", None), "decoder", None)
    return Trainable({**body, **head}, mask, word_embedding(model) if by_rows else None, output, linear_layers(model))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The base model's plain linear layers with a weight of their own, by the name of that weight."""
    layers = [(name, m) for name, m in base_of(model).named_modules() if type(m) is nn.Linear]
    return {f"{name}.weight": layer for name, layer in layers if len(_users(model, layer.weight)) == 1}


def word_embedding(model: nn.Module) -> nn.Embedding | None:
    """The base model's word embedding, or None where it cannot be looked up by rows.

    That is where another module uses its weight too, or where its class does more than look up.
    """
    table = base_of(model).get_input_embeddings()  # type: ignore[operator]
    # XGLM's, for one, is a subclass that scales what it looks up
    return table if type(table) is nn.Embedding and len(_users(model, table.weight)) == 1 else None


def _users(model: nn.Module, weight: Tensor) -> list[nn.Module]:
    """The modules of which a tensor is a parameter."""
    return [m for m in model.modules() if any(p is weight for p in m._parameters.values())]

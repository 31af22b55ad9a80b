"""Adding SFTs to a model, theta0 + lambda_T phi_T + lambda_L phi_L (Equation 3 of the paper), and taking them off.

Adding and then subtracting is not the identity in float32, so the touched entries are kept and put back: the model is
bit-identical afterwards. Works on any module with a Hugging Face base model; knows nothing of training or data.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from deftx.errors import DataError
from deftx.models.parameters import base_of, pooler_of
from deftx.sft.vector import SparseFineTuning

Model = TypeVar("Model", bound=nn.Module)
_Saved = tuple[Tensor, Tensor | None, Tensor]


@contextmanager
def composed(
    model: Model,
    task: SparseFineTuning | None = None,
    language: SparseFineTuning | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Iterator[Model]:
    """The model with a task and a language vector added, for the duration of a `with` block.

    Args:
        model: a Hugging Face model; it is changed in place and restored bit for bit, also after an exception.
        task: its head, where it has one, replaces the model's head.
        language: its head (the LM head it was learnt with) is not used.
        weights: (lambda_T, lambda_L).

    Raises:
        DataError: when a vector was made for another backbone: names, shapes or fingerprint differ.
    """
    saved: list[_Saved] = []
    try:
        _compose(model, task, language, weights, saved)
        yield model
    finally:
        with torch.no_grad():
            for tensor, index, before in reversed(saved):
                if index is None:
                    tensor.copy_(before)
                else:
                    tensor.view(-1).index_copy_(0, index, before)


def compose_in_place(
    model: nn.Module,
    task: SparseFineTuning | None = None,
    language: SparseFineTuning | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Add a task and a language vector to a model permanently, the head included; arguments as of `composed`.

    Raises:
        DataError: as `composed`; the model may then be half changed.
    """
    _compose(model, task, language, weights, [])


def apply(model: nn.Module, sft: SparseFineTuning, weight: float = 1.0) -> None:
    """Add a vector to a model permanently, without its head: the start theta0 + phi_source.

    Raises:
        DataError: when the vector was made for another backbone.
    """
    check_fits(model, sft)
    _add(model, sft, weight, [], left=pooler_of(model))  # a pooler is a layer of the head


def check_fits(model: nn.Module, sft: SparseFineTuning) -> None:
    """Check that a vector was made for this backbone.

    Names and shapes must be there; fingerprints must agree where both are known (`models.load` notes the model's).

    Raises:
        DataError: naming the first parameter, or both fingerprints.
    """
    check_shapes({name: tuple(p.shape) for name, p in base_of(model).named_parameters()}, sft.shapes)
    for name, index in sft.indices.items():
        if index.shape != sft.values[name].shape:
            counts = f"{index.numel():,} indices for {sft.values[name].numel():,} values"
            raise DataError(f"the vector's {name} contradicts itself: {counts}")
    if (pooler := _pooler_in(model, sft)) and not getattr(model, "deftx_pooler", None):
        raise DataError(f"the vector changes {pooler[0]}, which is not in this backbone's files: it is for another one")
    measured = getattr(model, "deftx_fingerprint", None)
    asserted = sft.metadata.fingerprint
    if measured and asserted and measured != asserted:
        raise DataError(
            f"the vector was learnt from {sft.metadata.backbone} with fingerprint {asserted[:12]}, "
            f"but this backbone's is {measured[:12]}"
        )


def check_shapes(own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> None:
    """Check that what a vector changes is in a backbone, by names and shapes.

    Args:
        own: of the backbone's parameters, by name in the base model.
        theirs: of what the vector changes.

    Raises:
        DataError: naming the first parameter that is not there, or that has another shape.
    """
    for name, shape in theirs.items():
        if name not in own:
            raise DataError(f"the vector changes {name}, which this backbone does not have: it is for another one")
        if own[name] != shape:
            raise DataError(
                f"the vector's {name} has shape {shape}, this backbone's {own[name]}: it is for another one"
            )


def _compose(
    model: nn.Module,
    task: SparseFineTuning | None,
    language: SparseFineTuning | None,
    weights: tuple[float, float],
    saved: list[_Saved],
) -> None:
    pairs = [(sft, weight) for sft, weight in zip((task, language), weights, strict=True) if sft is not None]
    for sft, _ in pairs:
        check_fits(model, sft)
    if task is not None and _pooler_in(model, task):
        # published vectors of a BERT change the pooler that it was published with; one learnt here draws its own
        pretrained: Mapping[str, Tensor] = model.deftx_pooler  # type: ignore[assignment]
        _replace(pooler_of(model), pretrained, saved)
    for sft, weight in pairs:
        _add(model, sft, weight, saved)
    if task is not None:
        _replace_head(model, task, saved)


def _pooler_in(model: nn.Module, sft: SparseFineTuning) -> list[str]:
    """The names of the pooler's parameters that a vector changes as it changes those of the encoder."""
    return [name for name in pooler_of(model) if name in sft.indices]


@torch.no_grad()
def _add(
    model: nn.Module, sft: SparseFineTuning, weight: float, saved: list[_Saved], left: Container[str] = ()
) -> None:
    parameters = dict(base_of(model).named_parameters())
    for name, index in sft.indices.items():
        if name in left:
            continue
        tensor = parameters[name].data
        place = index.to(tensor.device)
        # half the time of tensor.view(-1)[place]; an SFT of 14 million entries is on in 0.2 s
        before = tensor.view(-1).index_select(0, place)
        saved.append((tensor, place, before))
        tensor.view(-1).index_copy_(0, place, torch.add(before, sft.values[name].to(tensor), alpha=weight))


@torch.no_grad()
def _replace_head(model: nn.Module, task: SparseFineTuning, saved: list[_Saved]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in task.head.items():
        if name not in parameters or parameters[name].shape != value.shape:
            shape = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise DataError(f"the task vector's head has {name} {tuple(value.shape)}; the model has {shape}")
    _replace(parameters, task.head, saved)


@torch.no_grad()
def _replace(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], saved: list[_Saved]) -> None:
    for name, value in values.items():
        saved.append((parameters[name].data, None, parameters[name].detach().clone()))
        parameters[name].data.copy_(value)

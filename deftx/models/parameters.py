"""The parameters of a model by what they belong to: the maskable ones of the base model, the head, the embeddings.

Maskable are the base model's parameters except its norms, which are frozen by module type: 277,414,656 entries in
XLM-R base. A pooler inside the base model (BERT's) belongs to the head. Parameters are iterated on the base model
itself: transformers 5 reports a tied embedding under the decoder's name only, which would drop it from every SFT. How a
model is loaded is in `load`, what differs between architectures in `architectures`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deftx.models.architectures import lm_head_of

_POOLER = "pooler."
"""How the names of a pooler's parameters begin in a base model."""
_NORMS = ("LayerNorm", "RMSNorm")
"""How the names of norms end that are neither torch's LayerNorm nor its RMSNorm."""


def base_of(model: nn.Module) -> nn.Module:
    """The base model (the encoder) inside a Hugging Face model; the model itself where it contains no other."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, model) if prefix else model
    return base if isinstance(base, nn.Module) else model


def maskable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an SFT may change, by name in the base model and in its order; shared ones once."""
    frozen = {id(p) for p in norms(base_of(model))}
    return {name: p for name, p in encoder_of(model).items() if id(p) not in frozen}


def encoder_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the base model, by name in it and in its order, without those of a pooler; shared ones once."""
    return {name: p for name, p in base_of(model).named_parameters() if not name.startswith(_POOLER)}


def pooler_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the pooler inside the base model, by name in it: a layer of the classifier; may be empty."""
    return {name: p for name, p in base_of(model).named_parameters() if name.startswith(_POOLER)}


def head_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters, by name in the whole model, without the output embedding of an LM head."""
    lm_head = lm_head_of(model)
    others = {id(p) for p in encoder_of(model).values()} | ({id(lm_head.decoder.weight)} if lm_head else set())
    return {name: p for name, p in model.named_parameters() if id(p) not in others}


def embeddings_of(model: nn.Module) -> set[str]:
    """The names, in the base model, of the word, position and token-type embeddings."""
    base = base_of(model)
    tables = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    return {name for name, parameter in base.named_parameters() if id(parameter) in tables}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and float32 bytes of the base model's parameters; head and pooler do not count."""
    digest = hashlib.sha256()
    for name, parameter in encoder_of(model).items():
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(_bytes(parameter))
    return digest.hexdigest()


def _bytes(parameter: Tensor) -> memoryview:
    return parameter.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().data.cast("B")


def norms(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of every LayerNorm and RMSNorm within a module."""
    for child in module.modules():
        if isinstance(child, nn.LayerNorm | nn.RMSNorm) or type(child).__name__.endswith(_NORMS):
            yield from child.parameters(recurse=False)

"""The parameters of a model by what they belong to: the maskable ones of the base model, the head, the embeddings.

Maskable are the base model's parameters except its LayerNorms, which are frozen by module type: 277,414,656 entries in
XLM-R base. Parameters are iterated on the base model itself: transformers 5 reports a tied embedding under the
decoder's name only, which would drop it from every SFT. How a model is loaded is in `load`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def base_of(model: nn.Module) -> nn.Module:
    """The base model (the encoder) inside a Hugging Face model; the model itself where it contains no other."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, model) if prefix else model
    return base if isinstance(base, nn.Module) else model


def maskable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an SFT may change, by name in the base model and in its order; shared ones once."""
    frozen = {id(p) for p in layer_norms(base_of(model))}
    return {name: p for name, p in base_of(model).named_parameters() if id(p) not in frozen}


def head_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters, by name in the whole model, without the output embedding of an LM head."""
    base = {id(p) for p in base_of(model).parameters()}
    decoder = getattr(getattr(model, "lm_head", None), "decoder", None)
    frozen = id(decoder.weight) if decoder is not None else None
    return {name: p for name, p in model.named_parameters() if id(p) not in base and id(p) != frozen}


def embeddings_of(model: nn.Module) -> set[str]:
    """The names, in the base model, of the word, position and token-type embeddings."""
    base = base_of(model)
    tables = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    return {name for name, parameter in base.named_parameters() if id(parameter) in tables}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and float32 bytes of the base model's parameters; the head does not count."""
    digest = hashlib.sha256()
    for name, parameter in base_of(model).named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(_bytes(parameter))
    return digest.hexdigest()


def _bytes(parameter: Tensor) -> memoryview:
    return parameter.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().data.cast("B")


def layer_norms(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of every LayerNorm within a module."""
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            yield from child.parameters(recurse=False)

"""Loading a pretrained encoder for masked language modelling or classification, and which of its weights may train.

Maskable are the base model's parameters except its LayerNorms, which are frozen by module type: 277,414,656 entries in
XLM-R base. The head (LM head or classifier) trains whole. The output embedding of the LM head is an untied, frozen copy
of the input embedding (LT-SFT's --freeze_decoder). Parameters are iterated on the base model itself: transformers 5
reports a tied embedding under the decoder's name only, which would drop it from every vector.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deftx.errors import DataError, reason
from deftx.sft.compose import base_of

LMHead = Path | Literal["own", "random"]

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*")


def load_masked_lm(folder: Path, lm_head: LMHead = "own", dropout: float | None = None, seed: int = 0) -> Any:
    """A backbone with its LM head, the output embedding untied and frozen.

    Args:
        folder: a Hugging Face model folder.
        lm_head: `own`; a donor's folder whose dense, LayerNorm and bias are taken (backbones without one: mE5); or
            `random`, drawn from `seed`.
        dropout: replaces the backbone's own dropout probabilities.

    Raises:
        DataError: when the folder is not a model, or has no LM head and none was named.
    """
    from transformers import AutoModelForMaskedLM

    model, missing = _load(AutoModelForMaskedLM, folder, dropout)
    if not hasattr(model, "lm_head"):
        raise DataError(f"{folder}: a {model.config.model_type} model has no RoBERTa-like LM head")
    absent = {name for name in missing if name.startswith("lm_head.") and "decoder" not in name}
    if lm_head == "own" and absent:
        raise DataError(
            f"{folder}: has no LM head; set lm_head to a donor such as FacebookAI/xlm-roberta-base, or to random"
        )
    untie(model)
    if lm_head == "random":
        _draw(model.lm_head.dense, model.config.initializer_range, seed)
        model.lm_head.layer_norm.reset_parameters()
        nn.init.zeros_(model.lm_head.bias)
    elif isinstance(lm_head, Path):
        donor = load_masked_lm(lm_head)
        state = {name: tensor for name, tensor in donor.lm_head.state_dict().items() if name != "decoder.weight"}
        _copy_head(model.lm_head, state, lm_head)
    return model


def untie(model: Any) -> None:
    """Make the output embedding a frozen copy of the input embedding as it is now."""
    words = model.get_input_embeddings().weight
    model.lm_head.decoder.weight = nn.Parameter(words.detach().clone(), requires_grad=False)


def load_classifier(folder: Path, labels: tuple[str, ...], seed: int, dropout: float | None = None) -> Any:
    """A backbone with a fresh two-layer classifier on `<s>`, drawn from `seed` alone.

    Raises:
        DataError: when the folder is not a model.
    """
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(labels))
    ids = {name: index for index, name in names.items()}
    model, _ = _load(AutoModelForSequenceClassification, folder, dropout, id2label=names, label2id=ids)
    for offset, module in enumerate(module for module in model.classifier.modules() if isinstance(module, nn.Linear)):
        _draw(module, model.config.initializer_range, seed + offset)
    return model


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer that lies with a backbone.

    Raises:
        DataError: when the folder has none: a backbone must carry its tokenizer.
    """
    from transformers import AutoTokenizer

    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        # transformers would make up an empty one from config.json
        raise DataError(f"{folder}: no tokenizer there: none of {', '.join(_TOKENIZER_FILES)}")
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=True)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: no tokenizer there: {reason(error)}") from None


def maskable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters an SFT may change, by their names in the base model, in a fixed order; shared ones once."""
    frozen = {id(p) for p in _layer_norms(base_of(model))}
    return {name: p for name, p in base_of(model).named_parameters() if id(p) not in frozen}


def head_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters, by their names in the whole model; the frozen output embedding is not among them."""
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
    """SHA-256 over the names, shapes and float32 bytes of the base model: the same for every head on it."""
    digest = hashlib.sha256()
    for name, parameter in base_of(model).named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(_bytes(parameter))
    return digest.hexdigest()


def _bytes(parameter: Tensor) -> memoryview:
    return parameter.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().data.cast("B")


def _load(auto: Any, folder: Path, dropout: float | None, **options: Any) -> tuple[Any, set[str]]:
    if dropout is not None:
        options |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with quiet():
        try:
            model, info = auto.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=None, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder}: not a model that can be loaded: {reason(error)}") from None
    absent = [name for name in info["missing_keys"] if name.startswith(f"{model.base_model_prefix}.")]
    if absent:
        raise DataError(f"{folder}: the weights lack {absent[0]} (and {len(absent) - 1} more)")
    for parameter in _layer_norms(base_of(model)):
        parameter.requires_grad_(False)
    model.deftx_fingerprint = fingerprint(model)
    return model, set(info["missing_keys"])


def _layer_norms(module: nn.Module) -> Iterator[nn.Parameter]:
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            yield from child.parameters(recurse=False)


@torch.no_grad()
def _draw(linear: nn.Linear, deviation: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear.weight.copy_(torch.normal(0.0, deviation, linear.weight.shape, generator=generator))
    linear.bias.zero_()


def _copy_head(head: nn.Module, state: dict[str, Tensor], donor: Path) -> None:
    try:
        head.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{donor}: its LM head does not fit: {str(error).splitlines()[-1].strip()}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and loading reports off the screen; what they say is checked here."""
    from transformers.utils import logging as hf_logging

    logger = logging.getLogger("transformers")
    level = logger.level
    hf_logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

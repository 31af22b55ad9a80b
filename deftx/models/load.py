"""Loading a pretrained encoder with an LM head or a classifier.

The head trains whole. The output embedding of the LM head is a frozen copy of the input embedding, no longer tied to it
(LT-SFT's --freeze_decoder). Which other parameters may train is in `parameters`.

Code that lies in a model's folder is never run: what transformers has no class of its own for is refused.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deftx.errors import DataError, reason
from deftx.folders import Contents, contents_of
from deftx.models.parameters import base_of, fingerprint, layer_norms

LMHead = Path | Literal["own", "random"]

log = logging.getLogger("deftx")

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*")
_FINGERPRINTS: dict[tuple[str, Contents], str] = {}
"""Of what was loaded in this process, by class and by what the folder held: XLM-R base has 1.1 GB to digest."""


def load_masked_lm(folder: Path, lm_head: LMHead = "own", dropout: float | None = None, seed: int = 0) -> Any:
    """A backbone with its LM head, the output embedding untied and frozen.

    Args:
        folder: a Hugging Face model folder.
        lm_head: `own`; or, for backbones without an LM head such as mE5, the folder of a donor whose dense layer,
            LayerNorm and bias are taken, or `random`, drawn from `seed`.
        dropout: replaces the backbone's own dropout probabilities; None: they stay.
        seed: of a random head.

    Raises:
        DataError: when the folder is not a model, or has no LM head and `lm_head` is `own`.
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
    """Make the output embedding a frozen copy of the input embedding."""
    words = model.get_input_embeddings().weight
    model.lm_head.decoder.weight = nn.Parameter(words.detach().clone(), requires_grad=False)


def load_classifier(folder: Path, labels: tuple[str, ...], seed: int, dropout: float | None = None) -> Any:
    """A backbone with a new two-layer classifier on `<s>`, drawn from `seed` alone.

    Args:
        folder: a Hugging Face model folder.
        labels: the label names, in the order of the classifier's outputs.
        seed: of the classifier's weights.
        dropout: replaces the backbone's own dropout probabilities; None: they stay.

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


def longest_input(model: Any) -> int:
    """The tokens that a model reads at most: its position embeddings without those that RoBERTa leaves to padding.

    `sys.maxsize` for a model that has no such limit.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    # RoBERTa's first position is the one after the padding token's number; other models have no such attribute
    before = getattr(getattr(base_of(model), "embeddings", None), "padding_idx", -1) + 1
    return int(positions) - before if positions > 0 else sys.maxsize


def cut_length(asked: int, model: Any) -> int:
    """The tokens that texts are cut to: as many as asked for; with a warning fewer, where the model reads fewer."""
    if asked <= (reads := longest_input(model)):
        return asked
    log.warning("max_length is %d, but the backbone reads %d tokens: texts are cut there", asked, reads)
    return reads


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in the folder of a backbone.

    Raises:
        DataError: when there is no tokenizer in it.
    """
    from transformers import AutoTokenizer

    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        # transformers would make an empty tokenizer from config.json
        raise DataError(f"{folder}: no tokenizer there: none of {', '.join(_TOKENIZER_FILES)}")
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise _problem(folder, "no tokenizer there", error) from None


def _load(auto: Any, folder: Path, dropout: float | None, **options: Any) -> tuple[Any, set[str]]:
    if dropout is not None:
        options |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with quiet():
        try:
            contents = contents_of(folder)
            model, info = auto.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=None, output_loading_info=True, trust_remote_code=False,
                **options,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _problem(folder, "not a model that can be loaded", error) from None
    absent = [name for name in info["missing_keys"] if name.startswith(f"{model.base_model_prefix}.")]
    if absent:
        raise DataError(f"{folder}: the weights lack {absent[0]} (and {len(absent) - 1} more)")
    for parameter in layer_norms(base_of(model)):
        parameter.requires_grad_(False)
    key = (type(model).__name__, contents)  # heads may leave out different parts of a base model, such as its pooler
    if key not in _FINGERPRINTS:
        _FINGERPRINTS[key] = fingerprint(model)
    model.deftx_fingerprint = _FINGERPRINTS[key]
    return model, set(info["missing_keys"])


def _problem(folder: Path, what: str, error: Exception) -> DataError:
    """Why a folder could not be loaded; transformers' own words would advise to let the code in it run."""
    files = [path for path in (folder / "config.json", folder / "tokenizer_config.json") if path.is_file()]
    if not any('"auto_map"' in path.read_text(encoding="utf-8", errors="replace") for path in files):
        return DataError(f"{folder}: {what}: {reason(error)}")
    return DataError(
        f"{folder}: {what}, and the Python code that comes with it (`auto_map` in its JSON files) is never run; give a "
        f"model and a tokenizer that transformers has classes for, such as those of FacebookAI/xlm-roberta-base"
    )


@torch.no_grad()
def _draw(linear: nn.Linear, deviation: float, seed: int) -> None:
    """Draw a layer's weight from a normal distribution around 0, by a generator of its own; its bias becomes 0."""
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
    """Within the block transformers shows no progress bars and no loading reports, which are checked here instead."""
    from transformers.utils import logging as hf_logging

    logger = logging.getLogger("transformers")
    level = logger.level
    hf_logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

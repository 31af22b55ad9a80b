"""Loading a pretrained encoder with an LM head or a classifier.

The head trains whole. The output embedding of the LM head is a frozen copy of the input embedding, no longer tied to it
(LT-SFT's --freeze_decoder), or the checkpoint's own where it was never tied. Which other parameters may train is in
`parameters`, what an architecture calls its parts in `architectures`.

Code that lies in a model's folder is never run: what transformers has no class of its own for is refused.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deftx.errors import DataError, reason
from deftx.folders import Contents, contents_of
from deftx.models.architectures import Architecture, MaskedLMHead, architecture_of, known_architecture, lm_head_of
from deftx.models.headers import headers_of
from deftx.models.parameters import base_of, encoder_of, fingerprint, head_of, norms, pooler_of
from deftx.models.tokenizers import as_published

LMHeadFrom = Path | Literal["own", "random"]

log = logging.getLogger("deftx")

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*")
_FINGERPRINTS: dict[tuple[str, Contents], str] = {}
"""Of what was loaded in this process, by class and by what the folder held: XLM-R base has 1.1 GB to digest."""


def load_masked_lm(folder: Path, lm_head: LMHeadFrom = "own", dropout: float | None = None, seed: int = 0) -> Any:
    """A backbone with its LM head, the output embedding untied and frozen.

    Args:
        folder: a Hugging Face model folder.
        lm_head: `own`; or, for backbones without an LM head such as mE5, the folder of a donor whose dense layer,
            norm and bias are taken, or `random`, drawn from `seed`. The output embedding is then that of the inputs.
        dropout: replaces the backbone's own dropout probabilities; None: they stay.
        seed: of a random head.

    Raises:
        DataError: when the folder is not a model, or has no LM head and `lm_head` is `own`.
    """
    from transformers import AutoModelForMaskedLM

    model, missing = _load(AutoModelForMaskedLM, folder, dropout)
    if lm_head == "own" and _absent_head(model, missing):
        raise DataError(
            f"{folder}: has no LM head; set lm_head to a donor such as FacebookAI/xlm-roberta-base, or to random"
        )
    untie(model, missing if lm_head == "own" else None)
    head = _lm_head(model)
    if lm_head == "random":
        _draw([head.dense, head.norm], model.config.initializer_range, seed)
        nn.init.zeros_(head.decoder.bias)
    elif isinstance(lm_head, Path):
        _copy_head(head, _lm_head(load_masked_lm(lm_head)), lm_head)
    return model


def untie(model: Any, missing: Collection[str] | None = ()) -> None:
    """Freeze the output embedding of a model, which becomes one of its own: a copy of the input embedding.

    Args:
        model: a masked language model. One whose output embedding is no longer tied keeps it, with its bias.
        missing: the names that its checkpoint lacked; None: the output embedding is a copy in any case.
    """
    head, words = _lm_head(model), model.get_input_embeddings().weight
    decoder = head.decoder
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    lacking = {"", *(missing or ())}
    if missing is None or decoder.weight is words or names.get(id(decoder.weight), "") in lacking:
        decoder.weight = nn.Parameter(words.detach().clone())
    decoder.weight.requires_grad_(False)
    if head.owner is not None and head.owner.bias is not decoder.bias:
        # transformers ties the bias only together with the weight; one that a checkpoint has under one name is both
        if names[id(decoder.bias)] in lacking:
            decoder.bias = head.owner.bias  # type: ignore[assignment]
        head.owner.bias = decoder.bias
    if decoder.bias is None:
        del decoder.bias
        decoder.register_buffer("bias", torch.zeros(len(words)), persistent=False)


def load_classifier(folder: Path, labels: tuple[str, ...], seed: int, dropout: float | None = None) -> Any:
    """A backbone with a new two-layer classifier on the first token, drawn from `seed` alone.

    It is transformers' own classifier of the architecture. A pooler that the checkpoint has is kept beside it, as
    `deftx_pooler`, by name in the base model: what published vectors of a task were learnt from (see `sft.compose`).

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
    model, missing = _load(AutoModelForSequenceClassification, folder, dropout, id2label=names, label2id=ids)
    pooler, prefix = pooler_of(model), f"{model.base_model_prefix}."
    known = not any(name.removeprefix(prefix) in pooler for name in missing)
    model.deftx_pooler = {name: p.detach().clone() for name, p in pooler.items()} if known else {}
    _draw(architecture_of(model.config).classifier_layers(model), model.config.initializer_range, seed)
    return model


def longest_input(model: Any) -> int:
    """The tokens that a model reads at most; `sys.maxsize` for one that has no such limit."""
    if (architecture := known_architecture(model.config)) is not None:
        return architecture.positions(model.config)
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def reads_segments(model: Any) -> bool:
    """Whether a model tells the two texts of a pair apart by the tokens' types, as BERT does and XLM-R does not."""
    return (getattr(model.config, "type_vocab_size", 0) or 0) > 1


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
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
            tokenizer = as_published(folder, tokenizer)
            tokenizer("a"), tokenizer("a", "a")  # some wrong values show only when it is used
            return tokenizer
        except BaseException as error:  # a wrong value makes transformers raise anything, and what it calls panic
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise _problem(folder, "no tokenizer there", error) from None


def _load(auto: Any, folder: Path, dropout: float | None, **options: Any) -> tuple[Any, set[str]]:
    """(model, the names that its checkpoint lacks)."""
    from transformers import AutoConfig

    with quiet():
        try:
            contents = contents_of(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
            architecture = _architecture(folder, config)
            dropouts = {} if dropout is None else dict.fromkeys(architecture.dropout, dropout)
            settings = {**architecture.classifier, **dropouts, **architecture.settings_for(headers_of(folder))}
            config.update({**settings, "return_dict": True})
            model, info = auto.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=None, output_loading_info=True,
                ignore_mismatched_sizes=True, trust_remote_code=False,
            )  # fmt: skip
        except DataError:
            raise
        except Exception as error:  # a wrong value makes transformers raise anything
            raise _problem(folder, "not a model that can be loaded", error) from None
    missing = set(info["missing_keys"])
    _check_encoder(folder, model, missing, info["mismatched_keys"])
    for parameter in norms(base_of(model)):
        parameter.requires_grad_(False)
    key = (type(model).__name__, contents)  # heads may leave out different parts of a base model
    if key not in _FINGERPRINTS:
        _check_finite(folder, model)
        _FINGERPRINTS[key] = fingerprint(model)
    model.deftx_fingerprint = _FINGERPRINTS[key]
    return model, missing | {name for name, *_ in info["mismatched_keys"]}


def _architecture(folder: Path, config: Any) -> Architecture:
    try:
        return architecture_of(config)
    except DataError as error:
        raise DataError(f"{folder / 'config.json'}: {error}") from None


def _check_encoder(folder: Path, model: Any, missing: Collection[str], mismatched: Iterable[Any]) -> None:
    """Check that every weight of the encoder was loaded; a head of another size is drawn anew, as any other."""
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."
    encoder = {f"{prefix}{name}" for name in encoder_of(model)} | {names[id(p)] for p in encoder_of(model).values()}
    if wrong := [entry for entry in mismatched if entry[0] in encoder]:
        name, there, wanted = wrong[0]
        raise DataError(f"{folder}: {name} has shape {tuple(there)}, but config.json means {tuple(wanted)}")
    if absent := sorted(encoder & set(missing)):
        raise DataError(f"{folder}: the weights lack {absent[0]} (and {len(absent) - 1} more)")


def _check_finite(folder: Path, model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            number = int((~parameter.isfinite()).sum())
            raise DataError(
                f"{folder}: {number:,} of the {parameter.numel():,} weights of {name} are NaN or infinite; the file is "
                f"damaged, or was saved in a precision too small for it"
            )


def _absent_head(model: Any, missing: set[str]) -> set[str]:
    """The parts of the LM head that a checkpoint lacks; one of the two names of the decoder's bias is enough."""
    head, names = _lm_head(model), {id(parameter): name for name, parameter in model.named_parameters()}
    biases = {names[id(bias)] for bias in (head.decoder.bias, getattr(head.owner, "bias", None)) if bias is not None}
    absent = missing & head_of(model).keys()
    return absent if biases <= missing else absent - biases


def _lm_head(model: Any) -> MaskedLMHead:
    head = lm_head_of(model)
    assert head is not None, "a masked language model has an LM head"
    return head


def _problem(folder: Path, what: str, error: BaseException) -> DataError:
    """Why a folder could not be loaded; transformers' own words would advise to let the code in it run."""
    files = [path for path in (folder / "config.json", folder / "tokenizer_config.json") if path.is_file()]
    if not any('"auto_map"' in path.read_text(encoding="utf-8", errors="replace") for path in files):
        return DataError(f"{folder}: {what}: {reason(error)}")
    return DataError(
        f"{folder}: {what}, and the Python code that comes with it (`auto_map` in its JSON files) is never run; give a "
        f"model and a tokenizer that transformers has classes for, such as those of FacebookAI/xlm-roberta-base"
    )


@torch.no_grad()
def _draw(layers: Iterable[nn.Module], deviation: float, seed: int) -> None:
    """Draw the weights of linear layers from a normal distribution around 0, each by a generator of its own.

    Biases become 0, norms the identity.
    """
    for layer in layers:
        if not isinstance(layer, nn.Linear):
            layer.reset_parameters()  # type: ignore[operator]
            continue
        generator = torch.Generator().manual_seed(seed)
        layer.weight.copy_(torch.normal(0.0, deviation, layer.weight.shape, generator=generator))
        if layer.bias is not None:
            layer.bias.zero_()
        seed += 1


@torch.no_grad()
def _copy_head(head: MaskedLMHead, donor: MaskedLMHead, folder: Path) -> None:
    theirs = donor.trained()
    for name, parameter in head.trained().items():
        if name not in theirs or theirs[name].shape != parameter.shape:
            shape = tuple(theirs[name].shape) if name in theirs else "none"
            raise DataError(f"{folder}: its LM head does not fit: {name} is {shape}, and {tuple(parameter.shape)} here")
        parameter.copy_(theirs[name])


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

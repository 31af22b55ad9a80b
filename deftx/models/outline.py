"""A published encoder without its weights: its configuration, its tokenizer, and what the headers of its files say.

The model is built on torch's `meta` device, where tensors have no storage. Each check raises what would otherwise be
found when the model is loaded, or when the first text meets it. Who fetches the files, and which settings name them, is
in `deftx.method.look`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from deftx.errors import ConfigError, DataError, DeftxError, reason
from deftx.foreign import json_object, small_file
from deftx.models.architectures import Architecture, MaskedLMHead, architecture_of
from deftx.models.headers import Header, Headers
from deftx.models.load import load_tokenizer, quiet
from deftx.models.parameters import encoder_of
from deftx.models.sizes import bounded

_BESIDE = (".pooler.", "position_ids", "rotary_emb.", ".embeddings.position_embeddings.", "token_type_ids")
"""Parts of the names of weights in an encoder that a model may do without: a pooler, positions that are counted, and
DeBERTa's positions, which its relative attention does not read."""


@dataclass(frozen=True)
class Outline:
    """A published encoder as far as it is known without its weights.

    Attributes:
        name: folder or hub id.
        folder: of its configuration and tokenizer.
        model: with its LM head, on the `meta` device.
        headers: of its weights; None: they are not known.
        fault: why they are not.
    """

    name: str
    folder: Path
    architecture: Architecture
    model: Any
    headers: Headers | None
    fault: DeftxError | None = None

    @classmethod
    def of(cls, name: str, folder: Path, headers: Callable[[], Headers | None]) -> Outline:
        """That of the model in a folder.

        Args:
            name: what errors call it.
            headers: of its weights, by the names in its files; what it raises is told by `check_weights`.

        Raises:
            DataError: when there is no model, or one that no vector can be learnt for.
        """
        config, known, fault = _config(folder, name), None, None
        try:
            known = headers()
        except DeftxError as error:
            fault = error
        architecture = architecture_of(config)
        return cls(name, folder, architecture, _on_meta(config, architecture, known or {}, name), known, fault)

    def check_weights(self) -> None:
        """Check that the files hold every weight of the encoder."""
        if self.fault:
            raise self.fault
        if self.headers is None:
            return
        prefix, absent = f"{self.model.base_model_prefix}.", []
        for name, parameter in encoder_of(self.model).items():
            if (header := self._found.get(id(parameter))) is None:
                absent.append(prefix + name)
            elif not header.floating:
                raise DataError(f"{self.name}: {prefix}{name} is quantised; give its weights as floating-point numbers")
            elif header.shape != tuple(parameter.shape):
                shapes = f"{header.shape}, but config.json means {tuple(parameter.shape)}"
                raise DataError(f"{self.name}: {prefix}{name} has shape {shapes}")
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(f"{self.name}: the weights lack {absent[0]}{more}; give a whole checkpoint")
        if others := self._not_of_the_model():
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            raise DataError(f"{self.name}: config.json means a model without {others[0]}{more}, which the weights have")

    def check_length(self, tokens: int) -> None:
        """Check that the model has positions for so many tokens."""
        if tokens > (reads := self.architecture.positions(self.model.config)):
            raise ConfigError(f"{tokens} tokens, but {self.name} reads {reads} at most")

    def check_own_head(self) -> None:
        """Check that the files hold an LM head."""
        if lacks := self._lacks_of_head():
            raise DataError(
                f"own, but {self.name} has no LM head (no {lacks}); set lm_head to a donor such as "
                f"FacebookAI/xlm-roberta-base, or to random"
            )

    def check_gives_head(self, other: Outline | None) -> None:
        """Check that the files hold an LM head, and one that fits another encoder."""
        if lacks := self._lacks_of_head():
            raise DataError(f"{self.name}: has no LM head to give (no {lacks})")
        own = self._head.trained()
        for name, wanted in (other._head.trained() if other else {}).items():
            if name not in own or own[name].shape != wanted.shape:
                has = tuple(own[name].shape) if name in own else "none"
                raise DataError(f"{self.name}: its LM head does not fit: {name} is {has}, not {tuple(wanted.shape)}")

    def check_tokenizer(self, *, masks: bool) -> None:
        """Check that the tokenizer loads, has the special tokens that are needed, and numbers that the model knows."""
        tokenizer, problems, config = self._tokenizer(), [], self.model.config
        at = f"{self.name}: the tokenizer has"
        vocabulary, rows = tokenizer.get_vocab(), self.model.get_input_embeddings().num_embeddings
        if len(vocabulary) <= len(tokenizer.all_special_ids):
            problems.append(f"{at} no tokens but its {len(vocabulary)} special ones; is its vocabulary file empty?")
        if tokenizer.pad_token_id is None:
            problems.append(f'{at} no padding token; name one as "pad_token" in tokenizer_config.json')
        elif self.architecture.counts_padding and config.pad_token_id is None:
            right = f"write {tokenizer.pad_token_id}, the tokenizer's"
            problems.append(f"{self.name}/config.json: pad_token_id: null, but positions are counted by it; {right}")
        if tokenizer.num_special_tokens_to_add() == 0:
            needs = "the classifier reads the first token, which none marks"
            problems.append(f"{at} no special tokens to put around a text: {needs}; give it a post-processor")
        if masks and tokenizer.mask_token_id is None:
            needs = "which a language vector is learnt with"
            problems.append(f'{at} no mask token, {needs}; name one as "mask_token" in tokenizer_config.json')
        if beyond := sorted((number, token) for token, number in vocabulary.items() if number >= rows):
            number, token = beyond[0]
            more = f" (and {len(beyond) - 1} more beyond it)" if len(beyond) > 1 else ""
            problems.append(
                f"{at} {token!r} as token {number}{more}, but the word embedding has {rows} rows; call "
                f"resize_token_embeddings({beyond[-1][0] + 1}) and save the model, or give the tokenizer it came with"
            )
        if problems:
            raise DataError("\n".join(problems))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what a vector may change, by name in the base model: the encoder, and the pooler beside it."""
        own = {name: tuple(parameter.shape) for name, parameter in encoder_of(self.model).items()}
        prefix = f"{self.model.base_model_prefix}."
        beside = {name.removeprefix(prefix): header.shape for name, header in (self.headers or {}).items()}
        return own | {name: shape for name, shape in beside.items() if name.startswith("pooler.")}

    def _not_of_the_model(self) -> list[str]:
        """The weights of the encoder's own name that no parameter of the model takes."""
        prefix, named = f"{self.model.base_model_prefix}.", _as_named(self.headers or {}, self.model)
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        own = [name for name in named if name.startswith(prefix) and name not in known]
        return [name for name in own if not any(part in name for part in _BESIDE)]

    @cached_property
    def _found(self) -> dict[int, Header]:
        """The header of each parameter, by its id."""
        named = _as_named(self.headers or {}, self.model)
        return {id(p): named[name] for name, p in self.model.named_parameters(remove_duplicate=False) if name in named}

    @property
    def _head(self) -> MaskedLMHead:
        head = self.architecture.lm_head(self.model)
        assert head is not None, "a masked language model has an LM head"
        return head

    def _lacks_of_head(self) -> str:
        """The parts of the LM head that transformers would draw: not in the files, or there in another shape."""
        head, absent = self._head, []
        for name, parameter in head.trained().items() if self.headers is not None else ():
            names = [parameter, getattr(head.owner, "bias", None)] if name == "bias" else [parameter]
            found = [self._found.get(id(part)) for part in names]
            if not any(header and header.shape == tuple(parameter.shape) for header in found):
                absent.append(name)
        return ", ".join(absent)

    def _tokenizer(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        for path in self.folder.glob("*.model") if not (self.folder / "tokenizer.json").is_file() else ():
            try:
                SentencePieceProcessor(model_file=str(path))
            except Exception:  # with words that name a line of C++
                raise DataError(f"{self.name}/{path.name}: torn, or no SentencePiece model") from None
        return load_tokenizer(self.folder)


_REFUSED = {
    "is_decoder": "an encoder reads both sides of a token; set it to false if this is one",
    "add_cross_attention": "an encoder has none; set it to false if this is one",
    "quantization_config": "quantised weights cannot be trained; give the weights as floating-point numbers",
}
"""Fields of a config with which it is no encoder that can be trained, and why."""


def _config(folder: Path, name: str) -> Any:
    """The config of the model in a folder, of an architecture that vectors can be learnt for."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        adapter = ": it is a LoRA or another adapter (adapter_config.json)"
        raise DataError(f"{name}: no model there, no config.json{adapter * (folder / 'adapter_config.json').is_file()}")
    content = json_object(small_file(path), f"{name}/config.json")
    try:
        if large := [f"{key}: {value}" for key, value in content.items() if not bounded(value, key)]:
            raise DataError(f"{large[0]}: no encoder is that large")
        for field, why in _REFUSED.items():
            if content.get(field):
                raise DataError(f"{field}: {why}")
        if "model_type" in content:
            architecture_of(SimpleNamespace(**content))
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture_of(config)
    except DataError as error:
        raise DataError(f"{name}/config.json: {error}") from None
    except Exception as error:  # a wrong value makes transformers raise anything
        raise DataError(f"{name}/config.json: no model can be built from it: {reason(error)}") from None
    return config


def _on_meta(config: Any, architecture: Architecture, headers: Headers, name: str) -> Any:
    """The masked language model of a config, without storage."""
    from transformers import AutoModelForMaskedLM

    try:
        config.update({**architecture.classifier, **architecture.settings_for(headers)})
        with quiet(), torch.device("meta"):
            return AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a wrong value makes transformers raise anything
        raise DataError(f"{name}/config.json: no model can be built from it: {reason(error)}") from None


def _as_named(headers: Headers, model: Any) -> dict[str, Header]:
    """Headers by the names in a model, as transformers finds them: with its prefix or without, norms named of old."""
    prefix, names = f"{model.base_model_prefix}.", {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named = {}
    for old, header in headers.items():
        name = old.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name.removeprefix(prefix) in names:
            name = name.removeprefix(prefix)
        elif prefix + name in names:
            name = prefix + name
        named[name] = header
    return named

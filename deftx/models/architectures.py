"""The encoders that vectors are learnt for: what the method has to know of each, one small class an architecture.

The base model, its embeddings and its norms are found by what they are (`parameters`), and a pooler inside a base model
belongs to its head. To add an architecture, write its class below, add it to `ARCHITECTURES`, and a tiny random model
of it to `tests/support/encoders.py`, which the tests of every room go over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import gelu

from deftx.errors import DataError


@dataclass(frozen=True)
class MaskedLMHead:
    """The parts of a masked language model's head: logits = decoder(norm(activation(dense(hidden)))).

    Attributes:
        decoder: its weight is the output embedding, its bias one number a token.
        owner: the module that names the decoder's bias as its own too; None: there is none.
    """

    dense: nn.Linear
    activation: Callable[[Tensor], Tensor]
    norm: nn.Module
    decoder: nn.Linear
    owner: nn.Module | None = None

    def transform(self, hidden: Tensor) -> Tensor:
        """What the decoder reads, [positions, width] of [positions, width]."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed

    def trained(self) -> dict[str, nn.Parameter]:
        """Its parameters but the output embedding, by names that every architecture shares."""
        parts = {"dense": self.dense.named_parameters(), "norm": self.norm.named_parameters()}
        named = {f"{part}.{name}": parameter for part, found in parts.items() for name, parameter in found}
        bias = self.decoder.bias
        return {**named, "bias": bias} if isinstance(bias, nn.Parameter) else named


class Architecture:
    """What most encoders have in common; a class below says what is different.

    Attributes:
        model_types: the `model_type` in the config.json of its models.
        dropout: the names of its dropout probabilities in a config.
        classifier: what a config has to say for transformers' own classifier to be two layers on the first token.
        counts_padding: whether positions are numbered from the padding token's number on, as in RoBERTa.
    """

    model_types: ClassVar[tuple[str, ...]]
    dropout: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    classifier: ClassVar[Mapping[str, Any]] = {}
    counts_padding: ClassVar[bool] = False

    def positions(self, config: Any) -> int:
        """The tokens that a model reads at most; `sys.maxsize`: no limit."""
        return int(config.max_position_embeddings)

    def lm_head(self, model: Any) -> MaskedLMHead | None:
        """The parts of the LM head; None for a model that has none."""
        raise NotImplementedError

    def classifier_layers(self, model: Any) -> list[nn.Module]:
        """The modules that are the classifier, first to last: linear layers and norms."""
        raise NotImplementedError

    def settings_for(self, names: Collection[str]) -> dict[str, Any]:
        """What a config should say for the names of the weights that a checkpoint has."""
        return {}


class Roberta(Architecture):
    """RoBERTa and XLM-R: positions begin after the padding token's number; the classifier has both its layers."""

    model_types = ("xlm-roberta", "roberta", "camembert")
    counts_padding = True

    def positions(self, config: Any) -> int:
        return int(config.max_position_embeddings) - (config.pad_token_id or 0) - 1

    def lm_head(self, model: Any) -> MaskedLMHead | None:
        head = getattr(model, "lm_head", None)
        return head and MaskedLMHead(head.dense, gelu, head.layer_norm, head.decoder, head)

    def classifier_layers(self, model: Any) -> list[nn.Module]:
        return [model.classifier.dense, model.classifier.out_proj]


class Bert(Architecture):
    """BERT, such as mBERT, IndoBERT and multilingual MiniLM: the classifier's first layer is the pooler."""

    model_types = ("bert",)

    def lm_head(self, model: Any) -> MaskedLMHead | None:
        return _legacy_head(model)

    def classifier_layers(self, model: Any) -> list[nn.Module]:
        return [model.bert.pooler.dense, model.classifier]


class Deberta(Architecture):
    """DeBERTa-v2 and v3, such as mDeBERTa: relative positions; v3's LM head multiplies by the input embedding."""

    model_types = ("deberta-v2",)
    dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout")
    classifier: ClassVar = {"pooler_hidden_act": "tanh"}

    def positions(self, config: Any) -> int:
        return int(config.max_position_embeddings) if config.position_biased_input else sys.maxsize

    def lm_head(self, model: Any) -> MaskedLMHead | None:
        if not hasattr(model, "lm_predictions"):
            return _legacy_head(model)
        head = model.lm_predictions.lm_head
        if not hasattr(head, "decoder"):
            # v3 has none: a layer of the same two parameters, which can then be untied
            head.decoder = nn.Linear(1, 1, device="meta")
            head.decoder.weight, head.decoder.bias = model.get_input_embeddings().weight, head.bias
        return MaskedLMHead(head.dense, head.transform_act_fn, head.LayerNorm, head.decoder)

    def classifier_layers(self, model: Any) -> list[nn.Module]:
        return [model.pooler.dense, model.classifier]

    def settings_for(self, names: Collection[str]) -> dict[str, Any]:
        # the published v3 checkpoints have v3's head, and their config does not say so
        return {"legacy": False} if any(name.startswith("lm_predictions.lm_head.") for name in names) else {}


class ModernBert(Architecture):
    """ModernBERT, such as mmBERT: rotary positions, sliding windows; a norm stands between the classifier's layers."""

    model_types = ("modernbert",)
    dropout = ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout")
    classifier: ClassVar = {"classifier_pooling": "cls"}

    def lm_head(self, model: Any) -> MaskedLMHead | None:
        if not hasattr(model, "decoder"):
            return None
        return MaskedLMHead(model.head.dense, model.head.act, model.head.norm, model.decoder)

    def classifier_layers(self, model: Any) -> list[nn.Module]:
        return [model.head.dense, model.head.norm, model.classifier]


ARCHITECTURES: tuple[Architecture, ...] = (Roberta(), Bert(), Deberta(), ModernBert())


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's config.

    Raises:
        DataError: for one that no vector can be learnt for, with those that there are.
    """
    if (architecture := known_architecture(config)) is not None:
        return architecture
    kind, known = getattr(config, "model_type", None), [name for entry in ARCHITECTURES for name in entry.model_types]
    raise DataError(f"model_type: {kind!r} is no encoder that vectors are learnt for; valid: {', '.join(known)}")


def known_architecture(config: Any) -> Architecture | None:
    """The architecture of a model's config; None for one that no vector can be learnt for."""
    kind = getattr(config, "model_type", None)
    return next((architecture for architecture in ARCHITECTURES if kind in architecture.model_types), None)


def lm_head_of(model: nn.Module) -> MaskedLMHead | None:
    """The LM head of a model; None for a model without one, or of another architecture."""
    architecture = known_architecture(getattr(model, "config", None))
    return None if architecture is None else architecture.lm_head(model)


def _legacy_head(model: Any) -> MaskedLMHead | None:
    """BERT's LM head, which DeBERTa-v2 took over."""
    if not hasattr(model, "cls"):
        return None
    head = model.cls.predictions
    transform = head.transform
    return MaskedLMHead(transform.dense, transform.transform_act_fn, transform.LayerNorm, head.decoder, head)

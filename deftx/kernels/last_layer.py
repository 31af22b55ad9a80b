"""The last layer of a classifier in training, computed for `<s>` alone: the head reads nothing else of it.

Its keys and values need every token; its queries, output and feed-forward layer, five sixths of its arithmetic, need
the first. Grading is left as transformers computes it, to the last bit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaForSequenceClassification,
    XLMRobertaLayer,
    eager_attention_forward,
)


def read_first_token_only(model: nn.Module) -> None:
    """Make the last layer of an XLM-R classifier a `FirstTokenLayer`; other models are left alone."""
    if isinstance(model, XLMRobertaForSequenceClassification):
        last = model.roberta.encoder.layer[-1]
        if type(last) is XLMRobertaLayer:  # a class, and not a method put in: copies of the model stay whole
            last.__class__ = FirstTokenLayer


class FirstTokenLayer(XLMRobertaLayer):
    """A layer that gives (examples, 1, width) in training, of the first token."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **options: Any
    ) -> Tensor:
        """As transformers' layer of an encoder; (examples, tokens, width) -> (examples, 1, width)."""
        if not self.training:
            found: Tensor = super().forward(hidden_states, attention_mask, *others, **options)
            return found
        first, attention = hidden_states[:, :1], self.attention.self
        query, key, value = (
            layer(inputs).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for layer, inputs in (
                (attention.query, first), (attention.key, hidden_states), (attention.value, hidden_states),
            )
        )  # fmt: skip
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        seen = attention_mask if attention_mask is None else attention_mask[..., :1, :]
        looked, _ = attend(attention, query, key, value, seen, dropout=attention.dropout.p, scaling=attention.scaling)
        changed: Tensor = self.feed_forward_chunk(self.attention.output(looked.flatten(2), first))  # type: ignore[no-untyped-call]
        return changed

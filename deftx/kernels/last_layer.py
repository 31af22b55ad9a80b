"""The last layer of an XLM-R classifier in training, computed for `<s>` alone: the head reads nothing else of it.

Keys and values are needed of every token, 2 of the layer's 12 width^2 products a token. Queries, the attention's output
(2) and the feed-forward layer (8) are needed of the first token only. The other tokens of the full layer's output reach
no loss, so their gradient is zero, and without dropout the gradients here are the full layer's; autograd computes them.
In evaluation mode the layer is transformers' own, to the last bit.
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
    """Make the last layer of an XLM-R classifier a `FirstTokenLayer`; other models are left as they are."""
    if isinstance(model, XLMRobertaForSequenceClassification):
        last = model.roberta.encoder.layer[-1]
        # the class is changed and no bound method is put in, which a copy of the model would share with it
        if type(last) is XLMRobertaLayer:
            last.__class__ = FirstTokenLayer


class FirstTokenLayer(XLMRobertaLayer):
    """An encoder layer whose output in training is that of the first token, [batch, 1, width]."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **options: Any
    ) -> Tensor:
        """The layer's output: [batch, tokens, width] in evaluation mode, [batch, 1, width] in training.

        Args:
            hidden_states: [batch, tokens, width].
            attention_mask: broadcast to [batch, heads, tokens, tokens]; its rows are queries.
            *others: passed on in evaluation mode.
            **options: passed on in evaluation mode.
        """
        if not self.training:
            whole: Tensor = super().forward(hidden_states, attention_mask, *others, **options)
            return whole
        first, attention = hidden_states[:, :1], self.attention.self
        projections = ((attention.query, first), (attention.key, hidden_states), (attention.value, hidden_states))
        # query [batch, heads, 1, head width]; key and value [batch, heads, tokens, head width]
        query, key, value = (
            layer(inputs).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for layer, inputs in projections
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        mask = attention_mask if attention_mask is None else attention_mask[..., :1, :]
        # [batch, 1, heads, head width]
        context, _ = attend(attention, query, key, value, mask, dropout=attention.dropout.p, scaling=attention.scaling)
        output: Tensor = self.feed_forward_chunk(self.attention.output(context.flatten(2), first))  # type: ignore[no-untyped-call]
        return output

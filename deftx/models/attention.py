"""Attention as a model's SDPA computes it, with a mask only where a batch has one.

transformers leaves out the mask of a batch without padding, so that the fastest kernels can be taken, but not while a
CUDA graph is captured or a model is compiled: there it makes a mask of ones, which no fast kernel takes. Which kernels
SDPA may take is in `train.capture`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAME = "deftx"
"""Under which it is registered with transformers."""


@contextmanager
def masks_where_given(model: Any) -> Iterator[bool]:
    """Within the block a model with SDPA attention reads a mask only where it is given one.

    Yields:
        Whether the model adds a mask of 0 and -inf to its scores as it is given. DeBERTa, for one, multiplies by its
        mask, and ModernBERT makes one of its own for each kind of layer, with a window or without.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before != "sdpa":
        yield bool(getattr(model, "_supports_sdpa", False))
        return
    AttentionInterface.register(_NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(_NAME, _mask)
    model.config._attn_implementation = _NAME
    try:
        yield all(kind == "full_attention" for kind in getattr(model.config, "layer_types", None) or ())
    finally:
        model.config._attn_implementation = before


def _mask(*sizes: Any, **options: Any) -> Any:
    """None where every token may attend to every other, else transformers' own mask."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    everywhere = options.get("mask_function") is bidirectional_mask_function and not options.get("local_size")
    if everywhere and options.get("attention_mask") is None:
        return None
    # else it would look at the mask's content, for which a GPU has to be waited for
    return sdpa_mask(*sizes, **{**options, "allow_is_bidirectional_skip": False})

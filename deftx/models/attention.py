"""Attention as a model computes it, with a mask only where a batch has one, and so that a GPU can capture it.

transformers leaves out the mask of a batch without padding, so that the fastest kernels can be taken, but not while a
CUDA graph is captured or a model is compiled: there it makes a mask of ones, which no fast kernel takes. Which kernels
SDPA may take is in `train.capture`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

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


def positions_on_the_device(model: Any) -> None:
    """Let DeBERTa put relative positions into buckets without copying a number from the CPU, in all of its models.

    A copy that is waited for ends the capture of a graph. What is computed is the same to the bit.
    """
    if getattr(getattr(model, "config", None), "model_type", None) == "deberta-v2":
        from transformers.models.deberta_v2 import modeling_deberta_v2

        modeling_deberta_v2.make_log_bucket_position = _log_buckets


def _log_buckets(relative_pos: Tensor, bucket_size: int, max_position: int) -> Tensor:
    """The bucket of each relative position (He et al., 2021): near ones have their own, far ones share by logarithm.

    Args:
        relative_pos: int64, of any shape.
        bucket_size: twice the number of positions that count as near.
        max_position: the largest distance that is told apart.
    """
    middle = bucket_size // 2
    near = (relative_pos < middle) & (relative_pos > -middle)
    distance = torch.where(near, middle - 1, relative_pos.abs())
    # a tensor of the CPU without a dimension goes with the operation, as a number
    share = torch.log(distance / middle) / torch.log(torch.tensor((max_position - 1) / middle))
    far = torch.ceil(share * (middle - 1)) + middle
    return torch.where(distance <= middle, relative_pos.type_as(far), far * relative_pos.sign())


def _mask(*sizes: Any, **options: Any) -> Any:
    """None where every token may attend to every other, else transformers' own mask."""
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    everywhere = options.get("mask_function") is bidirectional_mask_function and not options.get("local_size")
    if everywhere and options.get("attention_mask") is None:
        return None
    # else it would look at the mask's content, for which a GPU has to be waited for
    return sdpa_mask(*sizes, **{**options, "allow_is_bidirectional_skip": False})

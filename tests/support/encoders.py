"""A tiny random model of each architecture, by what people call it, with the tokenizer of `tiny`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.tiny import END, PAD, START, VOCABULARY, make_tokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": PAD, "bos_token_id": START,
    "eos_token_id": END, "initializer_range": 0.1,
}  # fmt: skip
_RELATIVE = {
    "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
}  # fmt: skip
_WINDOWS = {"local_attention": 8, "global_attn_every_n_layers": 2}

CONFIGS: dict[str, Callable[..., Any]] = {
    "xlm-roberta": lambda **c: XLMRobertaConfig(**{**SMALL, "type_vocab_size": 1, **c}),
    "roberta": lambda **c: RobertaConfig(**{**SMALL, "type_vocab_size": 1, **c}),
    "camembert": lambda **c: CamembertConfig(**{**SMALL, "type_vocab_size": 1, **c}),
    "bert": lambda **c: BertConfig(**{**SMALL, **c}),
    "deberta-v2": lambda **c: DebertaV2Config(**{**SMALL, **_RELATIVE, **c}),
    "deberta-v3": lambda **c: DebertaV2Config(**{**SMALL, **_RELATIVE, "legacy": False, **c}),
    "modernbert": lambda **c: ModernBertConfig(
        **{**SMALL, **_WINDOWS, "cls_token_id": START, "sep_token_id": END, **c},
    ),
}
"""v2 and v3 of DeBERTa differ in their LM head. ModernBERT's second layer attends to 4 tokens on either side."""


def write_encoder(folder: Path, kind: str, *, lm_head: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A random encoder of a kind with its tokenizer, with an LM head or without: norms and biases as if pretrained."""
    torch.manual_seed(seed)
    auto = AutoModelForMaskedLM if lm_head else AutoModel
    model = auto.from_config(CONFIGS[kind](**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder

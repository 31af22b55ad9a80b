"""What the tests share: a tiny XLM-R with its own tokenizer, and data to train it on. Nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from deftx.data.blocks import Blocks
from deftx.models.parameters import base_of
from deftx.sft.vector import SFTMetadata, SparseFineTuning
from deftx.train.objectives import Classification, Encoded, MaskedLanguageModelling, Masking

START, PAD, END, UNKNOWN, MASK = range(5)
WORDS = 45
VOCABULARY = WORDS + 5
SPECIAL = frozenset({START, PAD, END, UNKNOWN, MASK})
PICKLED = "pytorch_model.bin"
LABELS = ("negative", "neutral", "positive")


def make_tokenizer() -> Any:
    """The word wN is the token N + 5."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{n}" for n in range(WORDS))]
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    )  # type: ignore[no-untyped-call]  # fmt: skip


def make_config(**changes: Any) -> XLMRobertaConfig:
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": PAD,
        "bos_token_id": START, "eos_token_id": END, "initializer_range": 0.1,
    }  # fmt: skip
    return XLMRobertaConfig(**{**settings, **changes})


def write_backbone(folder: Path, *, lm_head: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A random XLM-R with its tokenizer; without an LM head it is like multilingual E5."""
    torch.manual_seed(seed)
    kind = XLMRobertaForMaskedLM if lm_head else XLMRobertaModel
    model = kind(make_config(**changes))
    with torch.no_grad():  # as a pretrained model has them: neither zeros nor ones
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_pickled(backbone: Path, folder: Path, shards: int = 1) -> Path:
    """A copy of a backbone whose weights are `pytorch_model.bin`, or so many shards of it with their index."""
    shutil.copytree(backbone, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    weights = load_file(backbone / "model.safetensors")
    names = [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)] if shards > 1 else [PICKLED]
    shard_of = {name: names[number % shards] for number, name in enumerate(weights)}
    for file in names:
        torch.save({name: weight for name, weight in weights.items() if shard_of[name] == file}, folder / file)
    if shards > 1:
        (folder / f"{PICKLED}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return folder


def make_blocks(train: int = 20, valid: int = 6, length: int = 12, seed: int = 0) -> Blocks:
    """Blocks of random words; the last third of every other block is padding."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(5, VOCABULARY, (train + valid, length)).astype(np.int32)
    blocks[:, 0], blocks[:, -1] = START, END
    blocks[::2, -length // 3 :] = PAD
    return Blocks(blocks[:train], blocks[train:])


def make_masking(share: float = 0.3) -> Masking:
    return Masking(share, MASK, VOCABULARY, SPECIAL)


def make_mlm(share: float = 0.3, **sizes: int) -> MaskedLanguageModelling:
    return MaskedLanguageModelling(make_blocks(**sizes), make_masking(share), PAD, mask_seed=3)


def make_encoded(count: int, seed: int) -> Encoded:
    """Sentences of 3 to 9 random words; the label is the first word's number modulo 3."""
    generator = np.random.default_rng(seed)
    words = [generator.integers(5, VOCABULARY, generator.integers(3, 10)).tolist() for _ in range(count)]
    ids = tuple([START, *sentence, END] for sentence in words)
    return Encoded(ids, np.array([sentence[0] % 3 for sentence in words], dtype=np.int64))


def make_classification(train: int = 20, valid: int = 12) -> Classification:
    return Classification(make_encoded(train, 1), make_encoded(valid, 2), LABELS, "accuracy", PAD)


def make_sft(model: Any, *, share: float = 0.1, seed: int = 0, **metadata: Any) -> SparseFineTuning:
    """A random vector that fits a model, without a head."""
    generator = torch.Generator().manual_seed(seed)
    indices, values, shapes = {}, {}, {}
    for name, parameter in base_of(model).named_parameters():
        number = max(1, int(parameter.numel() * share))
        indices[name] = torch.randperm(parameter.numel(), generator=generator)[:number].sort().values
        values[name] = torch.randn(number, generator=generator)
        shapes[name] = tuple(parameter.shape)
    k = sum(index.numel() for index in indices.values())
    return SparseFineTuning(indices, values, shapes, SFTMetadata(backbone="tiny", k=k, **metadata))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit: -0.0 differs from 0.0."""
    return one.keys() == other.keys() and all(_bits(one[name]) == _bits(other[name]) for name in one)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()

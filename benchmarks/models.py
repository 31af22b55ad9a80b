"""Randomly initialised XLM-R models of the shapes measured, and batches for them. Nothing is loaded or trained here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deftx.data.blocks import Blocks
from deftx.masks.select import Indices
from deftx.models.load import untie
from deftx.models.parameters import head_of, maskable
from deftx.train.objectives import Classification, Encoded, MaskedLanguageModelling, Masking

LABELS = ("negative", "neutral", "positive")
START, PAD, END, MASK = 0, 1, 2, 4


@dataclass(frozen=True)
class Shape:
    """What a model's size follows from."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int = 250_002
    positions: int = 514

    @property
    def layer_weights(self) -> int:
        """Entries of the matrices of one layer."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.feed_forward

    @property
    def words(self) -> int:
        """Entries of the word embedding."""
        return self.vocabulary * self.hidden


BASE, LARGE = Shape(12, 768, 12, 3072), Shape(24, 1024, 16, 4096)
TINY = Shape(2, 64, 4, 128, vocabulary=2000)


def masked_lm(shape: Shape) -> Any:
    """As `models.load.load_masked_lm` gives it: the output embedding a frozen copy, LayerNorms frozen."""
    from transformers import XLMRobertaForMaskedLM

    model = _new(XLMRobertaForMaskedLM, shape)
    untie(model)
    return model


def classifier(shape: Shape) -> Any:
    """As `models.load.load_classifier` gives it."""
    from transformers import XLMRobertaForSequenceClassification

    return _new(XLMRobertaForSequenceClassification, shape, num_labels=len(LABELS))


def _new(kind: Any, shape: Shape, **options: Any) -> Any:
    from transformers import XLMRobertaConfig

    config = XLMRobertaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions, type_vocab_size=1, pad_token_id=PAD, bos_token_id=START,
        eos_token_id=END, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = kind(config)
    trained = {id(p) for p in (*maskable(model).values(), *head_of(model).values())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return model


def random_mask(model: Any, k: int, seed: int = 0) -> Indices:
    """k random maskable entries (but for rounding), evenly over all tensors."""
    generator = np.random.default_rng(seed)
    sizes = {name: parameter.numel() for name, parameter in maskable(model).items()}
    share = k / sum(sizes.values())
    return {
        name: torch.from_numpy(distinct(generator, size, max(1, round(size * share)))) for name, size in sizes.items()
    }


def distinct(generator: np.random.Generator, below: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Some distinct numbers, ascending: one of each of `count` equal parts; drawing ten million takes a minute."""
    edges = np.arange(count + 1) * below // count
    return edges[:-1] + (generator.random(count) * np.diff(edges)).astype(np.int64)


def text(shape: Shape, blocks: int, length: int, seed: int = 0, valid: int = 1) -> MaskedLanguageModelling:
    """Full blocks, `valid` of them held out, whose words have the frequencies of natural text: 1 / rank (Zipf)."""
    generator = np.random.default_rng(seed)
    words = np.minimum(_zipf(generator, (blocks, length), shape.vocabulary - 5), shape.vocabulary - 6) + 5
    words[:, 0], words[:, -1] = START, END
    masking = Masking(0.15, MASK, shape.vocabulary, frozenset(range(5)))
    cut = Blocks(words[valid:].astype(np.int32), words[:valid].astype(np.int32))
    return MaskedLanguageModelling(cut, masking, PAD, seed)


def sentences(shape: Shape, count: int, length: int, seed: int = 0) -> Classification:
    """Labelled sentences, all of the full length."""
    generator = np.random.default_rng(seed)
    words = np.minimum(_zipf(generator, (count, length), shape.vocabulary - 5), shape.vocabulary - 6) + 5
    encoded = Encoded(tuple(words.tolist()), generator.integers(0, len(LABELS), count))
    return Classification(encoded, encoded, LABELS, "macro_f1", PAD)


def _zipf(generator: np.random.Generator, shape: tuple[int, int], most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ranks from 0 with probability proportional to 1 / (rank + 1): the inverse of a logarithmic distribution."""
    return (np.exp(generator.random(shape) * np.log(most)) - 1).astype(np.int64)

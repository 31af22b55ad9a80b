"""Token blocks from plain text, the training data of a language vector: made once, read by both phases.

Packing is that of Hugging Face's run_mlm.py: passages with their special tokens, end to end, cut into full blocks.
Whole passages are held out, drawn before blocks are cut, so no block mixes the two sides. Masking is in `objectives`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deftx.config import TextSettings
from deftx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int32]

_CHUNK = 1000
"""Passages tokenised at once: a whole corpus as lists of Python ints would take ten times the memory of its arrays."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Token ids to train on and to validate on."""

    train: Tokens
    """[blocks, tokens] int32"""
    valid: Tokens
    """[held-out blocks, tokens] int32"""


def token_blocks(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, seed: int) -> Blocks:
    """The blocks of a text: passages are held out, tokenised and cut; the same for the same arguments.

    Packed, a tail shorter than a block is dropped. Unpacked, a passage is one block, cut or padded to its length. Both
    sides keep the order of the text.

    Args:
        lines: a passage each; the first `settings.max_lines` are used.
        tokenizer: of the backbone.
        settings: block length, packing and the fraction held out.
        seed: draws the passages that are held out.

    Raises:
        DataError: when a side has too little text for one block, or there is no token to pad passages with.
    """
    sides = _sides(lines, tokenizer, settings, seed)
    cut = _packed if settings.pack else _padded
    blocks = {side: cut(passages, tokenizer, settings, side) for side, passages in sides.items()}
    return Blocks(train=blocks["training"], valid=blocks["validation"])


def count_blocks(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, seed: int
) -> tuple[int, int]:
    """How many training and validation blocks `token_blocks` makes of the same arguments, with its errors.

    Packed, passages are tokenised but no block is made; unpacked, they are only counted.
    """
    numbers = []
    for side, passages in _sides(lines, tokenizer, settings, seed).items():
        tokens = sum(map(len, _tokenised(passages, tokenizer))) if settings.pack else 0
        numbers.append(_number(len(passages), tokens, settings, side))
    train, valid = numbers
    return train, valid


def _sides(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, seed: int
) -> dict[str, list[str]]:
    """The passages to train on and those that are held out, both in the order of the text."""
    if not settings.pack and tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has no padding token, which one passage a block needs; use `pack: true`")
    lines = lines[: settings.max_lines]
    held_out = _held_out(len(lines), settings.valid_fraction, seed)
    return {
        "training": [line for line, held in zip(lines, held_out, strict=True) if not held],
        "validation": [line for line, held in zip(lines, held_out, strict=True) if held],
    }


def _held_out(count: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of `count` passages are held out: the share asked for, and at least one."""
    chosen = np.random.default_rng(seed).permutation(count)[: max(1, round(count * fraction))]
    held = np.zeros(count, dtype=bool)
    held[chosen] = True
    return held


def _number(passages: int, tokens: int, settings: TextSettings, side: str) -> int:
    """How many blocks a side has: packed, as many as its tokens fill; unpacked, one a passage."""
    number = tokens // settings.block if settings.pack else passages
    if not number:
        had = f"{tokens} tokens in {passages} passages" if settings.pack else "0 passages and 0 tokens"
        needed = f"{settings.block} tokens are" if settings.pack else "at least 1 passage is"
        raise DataError(f"too little text for one {side} block: {had}, {needed} needed")
    return number


def _packed(passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, side: str) -> Tokens:
    stream = np.fromiter(chain.from_iterable(_tokenised(passages, tokenizer)), dtype=np.int32)
    number = _number(len(passages), len(stream), settings, side)
    return stream[: number * settings.block].reshape(number, settings.block)


def _padded(passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, side: str) -> Tokens:
    number = _number(len(passages), 0, settings, side)
    blocks = np.full((number, settings.block), tokenizer.pad_token_id, dtype=np.int32)
    for row, tokens in zip(blocks, _tokenised(passages, tokenizer, longest=settings.block), strict=True):
        row[: len(tokens)] = tokens
    return blocks


def _tokenised(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int | None = None
) -> Iterator[list[int]]:
    """The token ids of each passage, special tokens included; cut to `longest` tokens unless that is None."""
    for start in range(0, len(passages), _CHUNK):
        encoded = tokenizer(
            list(passages[start : start + _CHUNK]),
            truncation=longest is not None,
            max_length=longest,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # else it warns of passages longer than the model reads, which packing cuts
        )
        yield from encoded["input_ids"]

"""Token blocks from plain text, the training data of a language vector: made once, read by both phases.

Packing is that of Hugging Face's run_mlm.py: passages with their special tokens, end to end, cut into full blocks.
Whole passages are held out, drawn before blocks are cut, so no block mixes the two sides. Masking is in `objectives`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from deftx.config import TextSettings
from deftx.data.passages import Picked
from deftx.data.pieces import pieces
from deftx.data.tokens import tokenised
from deftx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int32]
T = TypeVar("T")

_PACKED_CHARACTERS, _PADDED_CHARACTERS = 8, 4
"""Most characters for each token of a block in a passage that is cut from a line: even one of letters that the
tokenizer knows by heart then fills a block, or is not much longer than one."""


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
    sides keep the order of the text. A line is a passage. Only where the lines of a side do not fill a block, as in a
    text that is one line, they are cut finer: at line ends of every kind, then after sentences or between words.

    Args:
        lines: a passage each; the first `settings.max_lines` are used.
        tokenizer: of the backbone.
        settings: block length, packing and the fraction held out.
        seed: draws the passages that are held out.

    Raises:
        DataError: when a side has too little text for one block, or there is no token to pad passages with.
    """
    cut = _packed if settings.pack else _padded
    make = partial(cut, tokenizer=tokenizer, settings=settings)
    (train, valid), _ = _both(lines, make, tokenizer, settings, seed)
    return Blocks(train=train, valid=valid)


def count_blocks(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, seed: int
) -> tuple[int, int, int]:
    """How many training and validation blocks `token_blocks` makes of the same arguments, and of how many passages.

    Packed, passages are tokenised but no block is made; unpacked, they are only counted. Errors are those of
    `token_blocks`.
    """

    def count(passages: Sequence[str], side: str) -> int:
        tokens = sum(len(ids) for _, ids in tokenised(passages, tokenizer)) if settings.pack else 0
        return _number(len(passages), tokens, settings, side)

    (train, valid), passages = _both(lines, count, tokenizer, settings, seed)
    return train, valid, passages


def _both(
    lines: Sequence[str],
    make: Callable[[Sequence[str], str], T],
    tokenizer: PreTrainedTokenizerBase,
    settings: TextSettings,
    seed: int,
) -> tuple[list[T], int]:
    """What is made of the passages of the training and of the validation side, and the number of passages."""
    if not settings.pack and tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has no padding token, which one passage a block needs; use `pack: true`")
    lines = lines[: settings.max_lines]
    try:
        return [make(*side) for side in _sides(lines, settings, seed)], len(lines)
    except DataError:
        longest = settings.block * (_PACKED_CHARACTERS if settings.pack else _PADDED_CHARACTERS)
        finer = [part for line in lines for part in _parts(line, longest)][: settings.max_lines]
        if len(finer) == len(lines):
            raise
    return [make(*side) for side in _sides(finer, settings, seed)], len(finer)


def _parts(line: str, longest: int) -> list[str]:
    """The line in passages of at most `longest` characters, without the white space around them.

    The last may be longer by half: what is left over might not fill a block.
    """
    parts: list[str] = []
    for shorter in line.splitlines():
        cut = list(pieces(shorter, longest))
        if len(cut) > 1 and len(cut[-1]) < longest // 2:
            cut[-2:] = [cut[-2] + cut[-1]]
        parts += filter(None, map(str.strip, cut))
    return parts


def _sides(lines: Sequence[str], settings: TextSettings, seed: int) -> Iterator[tuple[Sequence[str], str]]:
    """The passages to train on and those that are held out, both in the order of the text, with their side's name."""
    held_out = _held_out(len(lines), settings.valid_fraction, seed)
    for side, rows in (("training", ~held_out), ("validation", held_out)):
        yield Picked(lines, np.flatnonzero(rows)), side


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


def _packed(passages: Sequence[str], side: str, tokenizer: PreTrainedTokenizerBase, settings: TextSettings) -> Tokens:
    collected = array("i")  # grows by a sixteenth where numpy's would by a half
    for _, ids in tokenised(passages, tokenizer):
        collected.extend(ids)
    stream = np.frombuffer(collected, dtype=np.int32)
    number = _number(len(passages), len(stream), settings, side)
    return stream[: number * settings.block].reshape(number, settings.block)


def _padded(passages: Sequence[str], side: str, tokenizer: PreTrainedTokenizerBase, settings: TextSettings) -> Tokens:
    number = _number(len(passages), 0, settings, side)
    blocks = np.full((number, settings.block), tokenizer.pad_token_id, dtype=np.int32)
    for row, ids in tokenised(passages, tokenizer, longest=settings.block):
        blocks[row, : len(ids)] = ids
    return blocks

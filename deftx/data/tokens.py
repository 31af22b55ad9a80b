"""Token ids of texts of any length: a few texts at a time, and a long one in pieces, so that memory stays small.

A tokenizer needs about a hundred bytes for each character that it is given at once, and its ids as Python ints need ten
times the memory of an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from deftx.data.pieces import pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS, _CHARACTERS = 1000, 2**16
"""Given to the tokenizer at once."""
_LONG = 2**18
"""Characters of a text that is cut into pieces."""


def tokenised(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, longest: int | None = None, special: bool = True
) -> Iterator[tuple[int, list[int]]]:
    """The number of each text, from 0, and its token ids; a text of more than 262,144 characters comes in parts.

    Between two words the parts are those of the whole text, for every tokenizer that splits at spaces.

    Args:
        texts: in order.
        tokenizer: of the backbone.
        longest: tokens that a text is cut to, special ones included; None: it is not cut.
        special: whether special tokens stand around each text.
    """
    number = 0
    for batch in _batches(texts):
        if len(batch[0]) > _LONG:
            yield from ((number, part) for part in _in_parts(batch[0], tokenizer, longest, special))
        else:
            encoded = tokenizer(
                batch, truncation=longest is not None, max_length=longest, add_special_tokens=special,
                return_attention_mask=False, return_token_type_ids=False,
                verbose=False,  # else it warns of passages longer than the model reads, which packing cuts
            )  # fmt: skip
            yield from enumerate(encoded["input_ids"], start=number)
        number += len(batch)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == _TEXTS or characters + len(text) > _CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _in_parts(text: str, tokenizer: PreTrainedTokenizerBase, longest: int | None, special: bool) -> Iterator[list[int]]:
    before, after = _around(tokenizer) if special else ([], [])
    parts: Iterator[list[int]] = (
        tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in pieces(text, _CHARACTERS)
    )
    if longest is not None:
        body = islice(chain.from_iterable(parts), longest - len(before) - len(after))
        parts = iter([[*before, *body, *after]])
        before = after = []
    yield from (part for part in chain([before], parts, [after]) if part)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and after a text."""
    alone, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    first = next(at for at in range(len(whole)) if whole[at : at + len(alone)] == alone)
    return whole[:first], whole[first + len(alone) :]

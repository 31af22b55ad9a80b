"""The check of a text before hours are spent on it: encoding, repeats, leaks, tokens, and the steps it is good for.

It only counts. The text is not changed, and whether to train on it is the user's decision (words: `text_report`).
Line numbers are the file's, from 1. A file that is not UTF-8 is refused before (`files.read_text`). Words are separated
by spaces: for a script without spaces the number of tokens a word means nothing.

From the shell: `deftx check FILE --backbone FOLDER [--evaluation FILE.csv]`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deftx.config import TextSettings, Training
from deftx.data.blocks import count_blocks
from deftx.data.leaks import find_shared
from deftx.data.passages import Picked, TextLines, not_empty
from deftx.data.pieces import pieces
from deftx.data.text_report import Lines, Sign, TextReport
from deftx.data.tokens import tokenised
from deftx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Lines", "TextReport", "check_text"]

_LONG_WORD = 4
"""Most tokens of a word that is not counted as long: what `MOST_TOKENS_A_WORD` is on average."""

_LONG, _WORD = 2**18, re.compile(r"\S+")
"""From this number of characters on a text is looked at in pieces, and word by word: copies are ten times as large."""
_WORDS, _KNOWN = 20_000, 50_000
"""Words that are looked at together, and whose tokens are remembered: a long text has millions of different ones."""

# Of the control characters not tab, line feed, vertical tab, form feed, carriage return and next line: white space.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# UTF-8 read as Latin-1 or Windows-1252: the first byte of U+0080 to U+00FF becomes Â or Ã, and this is what the second
# becomes, without punctuation such as ’ and », which may rightly follow these capitals.
_SECOND = "[\x80-\xba\xbc-\xbf€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_SECOND}|â[\x80€]|ðŸ|ï»¿")
_SIGNS: Mapping[Sign, Callable[[str], object]] = {
    "replacement": lambda text: "\ufffd" in text,
    "mojibake": _MOJIBAKE.search,
    "control": _CONTROL.search,
    "byte-order mark": lambda text: "\ufeff" in text,
    "not NFC": lambda text: not all(unicodedata.is_normalized("NFC", piece) for piece in pieces(text, _LONG)),
}


def check_text(
    language: str,
    lines: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    text: TextSettings,
    training: Training,
    *,
    seed: int = 0,
    evaluation: Sequence[str] | None = None,
) -> TextReport:
    """The counts of a text as training would read it. 9 MB and 1,000 sentences take about ten seconds on a core.

    Args:
        language: the name of the text in messages.
        lines: of the file, empty ones too, so that line numbers are the file's.
        tokenizer: of the backbone.
        text: how passages become blocks; only the first `max_lines` passages are looked at.
        training: for the batch size and the planned steps.
        seed: of the text stage, which draws the held-out passages; another seed moves a few blocks between the sides.
        evaluation: sentences that must not be in the text; None: it is not compared.

    Raises:
        DataError: when there is no text.
    """
    # TextLines are stripped, and a list of them would take more memory
    passages = not_empty(lines if isinstance(lines, TextLines) else [line.strip() for line in lines], text.max_lines)
    if not passages:
        raise DataError(f"{language}: there is no text")
    blocks = _blocks(passages, tokenizer, text, seed)
    signs = {**_SIGNS, "special token": _special_token(tokenizer)}
    return TextReport(
        language=language,
        passages=len(passages),
        bytes=sum(len(piece.encode()) for passage in passages for piece in pieces(passage, _LONG)),
        signs={sign: _lines(passages, map(has, passages)) for sign, has in signs.items()},
        repeated=_lines(passages, _repeated(passages)),
        sentences=None if evaluation is None else len(evaluation),
        **_shared(passages, evaluation or ()),
        **_in_tokens(passages, tokenizer, text),
        block=text.block,
        **blocks,
        batch_size=training.batch_size,
        planned_steps=training.steps(blocks["train_blocks"]),
    )


def _lines(passages: Picked, which: Iterable[object]) -> Lines:
    """The line numbers of those passages that are true in `which`."""
    return Lines.of(number + 1 for number in compress(passages.numbers, which))


def _shared(passages: Picked, evaluation: Sequence[str]) -> dict[str, Any]:
    shared = find_shared(passages, evaluation)
    return {how: Lines.of(passages.numbers[row] + 1 for row in rows) for how, rows in shared.items()}


def _blocks(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, text: TextSettings, seed: int
) -> dict[str, Any]:
    """How many blocks the text stage makes, and of how many passages; or why it makes none; by their field names."""
    try:
        train, valid, cut_into = count_blocks(passages, tokenizer, text, seed)
    except DataError as error:
        return {"train_blocks": 0, "valid_blocks": 0, "problem": str(error)}
    return {"train_blocks": train, "valid_blocks": valid, "cut_into": cut_into if cut_into != len(passages) else None}


def _special_token(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], object]:
    """Whether a text spells a special token, which the tokenizer takes for that token."""
    names = sorted(filter(None, tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)").search


def _repeated(passages: Sequence[str]) -> NDArray[np.bool_]:
    """Which passages equal an earlier one but for white space, by their digests: copies would double the memory."""
    digests = np.fromiter(map(_digest, passages), dtype=np.uint64, count=len(passages))
    repeated = np.ones(len(passages), dtype=bool)
    parts = digests.view(np.uint8)[:: digests.itemsize] % 16  # sorted all at once they take four times their memory
    for part in range(16):
        rows = np.flatnonzero(parts == part)
        repeated[rows[np.unique(digests[rows], return_index=True)[1]]] = False
    return repeated


def _digest(passage: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces(passage, _LONG):
        space = " " if piece[0].isspace() else ""
        digest.update(f"{space}{' '.join(piece.split())}".encode())
    return int.from_bytes(digest.digest())


def _words(passage: str) -> Iterator[str]:
    return iter(passage.split()) if len(passage) < _LONG else (match[0] for match in _WORD.finditer(passage))


def _in_tokens(passages: Picked, tokenizer: PreTrainedTokenizerBase, text: TextSettings) -> dict[str, Any]:
    """The counts of words and tokens by their field names; each different word is tokenised by itself, mostly once."""
    totals = {"words": 0, "tokens": 0, "unknown_tokens": 0, "long_words": 0}
    lengths = array("I", [tokenizer.num_special_tokens_to_add()]) * len(passages)
    known: dict[str, tuple[int, int]] = {}
    words = ((row, word) for row, passage in enumerate(passages) for word in _words(passage))
    while batch := list(islice(words, _WORDS)):
        if len(known) > _KNOWN:
            known.clear()
        new = [word for word in dict.fromkeys(word for _, word in batch) if word not in known]
        known.update(zip(new, _counts(new, tokenizer), strict=True))
        for row, word in batch:
            tokens, unknown = known[word]
            lengths[row] += tokens
            totals["words"] += 1
            totals["tokens"] += tokens
            totals["unknown_tokens"] += unknown
            totals["long_words"] += tokens > _LONG_WORD
    return {**totals, "cut": _lines(passages, (not text.pack and length > text.block for length in lengths))}


def _counts(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """How many tokens each word has, and how many of them are unknown."""
    counts = [(0, 0)] * len(words)
    for number, ids in tokenised(words, tokenizer, special=False):
        tokens, unknown = counts[number]
        counts[number] = (tokens + len(ids), unknown + ids.count(tokenizer.unk_token_id))
    return counts

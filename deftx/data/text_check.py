"""A look at a text before hours are spent on it: encoding, repeats, leaks, tokens, and the steps it is good for.

It only counts; the text stays as it is, and whether to go on is the reader's to decide (`findings` puts it in words).
Line numbers are the file's, from 1. A file that is not UTF-8 never gets here (`files.read_text`). Words are what
spaces divide: of a script without spaces the tokens a word mean nothing.

From the shell: `deftx check FILE --backbone FOLDER [--evaluation FILE.csv]`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deftx.config import TextSettings, Training
from deftx.data.blocks import count_blocks
from deftx.data.findings import Lines, Sign, TextCheck
from deftx.data.leaks import find_shared
from deftx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Lines", "TextCheck", "check_text"]

_LONG_WORD = 4
"""Pieces of a word, above which it is counted as long."""

Numbered = Sequence[tuple[int, str]]
"""Line numbers and stripped passages."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# What Latin-1 and Windows-1252 make of the second byte, but for what a capital is properly followed by: Â’ and Ã».
_SECOND = "[\x80-\xba\xbc-\xbf€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_SECOND}|â[\x80€]|ðŸ|ï»¿")
_SIGNS: Mapping[Sign, Callable[[str], object]] = {
    "replacement": lambda text: "\ufffd" in text,
    "mojibake": _MOJIBAKE.search,
    "control": _CONTROL.search,
    "byte-order mark": lambda text: "\ufeff" in text,
    "not NFC": lambda text: not unicodedata.is_normalized("NFC", text),
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
) -> TextCheck:
    """Look a text over as training will read it. 9 MB against 1,000 sentences take about ten seconds on a core.

    Args:
        language: what to call the text.
        lines: of the file, empty ones too, so that line numbers are the file's.
        text: how passages become blocks; no more than its `max_lines` are looked at.
        training: for the batch size and the planned steps.
        seed: that of the text stage, which draws the held-out passages; another one moves a few blocks.
        evaluation: sentences that must not be in the text; none: nothing to compare with.

    Raises:
        DataError: when there is no text.
    """
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    numbered = numbered[: text.max_lines]
    if not numbered:
        raise DataError(f"{language}: there is no text")
    passages = [passage for _, passage in numbered]
    train, valid, problem = _count_blocks(passages, tokenizer, text, seed)
    return TextCheck(
        language=language, passages=len(passages), bytes=sum(len(passage.encode()) for passage in passages),
        signs={sign: Lines.of(n for n, passage in numbered if has(passage)) for sign, has in _SIGNS.items()},
        repeated=Lines.of(_repeated(numbered)), sentences=None if evaluation is None else len(evaluation),
        **_shared(numbered, evaluation or ()), **_in_tokens(numbered, tokenizer, text),
        block=text.block, train_blocks=train, valid_blocks=valid, batch_size=training.batch_size,
        planned_steps=training.steps(train), problem=problem,
    )  # fmt: skip


def _count_blocks(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, text: TextSettings, seed: int
) -> tuple[int, int, str | None]:
    """Training and held-out blocks as the text stage cuts them, or why it cannot."""
    try:
        return *count_blocks(passages, tokenizer, text, seed), None
    except DataError as error:
        return 0, 0, str(error)


def _repeated(numbered: Numbered) -> Iterator[int]:
    seen: set[str] = set()
    for number, passage in numbered:
        if (spaced := " ".join(passage.split())) in seen:
            yield number
        seen.add(spaced)


def _shared(numbered: Numbered, evaluation: Sequence[str]) -> dict[str, Any]:
    shared = find_shared([passage for _, passage in numbered], evaluation)
    return {how: Lines.of(numbered[row][0] for row in rows) for how, rows in shared.items()}


def _in_tokens(numbered: Numbered, tokenizer: PreTrainedTokenizerBase, text: TextSettings) -> dict[str, Any]:
    """The counts of words and tokens; each different word is tokenised once, as if it stood alone."""
    counts = Counter(word for _, passage in numbered for word in passage.split())
    pieces = dict(
        zip(counts, tokenizer(list(counts), add_special_tokens=False, verbose=False)["input_ids"], strict=True)
    )
    unknown = tokenizer.unk_token_id
    around = tokenizer.num_special_tokens_to_add()
    lengths = ((n, around + sum(len(pieces[word]) for word in passage.split())) for n, passage in numbered)
    return {
        "words": counts.total(),
        "tokens": sum(count * len(pieces[word]) for word, count in counts.items()),
        "unknown_tokens": sum(count * pieces[word].count(unknown) for word, count in counts.items()),
        "long_words": sum(count for word, count in counts.items() if len(pieces[word]) > _LONG_WORD),
        "cut": Lines() if text.pack else Lines.of(n for n, length in lengths if length > text.block),
    }

"""The check of a text before hours are spent on it: encoding, repeats, leaks, tokens, and the steps it is good for.

It only counts. The text is not changed, and whether to train on it is the user's decision (words: `text_report`).
Line numbers are the file's, from 1. A file that is not UTF-8 is refused before (`files.read_text`). Words are separated
by spaces: for a script without spaces the number of tokens a word means nothing.

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
from deftx.data.leaks import find_shared
from deftx.data.text_report import Lines, Sign, TextReport
from deftx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Lines", "TextReport", "check_text"]

_LONG_WORD = 4
"""Most tokens of a word that is not counted as long: what `MOST_TOKENS_A_WORD` is on average."""

Numbered = Sequence[tuple[int, str]]
"""Line numbers and stripped passages."""

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
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    numbered = numbered[: text.max_lines]
    if not numbered:
        raise DataError(f"{language}: there is no text")
    passages = [passage for _, passage in numbered]
    train, valid, problem = _count_blocks(passages, tokenizer, text, seed)
    return TextReport(
        language=language,
        passages=len(passages),
        bytes=sum(len(passage.encode()) for passage in passages),
        signs={sign: Lines.of(n for n, passage in numbered if has(passage)) for sign, has in _SIGNS.items()},
        repeated=Lines.of(_repeated(numbered)),
        sentences=None if evaluation is None else len(evaluation),
        **_shared(numbered, evaluation or ()),
        **_in_tokens(numbered, tokenizer, text),
        block=text.block,
        train_blocks=train,
        valid_blocks=valid,
        batch_size=training.batch_size,
        planned_steps=training.steps(train),
        problem=problem,
    )


def _count_blocks(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, text: TextSettings, seed: int
) -> tuple[int, int, str | None]:
    """How many training and held-out blocks the text stage makes, and why it makes no blocks where it cannot."""
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
    """The counts of words and tokens by their field names; each different word is tokenised once, by itself."""
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

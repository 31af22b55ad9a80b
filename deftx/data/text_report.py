"""The result of a text check: counts, a summary in one line, warnings in words. It is counted in `text_check`.

The thresholds of the warnings are rules of thumb, except where a reason is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

MOST_PASSES = 100
"""Most passes over a text: the paper's `epochs` of a language."""
FEWEST_HELD_OUT = 10
"""Fewest held-out blocks: the validation loss of fewer is mostly chance, and it picks the checkpoint."""
MOST_TOKENS_A_WORD = 4
"""Most tokens of a word on average: with more, words are spelled out, and few have an embedding of their own."""
MOST_UNKNOWN = 0.01
"""Largest share of tokens that the tokenizer does not know."""
MOST_BLEMISHED = 0.01
"""Largest share of passages with a short evaluation sentence, and of those not in Unicode's normal form C."""
MOST_REPEATED = 0.05
"""Largest share of passages that repeat an earlier one: the demo's corpora have 1 %, which does no harm."""
MOST_CUT = 0.05
"""Largest share of passages longer than a block, where a passage is a block."""

Sign = Literal["replacement", "mojibake", "control", "byte-order mark", "not NFC", "special token"]
_SIGN_SENTENCES: Mapping[Sign, str] = {
    "replacement": "hold U+FFFD, which stands for a lost character: fetch the text again and decode it as UTF-8",
    "mojibake": "look like UTF-8 read as Windows-1252, as 'Ã©' is for 'é': decode the original as UTF-8",
    "control": "hold control characters: remove them",
    "byte-order mark": "hold a byte-order mark inside the text, as joined files do: remove it",
    "not NFC": "are not in Unicode's normal form C, so that one word has two spellings: normalise to NFC",
    "special token": "spell special tokens (of the mask, of the end of a text) and are read as these: take them out",
}
_SHOWN = 3
"""Line numbers that a warning names."""


class Lines(BaseModel):
    """The number of lines that have something in common, and the line numbers of the first three."""

    model_config = ConfigDict(frozen=True)

    count: int = 0
    first: tuple[int, ...] = ()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Lines:
        """The lines with some numbers, given in order."""
        rest = iter(numbers)
        first = tuple(islice(rest, _SHOWN))
        return cls(count=len(first) + sum(1 for _ in rest), first=first)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"line{'s' if self.count > 1 else ''} {', '.join(map(str, self.first))}{more}"


class TextReport(BaseModel):
    """The counts of a text, and what they mean; `model_validate_json` reads what `model_dump_json` writes."""

    model_config = ConfigDict(frozen=True)

    language: str
    passages: int
    bytes: int
    """Of the passages in UTF-8."""
    signs: dict[Sign, Lines]
    """Signs of a wrong encoding, or of what is no text: the passages that have them."""
    repeated: Lines
    """Passages equal to an earlier one but for white space."""
    sentences: int | None
    """How many evaluation sentences the text was compared with; None: it was not compared."""
    equal: Lines
    """Passages that are an evaluation sentence, in the normal form of `leaks`."""
    contained: Lines
    """Passages that contain one and are longer."""
    phrases: Lines = Lines()
    """Passages whose longest evaluation sentence has fewer than 30 letters and digits, and may be there by chance."""
    words: int
    tokens: int
    """Without special tokens."""
    unknown_tokens: int
    long_words: int
    """Words of more than four tokens."""
    cut: Lines
    """Passages longer than a block, where a passage is a block: their ends are never read."""
    block: int
    train_blocks: int
    valid_blocks: int
    batch_size: int
    planned_steps: int
    """Steps that the recipe's settings mean for this number of blocks."""
    cut_into: int | None = None
    """Passages that blocks were made of, where lines had to be cut; None: each line is one."""
    problem: str | None = None
    """Why there are no blocks; None: there are."""

    @property
    def unique(self) -> int:
        """Number of passages that equal no earlier one."""
        return self.passages - self.repeated.count

    @property
    def shared(self) -> int:
        """Number of passages that are or contain an evaluation sentence, however short."""
        return self.equal.count + self.contained.count + self.phrases.count

    @property
    def tokens_per_word(self) -> float:
        """Mean number of tokens of a word."""
        return self.tokens / max(self.words, 1)

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that the tokenizer does not know."""
        return self.unknown_tokens / max(self.tokens, 1)

    @property
    def long_word_share(self) -> float:
        """Share of the words of more than four tokens."""
        return self.long_words / max(self.words, 1)

    @property
    def steps_per_pass(self) -> int:
        """Steps that read every training block once."""
        return -(-self.train_blocks // self.batch_size)

    @property
    def passes(self) -> float:
        """How often the planned steps read the text."""
        return self.planned_steps / max(self.steps_per_pass, 1)

    @property
    def good_for(self) -> int:
        """Steps in `MOST_PASSES` passes."""
        return MOST_PASSES * self.steps_per_pass

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> str:
        """The text in one line."""
        phrases = f"; {self.phrases.count:,} with a short evaluation sentence" if self.phrases.count else ""
        return (
            f"{self.language}: {self.cut_into or self.passages:,} passages, {_size(self.bytes)}, "
            f"{self.tokens_per_word:.1f} tokens a word, {self.train_blocks:,} blocks of {self.block}; "
            f"good for about {_rounded(self.good_for):,} steps of {self.batch_size}{phrases}"
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the text, a sentence each with what would be right, the worst first."""
        sentences = (*_leaked(self), *_too_little(self), *_blemished(self), *_not_known(self))
        return tuple(f"{self.language}: {sentence}" for sentence in sentences)


def _leaked(check: TextReport) -> Iterator[str]:
    for verb, lines in (("are", check.equal), ("hold", check.contained)):
        if lines.count:
            yield (
                f"{_share(lines, check)} {verb} sentences of its evaluation files ({lines}); none may: "
                "take them out, else what is graded was seen in training"
            )
    if check.phrases.count > MOST_BLEMISHED * check.passages:
        yield (
            f"{_share(check.phrases, check)} are or hold short sentences of its evaluation files ({check.phrases}); "
            f"{MOST_BLEMISHED * 100:g} % at most is chance: take them out, else what is graded was seen in training"
        )


def _too_little(check: TextReport) -> Iterator[str]:
    if check.problem is not None:
        yield check.problem
        return
    if check.cut_into is not None:
        yield (
            f"{_lines_of(check.passages)} cut into {check.cut_into:,} passages, at other line ends, after sentences or "
            "between words, since whole lines do not fill a block of each side; a line a passage (a sentence, a "
            "paragraph or an article) is right"
        )
    if check.passes > MOST_PASSES:
        blocks = -(-check.planned_steps // MOST_PASSES) * check.batch_size
        passages = _rounded(math.ceil(check.passages * blocks / check.train_blocks))
        yield (
            f"too little text: {check.planned_steps:,} planned steps of {check.batch_size} read its "
            f"{check.train_blocks:,} blocks {_rounded(round(check.passes)):,} times; {MOST_PASSES} times at most is "
            f"right, which takes {blocks:,} blocks (about {passages:,} passages) or at most {check.good_for:,} steps"
        )
    if check.valid_blocks < FEWEST_HELD_OUT:
        yield (
            f"only {check.valid_blocks} held-out blocks pick the checkpoint, which makes it chance; at least "
            f"{FEWEST_HELD_OUT} are right: more text or a larger text.valid_fraction"
        )
    if check.cut.count > MOST_CUT * check.passages:
        yield (
            f"{_share(check.cut, check)} are longer than a block of {check.block} tokens, and the rest is never read "
            f"({check.cut}); {MOST_CUT * 100:g} % at most is right: a larger text.block, or text.pack: true"
        )


def _blemished(check: TextReport) -> Iterator[str]:
    for sign, lines in check.signs.items():
        if lines.count > (MOST_BLEMISHED * check.passages if sign == "not NFC" else 0):
            yield f"{_share(lines, check)} {_SIGN_SENTENCES[sign]} ({lines})"
    if check.repeated.count > MOST_REPEATED * check.passages:
        yield (
            f"{_share(check.repeated, check)} repeat an earlier one, held-out ones among them ({check.repeated}); "
            f"{MOST_REPEATED * 100:g} % at most is right: keep each passage once"
        )


def _not_known(check: TextReport) -> Iterator[str]:
    if check.tokens_per_word > MOST_TOKENS_A_WORD:
        yield (
            f"{check.tokens_per_word:.1f} tokens a word; {MOST_TOKENS_A_WORD} at most is right: the backbone's "
            "tokenizer hardly knows the language or its script, and another backbone may"
        )
    if check.unknown_share > MOST_UNKNOWN:
        yield (
            f"{check.unknown_share * 100:.1f} % of the tokens are unknown to the backbone's tokenizer; "
            f"{MOST_UNKNOWN * 100:g} % at most is right: another backbone, or the text in a script that it knows"
        )


def _lines_of(number: int) -> str:
    return "its one line was" if number == 1 else f"its {number:,} lines were"


def _share(lines: Lines, check: TextReport) -> str:
    percent = Decimal(f"{100 * lines.count / check.passages:.2g}")
    return f"{lines.count:,} of {check.passages:,} passages ({percent:f} %)"  # a Decimal, else 100 is 1e+02


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _rounded(number: int) -> int:
    """The number rounded to two digits: 40,125 is about 40,000."""
    digits = len(str(number)) - 2
    return round(number, -digits) if digits > 0 else number

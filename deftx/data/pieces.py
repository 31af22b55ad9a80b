"""A long text in pieces, so that memory and passages stay small whatever its lines are.

It is cut where a reader would: after a sentence, else between words; within a word only where there is no space at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_SENTENCE_END = re.compile(r"""[.!?…؟۔।॥።][.!?…"'”’»)\]]*(?=\s)|[。！？](?!\s*[」』”）])""")
_SPACE = re.compile(r"(?<=\S)(?=\s)")


def pieces(text: str, longest: int) -> Iterator[str]:
    """The parts of a text, each of at most `longest` characters, that joined are the text again.

    White space stands at the beginning of a piece, as tokenizers expect it. A piece that is not the last has at least
    half of `longest` characters.
    """
    start = 0
    while len(text) - start > longest:
        end = _cut(text, start + longest // 2, start + longest)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _cut(text: str, first: int, last: int) -> int:
    """Where to cut, in `first` to `last`: after the last sentence there, else before the last space, else anywhere."""
    for boundary in (_SENTENCE_END, _SPACE):
        ends = [match.end() for match in boundary.finditer(text, first, last)]
        if ends:
            return ends[-1]
    return next((at for at in range(last, first, -1) if _begins(text[at])), last)


def _begins(character: str) -> bool:
    """Whether a character may begin a piece: it is no mark, jamo or invisible that belongs to what stands before it."""
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first) not in ("Mn", "Mc", "Me", "Cf", "Cn") and not "\u115f" <= first <= "\u11ff"

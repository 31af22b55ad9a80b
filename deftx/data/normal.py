"""The normal form in which texts, labels and ids are compared. What is trained on, graded or shown stays as written.

It is Unicode's NFKC_Casefold (chapter 3.13 of the standard: NFKC, case folded, characters that are never drawn dropped)
with one apostrophe for all that are typed as one. Spelling is not looked at beyond that: what a keyboard or a program
writes in two ways compares as the same, what a reader sees as two does not.
"""

from __future__ import annotations

import re
import unicodedata

from deftx.data.pieces import pieces

_LONG = 2**18
"""Characters that are normalised at once: some steps take a multiple of a text's memory."""

# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties: zero-width spaces and joiners, soft hyphens, marks of
# direction and of byte order, variation selectors, fillers, tags
_NEVER_DRAWN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# grave and acute accents by themselves, primes, quotation marks, and the letters for a glottal stop: okina, saltillo,
# modifier letters, half rings, Greek koronis and psili, Armenian, Hebrew and N'Ko apostrophes, the wide ones
_APOSTROPHES = re.compile(
    "[`\u00b4\u02b9\u02bb-\u02bf\u0384\u055a\u05f3\u07f4\u07f5\u1fbd\u1fbf\u1ffe\u2018\u2019\u201b\u2032\u2035\u275b\u275c"
    "\ua78b\ua78c\uff07\uff40]"
)


def normal(text: str) -> str:
    """The text in the normal form: the same for any two spellings that are compared as one, and for itself.

    Combining marks stay part of their letter, so that `ã` and `a` differ, however they are encoded.
    """
    if text.isascii():
        return text.replace("`", "'").lower()
    return "".join(_folded(piece) for piece in pieces(text, _LONG))


def letters(text: str) -> str:
    """The letters and digits of the text's normal form, letters with their marks: how sentences are compared."""
    return "".join(_bare(normal(piece)) for piece in pieces(text, _LONG))


def _folded(text: str) -> str:
    # twice, since folding and NFKC make characters of each other; composed last, when nothing is left between a
    # letter and its marks
    for _ in range(2):
        text = _NEVER_DRAWN.sub("", unicodedata.normalize("NFD", text))
        text = unicodedata.normalize("NFKD", _APOSTROPHES.sub("'", text).casefold())
    return unicodedata.normalize("NFC", _APOSTROPHES.sub("'", text))


def _bare(text: str) -> str:
    # a mark that follows no letter goes with what it follows
    return re.sub(r" [^\w ]*", "", " " + text.translate(_KINDS))


class _Kinds(dict[int, str]):
    """What `_bare` makes of a character, each looked up once: a letter, digit or mark is itself, all else a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")
        self[code] = character if kept else " "
        return self[code]


_KINDS = _Kinds()

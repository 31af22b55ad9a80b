"""The lines of a text, made when they are asked for: as a list, short ones take ten times the memory of the text."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload


class _Lazy(Sequence[str]):
    """Texts by number, of which some are `Picked` by a slice."""

    def _text_of(self, number: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """One of them, or some."""
        numbers = range(len(self))[index]
        return self._text_of(numbers) if isinstance(numbers, int) else Picked(self, numbers)


class TextLines(_Lazy):
    """The stripped lines of a text, the empty ones too."""

    def __init__(self, text: str, end: re.Pattern[str]) -> None:
        """Find where lines begin; `end` matches what ends one, which is white space."""
        self._text = text
        self._starts = array("Q" if len(text) >= 2**32 else "I", [0])
        self._starts.extend(match.end() for match in end.finditer(text))

    def __len__(self) -> int:
        """How many there are; after the last line end begins another line."""
        return len(self._starts)

    def _text_of(self, number: int) -> str:
        end = self._starts[number + 1] if number + 1 < len(self) else len(self._text)
        return self._text[self._starts[number] : end].strip()


class Picked(_Lazy):
    """Some of the items of a sequence, by their numbers."""

    def __init__(self, items: Sequence[str], numbers: Sequence[int] | Any) -> None:
        """Bind the items and the numbers, a sequence or an array of ints."""
        self._items, self.numbers = items, numbers

    def __len__(self) -> int:
        """How many were picked."""
        return len(self.numbers)

    def _text_of(self, number: int) -> str:
        return self._items[self.numbers[number]]


def not_empty(lines: Iterable[str], most: int | None = None) -> Picked:
    """The lines that are not empty, at most the first `most`; their `numbers` count from 0 and count the empty ones."""
    kept = lines if isinstance(lines, Sequence) else list(lines)
    numbers = array("Q" if len(kept) >= 2**32 else "I")
    for number, line in enumerate(kept):
        if len(numbers) == most:
            break
        if line:
            numbers.append(number)
    return Picked(kept, numbers)

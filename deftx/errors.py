"""The errors that deftx and the orchestrator raise for what a user or the outside world did.

A `DeftxError` names the file, field or value at fault and what would be right. It is shown without a traceback, and a
trial that raises one is not retried. Bugs stay ordinary Python exceptions.
"""

import errno
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, TypeVar

from deftx.passwords import without_password

T = TypeVar("T")

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 100, 100, 2


class DeftxError(Exception):
    """A fault that trying again will not mend; the message says what, where and what would be right."""

    def __str__(self) -> str:
        """The message, in which no URL shows its password."""
        return without_password(super().__str__())


class ConfigError(DeftxError):
    """A setting is unknown, of the wrong type or out of range. Carries every problem found, one to a line."""


class DataError(DeftxError):
    """A file, table, label or vector does not hold what it should. Names the file and, where there is one, the line."""


class HubError(DeftxError):
    """A model or data set cannot be fetched from the hub: it is unreachable, or the id or revision is unknown."""


class StoreError(DeftxError):
    """The store holds something that does not match its manifest, or a lease is held by another driver."""


class OutOfMemory(DeftxError):
    """A stage needs more memory than there is. Names what was needed and the settings that help."""


class TrainingError(DeftxError):
    """A loss or a weight became NaN or infinite. Names the step and the tensor."""


_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
_REFUSED = ("No space left on device", "No usable temporary directory", "Disk quota exceeded", "Read-only file system")


def refusal(error: BaseException) -> str | None:
    """What the machine did not let happen, in words; None for another error.

    That is a disk that is full, read-only or cannot be written to, and a storage that does not answer.
    """
    if isinstance(error, ConnectionError | TimeoutError):  # itself: an error of the hub has its own words for one
        return without_password(str(error) or type(error).__name__)
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in _REFUSALS:
            place = f"{link.filename}: " if link.filename else ""
            return without_password(f"{place}{link.strerror or os.strerror(link.errno or 0)}")
        # a library's own error with the system's words in it, such as that of a file of weights
        if words := [words for words in _REFUSED if words in str(link)]:
            return words[0]
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # raised `from None`, it has words of its own for what it hides
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class Problems:
    """Runs look-ups and keeps their errors, so that a user is told all of them at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._kind: type[DeftxError] = DataError

    def get(self, look_up: Callable[[], T]) -> T | None:
        """What a look-up answers; None where it met a `DeftxError`, whose lines are kept, each once."""
        try:
            return look_up()
        except DeftxError as error:
            if not self.lines:
                self._kind = type(error)
            self.lines += [line for line in str(error).splitlines() if line not in self.lines]
            return None

    def tell(self) -> None:
        """Raise what was kept, if anything.

        Raises:
            DeftxError: of the first error's class, with every line.
        """
        if self.lines:
            raise self._kind("\n".join(self.lines))


def explain(problem: Any) -> str:
    """One of pydantic's `errors()` in words, with the value that was given: `at least 1 (given: 0)`."""
    message, value = str(problem["msg"]).removeprefix("Value error, "), problem.get("input")
    told = value is None or isinstance(value, bytes) or hasattr(value, "keys")  # nothing, a file, a group of settings
    return message if told else f"{message} (given: {shortened(value)})"


def shortened(value: object) -> str:
    """A value as Python writes it, cut where it is long or nested: what is wrong may be its size."""
    return _SHORT.repr(value)


def hint(name: str, valid: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest of the valid names, or "" where all are far."""
    # 0.4 where difflib's default of 0.6 has no `mad` for `madurese`: a wrong guess does no harm
    nearest = get_close_matches(name, list(valid), n=1, cutoff=0.4)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def reason(error: BaseException) -> str:
    """The first line of an error's message, without passwords, or the name of its class where there is no message.

    A line that ends with a colon is followed by what it announces.
    """
    first, *others = str(error).splitlines() or [""]
    announced = f" {others[0].strip()}" if others and first.endswith(":") else ""
    return without_password(first + announced) or type(error).__name__

"""The errors that deftx and the orchestrator raise for what a user or the outside world did.

A `DeftxError` is an answer, not an accident: its message names the file, field or value and what would be right, it is
shown without a traceback, and a trial that meets one is not retried. Bugs stay ordinary Python exceptions.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from deftx.passwords import without_password


class DeftxError(Exception):
    """Something that trying again will not mend; the message says what, where and what would be right."""

    def __str__(self) -> str:
        """The message, in which no URL shows its password."""
        return without_password(super().__str__())


class ConfigError(DeftxError):
    """A setting is unknown, of the wrong type or out of range. Carries every problem found, one to a line."""


class DataError(DeftxError):
    """A file, table, label or vector does not hold what it should. Names the file and, where there is one, the line."""


class HubError(DeftxError):
    """A model or data set could not be had from the hub: unreachable, unknown id or unknown revision."""


class StoreError(DeftxError):
    """The store holds something that does not match its manifest, or a lease is held by another driver."""


class TrainingError(DeftxError):
    """A loss or a weight stopped being a number. Names the step and the tensor."""


def hint(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the known name that is nearest, or nothing where none is near."""
    nearest = get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def reason(error: BaseException) -> str:
    """The first line of what an error says, without passwords, or its name where it says nothing."""
    return without_password(next(iter(str(error).splitlines()), "")) or type(error).__name__

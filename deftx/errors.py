"""The errors that deftx and the orchestrator raise for what a user or the outside world did.

A `DeftxError` names the file, field or value at fault and what would be right. It is shown without a traceback, and a
trial that raises one is not retried. Bugs stay ordinary Python exceptions.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DeftxError(Exception):
    """A fault that trying again will not mend; the message says what, where and what would be right."""


class ConfigError(DeftxError):
    """A setting is unknown, of the wrong type or out of range. Carries every problem found, one to a line."""


class DataError(DeftxError):
    """A file, table, label or vector does not hold what it should. Names the file and, where there is one, the line."""


class HubError(DeftxError):
    """A model or data set cannot be fetched from the hub: it is unreachable, or the id or revision is unknown."""


class StoreError(DeftxError):
    """The store holds something that does not match its manifest, or a lease is held by another driver."""


class TrainingError(DeftxError):
    """A loss or a weight became NaN or infinite. Names the step and the tensor."""


def hint(name: str, valid: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest of the valid names, or "" where all are far."""
    # 0.4 where difflib's default of 0.6 has no `mad` for `madurese`: a wrong guess does no harm
    nearest = get_close_matches(name, list(valid), n=1, cutoff=0.4)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where there is no message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__

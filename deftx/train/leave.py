"""Asked to leave: a training that is going on keeps a checkpoint after its step and ends.

Asked is the process, as by a signal: it makes one stage at a time. What is not a training does not look.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_asked, _heeding = threading.Event(), threading.Event()


class Left(Exception):
    """A stage was left as it was asked to be; its checkpoint is in the store."""


def ask() -> bool:
    """Ask this process to leave; whether a training is going on that will, after its step."""
    _asked.set()
    return _heeding.is_set()


def asked() -> bool:
    """Whether this process was asked to leave since its training began."""
    return _asked.is_set()


@contextmanager
def heeding() -> Iterator[None]:
    """A context in which a training looks after each step whether it was asked."""
    _asked.clear()
    _heeding.set()
    try:
        yield
    finally:
        _heeding.clear()

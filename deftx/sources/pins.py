"""Hub revisions and web files, each resolved once for a sweep: a sweep that is continued keeps those it began with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from deftx.errors import HubError

UNRESOLVED = "unresolved"
"""Stands for a commit or a digest in a plan that is made without a network."""


@dataclass
class Pins:
    """What has been resolved for a sweep."""

    resolved: dict[str, str] = field(default_factory=dict)
    """A commit for each repository and revision, a digest for each web file."""
    lenient: bool = False
    """Whether what cannot be resolved becomes `UNRESOLVED` and is no error: for planning."""


_PINS: ContextVar[Pins | None] = ContextVar("pins", default=None)


@contextmanager
def pinned(pins: Pins) -> Iterator[Pins]:
    """Within the block `resolve_once` answers from the pins, and adds to them what it had to ask for."""
    token = _PINS.set(pins)
    try:
        yield pins
    finally:
        _PINS.reset(token)


def resolve_once(key: str, ask: Callable[[], str]) -> str:
    """The pinned commit or digest, or the one that `ask` returns now.

    Args:
        key: a repository and revision, or a URL, with its kind.
        ask: asks the hub or the web.

    Raises:
        HubError: when `ask` raises it, unless the pins are lenient.
    """
    pins = _PINS.get() or Pins()
    if key not in pins.resolved:
        try:
            pins.resolved[key] = ask()
        except HubError:
            if not pins.lenient:
                raise
            pins.resolved[key] = UNRESOLVED
    return pins.resolved[key]

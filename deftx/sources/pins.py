"""What was found on the hub so far, by what was asked: a sweep resolves each revision once and keeps to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from deftx.errors import HubError

UNRESOLVED = "unresolved"
"""Stands for a commit or a content in a plan that is made without a network."""


@dataclass
class Pins:
    """What was found on line so far, by what was asked: a sweep resolves each once and keeps to it."""

    found: dict[str, str] = field(default_factory=dict)
    lenient: bool = False
    """Whether what cannot be had is `unresolved` rather than an error: for planning."""


_PINS: ContextVar[Pins | None] = ContextVar("pins", default=None)


@contextmanager
def pinned(pins: Pins) -> Iterator[Pins]:
    """Within the block `resolve_once` answers from the pins, and notes there what it had to ask."""
    token = _PINS.set(pins)
    try:
        yield pins
    finally:
        _PINS.reset(token)


def resolve_once(key: str, ask: Callable[[], str]) -> str:
    """The pinned answer, or what `ask` finds on line now.

    Raises:
        HubError: when it cannot be had, unless the pins are lenient.
    """
    pins = _PINS.get() or Pins()
    if key not in pins.found:
        try:
            pins.found[key] = ask()
        except HubError:
            if not pins.lenient:
                raise
            pins.found[key] = UNRESOLVED
    return pins.found[key]

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
class Revisions:
    """What has been resolved for a sweep."""

    resolved: dict[str, str] = field(default_factory=dict)
    """A commit for each repository and revision, a digest for each web file."""
    lenient: bool = False
    """Whether what cannot be resolved becomes `UNRESOLVED` and is no error: for planning."""


_REVISIONS: ContextVar[Revisions | None] = ContextVar("revisions", default=None)


@contextmanager
def pinned_revisions(revisions: Revisions) -> Iterator[Revisions]:
    """Within the block `resolve_once` answers from these revisions, and adds to them what it had to ask for."""
    token = _REVISIONS.set(revisions)
    try:
        yield revisions
    finally:
        _REVISIONS.reset(token)


def resolve_once(key: str, ask: Callable[[], str]) -> str:
    """The recorded commit or digest, or the one that `ask` returns now.

    Args:
        key: a repository and revision, or a URL, with its kind.
        ask: asks the hub or the web.

    Raises:
        HubError: when `ask` raises it, unless the revisions are lenient.
    """
    revisions = _REVISIONS.get() or Revisions()
    if key not in revisions.resolved:
        try:
            revisions.resolved[key] = ask()
        except HubError:
            if not revisions.lenient:
                raise
            revisions.resolved[key] = UNRESOLVED
    return revisions.resolved[key]

"""Hides the passwords of URLs in what is printed or recorded; a URL that is opened keeps its own."""

from __future__ import annotations

import re

HIDDEN = "***"

_IN_FRONT = re.compile(r"(://[^\s:/?#@]*):(?!\s|\d+(?:[\s/?#]|$))(?:[^\s/?#]*|[^\s@]{0,200}|[^/@\n]*)@")
"""`://user:password@`. A number before a path is a port; a password may hold what should have been written as %2F.

Both patterns take time that grows with the text, and not with its square: all that is logged goes through them.
"""

_AS_QUERY = re.compile(
    r"([?&#;][^\s?&#;=]*"
    r"(?:pass|password|passwd|passphrase|pwd|token|secret|credential|auth|signature|sig|api_?key|access_?key|odbc_connect))"
    r"=[^\s&#'\"`)]+",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """The text with `***` for each password, and each token in a query, of the URLs in it; users' names stay."""
    return _AS_QUERY.sub(rf"\1={HIDDEN}", _IN_FRONT.sub(rf"\1:{HIDDEN}@", text))


def to_type(command: str) -> str:
    """A command to show, with a note where a password has to be filled in."""
    safe = without_password(command)
    return safe if safe == command else f"{safe}  (with the password in place of {HIDDEN})"

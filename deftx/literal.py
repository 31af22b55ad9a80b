"""Text that somebody else wrote, in a page that others render: labels, notes and reasons are shown as they are.

What a terminal does with control characters and a spreadsheet with formulas is seen to where such text comes in.
"""

from __future__ import annotations

import re


def literal(text: str) -> str:
    """Text on one line in which Markdown and HTML mark up nothing: no link, no element, no code."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`\[\]<>])", r"\\\1", " ".join(plain.split()))

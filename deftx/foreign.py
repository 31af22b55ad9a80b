"""JSON that somebody else wrote: what is large, torn, nested without end or no object is an error that names its place.

What an object has to hold is the affair of who asks for it; records of a model of their own are read by pydantic.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deftx.errors import DataError, reason

_MOST = 2**23
"""Bytes of a file: an index of a model's weights has one MB, and as Python objects they take thirty times as much."""


def small_file(path: Path) -> bytes:
    """The content of a file of JSON.

    Raises:
        DataError: when it is larger than any should be, is missing, or cannot be read.
    """
    try:
        if (size := path.stat().st_size) > _MOST:
            raise DataError(f"{path}: {size:,} bytes; {_MOST:,} at most")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def json_object(content: bytes, where: object) -> dict[str, Any]:
    """The object that some JSON holds.

    Args:
        where: it comes from, for messages.

    Raises:
        DataError: when it is no JSON, is nested too deep, or holds something else.
    """
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {reason(error)}") from None
    if not isinstance(loaded, dict):
        raise DataError(f"{where}: not a JSON object")
    return loaded

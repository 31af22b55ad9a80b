"""Atomic writing of local files: they are written under another name in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, is on the disk.

    Raises:
        OSError: of the disk, which may have no room for what was taken before.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # a file system over a network may know no such thing for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: the file written there replaces it at the end of the block.

    After an exception in the block it is removed and `path` is as before. Missing parent folders are made. It is on the
    disk before it has its name, so that power loss leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # a rename leaves both names where they are hard links to one file

"""Files of a folder that hosts share, as over NFS: what differs there from a disk.

Another host's file is seen late or stale, a name is never taken away from who has the file open (`.nfs...` appears in
its place), an answer may be lost after the deed, and some such file systems have no hard links. Locks are not used.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from deftx.atomic import sync

SILLY = ".nfs"
"""How the name begins that NFS gives to a removed file which a process has open."""
_TRIES = 5
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def read(root: str, target: str) -> bytes:
    """The bytes of a file under `root`.

    On NFS it may be stale, when another host replaces it just then; and one that was not there when this host last
    looked is not seen for up to a minute, unless its folder is opened: that asks the server again.
    """
    looked = False
    for _ in range(_TRIES):
        try:
            return Path(target).read_bytes()
        except FileNotFoundError:
            if looked:
                raise
            looked = True
            parts = target.removeprefix(root).split("/")[1:-1]
            for depth in range(len(parts) + 1):
                os.scandir("/".join([root, *parts[:depth]])).close()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return Path(target).read_bytes()


def link(beside: str, target: str) -> bool:
    """Whether this call gave a file its second name, which another may have.

    Where a file has one name only, the second is another file: whole after a moment, which costs a reader no more than
    a warning.
    """
    try:
        os.link(beside, target)
    except FileExistsError:
        # the answer of an NFS server was lost, and it was asked again
        return os.stat(beside).st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with open(target, "xb") as file:
                file.write(Path(beside).read_bytes())
        except FileExistsError:
            return False
        sync(Path(target))
    return True


def remove(target: str) -> None:
    """Remove a file or a folder; what another removes too, and what NFS keeps until it is closed, is passed over.

    Raises:
        FileNotFoundError: where there is none.
    """
    if os.path.isdir(target):
        shutil.rmtree(target, onerror=_pass_over)
    else:
        os.unlink(target)


def _pass_over(_: Any, path: str, found: Any) -> None:
    error = found[1]
    kept = error.errno in (errno.ENOTEMPTY, errno.EBUSY) and all(name.startswith(SILLY) for name in _files(path))
    if not kept and not isinstance(error, FileNotFoundError):
        raise error


def _files(path: str) -> list[str]:
    """The names of all files in a folder, or of the file itself."""
    inside = [name for *_, files in os.walk(path) for name in files]
    return inside if os.path.isdir(path) else [os.path.basename(path)]

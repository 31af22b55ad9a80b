"""A folder that is not quite a disk: what NFS does otherwise, by functions of the system replaced in this process.

Mimicked, as Linux's client does it and under one folder only:

- A file that was not there when this host looked is not seen when another host has made it, until its folder is opened.
- A file that another host replaced is stale (ESTALE) to whoever opens it then, once.
- A removed file that a process has open keeps a name `.nfs...`, and its folder cannot be removed.
- `os.link` makes the link, and says that the name exists: the answer was lost and the request sent again. With
  `links=False` it is refused (ENOTSUP).
- A folder cannot be synced (EINVAL).

Left out: locks (the storage takes none; MLflow's database minds them itself), attributes that are late (nothing here
reads a time), writes that are late (a file is synced before its name is), and a second kernel: the other host is
`elsewhere()`, in this process.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Nfs:
    """The folder, as this host sees it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, *, links: bool = True) -> None:
        self._root, self._links, self._elsewhere = str(root), links, False
        self.missed: set[str] = set()
        """Paths that were not there when this host looked."""
        self.stale: set[str] = set()
        """Files that were replaced since this host last opened them."""
        self._real = {name: getattr(os, name) for name in ("stat", "link", "replace", "unlink", "fsync", "readlink")}
        for name in ("stat", "scandir", "listdir", "mkdir"):
            patch.setattr(os, name, self._looking(getattr(os, name), opens=name in ("scandir", "listdir")))
        for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
            patch.setattr(module, name, self._looking(getattr(module, name), opens=module is os))
        patch.setattr(os, "link", self._link)
        patch.setattr(os, "replace", self._replace)
        patch.setattr(os, "unlink", self._unlink)
        patch.setattr(os, "remove", self._unlink)
        patch.setattr(os, "fsync", self._fsync)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """A context in which another host is at work."""
        self._elsewhere = True
        try:
            yield
        finally:
            self._elsewhere = False

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path, if it is in the folder."""
        if isinstance(path, int):
            return None
        whole = os.fsdecode(path)
        if dir_fd is not None:
            whole = f"{self._real['readlink'](f'/proc/self/fd/{dir_fd}')}/{whole}"
        return whole if whole == self._root or whole.startswith(f"{self._root}/") else None

    def _looking(self, real: Callable[..., Any], *, opens: bool) -> Callable[..., Any]:
        def look(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            place = self._path(path, options.get("dir_fd"))
            if place is None or self._elsewhere:
                return real(path, *arguments, **options)
            if opens and self._is_folder(place):
                self.missed -= {missed for missed in self.missed if os.path.dirname(missed) == place}
            writes = real.__name__ == "mkdir" or (real.__name__ == "open" and self._writes(arguments, options))
            if place in self.missed and not writes:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
            if real.__name__ == "open" and place in self.stale and not writes:
                self.stale.discard(place)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), place)
            try:
                found = real(path, *arguments, **options)
            except FileNotFoundError:
                self.missed.add(place)
                raise
            self.missed.discard(place)
            return found

        return look

    @staticmethod
    def _writes(arguments: tuple[Any, ...], options: Any) -> bool:
        mode = arguments[0] if arguments else options.get("mode", "r")
        return bool(mode & (os.O_WRONLY | os.O_RDWR)) if isinstance(mode, int) else not str(mode).startswith("r")

    def _is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self._real["stat"](path).st_mode)
        except OSError:
            return False

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        if self._path(target) is None:
            return self._real["link"](source, target, **options)  # type: ignore[no-any-return]
        if not self._links:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), os.fsdecode(target))
        self._real["link"](source, target, **options)
        if not self._elsewhere:
            self.missed.discard(os.fsdecode(target))
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(target))

    def _replace(self, source: Any, target: Any) -> None:
        place = self._path(target)
        if place is not None and os.path.exists(place):
            self.stale.add(place)
        self._real["replace"](source, target)
        if place is not None and not self._elsewhere:
            self.missed.discard(place)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        place = self._path(path, dir_fd)
        if place is None:
            return self._real["unlink"](path, dir_fd=dir_fd)  # type: ignore[no-any-return]
        if os.path.basename(place).startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), place)
        if self._is_open(place):
            self._real["replace"](place, f"{os.path.dirname(place)}/.nfs{len(place):016x}")
        else:
            self._real["unlink"](path, dir_fd=dir_fd)
        self.stale.discard(place)
        return None

    def _is_open(self, place: str) -> bool:
        try:
            wanted = self._real["stat"](place)
        except FileNotFoundError:
            return False
        for handle in range(3, 256):
            try:
                found = os.fstat(handle)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
        return False

    def _fsync(self, handle: int) -> None:
        place = self._path(self._real["readlink"](f"/proc/self/fd/{handle}"))
        if place is not None and stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._real["fsync"](handle)

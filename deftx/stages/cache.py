"""Files of a remote store kept on this node, by their content; the least recently used ones make room."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from deftx.atomic import replacing
from deftx.errors import StoreError


class Cache:
    """A folder of files by SHA-256, and folders of links to them."""

    def __init__(self, folder: Path, most: int) -> None:
        """Bind a folder, made by the first file.

        Args:
            folder: where files are kept.
            most: bytes; beyond this the least recently used files go.
        """
        self.folder, self.most = folder, most
        self._verified: set[str] = set()

    def get(self, remote: str, sha256: str, size: int, download: Callable[[Path], None]) -> Path:
        """A remote file as a path on this machine, its SHA-256 checked once in this process.

        Args:
            remote: what it is called in messages.
            sha256: of its bytes.
            size: bytes, to make room for.
            download: copies it into a file.

        Raises:
            StoreError: when it is not there, or has another SHA-256.
        """
        path = self.folder / sha256[:2] / sha256
        if path.is_file() and (sha256 in self._verified or sha256_of(path) == sha256):
            self._verified.add(sha256)
            _mark_used(path)
            return path
        self._make_room(size)
        with replacing(path) as beside:
            try:
                download(beside)
            except FileNotFoundError:
                raise StoreError(f"{remote}: named by its manifest but not there") from None
            if sha256_of(beside) != sha256:
                raise mismatch(remote)
            _mark_used(beside)
        self._verified.add(sha256)
        return path

    def link(self, file: Path, folder: str, name: str) -> Path:
        """The path of a folder of this cache, in which a cached file now has the name it was published under."""
        place = self.folder / "folders" / folder
        _link(file, place / name)
        return place

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files; a file and its links in `folders/` are one."""
        files: dict[int, list[Path]] = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            files.setdefault(path.stat().st_ino, []).append(path)
        used = sorted((paths[0].stat().st_mtime_ns, paths[0].stat().st_size, paths) for paths in files.values())
        total = sum(bytes_ for _, bytes_, _ in used) + size
        for _, bytes_, paths in used:
            if total <= self.most:
                return
            total -= bytes_
            for path in paths:
                path.unlink(missing_ok=True)


def sha256_of(path: Path, *, on_disk: bool = False) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits.

    Args:
        on_disk: wait until they are on the disk.
    """
    with path.open("rb") as file:
        if on_disk:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(remote: str) -> StoreError:
    """The error for a file that does not match its manifest."""
    return StoreError(f"{remote}: does not match its manifest; the stage has to be made again")


def _mark_used(path: Path) -> None:
    """Set a file's time from the clock: the time of the file system can be the same for several files in a row."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _link(path: Path, target: Path) -> None:
    """Give a cached file a second name. Never written in place: another process may be reading it."""
    if target.is_file() and target.samefile(path):
        return
    with replacing(target) as beside:
        try:
            os.link(path, beside)
        except OSError:  # a home folder on a file system without hard links
            shutil.copyfile(path, beside)

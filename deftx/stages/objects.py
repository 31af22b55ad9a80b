"""Small objects on any file system that fsspec knows, each written whole; what they mean is up to the caller."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from deftx.atomic import replacing, sync
from deftx.errors import StoreError


class Objects:
    """Objects under one URL, by the parts of their path.

    Attributes:
        url: as it was given.
        root: the path of the URL on its file system.
        fs: that file system.
        local: whether it is a folder on this machine.
    """

    def __init__(self, url: str) -> None:
        """Open a place; it is created by the first write.

        Raises:
            StoreError: for a protocol that fsspec does not know or whose package is not installed, and for a file.
        """
        try:
            self.fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            advice = "a storage is a folder, s3:// or gs:// (these two need the extra `cluster`)"
            raise StoreError(f"{url}: {error}; {advice}") from None
        self.root = str(path).rstrip("/")
        self.url = url
        self.local = isinstance(self.fs, LocalFileSystem)
        if self.local and Path(self.root).is_file():
            raise StoreError(f"{url}: is a file; a storage is a folder")

    def path(self, *parts: str) -> str:
        """The path of an object on the store's file system; parts that leave the store are refused.

        Raises:
            StoreError: for a part with `..` or an absolute path.
        """
        if any(part.startswith("/") or ".." in part.split("/") for part in parts):
            raise StoreError(f"{'/'.join(parts)}: a path in the store must stay inside it")
        return "/".join([self.root, *parts])

    def read(self, *parts: str) -> bytes | None:
        """The bytes of an object, or None when there is no such object.

        Raises:
            StoreError: for a folder.
        """
        try:
            path = self.path(*parts)
            # fsspec asks more of a folder's files than their bytes and names: of 100,000 stages that is half of it
            if not self.local:
                return bytes(self.fs.cat_file(path))
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError:
            raise StoreError(f"{self.path(*parts)}: is a folder where a file should be; move it away") from None

    def write(self, content: bytes, *parts: str) -> None:
        """Write an object whole. On a file system a reader sees the old bytes or the new ones, never half of them."""
        target = self.path(*parts)
        if not self.local:
            self.fs.pipe_file(target, content)
            return
        self._make_folder(target)
        with replacing(Path(target)) as beside:
            beside.write_bytes(content)

    def upload(self, file: Path, *parts: str) -> None:
        """Write a file as an object, whole as by `write` and never in memory as a whole."""
        target = self.path(*parts)
        if not self.local:
            self.fs.put_file(str(file), target)
            return
        with replacing(Path(target)) as beside:
            shutil.copyfile(file, beside)

    def create(self, content: bytes, *parts: str) -> bool:
        """Whether this call wrote the object: one that exists is left as it is. Exclusive on a file system only."""
        target = self.path(*parts)
        if not self.local:
            if self.fs.exists(target):
                return False
            self.fs.pipe_file(target, content)
            return True
        self._make_folder(target)
        beside = f"{target}.{uuid.uuid4().hex[:8]}"
        Path(beside).write_bytes(content)
        try:
            sync(Path(beside))
            os.link(beside, target)
        except FileExistsError:
            return False
        finally:
            os.unlink(beside)
        sync(Path(target).parent)
        return True

    def _make_folder(self, target: str) -> None:
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except FileNotFoundError:  # where there are no folders but the system's own, as in /proc
            raise StoreError(f"{self.url}: no folder can be made there") from None

    def remove(self, *parts: str) -> None:
        """Remove an object or a folder; nothing happens when it is not there."""
        target = self.path(*parts)
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)

    def names(self, *parts: str) -> list[str]:
        """The names in a folder, sorted; empty when it is not there."""
        self.fs.invalidate_cache()
        try:
            if self.local:
                return sorted(os.listdir(self.path(*parts)))
            return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.path(*parts), False))
        except (FileNotFoundError, NotADirectoryError):
            return []

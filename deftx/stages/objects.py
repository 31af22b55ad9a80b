"""Small objects on any file system that fsspec knows, each written whole; what they mean is up to the caller.

The one door to a storage. What the library of a remote one raises comes out as a `ConnectionError` that names it, see
`Objects.asked`; how a folder on NFS differs from one on a disk is minded in `folder`.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from deftx.atomic import replacing, sync
from deftx.errors import StoreError, reason
from deftx.stages import folder as on_disk

_PLACEHOLDER = re.compile(r"\bREPLACE\b")
"""In a cluster file, of what is to be filled in."""
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3")
"""Whose errors are those of a remote storage."""


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
            StoreError: for a protocol that fsspec does not know or whose package is not installed, for a file, and for
                a URL that was not filled in.
        """
        if _PLACEHOLDER.search(url):
            raise StoreError(
                f"{url}: still holds the placeholder REPLACE: fill it in, in the cluster file where it comes "
                "from one; a storage is a folder, s3://BUCKET/... or gs://BUCKET/..."
            )
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

    @contextmanager
    def asked(self, *expected: type[OSError]) -> Iterator[None]:
        """A context in which a remote storage is asked for something.

        Args:
            expected: errors that are an answer, such as FileNotFoundError; they are raised as they are, but for one
                that says that there is no such bucket.

        Raises:
            ConnectionError: for whatever else the storage or its library answers. It is a refusal (see `errors`).
        """
        try:
            yield
        except Exception as error:
            if self.local or not _of_the_storage(error) or (isinstance(error, expected) and not _no_bucket(error)):
                raise
            words = getattr(error, "strerror", None) or reason(error)
            raise ConnectionError(f"{self.url}: {words}") from error

    def read(self, *parts: str) -> bytes | None:
        """The bytes of an object, or None when there is no such object.

        Raises:
            StoreError: for a folder.
        """
        target = self.path(*parts)
        try:
            if self.local:
                return on_disk.read(self.root, target)
            with self.asked(FileNotFoundError):
                return bytes(self.fs.cat_file(target))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError:
            raise StoreError(f"{target}: is a folder where a file should be; move it away") from None

    def exists(self, *parts: str) -> bool:
        """Whether there is such an object or folder."""
        with self.asked():
            return bool(self.fs.exists(self.path(*parts)))

    def size(self, *parts: str) -> int:
        """The bytes that an object has; -1 where there is none."""
        try:
            with self.asked(FileNotFoundError):
                return int(self.fs.size(self.path(*parts)))
        except (FileNotFoundError, NotADirectoryError):
            return -1

    def total_size(self, *parts: str) -> int:
        """The bytes that an object, or all in a folder, has."""
        with self.asked():
            return int(self.fs.du(self.path(*parts)))

    def write(self, content: bytes, *parts: str) -> None:
        """Write an object whole. On a file system a reader sees the old bytes or the new ones, never half of them."""
        target = self.path(*parts)
        if not self.local:
            with self.asked():
                self.fs.pipe_file(target, content)
            return
        self._make_folder(target)
        with replacing(Path(target)) as beside:
            beside.write_bytes(content)

    def upload(self, file: Path, *parts: str) -> None:
        """Write a file as an object, whole as by `write` and never in memory as a whole."""
        target = self.path(*parts)
        if not self.local:
            with self.asked():
                self.fs.put_file(str(file), target)
            return
        with replacing(Path(target)) as beside:
            shutil.copyfile(file, beside)

    def download(self, file: Path, *parts: str) -> None:
        """Copy an object into a file; after an error the file may be there in part.

        Raises:
            FileNotFoundError: where there is no such object.
        """
        with self.asked(FileNotFoundError):
            self.fs.get_file(self.path(*parts), str(file))

    def create(self, content: bytes, *parts: str) -> bool:
        """Whether this call wrote the object: one that exists is left as it is.

        Of several at once one writes it on a file system, on S3 and on GCS; on another object store they may all.
        """
        target = self.path(*parts)
        if not self.local:
            return not self.exists(*parts) and self._create_remote(content, *parts)
        self._make_folder(target)
        beside = f"{target}.{uuid.uuid4().hex[:8]}"
        Path(beside).write_bytes(content)
        try:
            sync(Path(beside))
            if not on_disk.link(beside, target):
                return False
        finally:
            os.unlink(beside)
        sync(Path(target).parent)
        return True

    def _create_remote(self, content: bytes, *parts: str) -> bool:
        try:
            with self.asked(FileExistsError):
                self.fs.pipe_file(self.path(*parts), content, mode="create")
            return True
        except FileExistsError:
            pass
        except ConnectionError as error:
            if "ConditionalRequestConflict" not in codes(error):  # S3's word for: another writes it at this moment
                raise
        # the answer was lost, and the library asked again: what an attempt or a lease writes is its own
        return self.read(*parts) == content

    def _make_folder(self, target: str) -> None:
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except FileNotFoundError:  # where there are no folders but the system's own, as in /proc
            raise StoreError(f"{self.url}: no folder can be made there") from None

    def remove(self, *parts: str) -> None:
        """Remove an object or a folder; nothing happens when it is not there, or another removes it too."""
        target = self.path(*parts)
        with suppress(FileNotFoundError), self.asked(FileNotFoundError):
            if self.local:
                on_disk.remove(target)
            elif self.fs.exists(target):
                self.fs.rm(target, recursive=True)

    def names(self, *parts: str) -> list[str]:
        """The names in a folder, sorted; empty when it is not there."""
        folder = self.path(*parts)
        self.fs.invalidate_cache()
        try:
            with self.asked(FileNotFoundError):
                # fsspec asks more of a folder's files than their names, which takes half the time of 100,000 stages
                found = os.listdir(folder) if self.local else self.fs.ls(folder, False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # a bucket's console makes an empty object of the folder's own name
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found if str(entry).rstrip("/") != folder)
        return sorted(name for name in names if not name.startswith(on_disk.SILLY))


def _of_the_storage(error: BaseException | None) -> bool:
    """Whether an error is a remote storage's or its library's, not one of this machine's disk or of the program."""
    if isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno is None):
        return True
    return any(type(link).__module__.partition(".")[0] in _LIBRARIES for link in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def codes(error: BaseException) -> list[str]:
    """What S3 calls an error, or the status that GCS answered with."""
    found: list[object] = []
    for link in causes(error):
        answer = getattr(link, "response", None)
        found.append(answer.get("Error", {}).get("Code") if isinstance(answer, dict) else getattr(link, "code", None))
    return [str(code) for code in found if code]


def _no_bucket(error: BaseException) -> bool:
    return "NoSuchBucket" in codes(error)

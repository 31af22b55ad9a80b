"""Files as sources: counted in an address by their content.

A source is resolved once, by the driver; a worker that later finds other bytes at the same place refuses them. Files
are any fsspec URL, so a data root may be a folder, s3:// or gs://. What the rows mean is not known here (see tables).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import fsspec
from pydantic import Field

from deftx.atomic import replacing
from deftx.config import Settings
from deftx.errors import DataError, HubError, reason
from deftx.sources.pins import resolve_once


class FileSource(Settings):
    """One local or remote file. Its content counts; where it lies does not."""

    kind: Literal["file"] = "file"
    sha256: str
    url: str = Field(exclude=True)
    size: int | None = Field(None, exclude=True, description="bytes; None: not noted when it was resolved")

    @property
    def where(self) -> str:
        """Its URL, for messages."""
        return self.url


_WEB = ("http://", "https://")


def read_bytes(url: str) -> bytes:
    """The bytes at an fsspec URL.

    Raises:
        DataError: when there is no such file, or it cannot be read.
        HubError: when a web address does not answer.
    """
    try:
        with fsspec.open(url, "rb", **_options(url)) as file:
            content: bytes = file.read()
    except Exception as error:
        if url.startswith(_WEB):  # fsspec calls an unreachable host, too, a missing file
            raise HubError(
                f"{url}: could not be fetched ({reason(error)}); give a data root, or run where there is a network"
            ) from None
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{url}: no such file") from None
        if isinstance(error, (OSError, ValueError, ImportError)):
            raise DataError(f"{url}: cannot be read: {reason(error)}") from error
        raise
    return content


def _options(url: str) -> dict[str, Any]:
    # else a proxy in the environment is ignored
    return {"client_kwargs": {"trust_env": True}} if url.startswith(_WEB) else {}


def file_source(url: str, expected: str = "", *, text: bool = False) -> FileSource:
    """A file, resolved to its content, for which it is opened once.

    Args:
        expected: what a data root holds there, for the error.
        text: whether it is to be UTF-8.

    Raises:
        DataError: when it is missing or empty, or not UTF-8 although it is to be (as `read_text`).
    """
    try:
        content = read_bytes(url)
        if not content.strip():
            raise DataError(f"{url}: the file is empty")
    except DataError as error:
        raise DataError(f"{error}; a data root holds {expected}") from None if expected else error
    if text:
        _decoded(content, url)
    return FileSource(sha256=hashlib.sha256(content).hexdigest(), url=url, size=len(content))


def file_size(source: FileSource) -> int | None:
    """The bytes of a file, as noted when it was resolved; else as its place tells them, None where it does not."""
    return _size_at(source.url) if source.size is None else source.size


@cache
def _size_at(url: str) -> int | None:
    try:
        kept = _place(url)
        fs, path = fsspec.url_to_fs(str(kept) if kept.is_file() else url, **_options(url))
        size: int | None = fs.size(path)
    except Exception:  # each file system has its own; what a size is asked for is an estimate
        return None
    return size


def online_file(url: str) -> FileSource:
    """Resolve a file on line to its content, once for a sweep; what was had before is looked up on this machine.

    Args:
        url: names a commit, so that what lies there never changes.

    Raises:
        HubError: when it cannot be had.
    """
    return FileSource(sha256=resolve_once(f"file {url}", lambda: _fetched(url)), url=url)


def _fetched(url: str) -> str:
    """Digest of a file on line, which is now kept on this machine."""
    if (kept := _kept(url)) is None:
        kept = read_bytes(url)
        keep(kept, _place(url))
    return hashlib.sha256(kept).hexdigest()


def _kept(url: str) -> bytes | None:
    try:
        return _place(url).read_bytes() or None
    except OSError:
        return None


def _place(url: str) -> Path:
    """Where a file on line is kept: beside the models and data sets of the hub's client."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE, "deftx", "files", hashlib.sha256(url.encode()).hexdigest())


def keep(content: bytes, path: Path) -> None:
    """Write a file of a cache, whole or not at all."""
    with suppress(OSError), replacing(path) as beside:  # a cache that cannot be written is no reason to stop
        beside.write_bytes(content)


def read_text(source: FileSource) -> str:
    """The text of a resolved file, without a byte-order mark.

    Raises:
        DataError: when the file has changed since it was resolved, or is not UTF-8 (with line and byte).
    """
    content = _kept(source.url) if source.url.startswith(_WEB) else None
    if content is None or hashlib.sha256(content).hexdigest() != source.sha256:
        content = read_bytes(source.url)
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise DataError(
            f"{source.url}: changed since the sweep was planned (SHA-256 {digest[:12]}, was {source.sha256[:12]})"
        )
    return _decoded(content, source.url)


def _decoded(content: bytes, url: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}), at byte {error.start:,} of the file"
        raise DataError(f"{url}, line {line}: not UTF-8 ({byte}: save it as UTF-8") from None

"""Files as sources: an address counts them by their content.

A source is resolved once, by the driver; a worker that later reads other bytes at the same place refuses them. A file
is any fsspec URL, so a data root may be a folder, s3:// or gs://. Rows are read from the bytes in `data/tables`.
"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import fsspec
from pydantic import Field

from deftx.atomic import replacing
from deftx.config import Settings
from deftx.errors import DataError, HubError, reason
from deftx.sources.revisions import resolve_once


class FileSource(Settings):
    """A local or remote file. Its content counts in an address, its URL does not."""

    kind: Literal["file"] = "file"
    sha256: str
    url: str = Field(exclude=True)
    size: int | None = Field(None, exclude=True, description="bytes; None: not noted when it was resolved")

    @property
    def where(self) -> str:
        """Its URL, for messages."""
        return self.url


_SAMPLE = 2**16
"""Bytes at the beginning of a file from which its encoding is guessed."""
_BLOCKS, _FEW, _ASCII = 4, 0.95, 0.02
"""In UTF-16 the four most frequent high bytes are nearly all of them, and some stand for spaces and line ends."""
_UNMARKED = " without a byte-order mark"
_WEB = ("http://", "https://")


def read_bytes(url: str) -> bytes:
    """The bytes at an fsspec URL.

    Raises:
        DataError: when the file does not exist or cannot be read.
        HubError: when a web address does not answer.
    """
    try:
        with fsspec.open(url, "rb", **_options(url)) as file:
            content: bytes = file.read()
    except Exception as error:
        if url.startswith(_WEB):  # fsspec raises FileNotFoundError for an unreachable host too
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
    # else aiohttp ignores a proxy in the environment
    return {"client_kwargs": {"trust_env": True}} if url.startswith(_WEB) else {}


def file_source(url: str, expected: str = "", *, text: bool = False) -> FileSource:
    """A file as a source, resolved to its content, for which it is read once.

    Args:
        url: any fsspec URL or path.
        expected: the layout of a data root, for the error.
        text: whether the file must be UTF-8.

    Raises:
        DataError: when the file is missing, empty, or not UTF-8 where it must be (see `read_text`).
        HubError: when a web address does not answer.
    """
    try:
        content = read_bytes(url)
        if not content.strip():
            raise DataError(f"{url}: the file is empty")
    except DataError as error:
        if not expected:
            raise
        raise DataError(f"{error}; a data root holds {expected}") from None
    if text:
        _decoded(content, url)
    return FileSource(sha256=hashlib.sha256(content).hexdigest(), url=url, size=len(content))


def file_size(source: FileSource) -> int | None:
    """The size of a file in bytes, as it was when it was resolved or else as it is now; None where neither is known."""
    return _size_at(source.url) if source.size is None else source.size


@cache
def _size_at(url: str) -> int | None:
    try:
        cached = _place(url)
        fs, path = fsspec.url_to_fs(str(cached) if cached.is_file() else url, **_options(url))
        size: int | None = fs.size(path)
    except Exception:  # every file system raises its own errors, and the size is needed for an estimate only
        return None
    return size


def online_file(url: str) -> FileSource:
    """A web file as a source, resolved to its content once for a sweep and cached on this machine.

    Args:
        url: names a commit, so that its content never changes.

    Raises:
        HubError: when it is not cached and cannot be fetched.
    """
    return FileSource(sha256=resolve_once(f"file {url}", lambda: _fetched(url)), url=url)


def _fetched(url: str) -> str:
    """The digest of a web file, which is then in this machine's cache."""
    if (content := _kept(url)) is None:
        content = read_bytes(url)
        keep(content, _place(url))
    return hashlib.sha256(content).hexdigest()


def _kept(url: str) -> bytes | None:
    """The cached bytes of a web file; None where there are no bytes of it."""
    try:
        return _place(url).read_bytes() or None
    except OSError:
        return None


def _place(url: str) -> Path:
    """The path at which a web file is cached: in the hub client's folder for assets."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE, "deftx", "files", hashlib.sha256(url.encode()).hexdigest())


def keep(content: bytes, path: Path) -> None:
    """Write a file of a cache atomically; a cache that cannot be written to is left as it is."""
    with suppress(OSError), replacing(path) as temporary:
        temporary.write_bytes(content)


def read_text(source: FileSource) -> str:
    """The text of a resolved file, without a byte-order mark.

    Raises:
        DataError: when the file has changed since it was resolved, or is not UTF-8 (with line and byte).
        HubError: when a web file is not cached and cannot be fetched.
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
    if (encoding := _wide(content)) is not None:
        raise DataError(f"{url}: looks like {encoding}: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}), at byte {error.start:,} of the file"
        raise DataError(f"{url}, line {line}: not UTF-8 ({byte}: save it as UTF-8") from None


def _wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32, with or without a byte-order mark, where the first bytes look like it; else None.

    Every second byte of UTF-16 is one of the few that stand for a script, 0 for ASCII among them, and the text has no
    character 0. In UTF-8 the even and the odd bytes are of as many kinds. UTF-16 of a script of many blocks, such as
    Chinese, is not recognised without its mark; but it is not UTF-8 either.
    """
    sample = content[:_SAMPLE]
    if sample.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "UTF-16"
    if b"\0" not in sample:
        return None
    if _decodes(sample, "utf-32-le") or _decodes(sample, "utf-32-be"):
        return f"UTF-32{_UNMARKED}"
    for encoding, high in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        kinds = Counter(high)
        few = sum(count for _, count in kinds.most_common(_BLOCKS)) >= _FEW * len(high)
        if few and kinds[0] >= _ASCII * len(high) and _decodes(sample, encoding):
            return f"UTF-16{_UNMARKED}"
    return None


def _decodes(sample: bytes, encoding: str) -> bool:
    decoder = getincrementaldecoder(encoding)()  # a character that the sample cuts off is no error
    try:
        text = decoder.decode(sample)
    except UnicodeDecodeError:
        return False
    return text != "" and "\0" not in text

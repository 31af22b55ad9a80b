"""Where bytes come from, and how they are counted in an address: a file by its content, a hub data set by its commit.

A source is resolved once, by the driver; a worker that later finds other bytes at the same place refuses them. Files
are any fsspec URL, so a data root may be a folder, s3:// or gs://. What the rows mean is not known here (see tables).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import fsspec
from pydantic import Field

from deftx.config import Settings
from deftx.errors import DataError, HubError, reason


class FileSource(Settings):
    """One local or remote file. Its content counts; where it lies does not."""

    kind: Literal["file"] = "file"
    sha256: str
    url: str = Field(exclude=True)


class HubSource(Settings):
    """One split of a hub data set at one commit (parquet, no loading script)."""

    kind: Literal["hub"] = "hub"
    repo: str
    commit: str
    config: str | None = None
    split: str


Source = FileSource | HubSource


_WEB = ("http://", "https://")


def read_bytes(url: str) -> bytes:
    """The bytes at an fsspec URL.

    Raises:
        DataError: when there is no such file, or it cannot be read.
        HubError: when a web address does not answer.
    """
    remote = url.startswith(_WEB)
    options = {"client_kwargs": {"trust_env": True}} if remote else {}  # else a proxy in the environment is ignored
    try:
        with fsspec.open(url, "rb", **options) as file:
            content: bytes = file.read()
    except Exception as error:
        if remote:  # fsspec calls an unreachable host, too, a missing file
            raise HubError(
                f"{url}: could not be fetched ({reason(error)}); give a data root, or run where there is a network"
            ) from None
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{url}: no such file") from None
        if isinstance(error, (OSError, ValueError, ImportError)):
            raise DataError(f"{url}: cannot be read: {reason(error)}") from error
        raise
    return content


def file_source(url: str) -> FileSource:
    """Resolve a file to its content.

    Raises:
        DataError: when it is missing or empty.
    """
    content = read_bytes(url)
    if not content.strip():
        raise DataError(f"{url}: the file is empty")
    return FileSource(sha256=hashlib.sha256(content).hexdigest(), url=url)


UNRESOLVED = "unresolved"
"""Stands for a commit or a content in a plan that is made without a network."""


@dataclass
class Pins:
    """What was found on line so far, by what was asked: a sweep resolves each once and keeps to it."""

    found: dict[str, str] = field(default_factory=dict)
    lenient: bool = False
    """Whether what cannot be had is `unresolved` rather than an error: for planning."""


_PINS: ContextVar[Pins | None] = ContextVar("pins", default=None)


@contextmanager
def pinned(pins: Pins) -> Iterator[Pins]:
    """Within the block `resolve_once` answers from the pins, and notes there what it had to ask."""
    token = _PINS.set(pins)
    try:
        yield pins
    finally:
        _PINS.reset(token)


def resolve_once(key: str, ask: Callable[[], str]) -> str:
    """The pinned answer, or what `ask` finds on line now.

    Raises:
        HubError: when it cannot be had, unless the pins are lenient.
    """
    pins = _PINS.get() or Pins()
    if key not in pins.found:
        try:
            pins.found[key] = ask()
        except HubError:
            if not pins.lenient:
                raise
            pins.found[key] = UNRESOLVED
    return pins.found[key]


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
        _keep(kept, _place(url))
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


def hub_commit(repo: str, revision: str = "main", kind: Literal["model", "dataset"] = "model") -> str:
    """The commit that a revision of a hub repository points to: pinned, or from the hub or, offline, the local cache.

    Raises:
        HubError: when the hub cannot be reached and the cache does not know it, or the id or revision is unknown.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return resolve_once(f"{kind} {repo}@{revision}", lambda: _ask_hub(repo, revision, kind))


def hub_info(repo: str, revision: str, kind: Literal["model", "dataset"]) -> Any:
    """What the hub says of a repository at a revision: one question, not asked twice.

    Raises:
        HubError: when the hub cannot be reached, or the id or revision is unknown.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=10)
    except GatedRepoError:
        raise gated_error(repo, revision, kind) from None
    except RevisionNotFoundError:
        raise HubError(f"{kind} {repo!r} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise HubError(f"there is no {kind} {repo!r} on the hub, or it is private and no token was given") from None
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        local = "data root" if kind == "dataset" else "local folder"
        raise _UnreachableError(
            f"the hub could not be reached for {kind} {repo!r} ({reason(error)}); "
            f"give a {local} instead, or run where there is a network"
        ) from None


def gated_error(repo: str, revision: str, kind: Literal["model", "dataset"]) -> HubError:
    """What to do about a repository whose owner lets in only whom he knows."""
    at = revision[:12] if re.fullmatch(r"[0-9a-f]{40}", revision) else revision
    return HubError(
        f"{kind} {repo!r} at {at} is gated: ask for access on its page on the hub, then set HF_TOKEN, "
        f"or give a local folder instead"
    )


class _UnreachableError(HubError):
    """The hub does not answer; the local cache may."""


def _ask_hub(repo: str, revision: str, kind: Literal["model", "dataset"]) -> str:
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE, f"{kind}s--{repo.replace('/', '--')}", "refs", revision)
    try:
        commit: str | None = hub_info(repo, revision, kind).sha
    except _UnreachableError:
        if cached.is_file():
            return cached.read_text(encoding="ascii").strip()
        raise
    if commit is None:
        raise HubError(f"the hub did not say which commit {repo!r} is at")
    _keep(commit.encode(), cached)  # where the client notes a branch: downloads by commit leave no trace of it
    return commit


def _keep(content: bytes, path: Path) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):  # a cache that cannot be written is no reason to stop
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)


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
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}), at byte {error.start:,} of the file"
        raise DataError(f"{source.url}, line {line}: not UTF-8 ({byte}: save it as UTF-8") from None


def hub_table(source: HubSource, columns: Sequence[str]) -> Any:
    """One split of a hub data set, with these columns only, as a `datasets.Dataset`.

    Raises:
        HubError: when it cannot be had.
        DataError: when a column is missing.
    """
    if source.commit == UNRESOLVED:
        raise HubError(f"{describe(source)}: its commit is not known")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # else datasets asks s3.amazonaws.com, to be counted
    try:
        if (table := _prepared_table(source)) is None:
            table = _downloaded_table(source)
    except Exception as error:  # as above, and the errors of datasets have no common ancestor
        raise HubError(
            f"{describe(source)}: could not be had from the hub at commit {source.commit[:12]} ({reason(error)})"
        ) from error
    if missing := [column for column in columns if column not in table.column_names]:
        raise DataError(
            f"{describe(source)}: no column {missing[0]!r}; "
            f"found: {', '.join(table.column_names)}; expected: {', '.join(columns)}"
        )
    return table.select_columns(list(columns))


def _prepared_table(source: HubSource) -> Any:
    """The table where `datasets` has it at this commit from before, without a question to the hub; else None."""
    from datasets import config
    from datasets.packaged_modules.cache.cache import Cache

    name, commit = source.config or "default", source.commit
    for folder in Path(config.HF_DATASETS_CACHE).glob(f"*/{name}/*/{commit}"):
        known = {"repo_id": source.repo, "dataset_name": source.repo.rpartition("/")[2], "config_name": name}
        found = Cache(**known, version=folder.parent.name, hash=commit)
        if Path(found.cache_dir) == folder:
            return found.as_dataset(split=source.split)
    return None


def _downloaded_table(source: HubSource) -> Any:
    from datasets import load_dataset

    hub_info(source.repo, source.commit, "dataset")  # an unreachable hub is found out here, else after 23 s of retries
    table = load_dataset(source.repo, source.config, split=source.split, revision=source.commit)
    if any(source.commit not in file["filename"] for file in table.cache_files):
        # in trouble, datasets takes the last commit it has, whichever that is
        raise HubError("it did not come through, and only another commit is in the local cache")
    return table


def describe(source: Source) -> str:
    """Where a source lies, for messages: a URL, or repository, configuration and split."""
    if isinstance(source, FileSource):
        return source.url
    return "/".join(part for part in (source.repo, source.config, source.split) if part)

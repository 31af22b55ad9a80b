"""Content-addressed results in any fsspec URL: a folder, NFS, s3://, gs://.

    stages/<address>/<attempt>/...       what one attempt wrote
    stages/<address>/manifest.json       names the attempt; without it the stage does not exist for a reader
    stages/<address>/checkpoint/...      of a running stage; gone once it is published

Nothing is renamed: no rename is atomic on an object store. On a file system the manifest is linked into place
exclusively, so the first writer wins; on an object store the last one does, either being whole. A file that does not
match its manifest is an error that names it. `sweeps/` beside `stages/` belongs to the orchestrator.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from deftx.errors import StoreError
from deftx.stages.stage import Stage

MANIFEST = "manifest.json"
_SMALL = 1 << 18


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of one published file."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """Everything a reader may know of a published stage without opening its files."""

    model_config = ConfigDict(extra="forbid")

    address: str
    kind: str
    label: str
    identity: dict[str, Any]
    attempt: str
    files: dict[str, FileEntry]
    metrics: dict[str, float]
    curve: list[dict[str, float]] = []
    details: dict[str, Any] = {}
    seconds: float
    peak_bytes: int = 0
    execution: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    created: str = ""


class Store:
    """Results by address. One protocol on every file system that fsspec knows."""

    def __init__(self, url: str, cache: Path | None = None, cache_bytes: int = 50 * 2**30) -> None:
        """Open a store; it is created by the first write.

        Args:
            url: a folder or an fsspec URL.
            cache: where files of a remote store are kept on this node (default: the user's cache folder).
            cache_bytes: the least recently used files leave the cache beyond this size.

        Raises:
            StoreError: for a protocol that fsspec does not know or whose package is not installed, and for a file.
        """
        try:
            self.fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            known = "a storage is a folder, s3:// or gs:// (these two need the extra `cluster`)"
            raise StoreError(f"{url}: {error}; {known}") from None
        self.root = str(path).rstrip("/")
        self.url = url
        self.local = isinstance(self.fs, LocalFileSystem)
        if self.local and Path(self.root).is_file():
            raise StoreError(f"{url}: is a file; a storage is a folder")
        self._cache = cache or Path.home() / ".cache" / "deftx"
        self._cache_bytes = cache_bytes
        self._verified: set[str] = set()

    # -- small objects ------------------------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        """The path of an object on the store's file system; parts that leave the store are refused.

        Raises:
            StoreError: for a part with `..` or an absolute path.
        """
        if any(part.startswith("/") or ".." in part.split("/") for part in parts):
            raise StoreError(f"{'/'.join(parts)}: a path in the store must stay inside it")
        return "/".join([self.root, *parts])

    def read(self, *parts: str) -> bytes | None:
        """The bytes of an object, or none when there is no such object."""
        try:
            return bytes(self.fs.cat_file(self.path(*parts)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, content: bytes, *parts: str) -> None:
        """Write an object whole. On a file system a reader sees the old bytes or the new ones, never half of them."""
        target = self.path(*parts)
        if not self.local:
            self.fs.pipe_file(target, content)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        beside = f"{target}.{uuid.uuid4().hex[:8]}"
        Path(beside).write_bytes(content)
        os.replace(beside, target)

    def upload(self, file: Path, *parts: str) -> None:
        """Write a file as an object, whole as by `write` and never in memory as a whole."""
        target = self.path(*parts)
        if not self.local:
            self.fs.put_file(str(file), target)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        beside = f"{target}.{uuid.uuid4().hex[:8]}"
        shutil.copyfile(file, beside)
        os.replace(beside, target)

    def create(self, content: bytes, *parts: str) -> bool:
        """Write an object unless it exists; whether this call made it. Exclusive on a file system only."""
        target = self.path(*parts)
        if not self.local:
            if self.fs.exists(target):
                return False
            self.fs.pipe_file(target, content)
            return True
        os.makedirs(os.path.dirname(target), exist_ok=True)
        beside = f"{target}.{uuid.uuid4().hex[:8]}"
        Path(beside).write_bytes(content)
        try:
            os.link(beside, target)
        except FileExistsError:
            return False
        finally:
            os.unlink(beside)
        return True

    def remove(self, *parts: str) -> None:
        """Remove an object or a folder; nothing happens when it is not there."""
        target = self.path(*parts)
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)

    def names(self, *parts: str) -> list[str]:
        """The names in a folder, sorted; none when it is not there."""
        self.fs.invalidate_cache()
        try:
            return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.path(*parts), False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    # -- stages -------------------------------------------------------------------------------------------------------

    def manifest(self, address: str) -> Manifest | None:
        """The manifest of a published stage, or none.

        Raises:
            StoreError: when it is there but is not a manifest.
        """
        content = self.read("stages", address, MANIFEST)
        if content is None:
            return None
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            where = self.path("stages", address, MANIFEST)
            raise StoreError(f"{where}: not a manifest ({error.errors()[0]['msg']}); remove it") from None
        self.path(manifest.attempt, *manifest.files)
        return manifest

    def has(self, address: str) -> bool:
        """Whether the stage is published and every file of it lies there whole.

        Small files are compared byte by byte; of large ones the size is, and the bytes when they are read.
        """
        manifest = self.manifest(address)
        return manifest is not None and all(
            self._size(address, manifest.attempt, name) == entry.size
            and (entry.size > _SMALL or self._whole(address, name))
            for name, entry in manifest.files.items()
        )

    def intact(self, address: str) -> bool:
        """Whether the stage is published and every file of it holds the bytes its manifest names."""
        manifest = self.manifest(address)
        return manifest is not None and all(self._whole(address, name) for name in manifest.files)

    def _whole(self, address: str, name: str) -> bool:
        try:
            self.fetch(address, name)
        except StoreError:
            return False
        return True

    def addresses(self) -> Iterator[str]:
        """The addresses of all published stages."""
        return (name for name in self.names("stages") if self.fs.exists(self.path("stages", name, MANIFEST)))

    def attempt(self, address: str) -> Attempt:
        """Begin to make a stage: a folder to write into, then `publish`."""
        return Attempt(self, address)

    def discard(self, address: str) -> None:
        """Forget a published stage, so that it is made again."""
        self.remove("stages", address, MANIFEST)

    def fetch(self, address: str, name: str) -> Path:
        """A published file as a path on this machine, its SHA-256 checked once in this process.

        Raises:
            StoreError: when the stage is not published, has no such file, or the file does not match the manifest.
        """
        manifest = self.manifest(address)
        if manifest is None or name not in manifest.files:
            raise StoreError(f"{self.path('stages', address)}: has no published file {name}")
        entry, remote = manifest.files[name], self.path("stages", address, manifest.attempt, name)
        if not self.local:
            return self._cached(remote, entry)
        path = Path(remote)
        if remote not in self._verified:
            if not path.is_file() or _sha256(path) != entry.sha256:
                raise _mismatch(remote)
            self._verified.add(remote)
        return path

    def fetch_folder(self, address: str, prefix: str) -> Path:
        """A published folder as a folder on this machine, every file checked.

        Raises:
            StoreError: as `fetch`.
        """
        manifest = self.manifest(address)
        names = [name for name in manifest.files if name.startswith(f"{prefix}/")] if manifest else []
        if manifest is None or not names:
            raise StoreError(f"{self.path('stages', address)}: has no published folder {prefix}")
        if self.local:
            for name in names:
                self.fetch(address, name)
            return Path(self.path("stages", address, manifest.attempt, prefix))
        folder = self._cache / "folders" / address / manifest.attempt
        for name in names:
            _link(self.fetch(address, name), folder / name)
        return folder / prefix

    def url_of(self, address: str, name: str) -> str:
        """The URL (a path, on a file system) of a published file or folder.

        Raises:
            StoreError: when the stage is not published.
        """
        manifest = self.manifest(address)
        if manifest is None:
            raise StoreError(f"{self.path('stages', address)}: not published")
        path = self.path("stages", address, manifest.attempt, name)
        return path if self.local else str(self.fs.unstrip_protocol(path))

    def _size(self, address: str, attempt: str, name: str) -> int:
        try:
            return int(self.fs.size(self.path("stages", address, attempt, name)))
        except FileNotFoundError:
            return -1

    def _cached(self, remote: str, entry: FileEntry) -> Path:
        path = self._cache / entry.sha256[:2] / entry.sha256
        if path.is_file() and (entry.sha256 in self._verified or _sha256(path) == entry.sha256):
            self._verified.add(entry.sha256)
            _mark_used(path)
            return path
        self._make_room(entry.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            self.fs.get_file(remote, str(beside))
        except FileNotFoundError:
            raise StoreError(f"{remote}: named by its manifest but not there") from None
        if _sha256(beside) != entry.sha256:
            beside.unlink()
            raise _mismatch(remote)
        _mark_used(beside)
        os.replace(beside, path)
        self._verified.add(entry.sha256)
        return path

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files; a file and its links in `folders/` are one."""
        files: dict[int, list[Path]] = {}
        for path in sorted(path for path in self._cache.rglob("*") if path.is_file()):
            files.setdefault(path.stat().st_ino, []).append(path)
        used = sorted((paths[0].stat().st_mtime_ns, paths[0].stat().st_size, paths) for paths in files.values())
        total = sum(bytes_ for _, bytes_, _ in used) + size
        for _, bytes_, paths in used:
            if total <= self._cache_bytes:
                return
            total -= bytes_
            for path in paths:
                path.unlink(missing_ok=True)


class Attempt:
    """One attempt at a stage: files are written into `folder`, then published together, or left behind."""

    def __init__(self, store: Store, address: str) -> None:
        self.id = f"attempt-{uuid.uuid4().hex[:12]}"
        self._store, self._address = store, address
        if store.local:
            self.folder = Path(store.path("stages", address, self.id))
            self.folder.mkdir(parents=True)
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="deftx-"))

    def abandon(self) -> None:
        """Drop what was written: nothing is published."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self, stage: Stage, **facts: Any) -> Manifest:
        """Upload the files, then write the manifest that makes them the stage's result.

        Args:
            stage: what was made.
            facts: the manifest's metrics, curve, details, seconds and so on.

        Returns:
            The manifest of the stage: this attempt's, or the one of another that was published first.
        """
        files = {
            str(path.relative_to(self.folder)): FileEntry(size=path.stat().st_size, sha256=_sha256(path))
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(
            address=self._address, kind=stage.kind, label=stage.label, identity=stage.identity(),
            attempt=self.id, files=files, **facts,
        )  # fmt: skip
        if not self._store.local:
            for name in files:
                target = self._store.path("stages", self._address, self.id, name)
                self._store.fs.put_file(str(self.folder / name), target)
            shutil.rmtree(self.folder)
        self._store.create(manifest.model_dump_json(indent=1).encode(), "stages", self._address, MANIFEST)
        self._store.remove("stages", self._address, "checkpoint")
        published = self._store.manifest(self._address)
        assert published is not None
        return published


class Checkpoint:
    """The latest checkpoint of a running stage: one file and a pointer to it, written in that order."""

    def __init__(self, store: Store, address: str) -> None:
        self._store, self._parts = store, ("stages", address, "checkpoint")

    def save(self, file: Path) -> None:
        """Keep a copy of `file` and drop the one before it."""
        name = f"{uuid.uuid4().hex[:12]}.bin"
        old = self._pointer()
        self._store.upload(file, *self._parts, name)
        pointer = {"name": name, "sha256": _sha256(file)}
        self._store.write(json.dumps(pointer).encode(), *self._parts, "latest.json")
        if old:
            self._store.remove(*self._parts, old["name"])

    def load(self, folder: Path) -> Path | None:
        """The latest whole checkpoint as a file, where it lies or downloaded into `folder`; or none."""
        if (pointer := self._pointer()) is None:
            return None
        remote = self._store.path(*self._parts, pointer["name"])
        path = Path(remote) if self._store.local else folder / pointer["name"]
        try:
            if not self._store.local:
                self._store.fs.get_file(remote, str(path))
            return path if _sha256(path) == pointer["sha256"] else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _pointer(self) -> Mapping[str, str] | None:
        content = self._store.read(*self._parts, "latest.json")
        try:
            pointer = json.loads(content or b"null")
            return {"name": pointer["name"], "sha256": pointer["sha256"]} if pointer else None
        except (ValueError, KeyError, TypeError):
            return None


def _mark_used(path: Path) -> None:
    """By the clock: the time that the file system would note is the same for several files in a row."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _mismatch(remote: str) -> StoreError:
    return StoreError(f"{remote}: does not match its manifest; the stage has to be made again")


def _link(path: Path, target: Path) -> None:
    """A cached file under another name. Never written in place: another process may be reading it."""
    if target.is_file() and target.samefile(path):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}")
    os.link(path, beside)
    os.replace(beside, target)
    beside.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

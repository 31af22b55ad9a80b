"""Content-addressed results in any fsspec URL: a folder, NFS, s3://, gs://.

    stages/<address>/<attempt>/...       what one attempt wrote
    stages/<address>/manifest.json       names the attempt; without it the stage does not exist for a reader
    stages/<address>/checkpoint/...      of a running stage; gone once it is published
    stages/<address>/claim.json          names the process that is making it, see `lease`

Nothing is renamed: no rename is atomic on an object store. The manifest is put into place exclusively, so the first
writer wins; on an object store that cannot do so the last one does, either being whole. A file that does not match its
manifest is an error that names it. `sweeps/` beside `stages/` belongs to the orchestrator.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deftx.atomic import sync
from deftx.errors import StoreError
from deftx.stages.cache import Cache, mismatch, sha256_of
from deftx.stages.kinds import check_complete
from deftx.stages.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from deftx.stages.objects import Objects
from deftx.stages.records import BrokenRecord
from deftx.stages.stage import Stage

ATTEMPT = "attempt-"
"""How the names of attempts begin."""
_SMALL = 1 << 18
log = logging.getLogger("deftx")


class Store(Objects):
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
        super().__init__(url)
        self._cache = Cache(cache or Path.home() / ".cache" / "deftx", cache_bytes)
        self._verified: set[str] = set()
        self._warned: set[str] = set()

    def manifest(self, address: str) -> Manifest | None:
        """The manifest of a published stage; None without one, and after a warning for a broken one.

        Raises:
            StoreError: when a newer version wrote it.
        """
        try:
            return self._manifest(address)
        except BrokenRecord as error:
            self._warn(str(error))
            return None

    def published(self, address: str) -> Manifest:
        """The manifest of a stage that has to be there.

        Raises:
            StoreError: when there is no manifest, or it is broken.
        """
        manifest = self._manifest(address)
        if manifest is None:
            raise StoreError(f"{self.path('stages', address)}: not published")
        return manifest

    def has(self, address: str) -> bool:
        """Whether the stage is published, with the facts and files of its kind, all at their full size.

        Small files are compared byte by byte, large ones only when they are read.
        """
        return self._lies_whole(address, compared=_SMALL)

    def intact(self, address: str) -> bool:
        """Whether `has` is true and every file of the stage, large ones too, holds the bytes its manifest names."""
        return self._lies_whole(address, compared=math.inf)

    def _lies_whole(self, address: str, compared: float) -> bool:
        """Whether the stage is published whole, files of so many bytes at most being compared byte by byte."""
        manifest = self._complete(address)
        return manifest is not None and all(
            self.size(*self._parts_of(manifest, name)) == entry.size
            and (entry.size > compared or self._matches(manifest, name))
            for name, entry in manifest.files.items()
        )

    def _manifest(self, address: str) -> Manifest | None:
        content = self.read("stages", address, MANIFEST)
        return None if content is None else read_manifest(content, address, self.path("stages", address, MANIFEST))

    def _complete(self, address: str) -> Manifest | None:
        """The manifest; None without one, and after a warning where it lacks a fact or a file of its kind."""
        manifest = self.manifest(address)
        try:
            if manifest is not None:
                check_complete(manifest)
            return manifest
        except StoreError as error:
            self._warn(f"{error}; the command that made the stage makes it again")
            return None

    def _warn(self, message: str) -> None:
        """Log a warning, the same one only once."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", message)

    def _matches(self, manifest: Manifest, name: str) -> bool:
        try:
            self._fetch(manifest, name)
        except StoreError:
            return False
        return True

    def addresses(self) -> Iterator[str]:
        """The addresses of all published stages."""
        return (name for name in self.names("stages") if self.exists("stages", name, MANIFEST))

    def attempt(self, address: str) -> Attempt:
        """A new attempt at a stage: a folder to write into, then `publish`."""
        return Attempt(self, address)

    def discard(self, address: str) -> None:
        """Forget a published stage, so that it is made again."""
        self.remove("stages", address, MANIFEST)

    def fetch(self, address: str, name: str) -> Path:
        """A published file as a path on this machine, its SHA-256 checked once in this process.

        Raises:
            StoreError: when the stage is not published, has no such file, or the file does not match the manifest.
        """
        manifest = self.published(address)
        if name not in manifest.files:
            raise StoreError(f"{self.path('stages', address)}: has no published file {name}")
        return self._fetch(manifest, name)

    def _fetch(self, manifest: Manifest, name: str) -> Path:
        entry, remote = manifest.files[name], self._path_of(manifest, name)
        if not self.local:
            parts = self._parts_of(manifest, name)
            return self._cache.get(remote, entry.sha256, entry.size, lambda file: self.download(file, *parts))
        path = Path(remote)
        if remote not in self._verified:
            if not path.is_file() or sha256_of(path) != entry.sha256:
                raise mismatch(remote)
            self._verified.add(remote)
        return path

    def fetch_folder(self, address: str, prefix: str) -> Path:
        """A published folder as a folder on this machine, every file checked.

        Raises:
            StoreError: as `fetch`.
        """
        manifest = self.published(address)
        names = [name for name in manifest.files if name.startswith(f"{prefix}/")]
        if not names:
            raise StoreError(f"{self.path('stages', address)}: has no published folder {prefix}")
        if self.local:
            for name in names:
                self._fetch(manifest, name)
            return Path(self._path_of(manifest, prefix))
        for name in names:  # each before the next is fetched, for which the cache may make room
            folder = self._cache.link(self._fetch(manifest, name), f"{address}/{manifest.attempt}", name)
        return folder / prefix

    def url_of(self, address: str, name: str) -> str:
        """The URL (a path, on a file system) of a published file or folder.

        Raises:
            StoreError: when the stage is not published.
        """
        path = self._path_of(self.published(address), name)
        return path if self.local else str(self.fs.unstrip_protocol(path))

    def _path_of(self, manifest: Manifest, name: str) -> str:
        return self.path(*self._parts_of(manifest, name))

    def _parts_of(self, manifest: Manifest, name: str) -> tuple[str, ...]:
        return "stages", manifest.address, manifest.attempt, name


class Attempt:
    """One attempt at a stage: files are written into `folder`, then published together, or left behind."""

    def __init__(self, store: Store, address: str) -> None:
        self.id = f"{ATTEMPT}{uuid.uuid4().hex[:12]}"
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
        """The manifest of the stage, written once the files are uploaded; it makes them the stage's result.

        Args:
            stage: what was made.
            facts: the manifest's metrics, curve, details, seconds and so on.

        Returns:
            This attempt's manifest, or that of another attempt that was published first.
        """
        files = {
            str(path.relative_to(self.folder)): FileEntry(
                size=path.stat().st_size, sha256=sha256_of(path, on_disk=self._store.local)
            )
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(
            address=self._address, kind=stage.kind, label=stage.label, identity=stage.identity(),
            attempt=self.id, files=files, **facts,
        )  # fmt: skip
        if self._store.local:
            # before the manifest, which says that all of it is whole
            for folder in [*filter(Path.is_dir, self.folder.rglob("*")), self.folder, self.folder.parent]:
                sync(folder)
        else:
            for name in files:
                self._store.upload(self.folder / name, "stages", self._address, self.id, name)
            shutil.rmtree(self.folder)
        content = manifest.model_dump_json(indent=1).encode()
        parts = ("stages", self._address, MANIFEST)
        if not self._store.create(content, *parts) and self._store.manifest(self._address) is None:
            self._store.write(content, *parts)  # in place of a broken one
        self._store.remove("stages", self._address, "checkpoint")
        return self._store.published(self._address)

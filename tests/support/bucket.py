"""An object store in a folder: `bucket://...`, each object written whole or not at all, and told of each call.

As much of fsspec as a store uses. Listings, versions and the rights of a real bucket are left out.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """Objects under `folder`, by path; folders are only names with a slash, as in a bucket."""

    protocol = "bucket"
    folder = Path()
    """Where the objects lie; of all instances."""
    before: Callable[[str, bool], None] | None = None
    """Called with each call's name and whether it writes; what it raises, the call raises."""

    def _place(self, call: str, path: str, writes: bool = False) -> Path:
        if Bucket.before is not None:
            Bucket.before(call, writes)
        return self.folder / str(self._strip_protocol(path)).strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._place("cat_file", path).read_bytes()[start:end]

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        shutil.copyfile(self._place("get_file", rpath), lpath)

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        self._write(self._place("pipe_file", path, writes=True), value)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self._write(self._place("put_file", rpath, writes=True), Path(lpath).read_bytes())

    def _write(self, place: Path, content: bytes) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{uuid.uuid4().hex}"
        beside.write_bytes(content)
        os.replace(beside, place)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._entry(self._place("info", path))

    def exists(self, path: str, **_: Any) -> bool:
        return self._place("exists", path).exists()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        place = self._place("ls", path)
        if not place.is_dir():
            raise FileNotFoundError(path)
        entries = [self._entry(child) for child in sorted(place.iterdir())]
        return entries if detail else [entry["name"] for entry in entries]

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        place = self._place("rm", path, writes=True)
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    def _entry(self, place: Path) -> dict[str, Any]:
        size = place.stat().st_size
        kind = "directory" if place.is_dir() else "file"
        return {"name": str(place.relative_to(self.folder)), "size": 0 if kind == "directory" else size, "type": kind}

"""The checkpoint of a running stage, under its address in the store; gone once the stage is published."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from deftx.stages.cache import sha256_of
from deftx.stages.store import Store


class Checkpoint:
    """The latest checkpoint of a running stage: one file and a pointer to it, written in that order."""

    def __init__(self, store: Store, address: str) -> None:
        self._store, self._parts = store, ("stages", address, "checkpoint")

    def save(self, file: Path) -> None:
        """Keep a copy of `file` and drop the one before it."""
        name = f"{uuid.uuid4().hex[:12]}.bin"
        old = self._pointer()
        self._store.upload(file, *self._parts, name)
        pointer = {"name": name, "sha256": sha256_of(file)}
        self._store.write(json.dumps(pointer).encode(), *self._parts, "latest.json")
        if old:
            self._store.remove(*self._parts, old["name"])

    def load(self, folder: Path) -> Path | None:
        """The latest whole checkpoint as a file, where it lies or downloaded into `folder`; None without one."""
        if (pointer := self._pointer()) is None:
            return None
        parts = (*self._parts, pointer["name"])
        path = Path(self._store.path(*parts)) if self._store.local else folder / pointer["name"]
        try:
            if not self._store.local:
                self._store.download(path, *parts)
            return path if sha256_of(path) == pointer["sha256"] else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _pointer(self) -> Mapping[str, str] | None:
        content = self._store.read(*self._parts, "latest.json")
        try:
            pointer = json.loads(content or b"null")
            return {"name": pointer["name"], "sha256": pointer["sha256"]} if pointer else None
        except (ValueError, KeyError, TypeError):
            return None

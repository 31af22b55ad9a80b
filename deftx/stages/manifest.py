"""The manifest of a published stage and the checks it has to pass; the files that it names are not opened here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from deftx.stages.facts import Facts, Number
from deftx.stages.kinds import facts_of
from deftx.stages.records import BrokenRecord, read_record
from deftx.stages.stage import address_of

MANIFEST = "manifest.json"

_ADVICE = "the command that made the stage makes it again"
_LONGEST = 255
"""Bytes of the path of a file, as many as a name has at most on common file systems."""


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of one published file."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What was published: the stage, its files, and how it was made."""

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
    seconds: Number
    peak_bytes: int = 0
    execution: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    created: str = ""

    @property
    def facts(self) -> Facts:
        """What the stage measured, typed by its kind.

        Raises:
            StoreError: see `facts_of`.
        """
        return facts_of(self)


def read_manifest(content: bytes, address: str, where: str) -> Manifest:
    """The manifest of the stage at an address.

    Args:
        where: the path that it was read from, for messages.

    Raises:
        BrokenRecord: when it is not a manifest, is that of another stage, or names files elsewhere.
        StoreError: when a newer version wrote it.
    """
    manifest = read_record(Manifest, content, where, name="a manifest", advice=_ADVICE)
    if not manifest.address == address == address_of(manifest.identity):
        raise BrokenRecord(f"{where}: the manifest of another stage ({manifest.label}); {_ADVICE}")
    if manifest.kind != (kind := manifest.identity["kind"]):
        raise BrokenRecord(f"{where}: calls a {kind} stage {manifest.kind!r}; {_ADVICE}")
    for path in (manifest.attempt, *manifest.files):
        if path.startswith("/") or ".." in path.split("/") or "\0" in path or len(path.encode()) > _LONGEST:
            raise BrokenRecord(f"{where}: names {path!r}, which is not in the stage's folder; {_ADVICE}")
    return manifest

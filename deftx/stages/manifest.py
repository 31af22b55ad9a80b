"""What a published stage says of itself, and when that is believed: nothing here opens the files that it names."""

from __future__ import annotations

import math
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from deftx.config import Metric
from deftx.stages.records import BrokenRecord, read_record
from deftx.stages.stage import address_of

MANIFEST = "manifest.json"

_ADVICE = "the command that made the stage makes it again"
_MEASURED = {"grade": [f"valid_{metric}" for metric in get_args(Metric)]}
"""By kind, the metrics without which nothing can be chosen."""


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


def read_manifest(content: bytes, address: str, where: str) -> Manifest:
    """The manifest of the stage at an address.

    Args:
        where: the path that it was read from, for messages.

    Raises:
        BrokenRecord: when it is no manifest, that of another stage, or names files elsewhere.
        StoreError: when a newer version wrote it.
    """
    manifest = read_record(Manifest, content, where, name="a manifest", advice=_ADVICE)
    if not manifest.address == address == address_of(manifest.identity):
        raise BrokenRecord(f"{where}: the manifest of another stage ({manifest.label}); {_ADVICE}")
    for path in (manifest.attempt, *manifest.files):
        if path.startswith("/") or ".." in path.split("/"):
            raise BrokenRecord(f"{where}: names {path!r}, which is not in the stage's folder; {_ADVICE}")
    return manifest


def unmeasured(manifest: Manifest) -> list[str]:
    """The metrics that a stage of its kind should have and that are missing, and those that are no numbers."""
    missing = [name for name in _MEASURED.get(manifest.kind, []) if name not in manifest.metrics]
    return missing + [name for name, value in manifest.metrics.items() if not math.isfinite(value)]

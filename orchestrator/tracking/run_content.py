"""What one run of the tracker holds, as plain data, and what of it is read from the manifest of a stage."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from deftx.stages.store import Manifest
from orchestrator.tracking import names as shown

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
PARENT = "sweep"
"""Stands where a stage has its address."""


@dataclass(frozen=True)
class Point:
    """One point of a curve; `time` in milliseconds since 1970."""

    key: str
    step: int
    value: float
    time: int


@dataclass(frozen=True)
class PublishedFile:
    """A file that a stage published. Named and not read: a run that is complete already never fetches it."""

    address: str
    name: str
    sha256: str


@dataclass(frozen=True)
class RunContent:
    """All that one run should hold."""

    name: str
    status: RunStatus
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    files: dict[str, bytes | PublishedFile] = field(default_factory=dict)
    span: tuple[int, int] | None = None

    @property
    def digest(self) -> str:
        """What is the same for the same content, whenever it is written."""
        points = [(point.key, point.step, point.value) for point in self.curve]
        files = {name: _file_digest(file) for name, file in self.files.items()}
        content = [self.name, self.status, self.tags, self.params, self.metrics, points, files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def curve(manifest: Manifest) -> tuple[Point, ...]:
    """The points of a stage's curves, evenly spaced in time between its begin and end."""
    begin, end = span(manifest) or (_now(), _now())
    last = max((row["step"] for row in manifest.curve), default=0) or 1
    return tuple(
        Point(*_named(row["step"], key, value), int(begin + (end - begin) * row["step"] / last))
        for row in manifest.curve
        for key, value in row.items()
        if key != "step"
    )


def span(manifest: Manifest) -> tuple[int, int] | None:
    """When a stage began and ended, in milliseconds since 1970; none when its manifest does not say."""
    try:
        end = datetime.fromisoformat(manifest.created).timestamp()
    except ValueError:
        return None
    return int((end - manifest.seconds) * 1000), int(end * 1000)


def details(manifest: Manifest) -> dict[str, bytes | PublishedFile]:
    """What the stage is, in full, and what it found out."""
    found = {"stage.json": manifest.identity, "details.json": manifest.details}
    return {name: json.dumps(content, indent=1).encode() for name, content in found.items() if content}


def published_files(manifest: Manifest) -> dict[str, bytes | PublishedFile]:
    """The SFT of a sparse stage, and what the check of a text found."""
    shared = {"sparse": "sft/", "check": ""}
    return {
        name: PublishedFile(manifest.address, name, entry.sha256)
        for name, entry in manifest.files.items()
        if manifest.kind in shared and name.startswith(shared[manifest.kind])
    }


def _named(step: float, key: str, value: float) -> tuple[str, int, float]:
    name, shown_value = shown.point(key, value)
    return name, int(step), shown_value


def _now() -> int:
    return int(datetime.now().timestamp() * 1000)


def _file_digest(file: bytes | PublishedFile) -> str:
    return file.sha256 if isinstance(file, PublishedFile) else hashlib.sha256(file).hexdigest()

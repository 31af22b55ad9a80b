"""What a running stage works with, and how it reads what other stages published. Nothing is computed here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deftx.config import Execution
from deftx.sft.vector import SparseFineTuning
from deftx.sources.published import Published, local_folder
from deftx.stages.checkpoint import Checkpoint
from deftx.stages.facts import Facts
from deftx.stages.files import MODEL, SFT
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from deftx.train.loop import Report


@dataclass
class Made:
    """What a stage made besides its files, for its manifest."""

    facts: Facts
    curve: list[dict[str, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a running stage works with."""

    stage: Stage
    store: Store
    folder: Path
    execution: Execution
    report: Report | None

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the stage's training continues from."""
        return Checkpoint(self.store, self.stage.address)


def dense_of(stage: Stage) -> Stage:
    """The dense phase that a dense or sparse stage belongs to."""
    return stage.input("dense") or stage


def sft_of(store: Store, stage: Stage, role: str, published: Published | None) -> SparseFineTuning | None:
    """The SFT in a role: that of the input stage, else the published one, else None."""
    if (needed := stage.input(role)) is not None:
        return SparseFineTuning.from_folder(store.fetch_folder(needed.address, SFT))
    return SparseFineTuning.from_published(published) if published else None


def backbone_folder(store: Store, stage: Stage) -> Path:
    """The folder of the backbone (and its tokenizer) that a text or dense stage reads."""
    if (trained := stage.input("backbone")) is not None:
        return store.fetch_folder(trained.address, MODEL)
    published: Published | None = getattr(stage.settings, "backbone", None)
    assert published is not None, f"a {stage.kind} stage has a backbone"
    return local_folder(published)

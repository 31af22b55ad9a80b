"""The stages as data: what each computes, what it needs, and its address. What they run is in `method`.

    backbone  a small model and its tokenizer trained here; a published model needs no stage
    check     (text as the stage `text` has it, evaluation sentences) -> what the text is good for; nothing needs it
    text      (source, tokenizer, block length, limits) -> token blocks
    dense     (backbone, text or benchmark, training, start) -> delta, head, factors of its matrices
    sparse    (dense, denoising, k) -> SFT
    grade     (a language vector or none, a task vector, a target language) -> scores on validation and, sealed, on test

An address is the SHA-256 of the kind, the kind's version, the settings and the addresses of the inputs. Raise a kind's
version by hand when its results change. No torch here, so that planning is instant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from deftx.config import Denoise, Settings
from deftx.stages.settings import DenseSettings, GradeSettings, SparseSettings, TextStageSettings

Kind = Literal["backbone", "check", "text", "dense", "sparse", "grade"]
KINDS: tuple[Kind, ...] = ("backbone", "check", "text", "dense", "sparse", "grade")
VERSIONS: dict[Kind, int] = {"backbone": 2, "check": 2, "text": 1, "dense": 2, "sparse": 2, "grade": 1}


@dataclass(frozen=True)
class Stage:
    """One computation: its kind, its settings and the stages it needs, by role."""

    kind: Kind
    settings: Settings
    inputs: tuple[tuple[str, Stage], ...] = ()

    @cached_property
    def address(self) -> str:
        """Content address: 32 hexadecimal digits of SHA-256 over the identity."""
        return address_of(self.identity())

    def identity(self) -> dict[str, object]:
        """All that counts: kind, version, settings without excluded fields, addresses of the inputs."""
        return {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            "settings": self.settings.model_dump(mode="json"),
            "inputs": {role: stage.address for role, stage in self.inputs},
        }

    def input(self, role: str) -> Stage | None:
        """The stage in a role, or none."""
        return dict(self.inputs).get(role)

    @property
    def seed(self) -> int:
        """The seed of this stage's random draws, from its address, which counts the sweep's seed."""
        return int(self.address[:15], 16)

    @property
    def language(self) -> str:
        """The language the stage is about; a sparse stage inherits it from its dense stage."""
        if isinstance(self.settings, SparseSettings):
            return dict(self.inputs)["dense"].language
        return str(getattr(self.settings, "language", ""))

    @property
    def subject(self) -> str:
        """Who the stage is about: a language, `task` for the task's own dense and sparse stages, or the backbone."""
        if isinstance(self.settings, SparseSettings):
            return dict(self.inputs)["dense"].subject
        if isinstance(self.settings, DenseSettings) and self.settings.task is not None:
            return "task"
        return self.language or self.kind

    @property
    def label(self) -> str:
        """What a person calls it, such as `ace · sparse · rank 100 · keep 5 %`."""
        parts = [self.subject, self.kind]
        if isinstance(self.settings, SparseSettings):
            parts += _sparse_words(self.settings)
        if isinstance(self.settings, GradeSettings):
            parts.append(_vector_words(self))
        return " · ".join(part for part in dict.fromkeys(parts) if part)


def address_of(identity: Mapping[str, object]) -> str:
    """The address of the stage with an identity, as `Stage.identity` makes it or as a manifest holds it."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def checked_text(check: Stage) -> Stage:
    """The `text` stage whose text a `check` stage looks over."""
    settings = {name: getattr(check.settings, name) for name in TextStageSettings.model_fields}
    return Stage("text", TextStageSettings(**settings), check.inputs)


def walk(stages: Iterable[Stage]) -> Iterator[Stage]:
    """All stages that `stages` need, themselves included: inputs first, each address once."""
    seen: set[str] = set()

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.address in seen:
            return
        seen.add(stage.address)
        for _, needed in stage.inputs:
            yield from visit(needed)
        yield stage

    for stage in stages:
        yield from visit(stage)


def denoise_words(denoise: Denoise | None) -> str:
    """A denoising setting in words: `rank 100 · keep 5 %`, or `LT-SFT` for none."""
    if denoise is None:
        return "LT-SFT"
    return f"rank {denoise.rank} · keep {denoise.retention * 100:g} %"


def _sparse_words(settings: SparseSettings) -> list[str]:
    words = [denoise_words(settings.denoise)]
    if not settings.retrain:
        words.append("not retrained")
    if settings.k is None:
        words.append("not pruned")
    return words


def _vector_words(stage: Stage) -> str:
    task, vector = dict(stage.inputs)["task"], stage.input("language")
    words = [f"task {_settings_words(task)}"]
    if vector is not None:
        words.append(f"{vector.language} {_settings_words(vector)}")
    elif isinstance(stage.settings, GradeSettings) and stage.settings.vector is not None:
        words.append("published vector")
    return " + ".join(words)


def _settings_words(stage: Stage) -> str:
    if isinstance(stage.settings, SparseSettings):
        return " ".join(_sparse_words(stage.settings)).replace(" · ", " ")
    return stage.kind

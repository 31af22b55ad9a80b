"""The stages as data: what each computes, what it needs, and its address. What they run is in `method`.

    backbone  a small model and its tokenizer trained here; a published model needs no stage
    check     (text as the stage `text` has it, evaluation sentences) -> what the text is good for; nothing needs it
    text      (source, tokenizer, block length, limits) -> token blocks
    dense     (backbone, text or benchmark, training, start) -> delta, head, factors of its matrices
    sparse    (dense, denoising, k) -> SFT
    grade     (a language vector if any, a task vector, a target language) -> scores on validation and, sealed, on test

An address is the SHA-256 of the kind, the kind's version, the settings and the addresses of the inputs. Raise a kind's
version by hand when its results change. What is peculiar to a kind is in `kinds`. No torch here, so that planning is
instant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from deftx.config import Precision, Settings, Training
from deftx.stages.kinds import kind_of

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Stage:
    """One computation: its kind, its settings and the stages it needs, by role."""

    kind: str
    settings: Settings
    inputs: tuple[tuple[str, Stage], ...] = ()

    @cached_property
    def address(self) -> str:
        """Content address: 32 hexadecimal digits of SHA-256 over the identity."""
        return address_of(self.identity())

    def identity(self) -> dict[str, object]:
        """What the address is the hash of: kind, version, settings that count, addresses of the inputs."""
        return {
            "kind": self.kind,
            "version": kind_of(self.kind).version,
            "settings": self.settings.identity(),
            "inputs": {role: stage.address for role, stage in self.inputs},
        }

    def input(self, role: str) -> Stage | None:
        """The stage in a role, or in a role of an input, such as `dense.text`; None without one."""
        first, _, rest = role.partition(".")
        stage = dict(self.inputs).get(first)
        return stage.input(rest) if stage is not None and rest else stage

    def needed(self, role: str) -> Stage:
        """The stage in a role that every stage of this kind has."""
        stage = self.input(role)
        assert stage is not None, f"a {self.kind} stage has an input {role!r}"
        return stage

    @property
    def reads(self) -> list[Stage]:
        """The stages whose files it opens when it is made: inputs, and some inputs of these."""
        stages = (self.input(role) for role in kind_of(self.kind).reads)
        return [stage for stage in stages if stage is not None]

    @property
    def trained(self) -> Stage | None:
        """The stage whose training this one runs, itself or another; None where nothing is trained."""
        return kind_of(self.kind).trained(self)

    @property
    def training(self) -> Training | None:
        """The settings of its training; None where nothing is trained."""
        training = getattr(self.trained.settings, "training", None) if self.trained else None
        return training if isinstance(training, Training) else None

    @property
    def precision(self) -> Precision:
        """What its training computes in; float32 where nothing is trained."""
        if self.training is None:
            return "float32"
        assert self.training.precision != "auto", "the settings of a stage refuse it"
        return self.training.precision

    @property
    def seed(self) -> int:
        """The seed of this stage's random draws, from its address, of which the sweep's seed is a part."""
        return int(self.address[:15], 16)

    @property
    def language(self) -> str:
        """The language the stage is about; a sparse stage inherits it from its dense stage."""
        return kind_of(self.kind).language(self)

    @property
    def subject(self) -> str:
        """What the stage is about: a language, `task` for the task's own dense and sparse stages, or the backbone."""
        return kind_of(self.kind).subject(self)

    @property
    def label(self) -> str:
        """Its name for people, such as `ace · sparse · rank 100 · retention 5 %`."""
        parts = [self.subject, self.kind, *kind_of(self.kind).words(self)]
        return " · ".join(part for part in dict.fromkeys(parts) if part)


def address_of(identity: Mapping[str, object]) -> str:
    """The address of the stage with an identity, as `Stage.identity` makes it or as a manifest holds it."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def settings_of(stage: Stage, kind: type[S]) -> S:
    """The settings of a stage, typed by the class that the caller expects."""
    assert isinstance(stage.settings, kind), f"a {stage.kind} stage has {kind.__name__}"
    return stage.settings


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

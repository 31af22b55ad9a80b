"""The stages as data: what each computes, what it needs, and its address. What they run is in `algorithm`.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from deftx.config import Count, Denoise, Settings, TextSettings, Training
from deftx.data.catalogue import OwnBenchmark
from deftx.sources.files import Source
from deftx.sources.published import Published

Kind = Literal["backbone", "check", "text", "dense", "sparse", "grade"]
KINDS: tuple[Kind, ...] = ("backbone", "check", "text", "dense", "sparse", "grade")
VERSIONS: dict[Kind, int] = {"backbone": 2, "check": 2, "text": 1, "dense": 2, "sparse": 2, "grade": 1}


class BackboneShape(Settings):
    """A small XLM-R and how it is pre-trained."""

    vocabulary: int = Field(1700, ge=300, description="entries of its BPE tokenizer, trained first")
    layers: int = Field(2, ge=1, description="transformer layers")
    hidden: int = Field(128, ge=8, description="width; a multiple of `heads`")
    heads: int = Field(4, ge=1, description="attention heads a layer")
    feed_forward: int = Field(256, ge=8, description="width of the feed-forward layers")
    init: float = Field(0.04, gt=0, description="standard deviation of the first weights")
    block: int = Field(32, ge=8, description="tokens a block, special tokens included")
    pack: bool = Field(False, description="concatenate passages into full blocks; false: one passage a block")
    mask_share: float = Field(0.2, gt=0, lt=1, description="share of whole words masked")
    training: Training = Field(Training(), description="of the pre-training")

    @model_validator(mode="after")
    def _heads_divide(self) -> BackboneShape:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self

    @property
    def positions(self) -> int:
        """The longest sequence it can read, in tokens: longer ones than it was trained on may be tried."""
        return self.block + 128


class BackboneSettings(BackboneShape):
    """A small XLM-R and its BPE tokenizer, pre-trained here on plain text of several languages."""

    texts: tuple[tuple[str, Source], ...] = Field(description="(language, text) to pre-train on")
    tokenizer_texts: tuple[tuple[str, Source], ...] = Field(description="(language, text) that only the tokenizer sees")
    seed: int


class TextStageSettings(Settings):
    """Plain text of one language as token blocks; read by both phases."""

    language: str
    source: Source
    text: TextSettings
    backbone: Published | None = Field(description="whose tokenizer; none: the input stage `backbone`")
    seed: int


class CheckSettings(TextStageSettings):
    """The text of a `text` stage, looked over for the reader before anything is trained on it."""

    training: Training = Field(description="for the batch size and the planned steps")
    benchmark: str | OwnBenchmark
    evaluation: dict[Literal["valid", "test"], Source] = Field(
        description="the language's evaluation sentences, whose labels are not looked at; none: nothing to compare with"
    )


class TaskData(Settings):
    """The labelled data of the source language, and the evaluation sentences that must not leak into it."""

    benchmark: str | OwnBenchmark
    training: dict[Literal["train", "valid", "test"], tuple[Source, ...]]
    leaks: Literal["strict", "lt-sft", "none"]
    evaluation_texts: str | None = Field(description="digest of the evaluation sentences; their labels do not count")
    evaluation: dict[Literal["valid", "test"], Source] = Field(exclude=True, description="where those sentences lie")
    max_length: int
    max_rows: int | None = None


class DenseSettings(Settings):
    """Fine-tune everything that may train: a language on its text, or the task on the source language's labels."""

    language: str
    task: TaskData | None = Field(description="none: a language, trained on the input stage `text`")
    backbone: Published | None = Field(description="none: the input stage `backbone`")
    lm_head: Published | Literal["own", "random"] = Field("own", description="where the LM head comes from")
    start: Published | None = Field(None, description="source vector that training starts from; or the stage `start`")
    training: Training
    seed: int


class SparseSettings(Settings):
    """Choose k entries of a dense phase's change and train only those.

    LT-SFT: `denoise` none. Without higher-order components: retention 0. Without sparse fine-tuning: `retrain` false.
    Without magnitude pruning too: `k` none.
    """

    denoise: Denoise | None
    k: Count | None = Field(description="none: every non-zero entry")
    retrain: bool = Field(True, description="false: keep the (denoised) change of the dense phase, and its head")


class GradeSettings(Settings):
    """Compose theta0 + a phi_T + b phi_L and grade it on one target language."""

    language: str
    benchmark: str | OwnBenchmark
    valid: Source
    test: Source
    weights: tuple[float, float] = Field((1.0, 1.0), description="lambda of the task and of the language vector")
    vector: Published | None = Field(None, description="a published language vector; or the input stage `language`")
    max_length: int


@dataclass(frozen=True)
class Stage:
    """One computation: its kind, its settings and the stages it needs, by role."""

    kind: Kind
    settings: Settings
    inputs: tuple[tuple[str, Stage], ...] = ()

    @cached_property
    def address(self) -> str:
        """Content address: 32 hexadecimal digits of SHA-256 over the identity."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

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

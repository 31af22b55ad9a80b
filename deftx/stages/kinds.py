"""The kinds of stages: of each its version, settings, facts, files, what it reads and trains, its name, what runs it.

The one place of deftx that tells kinds apart. Another kind is one `register` here and one in `orchestrator.kinds`, for
how it is shown and what it costs; no other file changes but the planner, which makes stages of it. No torch here, so
that planning is instant: what runs a kind is named, and imported when it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from deftx.config import Denoise, Settings
from deftx.errors import ConfigError, StoreError, hint
from deftx.stages.facts import BackboneFacts, CheckFacts, DenseFacts, Facts, GradeFacts, SparseFacts, TextFacts
from deftx.stages.files import BLOCKS, CHECK, DELTA, HEAD, METADATA, MODEL, SCORES, SEALED, SFT, TENSORS
from deftx.stages.settings import (
    BackboneSettings,
    CheckSettings,
    DenseSettings,
    GradeSettings,
    SparseSettings,
    TextStageSettings,
)

if TYPE_CHECKING:
    from deftx.stages.manifest import Manifest
    from deftx.stages.stage import Stage

F = TypeVar("F", bound=Facts)


def _own_language(stage: Stage) -> str:
    return str(getattr(stage.settings, "language", ""))


def _language_or_kind(stage: Stage) -> str:
    return stage.language or stage.kind


@dataclass(frozen=True)
class Kind:
    """A kind of stage: all that sets it apart from the others.

    Attributes:
        version: raised by hand when its results change; part of every address.
        runs: `module:function` that makes a stage: from a `Context` to what was `Made` (see `method.context`).
        publishes: names of files that each stage of the kind publishes, perhaps among others.
        reads: roles of the stages whose files it opens: `dense` is an input, `dense.text` an input of that.
        trained: the stage whose training it runs: itself, the dense stage of a sparse one, or None.
        language: which language a stage is about.
        subject: what a stage is about, in tables and labels: a language, or the task.
        words: the settings in its label.
        makes_sft: whether it publishes an SFT; its facts are then `SparseFacts`.
        is_phase: whether it is a phase in which a language or the task is learnt.
        seals: whether it grades: validation scores as its facts, test scores under seal.
    """

    name: str
    version: int
    settings: type[Settings]
    facts: type[Facts]
    runs: str
    publishes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    trained: Callable[[Stage], Stage | None] = lambda stage: None
    language: Callable[[Stage], str] = _own_language
    subject: Callable[[Stage], str] = _language_or_kind
    words: Callable[[Stage], list[str]] = lambda stage: []
    makes_sft: bool = False
    is_phase: bool = False
    seals: bool = False

    def load(self) -> Callable[..., Any]:
        """The function that makes a stage of this kind, imported now."""
        module, _, function = self.runs.partition(":")
        run: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return run


KINDS: dict[str, Kind] = {}
"""Every kind by name, in the order of tables. Filled by `register` alone."""


def register(kind: Kind) -> None:
    """Add a kind.

    Raises:
        ValueError: when there is a kind of this name.
    """
    if kind.name in KINDS:
        raise ValueError(f"there is a kind of stage {kind.name!r} already")
    KINDS[kind.name] = kind


def unknown_kind(name: str, registered: Iterable[str]) -> ConfigError:
    """The error for a kind that was never registered, with the nearest name."""
    names = [*registered]
    return ConfigError(
        f"unknown kind of stage {name!r}{hint(name, names)}; there are {', '.join(names)}, "
        f"and those that a module registers when it is imported"
    )


def kind_of(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ConfigError: with the nearest name, for one that was never registered.
    """
    if name not in KINDS:
        raise unknown_kind(name, KINDS)
    return KINDS[name]


def facts_of(manifest: Manifest, kind: type[F] = Facts) -> F:  # type: ignore[assignment]
    """What a published stage measured.

    Args:
        kind: the class of facts that the caller expects.

    Raises:
        StoreError: naming the manifest and the number that is missing, not finite or out of bounds.
    """
    try:
        facts = kind_of(manifest.kind).facts.model_validate(manifest.metrics, context=manifest.identity.get("settings"))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"])) or "metrics"
        message = str(problem["msg"]).removeprefix("Value error, ")
        raise StoreError(f"manifest of {manifest.label} ({manifest.address}): {name}: {message}") from None
    assert isinstance(facts, kind), f"a {manifest.kind} stage has {type(facts).__name__}"
    return facts


def check_complete(manifest: Manifest) -> None:
    """Raise a StoreError naming the manifest and the fact or the file of its kind that it lacks."""
    facts_of(manifest)
    for name in kind_of(manifest.kind).publishes:
        if name not in manifest.files:
            raise StoreError(f"manifest of {manifest.label} ({manifest.address}): has no file {name}")


def checked_text(check: Stage) -> Stage:
    """The `text` stage whose text a `check` stage looks over."""
    settings = {name: getattr(check.settings, name) for name in TextStageSettings.model_fields}
    return replace(check, kind="text", settings=TextStageSettings(**settings))


def format_denoise(denoise: Denoise | None) -> str:
    """A denoising setting in words: `rank 100 · retention 5 %`, or `LT-SFT` for None."""
    if denoise is None:
        return "LT-SFT"
    return f"rank {denoise.rank} · retention {denoise.retention * 100:g} %"


# -- how stages of a kind are named, and what they train --------------------------------------------------------------


def _itself(stage: Stage) -> Stage:
    return stage


def _dense_if_retrained(stage: Stage) -> Stage | None:
    assert isinstance(stage.settings, SparseSettings)
    return stage.needed("dense") if stage.settings.retrain else None


def _dense_subject(stage: Stage) -> str:
    assert isinstance(stage.settings, DenseSettings)
    return _language_or_kind(stage) if stage.settings.task is None else "task"


def _format_sparse(stage: Stage) -> list[str]:
    assert isinstance(stage.settings, SparseSettings)
    words = [format_denoise(stage.settings.denoise)]
    if not stage.settings.retrain:
        words.append("not retrained")
    if stage.settings.k is None:
        words.append("not pruned")
    return words


def _format_grade(stage: Stage) -> list[str]:
    assert isinstance(stage.settings, GradeSettings)
    task, language = stage.needed("task"), stage.input("language")
    words = [f"task {_setting(task)}"]
    if language is not None:
        words.append(f"{language.language} {_setting(language)}")
    elif stage.settings.vector is not None:
        words.append("published vector")
    return [" + ".join(words)]


def _setting(sft: Stage) -> str:
    """The setting of a vector by its label; `dense` for a dense model, whose label has none."""
    return " ".join(kind_of(sft.kind).words(sft)).replace(" · ", " ") or sft.kind


register(
    Kind(
        name="backbone", version=3, settings=BackboneSettings, facts=BackboneFacts,
        runs="deftx.method.texts:backbone", publishes=(f"{MODEL}/config.json",), trained=_itself,
    )
)  # fmt: skip
register(
    # its `training` setting says what the text is checked for; nothing is trained
    Kind(
        name="check", version=2, settings=CheckSettings, facts=CheckFacts,
        runs="deftx.method.texts:check", publishes=(CHECK,), reads=("backbone",),
    )
)  # fmt: skip
register(
    Kind(
        name="text", version=1, settings=TextStageSettings, facts=TextFacts,
        runs="deftx.method.texts:text", publishes=(BLOCKS,), reads=("backbone",),
    )
)  # fmt: skip
register(
    Kind(
        name="dense", version=3, settings=DenseSettings, facts=DenseFacts,
        runs="deftx.method.phases:dense", publishes=(DELTA, HEAD), reads=("text", "start", "backbone"),
        trained=_itself, subject=_dense_subject, is_phase=True,
    )
)  # fmt: skip
register(
    Kind(
        name="sparse", version=3, settings=SparseSettings, facts=SparseFacts,
        runs="deftx.method.phases:sparse", publishes=(f"{SFT}/{TENSORS}", f"{SFT}/{METADATA}"),
        reads=("dense", "dense.text", "dense.start", "dense.backbone"),
        trained=_dense_if_retrained, language=lambda stage: stage.needed("dense").language,
        subject=lambda stage: stage.needed("dense").subject, words=_format_sparse, makes_sft=True, is_phase=True,
    )
)  # fmt: skip
register(
    Kind(
        name="grade", version=1, settings=GradeSettings, facts=GradeFacts,
        # the task vector may be a dense stage (full fine-tuning)
        runs="deftx.method.grading:grade", publishes=(SCORES, SEALED),
        reads=("task", "language", "task.backbone", "task.dense.backbone"),
        words=_format_grade, seals=True,
    )
)  # fmt: skip

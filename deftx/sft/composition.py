"""A composition as data: the backbone, task vector and language vector that make one classifier, and how it scored.

A sweep writes one for each target language into `sweeps/<name>/chosen.json`. Its parts are stages of the storage by
address, or hub repositories by commit, and never paths: the storage can be moved, and the file leads nowhere else. A
backbone that is a folder elsewhere is recorded by its content alone, and whoever reads names the folder again. No torch
here; what is made of a composition is in `export`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
)

from deftx.config import SPLIT_NAMES, EvaluationSplit, Metric, Settings, TaskKind
from deftx.errors import ConfigError, DataError, StoreError, hint
from deftx.foreign import json_object
from deftx.sources.published import HubFolder, LocalFolder, resolve_folder
from deftx.stages.reach import reachable
from deftx.stages.store import Store

CHOSEN = "chosen.json"


class Stored(Settings):
    """What a stage of the storage published."""

    kind: Literal["stage"] = "stage"
    address: str = Field(pattern=r"^[0-9a-f]{32}$")


class SplitScore(Settings):
    """A score on the target language with its 95 % interval, as shares, and how many items it was measured on."""

    split: EvaluationSplit
    metric: Metric
    value: float
    low: float
    high: float
    items: int
    occurring: float | None = None
    """Macro F1 over the labels that the split has, where it lacks some, which `value` counts as 0."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = plain(self)
        if self.occurring is None:  # so that a sweep of an earlier version keeps its record byte for byte
            del content["occurring"]
        return content

    @field_serializer("split")
    def _split_name(self, split: EvaluationSplit) -> str:
        return SPLIT_NAMES[split]

    @field_validator("split", mode="before")
    @classmethod
    def _split_of_name(cls, split: object) -> object:
        return "valid" if split == "validation" else split


Part = Annotated[Stored | LocalFolder | HubFolder, Field(discriminator="kind")]


class Composition(Settings):
    """theta0 + a phi_T + b phi_L with the head of phi_T: its parts, labels and scores."""

    backbone: Part
    task: Part
    language: Part | None = None
    weights: tuple[float, float] = Field((1.0, 1.0), description="lambda of the task and of the language vector")
    labels: tuple[str, ...] = Field(min_length=2, description="in the order of the head's outputs")
    max_length: int = Field(128, ge=8, description="tokens that a text was cut to")
    target: str | None = Field(None, description="code of the target language; null: as its vector says")
    benchmark: str | None = None
    kind: TaskKind = Field("sentiment", description="nli: a text comes with its hypothesis")
    origin: str = Field("", description="in words, how it was chosen")
    scores: tuple[SplitScore, ...] = ()

    @field_validator("backbone", "task", "language")
    @classmethod
    def _one_commit_of_one_repository(cls, part: Part | None) -> Part | None:
        if isinstance(part, HubFolder):
            if not re.fullmatch(r"[0-9a-f]{40}", part.commit):
                raise ValueError(f"{part.commit!r} is no commit, which is 40 hexadecimal digits")
            if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", part.repo):
                raise ValueError(f"{part.repo!r} is no hub id, which is of the form owner/name")
        return part


def read_chosen(where: str, language: str, backbone: str | None = None) -> tuple[Composition, Store]:
    """(composition, store): what a sweep chose for a target language, and the storage that its parts lie in.

    Args:
        where: the sweep's folder, `STORAGE/sweeps/NAME`, or the `chosen.json` in it; a path or an fsspec URL.
        backbone: the backbone's folder, where that is a folder outside the storage.

    Raises:
        ConfigError: for a folder that is not a sweep's, an unknown sweep or language (with the nearest), or a backbone
            that is needed and not given, or given and not needed.
        DataError: when nothing is chosen, the file is not what a sweep writes, or the backbone is another one.
    """
    store, name = _locate(where)
    place = f"{store.url}/sweeps/{name}/{CHOSEN}"
    if (content := store.read("sweeps", name, CHOSEN)) is None:
        raise _nothing_chosen(store, name)
    try:
        compositions = json_object(content, f"{place}: not what a sweep writes")
        if not compositions:
            raise DataError(f"{place}: no combination was completed, so none was chosen; the sweep's report says why")
        if language not in compositions:
            raise ConfigError(
                f"{place}: has no language {language!r}{hint(language, compositions)}; valid: {', '.join(compositions)}"
            )
        return Composition.model_validate(_placed(place, dict(compositions[language]), backbone)), store
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{place}: not what a sweep writes: {_first(error)}") from None


def _locate(where: str) -> tuple[Store, str]:
    whole = where.rstrip("/") if "://" in where else str(Path(where).expanduser().resolve())
    storage, _, name = whole.removesuffix(f"/{CHOSEN}").rpartition("/sweeps/")
    if not storage or not name or "/" in name:
        raise ConfigError(f"{where}: not the folder of a sweep, which is STORAGE/sweeps/NAME, nor its {CHOSEN}")
    return reachable(Store(storage)), name


def _nothing_chosen(store: Store, name: str) -> Exception:
    names = store.names("sweeps")
    if name not in names:
        sweeps = f"{hint(name, names)}; valid: {', '.join(names)}" if names else "; there is none"
        return StoreError(f"{store.url}: no sweep {name!r} there{sweeps}")
    return DataError(f"{store.url}/sweeps/{name}: nothing is chosen before the search has ended; run the sweep again")


def _placed(place: str, raw: dict[str, Any], backbone: str | None) -> dict[str, Any]:
    """The composition with the path of its backbone, where that is a folder outside the storage."""
    parts = {role: raw[role] for role in ("backbone", "task", "language") if raw.get(role)}
    if named := [role for role, part in parts.items() if "path" in part or (role, part["kind"]) in _ELSEWHERE]:
        raise ValueError(f"its {named[0]} is a folder; only stages of the storage and hub repositories are read")
    local = parts["backbone"]["kind"] == "local"
    if local and backbone is None:
        raise ConfigError(f"{place}: the backbone is a folder outside the storage; name it with --backbone FOLDER")
    if backbone is None:
        return raw
    if not local:
        raise ConfigError(f"{place}: says itself which backbone it is; leave out --backbone {backbone}")
    folder = resolve_folder(backbone)
    if not isinstance(folder, LocalFolder) or folder.sha256 != parts["backbone"]["sha256"]:
        raise DataError(f"{backbone}: not the backbone of the sweep, whose folder has SHA-256 "
                        f"{parts['backbone']['sha256'][:12]}")  # fmt: skip
    return raw | {"backbone": folder}


_ELSEWHERE = {("task", "local"), ("language", "local")}


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error) or type(error).__name__
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {str(problem['msg']).removeprefix('Value error, ')}"

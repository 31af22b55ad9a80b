"""SparseFineTuning: phi, the sparse difference that one language or task makes to a backbone, and its head.

Saved as `sft.safetensors` (indices, values, head) beside `sft.json` (metadata and shapes). Published composable-sft
vectors (`pytorch_diff.bin`) load too, see `composable`. Adding it to a model is in `compose`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deftx.errors import DataError, explain
from deftx.foreign import small_file
from deftx.masks.select import Indices
from deftx.models.headers import headers_in
from deftx.sft import composable
from deftx.sft.entries import check_entries, check_head, countable
from deftx.sources.published import HubFolder, Published, local_folder, name_of, resolve_folder, settings_folder
from deftx.stages.files import METADATA, TENSORS

if TYPE_CHECKING:
    from deftx.stages.stage import Stage

T = TypeVar("T")
_NO_SFT = {"adapter_config.json": "it is a LoRA or another adapter", "config.json": "it is a model"}
"""Files by which one sees what a folder is instead."""


class SFTMetadata(BaseModel):
    """Where an SFT comes from and what it was learnt with."""

    model_config = ConfigDict(extra="forbid")

    backbone: str
    revision: str | None = None
    fingerprint: str | None = None
    backbone_basis: Literal["measured", "asserted"] = "measured"
    language: str | None = None
    task: str | None = None
    labels: list[str] | None = None
    k: int = Field(ge=0)
    rank: str | None = None
    retention: float | None = None
    max_length: int | None = None
    scores: dict[str, float] = {}
    versions: dict[str, str] = {}


_Length = Annotated[int, Field(strict=True, ge=1, le=2**40)]


class _SFTRecord(BaseModel):
    """The content of `sft.json`; other keys are those of a later version."""

    metadata: SFTMetadata
    shapes: dict[str, Annotated[tuple[_Length, ...], Field(max_length=8), AfterValidator(countable)]]


@dataclass(frozen=True, repr=False)
class SparseFineTuning:
    """A sparse difference to the base model of a backbone.

    Attributes:
        indices: flat row-major indices by parameter name (of the base model, without its prefix): int64, ascending.
        values: what to add there: float32, one for each index.
        shapes: the shape of each parameter named.
        head: dense parameters of the LM head or classifier, by their names in the whole model; may be empty.
        metadata: its origin.
        stage: the stage it was learnt by, where `deftx.learn_language` or `deftx.learn_task` made it.
    """

    indices: Indices
    values: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    metadata: SFTMetadata
    head: dict[str, Tensor] = field(default_factory=dict)
    stage: Stage | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        metadata = self.metadata
        rank = f"rank {metadata.rank}" if metadata.rank else None
        about = " · ".join(filter(None, [metadata.task, metadata.language, rank]))
        return f"<SparseFineTuning {about + ': ' if about else ''}{len(self):,} entries of {metadata.backbone}>"

    def __len__(self) -> int:
        """How many entries it changes."""
        return sum(index.numel() for index in self.indices.values())

    @classmethod
    def from_delta(
        cls, delta: Mapping[str, Tensor], indices: Indices, metadata: SFTMetadata, head: Mapping[str, Tensor]
    ) -> SparseFineTuning:
        """The SFT of the chosen entries of a weight change.

        Args:
            delta: weight change by parameter name, float32.
            indices: the chosen entries, as `deftx.masks.select.select` returns them.
        """
        values = {name: delta[name].reshape(-1)[index.to(delta[name].device)].cpu() for name, index in indices.items()}
        shapes = {name: tuple(delta[name].shape) for name in indices}
        return cls(dict(indices), values, shapes, metadata, {name: t.detach().cpu() for name, t in head.items()})

    def save_pretrained(self, folder: str | Path, values: Literal["float32", "bf16"] = "float32") -> None:
        """Write `sft.safetensors` and `sft.json` into a folder, which is created.

        Args:
            values: `bf16` takes 6 bytes an entry instead of 8, and rounds each value to 8 bits; the head stays float32.

        Raises:
            DataError: when bf16 would round a value to infinity.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {f"values/{name}": _as_saved(name, value, values) for name, value in self.values.items()}
        for name, index in self.indices.items():
            small = index.numel() == 0 or int(index[-1]) < 2**31
            tensors[f"indices/{name}"] = index.to(torch.int32) if small else index.contiguous()
        tensors |= {f"head/{name}": value.contiguous() for name, value in self.head.items()}
        save_file(tensors, path / TENSORS)
        record = {"metadata": self.metadata.model_dump(mode="json"), "shapes": self.shapes}
        (path / METADATA).write_text(json.dumps(record, indent=1), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str = "main") -> SparseFineTuning:
        """The SFT of a folder or a hub id; composable-sft's `pytorch_diff.bin` loads without executing pickle code.

        Raises:
            DataError: when the folder holds no SFT, or one that contradicts itself (naming the file and the tensor).
            HubError: when it has to be downloaded and cannot be.
        """
        return cls.from_published(resolve_folder(str(name), revision))

    @classmethod
    def from_published(cls, source: Published) -> SparseFineTuning:
        """The SFT of a folder or repository that was resolved before.

        Raises:
            DataError: as `from_pretrained`, and when a local folder has changed since.
            HubError: as `from_pretrained`.
        """
        commit = source.commit if isinstance(source, HubFolder) else None
        return cls._read(local_folder(source), name_of(source), commit)

    @classmethod
    def from_folder(cls, folder: Path) -> SparseFineTuning:
        """The SFT of a folder whose files were verified before, such as one that a store fetched.

        Raises:
            DataError: as `from_pretrained`.
        """
        return cls._read(folder, str(folder), None)

    @classmethod
    def _read(cls, folder: Path, name: str, revision: str | None) -> SparseFineTuning:
        if (folder / TENSORS).is_file():
            return _load(folder)
        if (folder / composable.FILE).is_file():
            return cls._composable(folder / composable.FILE, revision)
        raise _no_sft(folder, name)

    @classmethod
    def _composable(cls, path: Path, revision: str | None) -> SparseFineTuning:
        """A composable-sft vector; it carries no fingerprint, so its backbone is recorded as asserted."""
        entries = composable.load(path)
        k = sum(index.numel() for index in entries.indices.values())
        metadata = SFTMetadata(backbone="unknown", revision=revision, backbone_basis="asserted", k=k)
        return cls(entries.indices, entries.values, entries.shapes, metadata, entries.head)


def shapes_of(source: Published) -> dict[str, tuple[int, ...]] | None:
    """The shape of each parameter that a published SFT changes, by name, without its values.

    None for a composable-sft vector on the hub, whose one file says all and is not fetched for this.

    Raises:
        DataError: when it is not an SFT, or its files name different parameters.
        HubError: when it has to be looked at on the hub and cannot be.
    """
    folder = settings_folder(source)
    if (folder / TENSORS).is_file():
        _, shapes = _read_record(folder / METADATA)
        _check_names(folder / TENSORS, _parts(folder / TENSORS, headers_in(folder / TENSORS)), shapes)
        return shapes
    if (folder / composable.FILE).is_file():
        return composable.shapes_in(folder / composable.FILE)
    if isinstance(source, HubFolder) and not any((folder / name).is_file() for name in _NO_SFT):
        return _read_record(folder / METADATA)[1] if (folder / METADATA).is_file() else None
    raise _no_sft(folder, name_of(source))


def _no_sft(folder: Path, name: str) -> DataError:
    what = next((f": {words} ({file})" for file, words in _NO_SFT.items() if (folder / file).is_file()), "")
    return DataError(f"{name}: holds neither {TENSORS} nor {composable.FILE}, so it is not an SFT{what}")


def _as_saved(name: str, value: Tensor, values: Literal["float32", "bf16"]) -> Tensor:
    if values == "float32":
        return value.contiguous()
    rounded = value.to(torch.bfloat16)
    if not bool(rounded.isfinite().all()):
        raise DataError(f"{name}: a value is too large for bf16; save it as float32")
    return rounded


def _load(folder: Path) -> SparseFineTuning:
    metadata, shapes = _read_record(folder / METADATA)
    where = str(folder / TENSORS)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{where}: cannot be read: {error}") from None
    parts = _parts(folder / TENSORS, tensors)
    _check_names(folder / TENSORS, parts, shapes)
    _check_types(where, parts)
    indices = {name: index.to(torch.int64) for name, index in parts["indices"].items()}
    values = {name: value.to(torch.float32) for name, value in parts["values"].items()}
    for name, index in indices.items():
        check_entries(where, name, index, values[name], shapes[name])
    check_head(where, parts["head"])
    if (number := sum(index.numel() for index in indices.values())) != metadata.k:
        raise DataError(f"{folder / METADATA}: k is {metadata.k:,}, but {TENSORS} has {number:,} entries")
    return SparseFineTuning(indices, values, shapes, metadata, parts["head"])


def _check_types(where: str, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, index in parts["indices"].items():
        if index.dtype not in (torch.int32, torch.int64):
            raise DataError(f"{where}: indices/{name} is {index.dtype}; int32 or int64 is expected")
    for name, values in parts["values"].items():
        if not values.is_floating_point():
            raise DataError(f"{where}: values/{name} is {values.dtype}; floating-point numbers are expected")


def _parts(path: Path, named: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """What is named `indices/...`, `values/...` and `head/...`, by the rest of its name."""
    parts: dict[str, dict[str, T]] = {"indices": {}, "values": {}, "head": {}}
    for key, content in named.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise DataError(f"{path}: unknown tensor {key}; indices/, values/ and head/ are expected")
        parts[part][name] = content
    return parts


def _check_names(path: Path, parts: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Any]) -> None:
    if parts["indices"].keys() != parts["values"].keys() or parts["indices"].keys() != shapes.keys():
        raise DataError(f"{path}: indices, values and the shapes in {METADATA} name different parameters")


def _read_record(path: Path) -> tuple[SFTMetadata, dict[str, tuple[int, ...]]]:
    if not path.exists():
        raise DataError(f"{path}: missing; an SFT is {TENSORS} and {METADATA}")
    try:
        record = _SFTRecord.model_validate_json(small_file(path))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{path}: not the metadata of an SFT: {place + ': ' if place else ''}{explain(problem)}"
        ) from None
    return record.metadata, record.shapes

"""What a plan would cost, before anything runs: bytes in the store, and arithmetic as GPU hours. Estimates only.

No text is opened: the sizes of files were noted when they were resolved; those of backbones are in `models.sizes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deftx.config import Training, resolve_k
from deftx.models.sizes import Size
from deftx.sources.files import FileSource, file_size
from deftx.stages.backbones import size_of_backbone
from deftx.stages.settings import BackboneSettings, DenseSettings, SparseSettings, TextStageSettings
from deftx.stages.stage import Stage

SUSTAINED_TFLOPS = {"float32": 12.0, "tf32": 60.0, "bf16": 120.0}
"""Assumed of an A100 at these batch sizes, by precision."""
BYTES_PER_TOKEN = 4.0
"""Assumed of plain text whose tokens are not counted yet."""


@dataclass(frozen=True)
class Estimate:
    """Bytes a set of stages would publish, and the floating-point operations they would train with, by precision."""

    bytes: float
    flops: dict[str, float]

    @property
    def gpu_hours(self) -> float:
        """Hours on one A100 at the assumed rates."""
        return sum(flops / (SUSTAINED_TFLOPS[precision] * 1e12) / 3600 for precision, flops in self.flops.items())


def estimate(stages: Iterable[Stage]) -> Estimate | None:
    """The cost of making some stages; None when the backbone's size is not known."""
    total, flops = 0.0, dict.fromkeys(SUSTAINED_TFLOPS, 0.0)
    for stage in stages:
        size = _size_of(stage)
        if size is None and stage.kind in ("dense", "sparse"):
            return None
        total += _bytes(stage, size) if size else 0.0
        if (training := _training(stage)) is not None and size is not None:
            flops[training.precision] += _flops(stage, training, size)
    return Estimate(total, flops)


def _size_of(stage: Stage) -> Size | None:
    dense = stage.input("dense") or stage
    if stage.kind == "backbone":
        return size_of_backbone(stage)
    return size_of_backbone(dense.input("backbone") or getattr(dense.settings, "backbone", None))


def _training(stage: Stage) -> Training | None:
    if stage.kind == "check":  # its training is what the text is checked for
        return None
    if isinstance(stage.settings, SparseSettings):
        return _training(dict(stage.inputs)["dense"]) if stage.settings.retrain else None
    found = getattr(stage.settings, "training", None)
    return found if isinstance(found, Training) else None


def _bytes(stage: Stage, size: Size) -> float:
    head = 4 * (size.hidden * size.hidden + size.vocabulary)
    if stage.kind == "backbone":
        return 4 * (size.maskable + size.vocabulary)
    if stage.kind == "dense":
        matrices = 6 * size.layers + 2  # the factors of each: the vectors of its smaller side
        return 4 * (size.maskable + matrices * size.hidden**2) + head
    if isinstance(stage.settings, SparseSettings):
        k = stage.settings.k
        return 8 * (resolve_k(k, size.maskable) if k is not None else size.maskable) + head
    return 0.0


def _flops(stage: Stage, training: Training, size: Size) -> float:
    """6 operations a weight and token (forward and backward), the LM head at 15 % of the positions."""
    dense = stage.input("dense") or stage
    task = dense.settings.task if isinstance(dense.settings, DenseSettings) else None
    length, head = (task.max_length, 0.0) if task else (_block(dense), 0.15 * size.vocabulary * size.hidden)
    return 6.0 * (size.body + head) * training.batch_size * length * training.steps(_examples(dense, length))


def _block(dense: Stage) -> int:
    if isinstance(dense.settings, BackboneSettings):
        return dense.settings.block
    text = dict(dense.inputs)["text"].settings
    return text.text.block if isinstance(text, TextStageSettings) else 256


def _examples(dense: Stage, length: int) -> int:
    """Examples of a data set that has not been read: by its files' sizes, else as many as reach max_steps."""
    sizes = [file_size(source) if isinstance(source, FileSource) else None for source in _sources(dense)]
    known = [size for size in sizes if size is not None]
    if not sizes or len(known) < len(sizes):
        return 10**9
    return max(int(sum(known) / BYTES_PER_TOKEN / length), 1)


def _sources(dense: Stage) -> list[object]:
    settings = dense.settings
    if isinstance(settings, DenseSettings) and settings.task is not None:
        return list(settings.task.training.get("train", ()))
    if isinstance(settings, BackboneSettings):
        return [source for _, source in settings.texts]
    text = dict(dense.inputs)["text"].settings
    return [text.source] if isinstance(text, TextStageSettings) else []

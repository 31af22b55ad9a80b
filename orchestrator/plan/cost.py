"""What a plan would cost, before anything runs: bytes in the store, and arithmetic as GPU hours. Estimates only.

What a stage of each kind publishes and reads is in `orchestrator.kinds`. No text is opened: the sizes of files were
noted when they were resolved; those of backbones are in `models.sizes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deftx.config import Precision, Training
from deftx.models.sizes import Size
from deftx.sources.files import FileSource, file_size
from deftx.stages.stage import Stage
from orchestrator.kinds import Reading, shown_as

SUSTAINED_TFLOPS: dict[Precision, float] = {"float32": 12.0, "tf32": 35.0, "bf16": 50.0}
"""Assumed of an A100 over a whole step, by precision.

bf16: a dense step of 8 x 256 at XLM-R base's shape is 1.40 TFLOP here, and about 28 ms by the estimate in
docs/performance.md; in tf32 its products, 10 of the 28 ms, take twice as long, and the rest moves more bytes.
"""
BYTES_PER_TOKEN = 4.0
"""Assumed of plain text whose tokens are not counted yet."""


@dataclass(frozen=True)
class Cost:
    """Bytes a set of stages would publish, and the floating-point operations they would train with, by precision."""

    bytes: float
    flops: dict[Precision, float]

    @property
    def gpu_hours(self) -> float:
        """Hours on one A100 at the assumed rates."""
        return sum(flops / (SUSTAINED_TFLOPS[precision] * 1e12) / 3600 for precision, flops in self.flops.items())


def estimate(stages: Iterable[Stage]) -> Cost | None:
    """The cost of making some stages; None when the size of the backbone is unknown."""
    total, flops = 0.0, dict.fromkeys(SUSTAINED_TFLOPS, 0.0)
    for stage in stages:
        kind = shown_as(stage.kind)
        size = kind.size(stage)
        if size is None and kind.bytes is not None:
            return None
        total += kind.bytes(stage, size) if kind.bytes and size else 0.0
        if (training := stage.training) is not None and size is not None:
            flops[stage.precision] += _flops(stage, training, size)
    return Cost(total, flops)


def gpu_hours(stage: Stage) -> float:
    """Hours that one stage trains on one A100; 0 where nothing is trained, or the backbone's size is unknown."""
    cost = estimate([stage])
    return cost.gpu_hours if cost else 0.0


def _flops(stage: Stage, training: Training, size: Size) -> float:
    """6 operations a weight and token (forward and backward), the LM head at 15 % of the positions."""
    trained = stage.trained or stage
    reading = shown_as(trained.kind).reading
    if reading is None:
        return 0.0
    data = reading(trained)
    head = 0.15 * size.vocabulary * size.hidden if data.masked else 0.0
    return 6.0 * (size.body + head) * training.batch_size * data.length * training.steps(_examples(data))


def _examples(data: Reading) -> int:
    """How many examples a data set has, by the sizes of its files; where one is unknown 10^9: max_steps decides."""
    sizes = [file_size(source) if isinstance(source, FileSource) else None for source in data.sources]
    noted = [size for size in sizes if size is not None]
    if not sizes or len(noted) < len(sizes):
        return 10**9
    return max(int(sum(noted) / BYTES_PER_TOKEN / data.length), 1)

"""Typed, validated settings of the method; the presets are in `recipes`.

Every field counts towards a stage's address unless it is marked `exclude=True`, one marked `Since` unless it has its
default; how a stage is carried out (device, threads, micro-batch) is in `Execution`, which no stage holds. No torch
here: settings load in milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from deftx.errors import ConfigError
from deftx.rank import Rank, percentage

PresetName = Literal["paper", "paper-l1", "lt-sft"]
TaskKind = Literal["sentiment", "nli"]
Precision = Literal["float32", "tf32", "bf16"]
"""What training computes in."""
Metric = Literal["macro_f1", "accuracy"]
RetentionOf = Literal["numel", "nonzero"]
LeakRule = Literal["strict", "lt-sft", "none"]
"""The rule for training rows that are in the evaluation sets (see `data/leaks`)."""
Split = Literal["train", "valid", "test"]
EvaluationSplit = Literal["test", "valid"]
EVALUATION_SPLITS: tuple[EvaluationSplit, ...] = get_args(EvaluationSplit)
SPLIT_NAMES: dict[EvaluationSplit, str] = {"valid": "validation", "test": "test"}
METRIC_NAMES: dict[Metric, str] = {"macro_f1": "macro F1", "accuracy": "accuracy"}
"""The spelling in reports and on the screen."""

PAPER_K_LANGUAGE = 7_667_712
PAPER_K_TASK = 14_155_776
"""Entries that train in the paper (Section 3.2): 2.8 and 5.1 % of XLM-R base's 277,414,656 maskable ones."""


@dataclass(frozen=True)
class Since:
    """Marks a field that settings were given after 0.1.0, as in `clip_each: Annotated[bool, Since("0.2.0")] = False`.

    It counts towards an address only where it differs from its default, which may never change: what a store holds from
    before there was the field is found again.
    """

    version: str


_IDENTITY = "identity"
"""The context in which settings are serialised for an address."""


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in later_fields(cls):
            if cls.model_fields[name].is_required():
                raise TypeError(f"{cls.__name__}.{name}: a field marked Since needs a default")

    def identity(self) -> dict[str, Any]:
        """All that counts towards an address, as JSON has it; settings within these settings likewise."""
        return self.model_dump(mode="json", context={_IDENTITY: True})

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, whole: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dumped: dict[str, Any] = whole(self)
        for name in later_fields(type(self)) if info.context and info.context.get(_IDENTITY) else ():
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                dumped.pop(name, None)
        return dumped


@cache
def later_fields(settings: type[Settings]) -> tuple[str, ...]:
    """The names of the fields of a class of settings that are marked `Since`."""
    fields = settings.model_fields.items()
    return tuple(name for name, field in fields if any(isinstance(mark, Since) for mark in field.metadata))


def count_text(value: object) -> int | str:
    """k in its one spelling: a number of entries, or a share of the maskable entries such as `10%`.

    Raises:
        ValueError: with the spelling that would be right.
    """
    text = str(value).strip().replace(" ", "").replace("_", "").replace(",", "")
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]+", text):
        if int(text) < 1:
            raise ValueError("k is at least 1 entry")
        return int(text)
    if (share := percentage(text)) is not None:
        if not 0 < float(share) <= 100:
            raise ValueError(f"a share of the maskable entries lies above 0 % and up to 100 %, not {text}")
        return f"{share:f}%"
    raise ValueError(f"k is a number of entries such as 7667712 or a share of them such as 10%, not {value!r}")


def share_of(share: float | str, total: int) -> int:
    """floor(share * total) for the share as it is written: 0.29 of 100 is 29, where floats give 28."""
    return int(Fraction(str(share)) * total)


def resolve_k(k: int | str, maskable: int) -> int:
    """The number of entries that a setting of k means.

    Args:
        k: a number, or a share of the maskable entries such as `10%`.
        maskable: how many entries there are to choose from.

    Raises:
        ConfigError: when k is below 1 or above `maskable`.
    """
    number = share_of(k.removesuffix("%"), maskable) // 100 if isinstance(k, str) else k
    if not 1 <= number <= maskable:
        raise ConfigError(f"k = {k} is {number:,} entries; it must lie between 1 and the {maskable:,} maskable ones")
    return number


Count = Annotated[int | str, BeforeValidator(count_text)]
Retention = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class Denoise(Settings):
    """Algorithm 1, lines 4-6: how the weight change is split into low-rank and higher-order parts."""

    rank: Rank = Field(description="rank retained of each matrix: 100, or 90% of the squared singular values")
    retention: Retention = Field(0.05, description="share of the higher-order entries retained, the largest ones")
    retention_of: RetentionOf = Field(
        "numel", description="share of all entries of the matrix, or of the non-zero residual entries"
    )


class Training(Settings):
    """How one phase is trained; the dense and the sparse phase share it."""

    epochs: int | None = Field(None, ge=1, description="passes over the data; null: `max_steps` alone decides")
    max_steps: int = Field(100_000, ge=1, description="never more steps than this")
    min_steps: int = Field(0, ge=0, description="never fewer steps than this, whatever `epochs` says")
    batch_size: int = Field(8, ge=1, description="examples (or blocks) a step")
    learning_rate: float = Field(5e-5, gt=0, description="at the end of the warm-up; linear to 0 from there")
    warmup: float = Field(0.0, ge=0.0, lt=1.0, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW's")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's")
    clip: float = Field(1.0, gt=0.0, description="largest L2 norm of the gradient of what trains")
    l1: float = Field(0.0, ge=0.0, description="lambda * sum |theta - start| / number of model parameters")
    l1_gradient: bool = Field(True, description="false: as coded upstream, where the term has no gradient")
    validate_every: int = Field(1000, ge=1, description="steps between validations; the best one is kept")
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="null: the backbone's own")
    freeze_embeddings: bool = Field(False, description="whether the embeddings stay as they are")
    freeze_lm_head: bool = Field(False, description="whether the LM head stays as it is (language vectors)")
    # `auto` is for those who ask: it is decided before a stage is built, which `Stage.precision` relies on
    precision: Literal["auto", Precision] = Field(
        "float32",
        description="bf16 where the processor or the GPU computes it; tf32 on a GPU; auto: bf16 where the stages "
        "that train so ask for a GPU, else float32",
    )

    def decided(self, on_gpu: bool) -> Training:
        """These settings with `precision: auto` decided: bf16 on a GPU, else float32."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bf16" if on_gpu else "float32"})

    @property
    def effective_l1(self) -> float:
        """The L1 strength that reaches the gradient: 0 for the term as coded upstream."""
        return self.l1 if self.l1_gradient else 0.0

    @model_validator(mode="after")
    def _steps_agree(self) -> Training:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps ({self.min_steps}) exceeds max_steps ({self.max_steps})")
        return self

    def steps(self, examples: int) -> int:
        """The steps of a run on so many examples (or blocks): `epochs`, within `min_steps` and `max_steps`."""
        if self.epochs is None:
            return self.max_steps
        per_epoch = -(-examples // self.batch_size)
        return max(min(self.epochs * per_epoch, self.max_steps), self.min_steps)


class TextSettings(Settings):
    """How plain text becomes token blocks."""

    block: int = Field(256, ge=8, description="tokens a block, special tokens included")
    pack: bool = Field(True, description="concatenate passages into full blocks; false: one passage a block")
    valid_fraction: float = Field(0.05, gt=0.0, lt=0.5, description="share of the passages held out")
    max_lines: int | None = Field(None, ge=2, description="read no more passages than this")


class LanguageRecipe(Settings):
    """How language vectors are learnt (Section 3.2 of the paper)."""

    text: TextSettings = Field(TextSettings(), description="how its plain text is cut")
    training: Training = Field(Training(), description="both phases")
    k: Count | None = Field(PAPER_K_LANGUAGE, description="entries that train, or a share: 10%; null: no pruning")
    retrain: bool = Field(True, description="false: without the sparse phase")


class TaskRecipe(Settings):
    """How the task vector is learnt (Section 3.2 of the paper)."""

    training: Training = Field(Training(), description="both phases")
    k: Count | None = Field(PAPER_K_TASK, description="entries that train, or a share: 10%; null: no pruning")
    retrain: bool = Field(True, description="false: without the sparse phase")
    max_length: int = Field(128, ge=8, description="tokens an example at most; never more than the backbone reads")
    max_rows: int | None = Field(None, ge=1, description="train on no more rows than this")


class Execution(Settings):
    """How a stage is carried out; in no address, and not meant to change what a result says.

    It changes the rounding, and what dropout draws: two results of one address differ as two seeds do, unless they were
    made the same way, which manifests record.
    """

    device: str = "cpu"
    threads: int = Field(1, ge=1)
    micro_batch: int | None = Field(None, ge=1, description="examples at once; gradients are accumulated")
    gradient_checkpointing: bool = Field(False, description="keep layers' inputs only: less memory, a third more time")
    checkpoint_seconds: float = Field(300.0, gt=0.0, description="seconds between checkpoints of a running stage")

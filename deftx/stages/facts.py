"""What each kind of stage measures, as typed values: what stages return, and what readers get of a manifest.

On disk they are the numbers of a manifest's `metrics`, by name; every one is finite. Names of older manifests are read
as aliases. How numbers are shown is no concern of this module.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from deftx.config import Metric

Number = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class Facts(BaseModel):
    """Base of the facts of all kinds; numbers that a later version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def metrics(self) -> dict[str, float]:
        """The numbers by name, without those that were not measured."""
        return {name: float(value) for name, value in self.model_dump(exclude_none=True).items()}


class TrainingFacts(Facts):
    """What a training measured: at its best checkpoint by validation, a loss or a score."""

    best_step: Whole | None = Field(None, description="after which step validation was best")
    steps: Whole | None = Field(None, description="optimiser steps; None: nothing was trained")
    valid_loss: Number | None = Field(None, description="held-out loss there, of a language")
    valid_score: Share | None = Field(None, description="the benchmark's metric there, of the task")

    @property
    def loss(self) -> float:
        """The held-out loss of a language's training."""
        assert self.valid_loss is not None, "a language was trained"
        return self.valid_loss

    @property
    def score(self) -> float:
        """The validation score of the task's training."""
        assert self.valid_score is not None, "the task was trained"
        return self.valid_score

    @model_validator(mode="after")
    def _whole(self) -> TrainingFacts:
        measured = sum(value is not None for value in (self.valid_loss, self.valid_score))
        trained = self.steps is not None
        if (self.best_step is not None) != trained or measured != trained:
            raise ValueError("a training has steps, best_step and either valid_loss or valid_score")
        return self


class BackboneFacts(TrainingFacts):
    """What pre-training measured."""

    best_step: Whole
    steps: Whole


class CheckFacts(Facts):
    """What the check of a text counted; see `deftx.data.text_report.TextReport`."""

    lines: Whole
    repeated_lines: Whole
    shared_lines: Whole = Field(description="lines that are or hold an evaluation sentence")
    tokens_per_word: Number
    unknown_share: Share = Field(description="of the tokens")
    train_blocks: Whole
    valid_blocks: Whole
    good_for_steps: Whole
    planned_steps: Whole
    warnings: Whole


class TextFacts(Facts):
    """How much text there is."""

    lines: Whole
    train_blocks: Whole
    valid_blocks: Whole
    train_tokens: Whole


class DenseFacts(TrainingFacts):
    """What the dense phase measured."""

    best_step: Whole
    steps: Whole
    changed_entries: Whole = Field(description="maskable entries that are not what they were")


class SparseFacts(TrainingFacts):
    """What denoising, the choice of entries and the sparse phase measured; means are over the matrices."""

    k: Whole = Field(description="entries of the mask")
    jaccard_lt_sft: Share | None = Field(None, description="overlap with LT-SFT's mask; None: nothing was pruned")
    mean_rank: Number | None = Field(None, description="None: nothing was denoised (LT-SFT), as below")
    nonzero_retention: Share | None = Field(
        None, validation_alias=AliasChoices("nonzero_retention", "entries_kept"),
        description="share of the residual's non-zero entries that was retained",
    )  # fmt: skip
    energy_retention: Share | None = Field(
        None, validation_alias=AliasChoices("energy_retention", "energy_kept"),
        description="share of the residual's squared entries that was retained",
    )  # fmt: skip

    @model_validator(mode="after")
    def _trained_if_retrained(self, info: ValidationInfo) -> SparseFacts:
        """The context is the settings of the stage, where it is known."""
        if (info.context or {}).get("retrain") and self.steps is None:
            raise ValueError("a sparse phase has steps, best_step and either valid_loss or valid_score")
        return self


class GradeFacts(Facts):
    """What a composition scored on validation; what it scored on test is in a sealed file."""

    valid_macro_f1: Share
    valid_accuracy: Share

    def score(self, metric: Metric) -> float:
        """The validation score by one of the metrics."""
        return {"macro_f1": self.valid_macro_f1, "accuracy": self.valid_accuracy}[metric]

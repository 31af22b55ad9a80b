"""The settings of each kind of stage: all that counts in its address besides its inputs. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from deftx.config import Count, Denoise, EvaluationSplit, LeakRule, Settings, Split, TextSettings, Training
from deftx.data.catalogue import OwnBenchmark
from deftx.sources.hub import Source
from deftx.sources.published import Published

LMHead = Published | Literal["own", "random"]
"""Where an LM head comes from: the backbone, a random draw, or a donor."""


def _decided(training: Training) -> Training:
    if training.precision == "auto":
        raise ValueError("precision: auto has to be decided before a stage is built, or two results share an address")
    return training


DecidedTraining = Annotated[Training, AfterValidator(_decided)]
"""Training as a stage has it, whose precision is known."""


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

    @property
    def config(self) -> dict[str, Any]:
        """What its config.json says of its size; a tokenizer with too little text has fewer entries."""
        return {
            "vocab_size": self.vocabulary, "max_position_embeddings": self.positions + 2, "type_vocab_size": 1,
            "num_hidden_layers": self.layers, "hidden_size": self.hidden, "num_attention_heads": self.heads,
            "intermediate_size": self.feed_forward,
        }  # fmt: skip


class BackboneSettings(BackboneShape):
    """A small XLM-R and its BPE tokenizer, pre-trained here on plain text of several languages."""

    texts: tuple[tuple[str, Source], ...] = Field(description="(language, text) to pre-train on")
    tokenizer_texts: tuple[tuple[str, Source], ...] = Field(description="(language, text) that only the tokenizer sees")
    training: DecidedTraining = Field(Training(), description="of the pre-training")
    seed: int


class TextStageSettings(Settings):
    """Plain text of one language as token blocks; read by both phases."""

    language: str
    source: Source
    text: TextSettings
    backbone: Published | None = Field(description="whose tokenizer; null: the input stage `backbone`")
    seed: int


class CheckSettings(TextStageSettings):
    """Check the text of a `text` stage before anything is trained on it."""

    training: DecidedTraining = Field(description="for the batch size and the planned steps")
    benchmark: str | OwnBenchmark
    evaluation: dict[EvaluationSplit, Source] = Field(
        description="the language's evaluation sentences, without their labels; empty: nothing to compare with"
    )


class TaskData(Settings):
    """The labelled data of the source language, and the evaluation sentences that must not leak into it."""

    benchmark: str | OwnBenchmark
    training: dict[Split, tuple[Source, ...]]
    leaks: LeakRule
    evaluation_texts: str | None = Field(description="digest of the evaluation sentences; their labels do not count")
    evaluation: dict[EvaluationSplit, Source] = Field(exclude=True, description="where those sentences lie")
    max_length: int
    max_rows: int | None = None


class DenseSettings(Settings):
    """Fine-tune everything that may train: a language on its text, or the task on the source language's labels."""

    language: str
    task: TaskData | None = Field(description="null: a language, trained on the input stage `text`")
    backbone: Published | None = Field(description="null: the input stage `backbone`")
    lm_head: LMHead = Field("own", description="where the LM head comes from")
    start: Published | None = Field(None, description="source vector that training starts from; or the stage `start`")
    training: DecidedTraining
    seed: int


class SparseSettings(Settings):
    """Choose k entries of a dense phase's change and train only those.

    LT-SFT: `denoise` null. Without higher-order components: retention 0. Without sparse fine-tuning: `retrain` false.
    Without magnitude pruning too: `k` null.
    """

    denoise: Denoise | None
    k: Count | None = Field(description="null: every non-zero entry")
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

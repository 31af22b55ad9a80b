"""The kinds of stages as a sweep shows and counts them: descriptions, fills, names in MLflow, and what they cost.

Keyed by the kinds of `deftx.stages.kinds`, which a test compares with these. To add a kind, `register` it here after
registering it there. Nothing is drawn or sent here, and no text is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deftx.config import METRIC_NAMES, resolve_k
from deftx.models.sizes import Size
from deftx.sources.hub import Source
from deftx.stages.backbones import size_of_backbone
from deftx.stages.files import CHECK, SFT
from deftx.stages.kinds import unknown_kind
from deftx.stages.settings import BackboneSettings, DenseSettings, SparseSettings, TextStageSettings
from deftx.stages.stage import Stage, settings_of


@dataclass(frozen=True)
class View:
    """A table of a kind's runs in MLflow, with its columns as MLflow writes them."""

    name: str
    columns: tuple[str, ...]
    order: str
    ascending: bool = False


@dataclass(frozen=True)
class Reading:
    """What a training reads: token sequences of a length, from sources, and whether words are masked in them."""

    length: int
    sources: tuple[Source, ...]
    masked: bool


def _size_of_its_backbone(stage: Stage) -> Size | None:
    """The size of the backbone that a stage, or the dense stage before it, starts from."""
    dense = stage.input("dense") or stage
    return size_of_backbone(dense.input("backbone") or getattr(dense.settings, "backbone", None))


@dataclass(frozen=True)
class ShownKind:
    """How a sweep shows a kind of stage, and what it costs.

    Attributes:
        sentence: what a stage is, for MLflow; it may name `{language}` and `{subject}`.
        fill: number of its fill in the ramp of the pictures.
        names: the name in MLflow of each fact, and the factor it is multiplied by there; other facts keep their own.
        files: prefix of the published files that MLflow gets; None for no files.
        view: the table of its runs in MLflow.
        size: the size of the model it makes or trains.
        bytes: how much it publishes for a model of a size; None for next to nothing.
        reading: what its own training reads.
    """

    sentence: str
    fill: int
    names: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    files: str | None = None
    view: View | None = None
    size: Callable[[Stage], Size | None] = _size_of_its_backbone
    bytes: Callable[[Stage, Size], float] | None = None
    reading: Callable[[Stage], Reading] | None = None


SHOWN: dict[str, ShownKind] = {}
"""By the kind's name. Filled by `register` alone."""


def register(name: str, kind: ShownKind) -> None:
    """Register how a kind is shown.

    Raises:
        ValueError: for a kind that is registered already.
    """
    if name in SHOWN:
        raise ValueError(f"how a {name} stage is shown is known already")
    SHOWN[name] = kind


def shown_as(kind: str) -> ShownKind:
    """How a kind is shown.

    Raises:
        ConfigError: with the nearest name, for one that was never registered.
    """
    if kind not in SHOWN:
        raise unknown_kind(kind, SHOWN)
    return SHOWN[kind]


def result(kind: str, key: str, value: float) -> tuple[str, float]:
    """The name and value of a fact in MLflow; one without a name here goes into a section of the stage's kind."""
    name, factor = shown_as(kind).names.get(key, (f"{kind}/{key.replace('_', ' ')}", 1))
    return name, factor * value


def score_name(split: str, metric: str) -> str:
    """The name in MLflow of a score on `validation` or `test`."""
    return f"score/{split} {format_metric(metric)} points"


def format_metric(metric: str) -> str:
    """A metric in words; an unknown one keeps its name."""
    return next((title for name, title in METRIC_NAMES.items() if name == metric), metric)


# -- the names of facts -----------------------------------------------------------------------------------------------

_TRAINING = {
    "valid_loss": ("result/best validation loss", 1),
    "valid_score": ("result/best validation score points", 100),
    "best_step": ("result/best step", 1),
    "steps": ("result/steps", 1),
}
_SPARSE = {
    **_TRAINING,
    "k": ("mask/entries trained", 1),
    "jaccard_lt_sft": ("mask/overlap with LT-SFT mask percent", 100),
    "mean_rank": ("denoising/mean rank", 1),
    "nonzero_retention": ("denoising/retention of non-zero residual entries percent", 100),
    "energy_retention": ("denoising/retention of residual energy percent", 100),
}
_GRADE = {f"valid_{metric}": (score_name("validation", metric), 100) for metric in METRIC_NAMES}
_SCORES = tuple(f"metrics.`{score_name(split, metric)}`" for metric in METRIC_NAMES for split in ("validation", "test"))
_OF_VECTORS = ("mean_rank", "energy_retention", "jaccard_lt_sft", "valid_loss", "valid_score")


# -- what they cost ---------------------------------------------------------------------------------------------------


def _head(size: Size) -> float:
    return 4 * (size.hidden * size.hidden + size.vocabulary)


def _backbone_bytes(stage: Stage, size: Size) -> float:
    return 4 * (size.maskable + size.vocabulary)


def _dense_bytes(stage: Stage, size: Size) -> float:
    matrices = 6 * size.layers + 2  # the factors of each: the vectors of its smaller side
    return 4 * (size.maskable + matrices * size.hidden**2) + _head(size)


def _sparse_bytes(stage: Stage, size: Size) -> float:
    k = settings_of(stage, SparseSettings).k
    return 8 * (resolve_k(k, size.maskable) if k is not None else size.maskable) + _head(size)


def _backbone_reading(stage: Stage) -> Reading:
    settings = settings_of(stage, BackboneSettings)
    return Reading(settings.block, tuple(source for _, source in settings.texts), masked=True)


def _dense_reading(stage: Stage) -> Reading:
    if (task := settings_of(stage, DenseSettings).task) is not None:
        return Reading(task.max_length, tuple(task.training.get("train", ())), masked=False)
    text = settings_of(stage.needed("text"), TextStageSettings)
    return Reading(text.text.block, (text.source,), masked=True)


register(
    "backbone",
    ShownKind(
        "A small model and its tokenizer, pre-trained here; everything else starts from it.",
        fill=0, names=_TRAINING, size=size_of_backbone, bytes=_backbone_bytes, reading=_backbone_reading,
    ),
)  # fmt: skip
register(
    "check",
    ShownKind(
        "A look at the text of {language} before training; `check.json` has all that was counted.",
        fill=6, names={"unknown_share": ("check/unknown tokens percent", 100)}, files=CHECK,
    ),
)  # fmt: skip
register("text", ShownKind("The text of {language} as token blocks, made once and read by both phases.", fill=5))
register(
    "dense",
    ShownKind(
        "Dense phase of the vector of {subject}: everything that may train is trained. Its change of the weights "
        "chooses the entries of the sparse phase.",
        fill=1, names={**_TRAINING, "changed_entries": ("mask/entries changed", 1)},
        bytes=_dense_bytes, reading=_dense_reading,
    ),
)  # fmt: skip
register(
    "sparse",
    ShownKind(
        "Sparse phase: **the vector of {subject}**. Only the chosen entries are trained. The folder `sft` among "
        "the artifacts loads with `deftx.sft.vector.SparseFineTuning.from_pretrained`.",
        fill=2, names=_SPARSE, files=f"{SFT}/", bytes=_sparse_bytes,
        view=View(
            "vectors",
            ("tags.`subject`", "params.`denoise.rank`", "params.`denoise.retention`",
             *(f"metrics.`{_SPARSE[key][0]}`" for key in _OF_VECTORS)),
            order="tags.`subject`", ascending=True,
        ),
    ),
)  # fmt: skip
register(
    "grade",
    ShownKind(
        "The composed model graded on {language}. Its test scores appear when the search has ended.",
        fill=4, names=_GRADE,
        view=View("scores", ("tags.`language`", "tags.`rows`", *_SCORES, "tags.`chosen`"), order=_SCORES[0]),
    ),
)  # fmt: skip

"""The schema of search_spaces/: what is learnt, what is searched, where it runs. Data only.

How a file becomes a space is in `load`; which stages a space means is in `plan`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from deftx.config import (
    Denoise,
    LanguageRecipe,
    LeakRule,
    PresetName,
    Retention,
    RetentionOf,
    Settings,
    TaskRecipe,
)
from deftx.data.catalogue import CODE, Benchmark, OwnBenchmark, benchmark, word
from deftx.errors import ConfigError, hint
from deftx.rank import MOST_VALUES, Rank
from deftx.stages.kinds import KINDS, kind_of
from deftx.stages.settings import BackboneShape
from orchestrator.space.combination import Combination

MOST_CELLS = 100_000
"""Combinations of a space at most: as many as are listed before the first one is asked."""
Selection = Literal["target-valid", "unlabelled"]
Baseline = Literal["lt-sft", "task", "task+source", "other-language", "dense-task"]


class Resources(Settings):
    """What one trial of a stage kind may use; a stage runs with as many threads as it has CPUs.

    Not part of any address, except that `gpu` decides a `precision: auto`, which is. Results depend on the others too:
    by rounding, and where there is dropout, whose draws depend on `micro_batch`, the card and the way of running. A
    stage's manifest records these in its details (`training`), and a stage that is resumed and cannot go the same way
    starts over.
    """

    cpu: int = Field(1, ge=1, description="CPUs, and threads of the stage")
    gpu: float = Field(0.0, ge=0.0, description="a share of one GPU, on which trainings take turns, or whole GPUs")
    micro_batch: int | None = Field(
        None, ge=1, description="examples that training computes at once; null: the whole batch; dropout draws by it"
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory in training, for a third more time, or more on a GPU"
    )

    @field_validator("gpu")
    @classmethod
    def _whole_above_one(cls, gpu: float) -> float:
        if gpu > 1 and not gpu.is_integer():
            raise ValueError("a trial takes a share of one GPU, or whole GPUs")
        return gpu


class Pretraining(BackboneShape):
    """A backbone that is pre-trained here."""

    languages: Codes = Field(min_length=1, description="of `pretraining/<iso>.txt`, else `corpora/<iso>.txt`")
    tokenizer_languages: Codes = Field((), description="languages that only the tokenizer sees")


class SourceSFT(Settings):
    """The language vector of the source language: published, learnt here at one fixed setting, or left out."""

    sft: str | None = Field(None, description="hub id or folder of a published vector")
    learn: Denoise | None = Field(None, description="the one setting at which it is learnt here")
    start: bool = Field(True, description="whether the task is learnt from theta0 + phi_source")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSFT:
        if self.sft is not None and self.learn is not None:
            raise ValueError("give either `sft` (a published vector) or `learn` (its rank and retention), not both")
        return self

    @property
    def given(self) -> bool:
        """Whether there is a source vector at all."""
        return self.sft is not None or self.learn is not None


def _values(value: object) -> list[object]:
    """The values of a searched setting; one alone may stand for a list.

    Raises:
        ValueError: for more than could ever be searched.
    """
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) > MOST_VALUES:
        raise ValueError(f"{len(values):,} values; {MOST_VALUES:,} at most")
    return values


def _expand_ranks(value: object) -> object:
    """Lists of ranks; `{from: 25, to: 400, step: 25}` or `{from: 50%, to: 99%, step: 7%}` is a discrete range."""
    items = _values(value)
    expanded: list[Rank] = []
    for item in items:
        expanded += Rank.in_range(item) if isinstance(item, Mapping) else [Rank.parse(item)]
    return list(dict.fromkeys(expanded))


def _as_list(value: object) -> object:
    items = _values(value)
    if any(isinstance(item, list | Mapping) for item in items):
        raise ValueError("a list of shares between 0 and 1, such as [0, 0.05]")
    return list(dict.fromkeys(items))


Ranks = Annotated[tuple[Rank, ...], BeforeValidator(_expand_ranks), Field(min_length=1)]
Retentions = Annotated[tuple[Retention, ...], BeforeValidator(_as_list), Field(min_length=1)]


def _registered(kind: str) -> str:
    """The name of a stage kind, checked to be registered."""
    try:
        return kind_of(kind).name
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _codes(value: object) -> object:
    """A list of codes of languages; YAML reads `no`, Norwegian, as a truth value."""
    if isinstance(value, str):
        raise ValueError(f"a list of codes is expected, such as [{value}]")
    if isinstance(value, list | tuple):
        return [word(item) for item in value]
    return value


Codes = Annotated[tuple[str, ...], BeforeValidator(_codes)]
StageKind = Annotated[str, AfterValidator(_registered), WithJsonSchema({"type": "string", "enum": [*KINDS]})]


class Space(Settings):
    """One search: benchmark, backbone, recipes, the parameters searched, and the resources of its trials."""

    benchmark: str | OwnBenchmark = Field(description="nusax, americasnli, archipelago, or the definition of your own")
    backbone: str | Pretraining = Field(description="hub id, folder, or a backbone pre-trained here")
    backbone_revision: str = Field("main", description="branch, tag or commit of a backbone from the hub")
    lm_head: str = Field("own", description="own, random, or the hub id or folder of a donor")
    targets: Codes = Field((), validate_default=True, description="left out: the benchmark's own")
    source: Annotated[SourceSFT, BeforeValidator(lambda value: value or {})] = Field(
        SourceSFT(), description="the source language's own vector; left out: no source vector"
    )
    preset: PresetName = Field("paper", description="defaults of `language` and `task`")
    language: LanguageRecipe = Field(description="how language vectors are learnt; overrides the preset")
    task: TaskRecipe = Field(description="how the task vector is learnt; overrides the preset")
    leaks: LeakRule = Field(
        "strict", description="which training rows are dropped because they are in the evaluation; only `nusax` has any"
    )

    rank_l: Ranks = Field(description="rank of the language vectors")
    rank_t: Ranks = Field(description="rank of the task vector")
    retention: Retentions = Field(
        (0.05,), description="share of higher-order entries retained, for both kinds of vector"
    )
    retention_l: Retentions | None = Field(None, description="of the language vectors alone")
    retention_t: Retentions | None = Field(None, description="of the task vector alone")
    retention_of: RetentionOf = Field(
        "numel", description="a share of all entries of a matrix, or of its non-zero residual entries"
    )
    search: Literal["grid", "tpe"] = Field("grid", description="every cell, or Optuna's TPE without repeats")
    combinations: int | None = Field(None, ge=1, description="how many combinations; null: every cell of a grid")
    first: tuple[dict[str, Any], ...] = Field((), description="combinations to try first")
    search_parallelism: int = Field(
        4, ge=1, description="combinations in flight at most: the batch size of the constant liar, whatever the machine"
    )
    selection: Selection = Field(
        "target-valid", description="by target validation (few-label selection), or without any target label"
    )
    baselines: tuple[Baseline, ...] = Field(
        ("lt-sft", "task", "task+source", "dense-task"), description="rows to compare with"
    )
    note: str = Field("", description="what a reader of the report should know first")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random draw")

    resources: dict[StageKind, Resources] = Field(
        {}, description="what a trial may use, by kind of stage; left out: one CPU"
    )
    parallel: int = Field(1, ge=1, description="trials at once (Tune's max_concurrent_trials)")
    max_failures: int = Field(3, ge=0, description="how often a trial is tried again after an unexpected failure")

    @field_validator("benchmark")
    @classmethod
    def _known_benchmark(cls, given: str | OwnBenchmark) -> str | OwnBenchmark:
        try:
            benchmark(given)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return given

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "benchmark" not in info.data:
            return targets
        spec = benchmark(info.data["benchmark"])
        codes = targets if spec.languages is None else spec.languages
        wrong = [f"unknown language {t!r}{hint(t, codes)}" for t in targets if t not in codes]
        wrong += [f"{t!r} is no code, of letters, digits, - and _" for t in targets if not re.fullmatch(CODE, t)]
        wrong += [f"{target!r} is named twice" for target in dict.fromkeys(targets) if targets.count(target) > 1]
        if spec.source_language in targets:
            wrong.append(f"{spec.source_language!r} is the source language and cannot be a target")
        if not (targets or spec.targets):
            wrong.append("name the target languages, such as [ban]: a benchmark of your own does not say them")
        if wrong:
            has = "" if spec.languages is None else f"; {spec.name} has {', '.join(spec.languages)}"
            raise ValueError("; ".join(wrong) + has)
        return targets or spec.targets

    @field_validator("selection", mode="before")
    @classmethod
    def _test_is_sealed(cls, value: object) -> object:
        if isinstance(value, str) and "test" in value:
            raise ValueError("the test split is sealed: select by target-valid or unlabelled, never by test scores")
        return value

    @model_validator(mode="after")
    def _searchable(self) -> Space:
        cells = math.prod(len(values) for values in self.parameters.values())
        if cells > MOST_CELLS:
            sizes = " x ".join(f"{len(values):,} of {name}" for name, values in self.parameters.items())
            raise ValueError(f"{cells:,} combinations ({sizes}); {MOST_CELLS:,} at most: take fewer values")
        if self.search == "tpe" and self.combinations is None:
            raise ValueError("search: tpe needs `combinations` (or --combinations)")
        for number, cell in enumerate(self.first):
            self.cell(cell, f"first[{number}]")
        if self.selection == "unlabelled" and not (self.language.retrain and self.task.retrain):
            raise ValueError("selection: unlabelled reads what the sparse phase measured; it needs `retrain: true`")
        if isinstance(self.backbone, Pretraining):
            lengths = {"language.text.block": self.language.text.block, "task.max_length": self.task.max_length}
            for key, tokens in lengths.items():
                if tokens > self.backbone.positions:
                    reads = f"a backbone with `block: {self.backbone.block}` reads {self.backbone.positions} at most"
                    raise ValueError(f"{key}: {tokens} tokens, but {reads}")
        if "other-language" in self.baselines and len(self.targets) < 2:
            raise ValueError("baselines: other-language needs at least two targets")
        return self

    @model_validator(mode="after")
    def _decide_precision(self) -> Space:
        """Decide each `precision: auto`: by what the stages ask for, whatever machine this is.

        Both phases share one `training`: it is decided for bf16 where both ask for a GPU.
        """
        on_gpu = all(self.resources_of(kind.name).gpu for kind in KINDS.values() if kind.is_phase)
        parts: list[tuple[str, LanguageRecipe | TaskRecipe | Pretraining, bool]] = [
            ("language", self.language, on_gpu), ("task", self.task, on_gpu),
        ]  # fmt: skip
        if isinstance(self.backbone, Pretraining):
            parts.append(("backbone", self.backbone, self.resources_of("backbone").gpu > 0))
        for name, part, gpu in parts:
            # frozen from here on: nobody has seen it yet
            object.__setattr__(self, name, part.model_copy(update={"training": part.training.decided(gpu)}))
        return self

    @property
    def benchmark_spec(self) -> Benchmark:
        """The definition of the benchmark."""
        return benchmark(self.benchmark)

    @property
    def parameters(self) -> dict[str, tuple[str | float, ...]]:
        """The searched parameters and their values by name, as `first` and Optuna have them, in a fixed order."""
        ranks = {"rank_l": tuple(map(str, self.rank_l)), "rank_t": tuple(map(str, self.rank_t))}
        if self.retention_l is None and self.retention_t is None:
            return {**ranks, "retention": self.retention}
        by_kind = {"retention_l": self.retention_l, "retention_t": self.retention_t}
        return {**ranks, **{name: values or self.retention for name, values in by_kind.items()}}

    def cells(self) -> list[Combination]:
        """Every combination of the grid: the `first` ones, then the others in order."""
        names = list(self.parameters)
        grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*self.parameters.values())]
        first = [self.cell(given, "first") for given in self.first]
        return list(dict.fromkeys([*first, *(Combination.read(cell, self.retention_of) for cell in grid)]))

    def cell(self, given: Mapping[str, Any], where: str) -> Combination:
        """A combination as written in `first`, checked against the searched values.

        Raises:
            ValueError: when it lacks a parameter, or has another one or another value.
        """
        if set(given) != set(self.parameters):
            raise ValueError(f"{where}: needs exactly {', '.join(self.parameters)}")
        try:
            cell = {n: str(Rank.parse(given[n])) if n.startswith("rank") else float(given[n]) for n in self.parameters}
        except TypeError:
            raise ValueError(f"{where}: every parameter needs a value") from None
        for name, value in cell.items():
            if value not in self.parameters[name]:
                raise ValueError(f"{where}: {name} {value} is not among {', '.join(map(str, self.parameters[name]))}")
        return Combination.read(cell, self.retention_of)

    def resources_of(self, kind: str) -> Resources:
        """What a trial of a stage kind may use."""
        return self.resources.get(kind, Resources())

"""From a space and its resolved inputs to stages: every combination and every baseline is a row of them.

Pure: nothing is opened here. What a space reads is resolved in `inputs`; in what order stages run is in `schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from deftx.config import EVALUATION_SPLITS, Denoise, LanguageRecipe, TaskRecipe
from deftx.sources.published import Published
from deftx.stages.settings import (
    CheckSettings,
    DenseSettings,
    GradeSettings,
    SparseSettings,
    TaskData,
    TextStageSettings,
)
from deftx.stages.stage import Stage, walk
from orchestrator.plan.inputs import Materials, leak_rule
from orchestrator.record.sweep import Row, RowKind
from orchestrator.space.combination import Combination
from orchestrator.space.schema import Space


@dataclass(frozen=True)
class PlannedRow:
    """A row of the report as stages: one grade for each target language."""

    kind: RowKind
    grades: dict[str, Stage]
    number: int | None = None
    combination: Combination | None = None

    @property
    def task(self) -> Stage:
        """The task vector of the row (or, in the baseline `dense-task`, the dense stage)."""
        return dict(next(iter(self.grades.values())).inputs)["task"]

    @property
    def languages(self) -> dict[str, Stage]:
        """The language vector graded on each target, where it is a stage."""
        found = {target: grade.input("language") for target, grade in self.grades.items()}
        return {target: stage for target, stage in found.items() if stage is not None}

    @property
    def stages(self) -> list[Stage]:
        """Every stage the row needs, inputs first."""
        return list(walk(self.grades.values()))

    @property
    def parts(self) -> list[Stage]:
        """What models of the row are composed of: its vectors, and before them the backbone where it is made here."""
        backbones = [stage.input("backbone") for stage in self.stages]
        vectors = [stage for stage in with_vectors(self.grades.values()) if stage.kind != "grade"]
        return list({stage.address: stage for stage in [*backbones, *vectors] if stage is not None}.values())

    def record(self) -> Row:
        """The row as the sweep's state keeps it."""
        return Row(
            kind=self.kind, number=self.number, task_sft=self.task.address,
            parameters=self.combination.record() if self.combination else {},
            grades={target: grade.address for target, grade in self.grades.items()},
            language_sfts={target: stage.address for target, stage in self.languages.items()},
        )  # fmt: skip


def with_vectors(grades: Iterable[Stage]) -> Iterator[Stage]:
    """Grades, each after the vectors it composes: all that has to be there of a row, once it was made."""
    for grade in grades:
        yield from (needed for _, needed in grade.inputs if needed.kind == "sparse")
        yield grade


def _sparse_settings(recipe: LanguageRecipe | TaskRecipe, denoise: Denoise | None) -> SparseSettings:
    # LT-SFT is what it is also where an ablation leaves the sparse phase out
    return SparseSettings(denoise=denoise, k=recipe.k, retrain=recipe.retrain or denoise is None)


class Planner:
    """The stages of a space's combinations and baselines. Pure: the same space and materials give the same stages."""

    def __init__(self, space: Space, materials: Materials) -> None:
        self._space, self._given = space, materials

    def combination(self, number: int, asked: Combination) -> PlannedRow:
        """What combination `number` of the search needs."""
        task = self._task(asked.task)
        grades = {t: self._grade(t, task, self._language(t, asked.language)) for t in self._space.targets}
        return PlannedRow("combination", grades, number, asked)

    def baselines(self) -> list[PlannedRow]:
        """The rows that no combination changes. LT-SFT shares the dense stages, the training settings and k."""
        return self._rows(
            {
                "lt-sft": lambda target: self._grade(target, self._task(None), self._language(target, None)),
                "dense-task": lambda target: self._grade(target, self._dense_task, None),
            }
        )

    def checks(self) -> list[Stage]:
        """The checks of every text that a language vector is learnt from. No row needs them."""
        source = [self._space.of.source_language] if self._space.source.learn else []
        return [self._check(language) for language in [*self._space.targets, *source]]

    def controls(self, chosen: Combination) -> list[PlannedRow]:
        """The rows without the right language vector, with the vectors of the combination that was chosen.

        What they lack is then the language vector alone, and not another setting of the task vector.
        """
        task = self._task(chosen.task)
        rows: dict[RowKind, Callable[[str], Stage]] = {"task": lambda target: self._grade(target, task, None)}
        if self._space.source.given:
            rows["task+source"] = lambda target: self._grade(target, task, self._source_vector)
        rows["other-language"] = lambda target: self._grade(
            target, task, self._language(self._next(target), chosen.language)
        )
        return self._rows(rows)

    def _rows(self, rows: Mapping[RowKind, Callable[[str], Stage]]) -> list[PlannedRow]:
        wanted = [kind for kind in rows if kind in self._space.baselines]
        return [PlannedRow(kind, {target: rows[kind](target) for target in self._space.targets}) for kind in wanted]

    def _next(self, target: str) -> str:
        targets = self._space.targets
        return targets[(targets.index(target) + 1) % len(targets)]

    def _grade(self, target: str, task: Stage, vector: Stage | Published | None) -> Stage:
        inputs: list[tuple[str, Stage]] = [("task", task)]
        if isinstance(vector, Stage):
            inputs.append(("language", vector))
        settings = GradeSettings(
            language=target, benchmark=self._space.benchmark,
            valid=self._given.evaluation[target, "valid"], test=self._given.evaluation[target, "test"],
            vector=None if isinstance(vector, Stage) else vector, max_length=self._space.task.max_length,
        )  # fmt: skip
        return Stage("grade", settings, tuple(inputs))

    def _task(self, denoise: Denoise | None) -> Stage:
        settings = _sparse_settings(self._space.task, denoise)
        return Stage("sparse", settings, (("dense", self._dense_task),))

    def _language(self, language: str, denoise: Denoise | None) -> Stage:
        settings = _sparse_settings(self._space.language, denoise)
        return Stage("sparse", settings, (("dense", self._dense_language(language)),))

    @cached_property
    def _source_vector(self) -> Stage | Published | None:
        """phi_source: published, or learnt here at one setting of its own."""
        if self._space.source.learn is not None:
            return self._language(self._space.of.source_language, self._space.source.learn)
        return self._given.source_sft

    @cached_property
    def _dense_task(self) -> Stage:
        start = self._source_vector if self._space.source.start else None
        settings = DenseSettings(
            language=self._space.of.source_language, task=self._task_data, backbone=self._published,
            start=None if isinstance(start, Stage) else start, training=self._space.task.training,
            seed=self._space.seed,
        )  # fmt: skip
        return Stage("dense", settings, self._trained + ((("start", start),) if isinstance(start, Stage) else ()))

    def _dense_language(self, language: str) -> Stage:
        settings = DenseSettings(
            language=language, task=None, backbone=self._published, lm_head=self._given.lm_head,
            training=self._space.language.training, seed=self._space.seed,
        )  # fmt: skip
        return Stage("dense", settings, (("text", self._text(language)), *self._trained))

    def _text(self, language: str) -> Stage:
        settings = TextStageSettings(
            language=language, source=self._given.corpora[language], text=self._space.language.text,
            backbone=self._published, seed=self._space.seed,
        )  # fmt: skip
        return Stage("text", settings, self._trained)

    def _check(self, language: str) -> Stage:
        text, known = self._text(language), self._given.evaluation
        settings = CheckSettings(
            **{name: getattr(text.settings, name) for name in TextStageSettings.model_fields},
            training=self._space.language.training, benchmark=self._space.benchmark,
            evaluation={split: known[language, split] for split in EVALUATION_SPLITS if (language, split) in known},
        )  # fmt: skip
        return Stage("check", settings, text.inputs)

    @cached_property
    def _task_data(self) -> TaskData:
        leaks, given, source = leak_rule(self._space), self._given, self._space.of.source_language
        # only LT-SFT's rule looks at the training data's own test split
        splits = [split for split in given.training if split != "test" or leaks == "lt-sft"]
        compared = EVALUATION_SPLITS if leaks != "none" else ()
        return TaskData(
            benchmark=self._space.benchmark, training={split: given.training[split] for split in splits}, leaks=leaks,
            evaluation_texts=given.evaluation_texts,
            evaluation={split: given.evaluation[source, split] for split in compared},
            max_length=self._space.task.max_length, max_rows=self._space.task.max_rows,
        )  # fmt: skip

    @property
    def _published(self) -> Published | None:
        return None if isinstance(self._given.backbone, Stage) else self._given.backbone

    @property
    def _trained(self) -> tuple[tuple[str, Stage], ...]:
        return (("backbone", self._given.backbone),) if isinstance(self._given.backbone, Stage) else ()

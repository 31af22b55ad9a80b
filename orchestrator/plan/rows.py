"""From a space and its resolved inputs to stages: every combination and every baseline is a row of them.

Pure: nothing is opened here. What a space reads is resolved in `inputs`; in what order stages run is in `schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from deftx.config import EVALUATION_SPLITS, Denoise
from deftx.sources.published import Published
from deftx.stages.build import check_stage, dense_language, dense_task, grade_stage, sparse_stage, text_stage
from deftx.stages.kinds import kind_of
from deftx.stages.stage import Stage, walk
from orchestrator.plan.inputs import ResolvedInputs
from orchestrator.record.sweep import GradeRow, RowKind
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
        stages = {target: grade.input("language") for target, grade in self.grades.items()}
        return {target: stage for target, stage in stages.items() if stage is not None}

    @property
    def stages(self) -> list[Stage]:
        """Every stage the row needs, inputs first."""
        return list(walk(self.grades.values()))

    @property
    def parts(self) -> list[Stage]:
        """What models of the row are composed of: the backbone, where it is pre-trained here, and the vectors."""
        backbones = [stage.input("backbone") for stage in self.stages]
        vectors = [stage for stage in with_vectors(self.grades.values()) if not kind_of(stage.kind).seals]
        return list({stage.address: stage for stage in [*backbones, *vectors] if stage is not None}.values())

    def record(self) -> GradeRow:
        """The row as the sweep's state keeps it."""
        return GradeRow(
            kind=self.kind, number=self.number, task_sft=self.task.address,
            parameters=self.combination.record() if self.combination else {},
            grades={target: grade.address for target, grade in self.grades.items()},
            language_sfts={target: stage.address for target, stage in self.languages.items()},
        )  # fmt: skip


def with_vectors(grades: Iterable[Stage]) -> Iterator[Stage]:
    """Grades, each preceded by the vectors it composes: what the store must hold of a finished row."""
    for grade in grades:
        yield from (needed for _, needed in grade.inputs if kind_of(needed.kind).makes_sft)
        yield grade


class Planner:
    """The stages of a space's combinations and baselines. Pure: the same space and inputs give the same stages."""

    def __init__(self, space: Space, resolved: ResolvedInputs) -> None:
        self._space, self._resolved = space, resolved
        # one object for what many rows share: each knows its address once it was asked for it
        self._text, self._language, self._task = cache(self._text_of), cache(self._language_of), cache(self._task_of)

    def combination(self, number: int, combination: Combination) -> PlannedRow:
        """The row of combination `number` of the search."""
        task = self._task(combination.task)
        grades = {t: self._grade(t, task, self._language(t, combination.language)) for t in self._space.targets}
        return PlannedRow("combination", grades, number, combination)

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
        source = [self._space.benchmark_spec.source_language] if self._space.source.learn else []
        return [self._check(language) for language in [*self._space.targets, *source]]

    def controls(self, chosen: Combination) -> list[PlannedRow]:
        """The rows without the right language vector, with the vectors of the combination that was chosen.

        They differ from it in the language vector alone, and not in the setting of the task vector.
        """
        task = self._task(chosen.task)
        rows: dict[RowKind, Callable[[str], Stage]] = {"task": lambda target: self._grade(target, task, None)}
        if self._space.source.given:
            rows["task+source"] = lambda target: self._grade(target, task, self._source_sft)
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

    def _grade(self, target: str, task: Stage, language_sft: Stage | Published | None) -> Stage:
        evaluation = {split: self._resolved.evaluation[target, split] for split in EVALUATION_SPLITS}
        return grade_stage(task, language_sft, target, self._space.benchmark, evaluation, self._space.task.max_length)

    def _task_of(self, denoise: Denoise | None) -> Stage:
        return sparse_stage(self._dense_task, self._space.task, denoise)

    def _language_of(self, language: str, denoise: Denoise | None) -> Stage:
        recipe = self._space.language
        dense = dense_language(self._text(language), recipe.training, self._resolved.lm_head)
        return sparse_stage(dense, recipe, denoise)

    @cached_property
    def _source_sft(self) -> Stage | Published | None:
        """phi_source: published, or learnt here at its own fixed setting; None without a source vector."""
        if self._space.source.learn is not None:
            return self._language(self._space.benchmark_spec.source_language, self._space.source.learn)
        return self._resolved.source_sft

    @cached_property
    def _dense_task(self) -> Stage:
        space, resolved = self._space, self._resolved
        start = self._source_sft if space.source.start else None
        return dense_task(space.benchmark, resolved.task, space.task, resolved.backbone, start, space.seed)

    def _text_of(self, language: str) -> Stage:
        space, resolved = self._space, self._resolved
        return text_stage(language, resolved.corpora[language], space.language.text, resolved.backbone, space.seed)

    def _check(self, language: str) -> Stage:
        source = self._resolved.task.evaluation if language == self._space.benchmark_spec.source_language else {}
        targets = {split: table for (lang, split), table in self._resolved.evaluation.items() if lang == language}
        training = self._space.language.training
        return check_stage(self._text(language), training, self._space.benchmark, {**source, **targets})

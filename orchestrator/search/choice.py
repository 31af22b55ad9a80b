"""Which combination is chosen: the score of each by the space's rule of selection, and how ties are broken.

Reads what stages measured on validation, and nothing of test.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

from deftx.stages.facts import GradeFacts, SparseFacts
from deftx.stages.kinds import F
from deftx.stages.stage import Stage
from orchestrator.plan.rows import PlannedRow
from orchestrator.space.schema import Space


class Measured(Protocol):
    """Reads what published stages measured."""

    def __call__(self, stage: Stage, kind: type[F], /) -> F:
        """The facts of a stage, an instance of `kind`."""


class Choice:
    """The rule by which a space selects one of its combinations."""

    def __init__(self, space: Space, measured: Measured) -> None:
        self._space, self._measured = space, measured

    def score(self, row: PlannedRow) -> float:
        """The score of a combination whose stages are all published: the higher, the better."""
        if self._space.selection == "target-valid":
            metric = self._space.benchmark_spec.metric
            return statistics.fmean(self._measured(grade, GradeFacts).score(metric) for grade in row.grades.values())
        # the task's score less the mean held-out loss of theta0 + phi_L: two terms, so each side gets its best setting
        losses = [self._sft_facts(stage).loss for stage in row.languages.values()]
        return self._sft_facts(row.task).score - statistics.fmean(losses)

    def chosen(self, rows: Sequence[PlannedRow], scores: Mapping[int, float | None]) -> int | None:
        """The number of the combination with the best score, or None while none has a score.

        Ties go to the smaller ranks, then to the earlier combination.
        """
        best = max((score for score in scores.values() if score is not None), default=None)
        tied = [number for number, score in scores.items() if score is not None and score == best]
        return min(tied, key=lambda number: (*self._mean_ranks(rows[number]), number), default=None)

    def _mean_ranks(self, row: PlannedRow) -> tuple[float, float]:
        languages = [self._sft_facts(stage).mean_rank or 0.0 for stage in row.languages.values()]
        return statistics.fmean(languages or [0.0]), self._sft_facts(row.task).mean_rank or 0.0

    def _sft_facts(self, stage: Stage) -> SparseFacts:
        return self._measured(stage, SparseFacts)

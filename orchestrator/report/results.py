"""The grades of a sweep as numbers: every row on every target, with joint intervals and differences to LT-SFT.

The predictions are read in `record.grades`; texts and pictures are made from these numbers in `tables`, `summary` and
`plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from deftx.config import SPLIT_NAMES, EvaluationSplit, Metric
from deftx.evaluate.bootstrap import AVERAGE, Bootstrap, Predictions, Score, System
from deftx.evaluate.metrics import occurring_macro_f1
from deftx.evaluate.parallel import Disagreement, disagreements, groups, tied
from orchestrator.record.grades import Grades
from orchestrator.record.sweep import BASELINE_TITLES, GradeRow, RowKind, SweepFolder

RESULT_COLUMNS = [
    "row", "kind", "number", "chosen", "rank_l", "rank_t", "retention_l", "retention_t", "status", "language", "split",
    "metric", "n", "examples", "value", "low", "high", "difference", "difference_low", "difference_high", "occurring",
]  # fmt: skip


@dataclass(frozen=True)
class RowResult:
    """A row and its scores by target. The average is among them only when every target was graded."""

    row: GradeRow
    system: System
    scores: dict[str, Score]
    to_lt_sft: dict[str, Score]


@dataclass(frozen=True)
class Results:
    """The scores of all rows on one split."""

    split: EvaluationSplit
    targets: tuple[str, ...]
    labels: tuple[str, ...]
    metric: Metric
    rows: tuple[RowResult, ...]
    chosen: RowResult | None
    bootstrap: Bootstrap
    disagreements: tuple[Disagreement, ...] = ()
    """The pairs of targets whose equal ids are not the same item, so that their rows are drawn apart."""

    def baseline(self, kind: RowKind) -> RowResult | None:
        """The result of a baseline, or None if it was not graded at all."""
        return next((result for result in self.rows if result.row.kind == kind and result.scores), None)

    def difference(self, a: RowResult, b: RowResult) -> dict[str, Score]:
        """Scores of `a` minus those of `b` on the targets that both have; the average only when that is all of them."""
        return _difference(self.bootstrap, a.system, b.system, self.targets)

    def items(self, language: str = AVERAGE) -> int:
        """The number of items that are resampled for a language, or for all of them together."""
        return len({item for data in self._data(language) for item in data.ids})

    def examples(self, language: str = AVERAGE) -> int:
        """The number of rows of data of a language, or of all: more than the items where an item has several."""
        return sum(len(data.ids) for data in self._data(language))

    @cached_property
    def missing(self) -> dict[str, list[str]]:
        """The labels that no row of a target has, by target; empty where each occurs, or the metric has no classes."""
        gold = {name: data.gold for result in self.rows for name, data in result.system.items()}
        without = {
            name: [label for number, label in enumerate(self.labels) if number not in set(gold[name])]
            for name in self.targets
            if name in gold and self.metric == "macro_f1"
        }
        return {name: labels for name, labels in without.items() if labels}

    def occurring(self, result: RowResult, name: str) -> float | None:
        """Macro F1 over the labels that occur, as a share, where the score counts one that does not as 0; else None."""
        if name not in result.scores or not (self.missing if name == AVERAGE else name in self.missing):
            return None
        data = result.system.values() if name == AVERAGE else [result.system[name]]
        return float(np.mean([occurring_macro_f1(one.gold, one.predicted) for one in data]))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A line for each row and target or average, in percentage points; the columns are `RESULT_COLUMNS`.

        The last is there only where a table lacks a class.
        """
        sizes = {name: {"n": self.items(name), "examples": self.examples(name)} for name in [*self.targets, AVERAGE]}
        lines = [self._line(result, name) | size for result in self.rows for name, size in sizes.items()]
        frame = pd.DataFrame(lines, columns=RESULT_COLUMNS).astype({"number": "Int64"})
        return frame.drop(columns="occurring") if frame["occurring"].isna().all() else frame

    def _data(self, language: str) -> list[Predictions]:
        by_language = {name: data for result in self.rows for name, data in result.system.items()}
        return [data for name, data in by_language.items() if language in (name, AVERAGE)]

    def _line(self, result: RowResult, name: str) -> dict[str, Any]:
        row = result.row
        return {
            "row": row.title, "kind": row.kind, "number": row.number, "chosen": result is self.chosen,
            **row.parameters, "status": row.status, "language": name,
            "split": SPLIT_NAMES[self.split], "metric": self.metric,
            **_points(result.scores.get(name), "value", "low", "high"),
            **_points(result.to_lt_sft.get(name), "difference", "difference_low", "difference_high"),
            "occurring": None if (share := self.occurring(result, name)) is None else round(100 * share, 4),
        }  # fmt: skip


def read_results(
    folder: SweepFolder, targets: Sequence[str], split: EvaluationSplit, *, chosen_only: bool = False
) -> Results | None:
    """All rows (or the chosen one alone) on one split, or None while nothing was graded.

    Raises:
        StoreError: for the test split before the search has ended, or a grade that is gone, altered or unreadable.
        DataError: when rows were graded on different items.
    """
    grades = Grades(folder, split)
    graded = sorted(grades.rows(targets, chosen_only=chosen_only), key=lambda pair: _place(pair[0]))
    first = next((grade for _, by_target in graded for grade in by_target.values()), None)
    if first is None:
        return None
    bootstrap = Bootstrap(first.labels, first.metric)
    read: list[tuple[GradeRow, System]] = [
        (row, {name: grade.predictions for name, grade in by_target.items()}) for row, by_target in graded
    ]
    data = {name: system[name] for name in targets for _, system in read if name in system}
    found = disagreements(data)
    group = groups(data, found)
    systems = [(row, tied(system, group)) for row, system in read]
    lt_sft = next((system for row, system in systems if row.kind == "lt-sft"), {})
    rows = tuple(_row_result(bootstrap, row, system, lt_sft, targets) for row, system in systems)
    chosen = next((result for result in rows if result.row is grades.state.chosen_row), None)
    return Results(split, tuple(targets), first.labels, first.metric, rows, chosen, bootstrap, found)


def _place(row: GradeRow) -> tuple[int, int]:
    """The sort key of a row: combinations as they were asked, then baselines in the order of their titles."""
    if row.kind == "combination":
        return (-1, row.number or 0)
    return ([*BASELINE_TITLES].index(row.kind), 0)


def _row_result(
    bootstrap: Bootstrap, row: GradeRow, system: System, lt_sft: System, targets: Sequence[str]
) -> RowResult:
    scores = _complete(bootstrap.interval(system), targets) if system else {}
    to_lt_sft = _difference(bootstrap, system, lt_sft, targets) if row.kind != "lt-sft" else {}
    return RowResult(row, system, scores, to_lt_sft)


def _difference(bootstrap: Bootstrap, a: System, b: System, targets: Sequence[str]) -> dict[str, Score]:
    shared = [name for name in targets if name in a and name in b]
    if not shared:
        return {}
    difference = bootstrap.difference({name: a[name] for name in shared}, {name: b[name] for name in shared})
    return _complete(difference, targets)


def _complete(scores: Mapping[str, Score], targets: Sequence[str]) -> dict[str, Score]:
    """The scores, without the average unless it is over all targets: any other average is a different quantity."""
    whole = all(name in scores for name in targets)
    return {name: score for name, score in scores.items() if whole or name != AVERAGE}


def _points(score: Score | None, *names: str) -> dict[str, float]:
    """A score in percentage points under three column names; empty for None."""
    if score is None:
        return {}
    numbers = (score.value, score.low, score.high)
    return {name: round(100 * number, 4) + 0.0 for name, number in zip(names, numbers, strict=True)}

"""The grades of a sweep: what was predicted on validation and, sealed until the search has ended, on test.

No words and no intervals: what is made of the predictions is in the report.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from deftx.config import EvaluationSplit, Metric
from deftx.errors import StoreError
from deftx.evaluate.bootstrap import Predictions
from deftx.stages.files import SCORES, SEALED
from deftx.stages.store import Store
from orchestrator.record.sweep import Row, State

_FILES: dict[EvaluationSplit, str] = {"valid": SCORES, "test": SEALED}


class Grade(BaseModel):
    """One split of one grade stage: what was predicted for each row of a target's data."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    labels: tuple[str, ...]
    metric: Metric
    ids: list[str]
    gold: list[int]
    predicted: list[int]

    @property
    def predictions(self) -> Predictions:
        """The columns that are resampled."""
        return Predictions(self.ids, self.gold, self.predicted)


def read_grades(
    store: Store, state: State, targets: Sequence[str], split: EvaluationSplit
) -> list[tuple[Row, dict[str, Grade]]]:
    """Each row with its grades on one split, in the order of the targets; a row that is complete must have them all.

    Raises:
        StoreError: for the test split before the search has ended, or a grade that is gone, altered or unreadable.
    """
    if split == "test" and not state.ended:
        raise StoreError("the test scores stay sealed until the search has ended")
    return [(row, _read_row(store, row, targets, split)) for row in state.rows]


def _read_row(store: Store, row: Row, targets: Sequence[str], split: EvaluationSplit) -> dict[str, Grade]:
    wanted = {name: row.grades[name] for name in targets if name in row.grades}
    there = {n: a for n, a in wanted.items() if row.status == "complete" or store.manifest(a) is not None}
    return {name: _read_grade(store, address, split) for name, address in there.items()}


def _read_grade(store: Store, address: str, split: EvaluationSplit) -> Grade:
    path = store.fetch(address, _FILES[split])
    try:
        return Grade.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StoreError(f"{path}: not a grade ({error.errors()[0]['msg']})") from None

"""The grades of a sweep: what was predicted on validation and, sealed until the search has ended, on test.

The one place that opens sealed test scores: report, choice and tracker get them here, and nobody else does. Intervals
and texts are made of them in the report.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from deftx.config import METRIC_NAMES, EvaluationSplit, Metric
from deftx.data.normal import normal
from deftx.errors import StoreError
from deftx.evaluate.bootstrap import Predictions
from deftx.stages.files import SCORES, SEALED
from deftx.stages.records import read_record
from orchestrator.record.sweep import GradeRow, SweepFolder

_FILES: dict[EvaluationSplit, str] = {"valid": SCORES, "test": SEALED}


class Grade(BaseModel):
    """One split of one grade stage: what was predicted for each row of a target's data, and the scores of that."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    labels: tuple[str, ...]
    metric: Metric
    ids: list[str]
    gold: list[int]
    predicted: list[int]
    macro_f1: float
    accuracy: float

    @property
    def predictions(self) -> Predictions:
        """The columns that are resampled; ids that were recorded as tables spell them are compared in normal form."""
        return Predictions([normal(id) for id in self.ids], self.gold, self.predicted)

    @property
    def scores(self) -> dict[Metric, float]:
        """The score by each metric, as a share."""
        return {metric: float(getattr(self, metric)) for metric in METRIC_NAMES}


class Grades:
    """The grades of a sweep on one split. Those of the test split cannot be opened before the search has ended."""

    def __init__(self, folder: SweepFolder, split: EvaluationSplit) -> None:
        """Read the sweep's state, and open its grades.

        Raises:
            StoreError: for the test split before the search has ended.
        """
        self.state = folder.state()
        if split == "test" and not self.state.ended:
            raise StoreError("the test scores stay sealed until the search has ended")
        self._store, self._file = folder.store, _FILES[split]

    def rows(self, targets: Sequence[str], *, chosen_only: bool = False) -> list[tuple[GradeRow, dict[str, Grade]]]:
        """Each row (or the chosen one alone) with its grades, in the order of the targets; a complete row has them all.

        Raises:
            StoreError: for a grade that is gone, altered or unreadable.
        """
        chosen = self.state.chosen_row
        rows = [row for row in self.state.rows if row is chosen or not chosen_only]
        return [(row, self._of_row(row, targets)) for row in rows]

    def read(self, address: str) -> Grade:
        """The grade of one stage.

        Raises:
            StoreError: when it is gone, altered or unreadable.
        """
        path = self._store.fetch(address, self._file)
        advice = "run the sweep again, which makes it again"
        return read_record(Grade, path.read_bytes(), str(path), name="a grade", advice=advice)

    def _of_row(self, row: GradeRow, targets: Sequence[str]) -> dict[str, Grade]:
        addresses = {name: row.grades[name] for name in targets if name in row.grades}
        complete = row.status == "complete"
        return {
            name: self.read(address)
            for name, address in addresses.items()
            if complete or self._store.manifest(address) is not None
        }

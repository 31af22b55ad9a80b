"""Bootstrap intervals of scores, and of paired differences between two systems.

Test sets of several languages are parallel, so the unit of resampling is the item: it is drawn once and brings its rows
in every language that has it (several rows where one premise has several hypotheses). Whether equal ids are one item is
looked at in `parallel`. Percentile intervals (Efron and Tibshirani, 1993, chapter 13) show how a score depends on the
items drawn; how it depends on the training seed is not in them. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deftx.config import Metric
from deftx.errors import DataError
from deftx.evaluate.metrics import check_lengths

AVERAGE = "average"
"""The name, beside the languages, of the average over them."""

CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """The predictions of a system for one language, an entry a row.

    Attributes:
        ids: the items that are resampled; rows that share an id are drawn together.
        gold: indices of the true labels.
        predicted: indices of the predicted labels.
    """

    ids: Sequence[str]
    gold: Sequence[int]
    predicted: Sequence[int]

    def __post_init__(self) -> None:
        """Check that the columns have one length.

        Raises:
            DataError: when they have not, or are empty.
        """
        check_lengths(self.ids, self.gold, self.predicted)


System = Mapping[str, Predictions]
"""Predictions by language."""


@dataclass(frozen=True)
class Score:
    """A score, or a difference of scores, with its 95 % interval. All are shares: 0.01 is one percentage point."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In points: `71.2 [66.0, 75.3]`."""
        return f"{self.value * 100:.1f} [{self.low * 100:.1f}, {self.high * 100:.1f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of 0."""
        return self.low > 0 or self.high < 0


class Bootstrap:
    """Bootstrap intervals of one metric. The same seed and items give the same draws, so that systems are paired."""

    def __init__(self, labels: Sequence[str], metric: Metric, draws: int = 2000, seed: int = 0) -> None:
        """Bind what is measured and how it is resampled.

        Args:
            labels: all labels of the benchmark.
            metric: `macro_f1` or `accuracy`.
            draws: how often all items are redrawn: of 2,000 draws 50 lie beyond each end of a 95 % interval.
            seed: of the draws.
        """
        self.labels, self.metric, self.draws, self.seed = tuple(labels), metric, draws, seed

    def interval(self, system: System) -> dict[str, Score]:
        """The score on each language, and `AVERAGE`, the mean over them.

        Raises:
            DataError: for a label index outside the labels.
        """
        return _with_intervals(system, self._resample(system))

    def difference(self, a: System, b: System) -> dict[str, Score]:
        """The score of `a` minus that of `b` on each language, and `AVERAGE`, over the same draws.

        Raises:
            DataError: when the two were not graded on the same languages and items, or for an unknown label index.
        """
        _check_paired(a, b)
        return _with_intervals(a, self._resample(a) - self._resample({language: b[language] for language in a}))

    def _resample(self, system: System) -> Floats:
        """Scores on all items, then on every draw: [1 + draws, languages + 1], the average over languages last.

        The confusion matrix of a draw is the sum of its items' matrices: one matrix product gives those of all draws.
        """
        tables = _confusions(system, len(self.labels))  # [items, languages, labels, labels]
        weights = _weights(len(tables), self.draws, self.seed)  # [1 + draws, items]
        scores = _SCORES[self.metric](np.tensordot(weights, tables, axes=1))  # [1 + draws, languages]
        return np.column_stack([scores, scores.mean(axis=1)])


@lru_cache(maxsize=4)  # every row of a report is resampled by the same weights; validation and test have their own
def _weights(items: int, draws: int, seed: int) -> Floats:
    """How often each item counts, [1 + draws, items]: once in the first row, then as drawn with replacement."""
    counts = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=draws)
    return np.vstack([np.ones(items), counts])


def _confusions(system: System, labels: int) -> Floats:
    """A confusion matrix for each item and language, [items, languages, gold label, predicted label]."""
    if not system:
        raise DataError("a system needs predictions on at least one language")
    items = np.unique(np.concatenate([np.asarray(predictions.ids) for predictions in system.values()]))
    tables = [_confusion(language, predictions, items, labels) for language, predictions in system.items()]
    return np.stack(tables, axis=1)


def _confusion(language: str, predictions: Predictions, items: NDArray[Any], labels: int) -> Floats:
    """A confusion matrix of one language for each of the sorted `items`, [items, gold label, predicted label]."""
    shape = (len(items), labels, labels)
    item = np.searchsorted(items, np.asarray(predictions.ids))
    try:
        cells = np.ravel_multi_index((item, np.asarray(predictions.gold), np.asarray(predictions.predicted)), shape)
    except ValueError:
        raise DataError(f"{language}: a label index lies outside 0 to {labels - 1}") from None
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)


def _macro_f1(confusion: Floats) -> Floats:
    """Mean over the labels of F1 = 2 TP / (2 TP + FP + FN), 0 / 0 taken as 0: [..., labels, labels] -> [...]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    counted = confusion.sum(axis=-1) + confusion.sum(axis=-2)  # TP + FN and TP + FP
    f1 = np.divide(2 * hits, counted, out=np.zeros_like(counted), where=counted > 0)
    return _unless_empty(f1.mean(axis=-1), confusion)


def _accuracy(confusion: Floats) -> Floats:
    """Share of rows on the diagonal: [..., labels, labels] -> [...]."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return _unless_empty(hits / np.maximum(confusion.sum(axis=(-2, -1)), 1), confusion)


_SCORES = {"macro_f1": _macro_f1, "accuracy": _accuracy}


def _unless_empty(scores: Floats, confusion: Floats) -> Floats:
    """The scores, NaN where a draw holds no row of a language: it is left out of the quantiles, not counted as 0."""
    return np.where(confusion.sum(axis=(-2, -1)) > 0, scores, np.nan)


def _with_intervals(languages: System, resampled: Floats) -> dict[str, Score]:
    """Percentile intervals of what `_resample` gives, by language."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled[1:], [tail, 1 - tail], axis=0)
    columns = zip([*languages, AVERAGE], resampled[0], low, high, strict=True)
    return {name: Score(float(value), float(least), float(most)) for name, value, least, most in columns}


def _check_paired(a: System, b: System) -> None:
    if a.keys() != b.keys():
        raise DataError(f"systems graded on other languages cannot be paired: {sorted(a)} and {sorted(b)}")
    for language in a:
        rows = [sorted(zip(map(str, system[language].ids), system[language].gold, strict=True)) for system in (a, b)]
        if rows[0] != rows[1]:
            raise DataError(f"{language}: the two systems were not graded on the same items")

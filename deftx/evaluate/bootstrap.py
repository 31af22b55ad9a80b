"""How sure a score is: bootstrap intervals, and paired differences of two systems.

Test sets of several languages are parallel, so what is resampled is the item: it is drawn once and brings its rows in
every language that has it (several rows where one premise has several hypotheses). Percentile intervals (Efron and
Tibshirani, 1993) show how the score depends on the items drawn; what another training seed would do is not in them.
No torch here.
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

CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """What a system said about one language: one entry for each row, labels as indices.

    `ids` name the items that are resampled; rows of one language that share an id are drawn together.
    """

    ids: Sequence[str]
    gold: Sequence[int]
    predicted: Sequence[int]

    def __post_init__(self) -> None:
        """Refuse columns that do not fit together."""
        check_lengths(self.ids, self.gold, self.predicted)


System = Mapping[str, Predictions]


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with its 95 % interval; shares, so 0.01 is one percent point."""

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
    """Intervals from one set of draws: the same seed and the same items give the same draws, so systems are paired."""

    def __init__(self, labels: Sequence[str], metric: Metric, draws: int = 2000, seed: int = 0) -> None:
        """Settle what is measured and how often items are redrawn."""
        self.labels, self.metric, self.draws, self.seed = tuple(labels), metric, draws, seed

    def interval(self, system: System) -> dict[str, Estimate]:
        """The score on each language, and on the average over them, with intervals.

        Raises:
            DataError: for a label index that is none of the labels.
        """
        return _estimates(system, self._resample(system))

    def difference(self, a: System, b: System) -> dict[str, Estimate]:
        """How much better `a` is than `b`, language by language and on average, over the same draws.

        Raises:
            DataError: when the two were not graded on the same languages and items, or for an unknown label index.
        """
        _check_paired(a, b)
        return _estimates(a, self._resample(a) - self._resample({language: b[language] for language in a}))

    def _resample(self, system: System) -> Floats:
        """Scores on all items, then on every draw: (1 + draws, languages + 1), the average over languages last."""
        tables = _confusions(system, len(self.labels))  # (items, languages, labels, labels)
        weights = _weights(len(tables), self.draws, self.seed)  # (1 + draws, items)
        scores = _SCORES[self.metric](np.tensordot(weights, tables, axes=1))  # (1 + draws, languages)
        return np.column_stack([scores, scores.mean(axis=1)])


@lru_cache(maxsize=4)
def _weights(items: int, draws: int, seed: int) -> Floats:
    """How often each item counts: once each in the first row, then as drawn with replacement: (1 + draws, items)."""
    counts = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=draws)
    return np.vstack([np.ones(items), counts])


def _confusions(system: System, labels: int) -> Floats:
    """A confusion matrix for each item and language: (items, languages, gold label, predicted label)."""
    if not system:
        raise DataError("a system needs predictions on at least one language")
    items = np.unique(np.concatenate([np.asarray(one.ids) for one in system.values()]))
    return np.stack([_confusion(language, one, items, labels) for language, one in system.items()], axis=1)


def _confusion(language: str, one: Predictions, items: NDArray[Any], labels: int) -> Floats:
    """A confusion matrix of one language for each of the sorted `items`: (items, gold label, predicted label)."""
    shape = (len(items), labels, labels)
    rows = (np.searchsorted(items, np.asarray(one.ids)), np.asarray(one.gold), np.asarray(one.predicted))
    try:
        cells = np.ravel_multi_index(rows, shape)
    except ValueError:
        raise DataError(f"{language}: a label index lies outside 0 to {labels - 1}") from None
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)


def _macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the labels, 0 for a label that is neither there nor predicted: (..., labels, labels) -> (...)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    counted = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    f1 = np.divide(2 * hits, counted, out=np.zeros_like(counted), where=counted > 0)
    return _unless_empty(f1.mean(axis=-1), confusion)


def _accuracy(confusion: Floats) -> Floats:
    """Share of rows on the diagonal: (..., labels, labels) -> (...)."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return _unless_empty(hits / np.maximum(confusion.sum(axis=(-2, -1)), 1), confusion)


_SCORES = {"macro_f1": _macro_f1, "accuracy": _accuracy}


def _unless_empty(scores: Floats, confusion: Floats) -> Floats:
    """NaN where a draw holds no row of a language, so that it is left out of the quantiles rather than counted as 0."""
    return np.where(confusion.sum(axis=(-2, -1)) > 0, scores, np.nan)


def _estimates(languages: System, resampled: Floats) -> dict[str, Estimate]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled[1:], [tail, 1 - tail], axis=0)
    columns = zip([*languages, AVERAGE], resampled[0], low, high, strict=True)
    return {name: Estimate(float(value), float(least), float(most)) for name, value, least, most in columns}


def _check_paired(a: System, b: System) -> None:
    if a.keys() != b.keys():
        raise DataError(f"systems graded on other languages cannot be paired: {sorted(a)} and {sorted(b)}")
    for language in a:
        rows = [sorted(zip(map(str, system[language].ids), system[language].gold, strict=True)) for system in (a, b)]
        if rows[0] != rows[1]:
            raise DataError(f"{language}: the two systems were not graded on the same items")

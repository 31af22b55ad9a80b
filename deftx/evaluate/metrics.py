"""How good: the metric of one language. How sure a score is, is in `bootstrap`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deftx.config import Metric
from deftx.errors import DataError


def score(gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str], metric: Metric) -> float:
    """The metric of one language, between 0 and 1.

    Args:
        gold: indices into `labels`, one for each row.
        predicted: likewise.
        labels: all labels of the benchmark; macro F1 averages over every one of them, seen or not.
        metric: `macro_f1` or `accuracy`.

    Raises:
        DataError: when there are no rows, or the two differ in length.
    """
    from sklearn.metrics import accuracy_score, f1_score

    _check_lengths(gold, predicted)
    if metric == "accuracy":
        return float(accuracy_score(gold, predicted))
    return float(f1_score(gold, predicted, labels=np.arange(len(labels)), average="macro", zero_division=0.0))


def _check_lengths(*columns: Sequence[Any]) -> None:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(f"predictions need columns of one length of at least 1 row, not {lengths}")

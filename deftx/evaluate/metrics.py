"""The metric of one language. Intervals around it are in `bootstrap`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deftx.config import Metric
from deftx.errors import DataError


def score(gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str], metric: Metric) -> float:
    """The metric of one language, between 0 and 1.

    Args:
        gold: the true labels, as indices into `labels`, one for each row.
        predicted: the predicted labels, as indices too.
        labels: all labels of the benchmark; macro F1 averages over all of them, seen or not.
        metric: `macro_f1` or `accuracy`.

    Raises:
        DataError: when there are no rows, or `gold` and `predicted` differ in length.
    """
    from sklearn.metrics import accuracy_score, f1_score

    check_lengths(gold, predicted)
    if metric == "accuracy":
        return float(accuracy_score(gold, predicted))
    return float(f1_score(gold, predicted, labels=np.arange(len(labels)), average="macro", zero_division=0.0))


def occurring_macro_f1(gold: Sequence[int], predicted: Sequence[int]) -> float:
    """Macro F1 over the labels that stand in `gold`, between 0 and 1; `score` counts one that does not as 0.

    Raises:
        DataError: as `score`.
    """
    from sklearn.metrics import f1_score

    check_lengths(gold, predicted)
    return float(f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0.0))


def check_lengths(*columns: Sequence[Any]) -> None:
    """Check that columns have one length.

    Raises:
        DataError: when they have not, or are empty.
    """
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(f"predictions need columns of one length of at least 1 row, not {lengths}")

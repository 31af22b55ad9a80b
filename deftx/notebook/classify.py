"""A backbone and its vectors as a classifier of transformers, and its score on a labelled table."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args
from warnings import warn

from humanize import natural_list
from pydantic import ValidationError

from deftx.config import Metric
from deftx.data.catalogue import OwnBenchmark, benchmark
from deftx.data.examples import Examples, read_training
from deftx.errors import ConfigError, DataError, Problems
from deftx.evaluate.bootstrap import Bootstrap, Predictions, Score
from deftx.evaluate.metrics import occurring_macro_f1
from deftx.method.environment import check_device
from deftx.models.load import longest_input, quiet, reads_segments
from deftx.notebook.arguments import PathLike, list_of_labels, path_of
from deftx.recipes import explain_all
from deftx.sft.classifier import load_composed
from deftx.sft.vector import SparseFineTuning
from deftx.sources.files import file_source, read_text
from deftx.sources.published import local_folder, resolve_folder
from deftx.train.objectives import encode, predict

if TYPE_CHECKING:
    from transformers import TextClassificationPipeline

_MAX_LENGTH = 128
"""Tokens that a text is cut to for a vector that does not say what it was learnt with: a recipe's own."""
_SHORTEST = 8
"""The fewest tokens that a text may be cut to: a recipe's own."""


def compose(
    backbone: PathLike,
    task: SparseFineTuning | PathLike,
    language: SparseFineTuning | PathLike | None = None,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    revision: str = "main",
    device: str = "cpu",
) -> TextClassificationPipeline:
    """A classifier that predicts: the backbone with a task and a language vector added, as a pipeline of transformers.

    It is called with a text or a list of them (`{"text": ..., "text_pair": ...}` for a pair) and answers with labels
    and probabilities; its `model` and `tokenizer` are transformers' own, and `save_pretrained` writes a folder that
    transformers loads without deftx.

    Args:
        backbone: the folder or hub id that both vectors were learnt from.
        task: what `learn_task` returned, or the folder or hub id of a vector with a classifier; composable-sft's too.
        language: what `learn_language` returned, or folder or hub id; None: the task vector alone.
        weights: (lambda_T, lambda_L).
        labels: in the order of the classifier's outputs, for a task vector that does not name them.
        max_length: tokens that a text is cut to, never more than the backbone reads; None: what the task was learnt
            with, or 128 where that is not known.
        revision: branch, tag or commit of a backbone from the hub.
        device: where it computes, such as cuda.

    Raises:
        ConfigError: when the labels are neither known nor given, or a weight, a length or the device is wrong.
        DataError: when a vector was learnt from another backbone, or the task vector brings no classifier.
        HubError: when something has to be downloaded and cannot be.
    """
    from transformers import pipeline

    problems = Problems()
    folder = problems.get(lambda: local_folder(resolve_folder(path_of("backbone", backbone), revision)))
    head = problems.get(lambda: _loaded("task", task))
    sft = None if language is None else problems.get(lambda: _loaded("language", language))
    names = problems.get(lambda: _labels(head, labels)) if head is not None else None
    problems.get(lambda: _check_language(sft))
    problems.get(lambda: _check_weights(weights))
    problems.get(lambda: _check_length(max_length))
    problems.get(lambda: check_device(device))
    problems.tell()
    assert folder and head is not None and names, "each is missing only after an error, which was raised"
    length = max_length or head.metadata.max_length or _MAX_LENGTH
    model, tokenizer = load_composed(folder, head, sft, names, weights, length)
    with quiet():
        classifier: TextClassificationPipeline = pipeline(
            "text-classification", model=model, tokenizer=tokenizer, device=device, truncation=True,
            trust_remote_code=False,
        )  # fmt: skip
    return classifier


def grade(classifier: TextClassificationPipeline, table: PathLike, *, metric: Metric = "macro_f1") -> Score:
    """The score of a classifier on labelled sentences with its 95 % interval, both as shares.

    Args:
        classifier: what `compose` returned, or any text classification pipeline with a fast tokenizer.
        table: a CSV file with the columns `text` and `label`, and `hypothesis` for pairs. Where it has a column `id`,
            rows with the same one are resampled together.
        metric: macro_f1 or accuracy. Macro F1 counts a label that no row has as 0; a warning then says what it is over
            the labels that occur.

    Raises:
        ConfigError: for a classifier that is no pipeline, or an unknown metric.
        DataError: for a missing table or column, or a label that is none of the classifier's, by file and line.
    """
    if not hasattr(classifier, "model") or not hasattr(classifier, "tokenizer"):
        raise ConfigError(f"classifier: a pipeline such as compose returns, not {type(classifier).__name__}")
    if metric not in (metrics := get_args(Metric)):
        raise ConfigError(f"metric: {' or '.join(metrics)} (given: {metric!r})")
    model: Any = classifier.model
    tokenizer: Any = classifier.tokenizer
    labels = tuple(model.config.id2label[number] for number in range(model.config.num_labels))
    rows = _rows(path_of("table", table), labels)
    length = min(tokenizer.model_max_length, longest_input(model))
    encoded = encode(tokenizer, rows.texts, rows.pairs, rows.labels, length, reads_segments(model))
    predicted = predict(model, encoded, tokenizer.pad_token_id, classifier.device)
    system = {"table": Predictions(rows.ids, encoded.labels.tolist(), predicted.tolist())}
    if metric == "macro_f1" and (lacking := sorted(set(range(len(labels))) - set(rows.labels))):
        names, occurring = natural_list([repr(labels[number]) for number in lacking]), _occurring(system["table"])
        warn(f"{table}: no row is labelled {names}, which macro F1 counts as 0; {occurring}", stacklevel=2)
    return Bootstrap(labels, metric).interval(system)["table"]


def _occurring(rows: Predictions) -> str:
    return f"over the labels that occur it is {100 * occurring_macro_f1(rows.gold, rows.predicted):.1f}"


def _loaded(name: str, vector: SparseFineTuning | PathLike) -> SparseFineTuning:
    return vector if isinstance(vector, SparseFineTuning) else SparseFineTuning.from_pretrained(path_of(name, vector))


def _classifies(sft: SparseFineTuning) -> bool:
    return any(name.startswith("classifier.") for name in sft.head)


def _check_language(sft: SparseFineTuning | None) -> None:
    if sft is not None and _classifies(sft):
        raise DataError("language: this vector brings a classifier, so it is a task's")


def _check_weights(weights: object) -> None:
    numbers = weights if isinstance(weights, tuple | list) else ()
    if len(numbers) != 2 or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ConfigError(f"weights: two numbers, of the task and of the language vector (given: {weights!r})")


def _check_length(length: object) -> None:
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < _SHORTEST):
        raise ConfigError(f"max_length: a whole number of tokens, at least {_SHORTEST} (given: {length!r})")


def _labels(task: SparseFineTuning, labels: Sequence[str] | None) -> tuple[str, ...]:
    if not _classifies(task):
        raise DataError("task: this vector brings no classifier; learn_task returns one that does")
    names = tuple(task.metadata.labels or ()) if labels is None else list_of_labels(labels)
    if len(names) < 2:
        raise ConfigError("the task vector does not say what its labels are; name two or more as labels=[...]")
    return names


def _rows(table: str, labels: tuple[str, ...]) -> Examples:
    source = file_source(table)
    columns = next(csv.reader(read_text(source).splitlines()), [])
    kind = "nli" if "hypothesis" in columns else "sentiment"
    try:
        own = OwnBenchmark.model_validate({"name": "table", "kind": kind, "labels": labels, "source_language": "und"})
    except ValidationError as error:
        raise ConfigError("\n".join(f"classifier: {line}" for line in explain_all(error))) from None
    return read_training(benchmark(own), (source,), "test")

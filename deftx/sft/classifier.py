"""A composition as a classifier that predicts: its backbone, vectors and head in one model, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deftx.errors import DataError
from deftx.models.load import cut_length, load_classifier, load_tokenizer, reads_segments
from deftx.models.parameters import head_of, pooler_of
from deftx.sft.compose import compose_in_place
from deftx.sft.vector import SparseFineTuning


def load_composed(
    folder: Path,
    task: SparseFineTuning,
    language: SparseFineTuning | None,
    labels: tuple[str, ...],
    weights: tuple[float, float],
    max_length: int,
) -> tuple[Any, Any]:
    """(model, tokenizer) of theta0 + lambda_T phi_T + lambda_L phi_L with the task's head, both transformers' own.

    Args:
        folder: the backbone's.
        labels: in the order of the head's outputs.
        weights: (lambda_T, lambda_L).
        max_length: tokens that a text is cut to, or fewer where the model reads no more; the tokenizer's
            `model_max_length`.

    Raises:
        DataError: when the task vector brings no classifier or one for other labels, or a vector is for another
            backbone.
    """
    model = load_classifier(folder, labels, seed=0).eval()
    _check_head(model, task, labels)
    compose_in_place(model, task, language, weights)
    model.config.problem_type = "single_label_classification"
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = cut_length(max_length, model)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()  # else the length it was last used with stays in tokenizer.json
    if not reads_segments(model):  # a pipeline would give it what the tokenizer makes, whatever the model reads
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return model, tokenizer


def _check_head(model: Any, task: SparseFineTuning, labels: tuple[str, ...]) -> None:
    """Check that the task vector brings a whole classifier for these labels; the model's own is a random draw.

    Published vectors of a BERT bring its first layer, the pooler, as changes of the pretrained one.
    """
    pooler = pooler_of(model)
    published = (
        {f"{model.base_model_prefix}.{name}" for name in pooler} if pooler.keys() & task.indices.keys() else set()
    )
    if missing := [name for name in head_of(model) if name not in task.head.keys() | published]:
        raise DataError(f"the task vector has no {missing[0]}: it brings no classifier, so it is not that of a task")
    if task.metadata.labels and tuple(task.metadata.labels) != labels:
        raise DataError(f"the labels are {', '.join(labels)}; the task vector's: {', '.join(task.metadata.labels)}")

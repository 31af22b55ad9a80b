"""How a stage reads in MLflow: what its numbers are called, with their units, its settings as params, and a sentence.

A metric's part before the slash is the section of MLflow's charts that it stands in. Scores are in percent points, as
in the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deftx.stages.store import Manifest
from orchestrator.wording import METRIC_WORDS

_PARAM_LENGTH = 1000

_NAMES: dict[str, tuple[str, float]] = {
    # what a stage calls a number -> what MLflow shows, times what
    "valid_loss": ("result/best validation loss", 1),
    "valid_score": ("result/best validation score points", 100),
    "best_step": ("result/best step", 1),
    "steps": ("result/steps", 1),
    "k": ("mask/entries trained", 1),
    "changed_entries": ("mask/entries changed", 1),
    "jaccard_lt_sft": ("mask/overlap with LT-SFT mask percent", 100),
    "mean_rank": ("denoising/mean rank", 1),
    "entries_kept": ("denoising/residual entries kept percent", 100),
    "unknown_share": ("check/unknown tokens percent", 100),
    "energy_kept": ("denoising/residual energy kept percent", 100),
}
_CURVES: dict[str, tuple[str, float]] = {
    "train_loss": ("curve/training loss", 1),
    "valid_loss": ("curve/validation loss", 1),
    "valid_score": ("curve/validation score points", 100),
}
_SENTENCES = {
    "backbone": "A small model and its tokenizer, pre-trained here; everything else starts from it.",
    "check": "A look at the text of {language} before training; `check.json` has all that was counted.",
    "text": "The text of {language} as token blocks, made once and read by both phases.",
    "dense": "Dense phase of the vector of {subject}: everything that may train is trained. Its change of the weights "
    "chooses the entries of the sparse phase.",
    "sparse": "Sparse phase: **the vector of {subject}**. Only the chosen entries are trained. The folder `sft` among "
    "the artifacts loads with `deftx.sft.vector.SparseFineTuning.from_pretrained`.",
    "grade": "The composed model graded on {language}. Its test scores appear when the search has ended.",
}


def result(kind: str, key: str, value: float) -> tuple[str, float]:
    """The name and value of a stage's result.

    Args:
        kind: the stage's; what has no name here stands in a section of the kind.
        key: what the stage calls it.
        value: as the stage has it.
    """
    metric = key.removeprefix("valid_")
    if kind == "grade" and metric in METRIC_WORDS:
        return score_name("validation", metric), 100 * value
    name, factor = _NAMES.get(key, (f"{kind}/{key.replace('_', ' ')}", 1))
    return name, factor * value


def point(key: str, value: float) -> tuple[str, float]:
    """The name and value of a point of a curve."""
    name, factor = _CURVES.get(key, (f"curve/{key.replace('_', ' ')}", 1))
    return name, factor * value


def score_name(split: str, metric: str) -> str:
    """What a score on `validation` or `test` is called."""
    return f"score/{split} {_word(metric)} points"


def by_language(metric: str, language: str) -> str:
    """What the test score of one language is called at the sweep's own run."""
    return f"test {_word(metric)} by language/{language} points"


def results(manifest: Manifest) -> dict[str, float]:
    """All results of a published stage, and what it took."""
    named = dict(result(manifest.kind, key, value) for key, value in manifest.metrics.items())
    memory = {"time and memory/peak GiB": manifest.peak_bytes / 2**30} if manifest.peak_bytes else {}
    return named | {"time and memory/seconds": manifest.seconds} | memory


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Points and percentages to two decimals, as on the screen: MLflow's tables show all that there are."""
    return {name: round(value, 2) if name.endswith(("points", "percent")) else value for name, value in metrics.items()}


def params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as params, such as `denoise.rank` -> `100`.

    The language is a tag, and the files read are in `stage.json`: a digest says nothing in a column.
    """
    flat = dict(_flat({key: value for key, value in settings.items() if key != "language"}))
    return {key: value[:_PARAM_LENGTH] for key, value in flat.items()}


def sentence(kind: str, language: str, subject: str) -> str:
    """What a stage is, for MLflow's description."""
    return _SENTENCES.get(kind, "").format(language=language, subject=subject)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if _is_source(value):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, str):
            yield prefix + key, value or "none"
        else:
            yield prefix + key, json.dumps(value)


def _is_source(value: Any) -> bool:
    """Whether it is a file or a hub data set, or holds nothing else than such."""
    if isinstance(value, Mapping):
        return value.get("kind") == "file" or "split" in value or (bool(value) and all(map(_is_source, value.values())))
    if isinstance(value, list | tuple):
        return any(_is_source(item) for item in value)
    return False


def _word(metric: str) -> str:
    return next((words for name, words in METRIC_WORDS.items() if name == metric), metric)

"""What a task vector is learnt from, resolved: the source language's labelled tables, and what must not be in them.

Resolving touches files and the hub. What a language vector is learnt from is one text, see `corpora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deftx.config import EVALUATION_SPLITS, EvaluationSplit, LeakRule, Split
from deftx.data.catalogue import Benchmark
from deftx.data.examples import evaluation_source, read_examples, read_training, training_sources
from deftx.data.leaks import texts_digest
from deftx.errors import Problems
from deftx.sources.files import FileSource
from deftx.sources.hub import Source
from deftx.sources.revisions import resolve_once


@dataclass(frozen=True)
class TaskInputs:
    """The labelled data of a benchmark's source language, resolved to content or commit.

    Attributes:
        training: its tables by split.
        leaks: which training rows go for being in the evaluation sets.
        evaluation: the source language's evaluation sets, where training rows are compared with them.
        evaluation_texts: digest of their sentences, labels apart; None where nothing is compared.
    """

    training: Mapping[Split, tuple[Source, ...]]
    leaks: LeakRule = "none"
    evaluation: Mapping[EvaluationSplit, Source] = field(default_factory=dict)
    evaluation_texts: str | None = None


def task_inputs(benchmark: Benchmark, leaks: LeakRule, data_root: str | None) -> TaskInputs:
    """The labelled data of a benchmark. Files are read once, so that a wrong column or label is told now.

    Args:
        leaks: the rule asked for; a benchmark that has no leaks needs none.
        data_root: folder or URL of the original files; None: the hub.

    Raises:
        DeftxError: with a line for every file, data set, column and label that is not as it should be.
    """
    rule: LeakRule = leaks if benchmark.leaks else "none"
    problems, language = Problems(), benchmark.source_language
    training = problems.get(lambda: training_sources(benchmark, data_root)) or {}
    evaluation: dict[EvaluationSplit, Source] = {}
    for split in EVALUATION_SPLITS if rule != "none" else ():
        source = problems.get(lambda split=split: evaluation_source(benchmark, language, split, data_root))  # type: ignore[misc]
        evaluation |= {split: source} if source else {}
    if data_root is not None:
        read_tables(benchmark, training, {(language, split): source for split, source in evaluation.items()}, problems)
    problems.tell()
    return TaskInputs(training, rule, evaluation, _digest(benchmark, evaluation) if evaluation else None)


def read_tables(
    benchmark: Benchmark,
    training: Mapping[Split, tuple[Source, ...]],
    evaluation: Mapping[tuple[str, EvaluationSplit], Source],
    problems: Problems,
) -> None:
    """Read every table; what is wrong with one is kept in `problems`."""
    for split, sources in training.items():
        problems.get(lambda split=split, sources=sources: read_training(benchmark, sources, split))  # type: ignore[misc]
    for (language, part), table in evaluation.items():
        problems.get(lambda t=table, lang=language, part=part: read_examples(benchmark, t, lang, part))  # type: ignore[misc]


def _digest(benchmark: Benchmark, evaluation: Mapping[EvaluationSplit, Source]) -> str:
    """Digest of the source language's evaluation sentences, labels apart; of the hub's data sets once for a sweep."""

    def digest() -> str:
        language = benchmark.source_language
        return texts_digest(
            {part: read_examples(benchmark, table, language, part) for part, table in evaluation.items()}
        )

    if any(isinstance(table, FileSource) for table in evaluation.values()):
        return digest()
    return resolve_once(f"evaluation sentences of {benchmark.name}", digest)

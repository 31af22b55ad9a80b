"""Reading a benchmark: which source holds which split, and its rows as examples with labels and parallel items.

Planning asks for sources, which touches files (their content counts) but parses none; a stage reads the examples. What
the benchmarks are is data in `catalogue`, file formats are in `tables`, and rows that leak into evaluation in `leaks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deftx.data.catalogue import BENCHMARKS, Benchmark, Files, Labelled, OwnBenchmark, Parquet, Split, from_own
from deftx.data.tables import Row, read_rows
from deftx.errors import ConfigError, DataError
from deftx.sources.files import (
    FileSource,
    HubSource,
    Source,
    describe,
    file_source,
    hub_commit,
    hub_table,
    online_file,
    read_text,
)

__all__ = [
    "BENCHMARKS", "Benchmark", "Examples", "OwnBenchmark", "Split", "benchmark", "corpus_source", "evaluation_source",
    "every_line", "read_examples", "read_lines", "read_training", "training_sources",
]  # fmt: skip

_WIKIPEDIA: Mapping[str, str] = {"aym": "ay", "quy": "qu"} | {
    code: code for code in ("ace", "ban", "bjn", "bug", "en", "gn", "id", "jv", "mad", "min", "nah", "su")
}
"""Language: its Wikipedia. The others of the benchmarks have none."""


@dataclass(frozen=True)
class Examples:
    """Labelled texts in the order of their table.

    `ids` name the parallel item, which is the unit of resampling: equal across languages for the same item, and equal
    within a language for examples that share one. A NusaX sentence is an item of its own. The three hypotheses of an
    AmericasNLI premise are one item, since they are right or wrong together: ids repeat there, and an interval that
    took them for independent would be too narrow.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """The hypotheses of NLI, whose `texts` are premises."""
    labels: tuple[int, ...]
    """Index into the benchmark's labels."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Examples:
        """These rows, in this order."""
        pairs = None if self.pairs is None else tuple(self.pairs[row] for row in rows)
        return Examples(
            ids=tuple(self.ids[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            pairs=pairs,
            labels=tuple(self.labels[row] for row in rows),
        )


def benchmark(given: str | OwnBenchmark) -> Benchmark:
    """A built-in benchmark by name, or the one that a definition describes.

    Raises:
        ConfigError: with the nearest name, for one that does not exist.
    """
    if isinstance(given, OwnBenchmark):
        return from_own(given)
    if given not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {given!r}{hint(given, BENCHMARKS)}")
    return BENCHMARKS[given]


def evaluation_source(benchmark: Benchmark, language: str, split: Split, data_root: str | None = None) -> Source:
    """Where the evaluation set of a language lies, resolved to its content or commit.

    Args:
        split: valid or test.
        data_root: folder or fsspec URL with the original files; none: on line.

    Raises:
        ConfigError: for a language that the benchmark does not have, or the split train.
        DataError: when a file is missing or empty: its path and the layout expected.
        HubError: when there is no data root and no network.
    """
    name = _known(benchmark, language, benchmark.languages)
    if split == "train":
        raise ConfigError(f"{benchmark.name}: nothing is evaluated on the split train; choose valid or test")
    return _resolve(benchmark.evaluation, language, name, split, data_root)


def training_sources(benchmark: Benchmark, data_root: str | None = None) -> dict[Split, tuple[Source, ...]]:
    """The labelled data of the source language by split, resolved.

    NusaX has a third one, test, which nothing trains on: LT-SFT's rule for leaks looks for the nearest row there too.

    Raises:
        DataError, HubError: as `evaluation_source`.
    """
    language = benchmark.source_language
    name = benchmark.folder(language)
    return {
        split: (_resolve(benchmark.training, language, name, split, data_root),) for split in benchmark.training_splits
    }


def corpus_source(benchmark: Benchmark, language: str, data_root: str | None = None) -> Source:
    """Plain text of a language: `corpora/<code>.txt` under the data root, or its Wikipedia of November 2023.

    Raises:
        ConfigError: for a language that is none of the benchmark's.
        DataError: when the file is missing or empty, or there is no data root and no Wikipedia.
        HubError: when there is no data root and no network.
    """
    languages = benchmark.languages
    _known(benchmark, language, None if languages is None else (*languages, benchmark.source_language))
    if data_root is not None:
        return _file(f"{data_root.rstrip('/')}/corpora/{language}.txt", "corpora/<code>.txt: one passage a line, UTF-8")
    if language not in _WIKIPEDIA:
        raise DataError(f"{language}: no Wikipedia is known to be in it; give a data root with corpora/{language}.txt")
    repo = "wikimedia/wikipedia"
    config = f"20231101.{_WIKIPEDIA[language]}"
    return HubSource(repo=repo, commit=hub_commit(repo, kind="dataset"), config=config, split="train")


def read_examples(benchmark: Benchmark, source: Source, language: str, split: Split) -> Examples:
    """The evaluation examples of a language.

    Raises:
        DataError: naming file and line: what `read_rows` raises, an unknown label, an id that occurs twice.
        HubError: when a hub data set cannot be had.
    """
    _known(benchmark, language, benchmark.languages)
    return _examples(benchmark, benchmark.evaluation, (source,), split)


def read_training(benchmark: Benchmark, sources: Sequence[Source], split: Split) -> Examples:
    """The labelled examples of the source language, before leaks are removed; errors as `read_examples`."""
    return _examples(benchmark, benchmark.training, sources, split)


def read_lines(source: Source) -> list[str]:
    """The passages of a corpus: its non-empty stripped lines.

    Raises:
        DataError: when there is none, or a file is not UTF-8.
        HubError: when a hub data set cannot be had.
    """
    passages = list(filter(None, every_line(source)))
    if not passages:
        raise DataError(f"{describe(source)}: there is no text in it")
    return passages


def every_line(source: Source) -> Iterator[str]:
    """The stripped lines of a corpus, empty ones too: counted from 1 they have the numbers that an editor shows.

    Raises:
        DataError, HubError: as `read_lines`, but a text may be empty.
    """
    return (line.strip() for text in _texts(source) for line in text.split("\n"))


def _texts(source: Source) -> Iterator[str]:
    if isinstance(source, FileSource):
        yield read_text(source)
    else:
        yield from (row["text"] for row in hub_table(source, ["text"]))


def _known(benchmark: Benchmark, language: str, languages: Iterable[str] | None) -> str:
    """The language's name in the files.

    Args:
        languages: those it may be; none: any.

    Raises:
        ConfigError: with the nearest code.
    """
    if languages is not None and language not in set(languages):
        raise ConfigError(f"{benchmark.name} has no language {language!r}{hint(language, languages)}")
    return benchmark.folder(language)


def hint(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name and all of them; difflib, because a bare GPU machine has no rapidfuzz."""
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    meant = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"{meant}; valid: {', '.join(valid)}"


def _resolve(data: Labelled, language: str, name: str, split: Split, data_root: str | None) -> Source:
    if data_root is not None:
        path = data.local.path.format(language=name, split=data.local.splits.get(split, split))
        layout = data.local.path.format(language="<language>", split="<split>")
        return _file(f"{data_root.rstrip('/')}/{path}", f"{layout}: the files of {data.local.origin}")
    if data.online is None:
        raise DataError(f"{data.local.origin} is not on line; give the folder it was written to as data root")
    if isinstance(data.online, Files):
        return online_file(data.online.path.format(language=name, split=data.online.splits.get(split, split)))
    return _hub(data.online, language, split)


def _file(url: str, expected: str) -> FileSource:
    try:
        return file_source(url)
    except DataError as error:
        raise DataError(f"{error}; a data root holds {expected}") from None


def _hub(table: Parquet, language: str, split: Split) -> HubSource:
    commit = hub_commit(table.repo, kind="dataset")
    config = table.configs.get(language, language)
    return HubSource(repo=table.repo, commit=commit, config=config, split=table.splits[split])


def _examples(benchmark: Benchmark, data: Labelled, sources: Iterable[Source], split: Split) -> Examples:
    rows = [row for source in sources for row in _rows(data, source, split)]
    return Examples(
        ids=tuple(data.item(row.id) for row in rows),
        texts=tuple(row.text for row in rows),
        pairs=tuple(row.pair or "" for row in rows) if benchmark.kind == "nli" else None,
        labels=tuple(_label(benchmark, row) for row in rows),
    )


def _rows(data: Labelled, source: Source, split: Split) -> list[Row]:
    """The rows of one source that belong to a split."""
    table = data.online if isinstance(source, HubSource) and data.online is not None else data.local
    rows = read_rows(source, table.layout)
    if data.unique:
        _refuse_duplicates(rows)
    share = table.share if isinstance(table, Files) else None
    return rows if share is None else [row for row in rows if share(row.id, split)]


def _refuse_duplicates(rows: Iterable[Row]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        if (where := first.setdefault(row.id, row.where)) != row.where:
            raise DataError(f"{row.where}: the id {row.id!r} stands a second time, first at {where}")


def _label(benchmark: Benchmark, row: Row) -> int:
    if row.label not in benchmark.labels:
        raise DataError(f"{row.where}: unknown label {row.label!r}{hint(row.label, benchmark.labels)}")
    return benchmark.labels.index(row.label)

"""Reading a benchmark: the source of each split, and its rows as examples with labels and parallel items.

Planning asks for sources, which reads the files (their content counts) but does not parse them; a stage reads the
examples. The benchmarks themselves are data in `catalogue`; file formats are in `tables`, leaking rows in `leaks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deftx.config import Split
from deftx.data.catalogue import Benchmark, Files, Labelled, Parquet, name_in_files
from deftx.data.normal import normal
from deftx.data.tables import TableRow, read_rows
from deftx.errors import ConfigError, DataError, hint
from deftx.sources.files import file_source, online_file
from deftx.sources.hub import HubSource, Source, hub_commit


@dataclass(frozen=True)
class Examples:
    """Labelled texts in the order of their table.

    `ids` name the parallel item of each, the unit of resampling: the same item has the same id in every language, and
    examples of one language may share an item. They are in the normal form of `normal`, so that one id that two tables
    spell in two ways is one item. A NusaX sentence is an item. The three hypotheses of an AmericasNLI
    premise are one item, since they tend to be right or wrong together: taken for independent, they would make an
    interval too narrow.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """The hypotheses of NLI, whose `texts` are premises."""
    labels: tuple[int, ...]
    """Indices into the benchmark's labels."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Examples:
        """The examples of some rows, in the order given."""
        pairs = None if self.pairs is None else tuple(self.pairs[row] for row in rows)
        return Examples(
            ids=tuple(self.ids[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            pairs=pairs,
            labels=tuple(self.labels[row] for row in rows),
        )


def evaluation_source(benchmark: Benchmark, language: str, split: Split, data_root: str | None = None) -> Source:
    """The source of a language's evaluation set, resolved to its content or commit.

    Args:
        benchmark: what is evaluated.
        language: the code of one of its languages.
        split: valid or test.
        data_root: folder or fsspec URL with the original files; None: the hub or GitHub, as `catalogue` says.

    Raises:
        ConfigError: for a language that the benchmark does not have, or the split train.
        DataError: when a file is missing or empty: its path and the layout expected.
        HubError: when there is no data root and no network.
    """
    name = name_in_files(benchmark, language, benchmark.languages)
    if split == "train":
        raise ConfigError(f"{benchmark.name}: nothing is evaluated on the split train; choose valid or test")
    return _resolve(benchmark.evaluation, language, name, split, data_root)


def training_sources(benchmark: Benchmark, data_root: str | None = None) -> dict[Split, tuple[Source, ...]]:
    """The sources of the source language's labelled data by split, resolved to their content or commit.

    NusaX has a third split, test. Nothing trains on it, but LT-SFT's rule for leaks looks for nearest rows there too.

    Raises:
        DataError, HubError: as `evaluation_source`.
    """
    language = benchmark.source_language
    name = benchmark.folder(language)
    return {
        split: (_resolve(benchmark.training, language, name, split, data_root),) for split in benchmark.training_splits
    }


def read_examples(benchmark: Benchmark, source: Source, language: str, split: Split) -> Examples:
    """The evaluation examples of a language.

    Raises:
        ConfigError: for a language that the benchmark does not have.
        DataError: naming file and line: what `read_rows` raises, an unknown label, an id that occurs twice.
        HubError: when a hub data set cannot be loaded.
    """
    name_in_files(benchmark, language, benchmark.languages)
    return _examples(benchmark, benchmark.evaluation, (source,), split)


def read_training(benchmark: Benchmark, sources: Sequence[Source], split: Split) -> Examples:
    """The labelled examples of the source language, before leaks are removed; raises as `read_examples`."""
    return _examples(benchmark, benchmark.training, sources, split)


def _resolve(data: Labelled, language: str, name: str, split: Split, data_root: str | None) -> Source:
    if data_root is not None:
        path = data.local.path.format(language=name, split=data.local.splits.get(split, split))
        layout = data.local.path.format(language="<language>", split="<split>")
        return file_source(f"{data_root.rstrip('/')}/{path}", f"{layout}: the files of {data.local.origin}")
    if data.online is None:
        raise DataError(f"{data.local.origin} cannot be downloaded; give the folder it was written to as data root")
    if isinstance(data.online, Files):
        return online_file(data.online.path.format(language=name, split=data.online.splits.get(split, split)))
    return _hub(data.online, language, split)


def _hub(table: Parquet, language: str, split: Split) -> HubSource:
    commit = hub_commit(table.repo, kind="dataset")
    config = table.configs.get(language, language)
    return HubSource(repo=table.repo, commit=commit, config=config, split=table.splits[split])


def _examples(benchmark: Benchmark, data: Labelled, sources: Iterable[Source], split: Split) -> Examples:
    rows = [row for source in sources for row in _rows(data, source, split)]
    return Examples(
        ids=tuple(normal(data.item(row.id)) for row in rows),
        texts=tuple(row.text for row in rows),
        pairs=tuple(row.pair or "" for row in rows) if benchmark.kind == "nli" else None,
        labels=tuple(_label(benchmark, row) for row in rows),
    )


def _rows(data: Labelled, source: Source, split: Split) -> list[TableRow]:
    """The rows of one source that belong to a split."""
    table = data.online if isinstance(source, HubSource) and data.online is not None else data.local
    rows = read_rows(source, table.layout)
    if data.unique:
        _refuse_duplicates(rows)
    share = table.share if isinstance(table, Files) else None
    return rows if share is None else [row for row in rows if share(row.id, split)]


def _refuse_duplicates(rows: Iterable[TableRow]) -> None:
    first: dict[str, TableRow] = {}
    for row in rows:
        if (same := first.setdefault(normal(row.id), row)) is not row:
            spelt = "" if same.id == row.id else f" as {same.id!r}"
            raise DataError(f"{row.where}: the id {row.id!r} stands a second time, first at {same.where}{spelt}")


def _label(benchmark: Benchmark, row: TableRow) -> int:
    """The index of a row's label, which may be spelt in any way that has the same normal form."""
    given = normal(row.label)
    for index, label in enumerate(benchmark.labels):
        if normal(label) == given:
            return index
    raise DataError(
        f"{row.where}: unknown label {row.label!r}{hint(row.label, benchmark.labels)}; "
        f"valid: {', '.join(benchmark.labels)}"
    )

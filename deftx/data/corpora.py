"""The plain text of a language: its source, and its passages, one a line. Labelled tables are in `examples`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deftx.data.catalogue import Benchmark, name_in_files
from deftx.data.passages import TextLines, not_empty
from deftx.errors import DataError
from deftx.sources.files import FileSource, file_source, read_text
from deftx.sources.hub import HubSource, Source, hub_commit, hub_table

_WIKIPEDIA: Mapping[str, str] = {"aym": "ay", "quy": "qu"} | {
    code: code for code in ("ace", "ban", "bjn", "bug", "en", "gn", "id", "jv", "mad", "min", "nah", "su")
}
"""The code of each language's Wikipedia. The other languages of the benchmarks have no Wikipedia."""

_LINE_FEED, _ANY_END = re.compile("\n"), re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def corpus_source(benchmark: Benchmark, language: str, data_root: str | None = None) -> Source:
    """The source of a language's plain text: `corpora/<code>.txt` of a data root, or Wikipedia of November 2023.

    Args:
        benchmark: the language is one of its own.
        language: its code.
        data_root: folder or fsspec URL; None: the hub.

    Raises:
        ConfigError: for a language that the benchmark does not have.
        DataError: when the file is missing, empty or not UTF-8, or there is no data root and no Wikipedia.
        HubError: when there is no data root and no network.
    """
    languages = benchmark.languages
    name_in_files(benchmark, language, None if languages is None else (*languages, benchmark.source_language))
    if data_root is not None:
        file = f"{data_root.rstrip('/')}/corpora/{language}.txt"
        return file_source(file, "corpora/<code>.txt: one passage a line, UTF-8", text=True)
    return wikipedia(language)


def wikipedia(language: str) -> HubSource:
    """The Wikipedia of November 2023 in a language, on the hub.

    Raises:
        DataError: when there is none.
        HubError: when there is no network.
    """
    if language not in _WIKIPEDIA:
        file = f"a file; a sweep reads corpora/{language}.txt of its data root"
        raise DataError(f"{language}: no Wikipedia is known to be in it; give its text as {file}")
    repo = "wikimedia/wikipedia"
    config = f"20231101.{_WIKIPEDIA[language]}"
    return HubSource(repo=repo, commit=hub_commit(repo, kind="dataset"), config=config, split="train")


def read_lines(source: Source) -> Sequence[str]:
    """The passages of a corpus: its non-empty stripped lines.

    Raises:
        DataError: when there is no text, or a file is not UTF-8.
        HubError: when a hub data set cannot be loaded.
    """
    passages = not_empty(every_line(source))
    if not passages:
        raise DataError(f"{source.where}: there is no text in it")
    return passages


def every_line(source: Source) -> Sequence[str]:
    """The stripped lines of a corpus, empty ones too, so that counted from 1 they have an editor's line numbers.

    Line feeds end lines. In a file that has more line ends of other kinds (the carriage returns of an old Mac, U+0085,
    U+2028, U+2029) these end lines too.

    Raises:
        DataError, HubError: as `read_lines`, but a text may be empty.
    """
    if isinstance(source, FileSource):
        text = read_text(source)
        return TextLines(text, _ANY_END if _few_line_feeds(text) else _LINE_FEED)
    return [line.strip() for row in hub_table(source, ["text"]) for line in row["text"].split("\n")]


def _few_line_feeds(text: str) -> bool:
    others = sum(map(text.count, "\r\x85\u2028\u2029")) - text.count("\r\n")
    return others > text.count("\n")

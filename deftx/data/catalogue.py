"""The benchmarks as data: labels, metric, languages, and where their tables are. Nothing is read here.

Three are built in; an `OwnBenchmark` is defined in a space. With a data root (a folder or fsspec URL) the files are the
original ones, in the layouts given below. Without, they are parquet on the Hugging Face hub, or the original files on
GitHub where the hub has only a loading script (SmSA) or no ids (AmericasNLI).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from deftx.config import Metric, Settings, Split, TaskKind
from deftx.data.normal import normal
from deftx.data.tables import Layout
from deftx.errors import ConfigError, hint


@dataclass(frozen=True)
class Files:
    """A table a split, as files."""

    path: str
    """Below a data root, or a URL; `{language}` and `{split}` stand for their names in the files."""
    layout: Layout
    origin: str
    """Where the files come from, for the message that one is missing."""
    splits: Mapping[Split, str] = field(default_factory=lambda: {"train": "train", "valid": "valid", "test": "test"})
    share: Callable[[str, Split], bool] | None = None
    """Whether the row with an id belongs to a split, where one file holds all splits; None: each has its file."""


@dataclass(frozen=True)
class Parquet:
    """A table a split, on the Hugging Face hub."""

    repo: str
    layout: Layout
    splits: Mapping[Split, str]
    configs: Mapping[str, str | None] = field(default_factory=dict)
    """The configuration of each language for which it is not the language's code."""


@dataclass(frozen=True)
class Labelled:
    """A labelled data set, under a data root and to download."""

    local: Files
    online: Files | Parquet | None
    """None: it is under a data root only."""
    item: Callable[[str], str] = str
    """From the id of a row to its parallel item."""
    unique: bool = True
    """Whether an id may occur only once."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A task with parallel evaluation sets in several languages, and the labelled data of its source language.

    The order of `labels` is that of the published task vectors' heads.
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...]
    metric: Metric
    source_language: str
    targets: tuple[str, ...]
    """The target languages of the paper; empty: a space has to name them."""
    languages: Mapping[str, str] | None
    """The languages that can be graded, from ISO code to name in the files. None: any, named by its code."""
    evaluation: Labelled
    training: Labelled
    training_splits: tuple[Split, ...] = ("train", "valid")
    leaks: bool = False
    """Whether the training data hold sentences of the evaluation sets."""

    def folder(self, language: str) -> str:
        """The name of a language in the files."""
        return (self.languages or {}).get(language, language)


def word(value: object) -> object:
    """The value as text where it is a whole number, else as it is; YAML reads some bare words as booleans."""
    if isinstance(value, bool):
        raise ValueError("YAML reads a bare yes, no, on, off, true or false as a truth value: write it in quotes")
    if value is None:
        raise ValueError("YAML reads a bare null or ~ as nothing: write it in quotes")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("a line break or another control character is in it")
    return str(value) if isinstance(value, int) else value


def _said_twice(first: str, label: str) -> str:
    if first == label:
        return f"{label!r} is named twice"
    return (
        f"{first!r} and {label!r} are one label: neither case nor Unicode's normal form, the kind of an apostrophe "
        "or a character of no width tells two apart"
    )


Word = Annotated[str, BeforeValidator(word), Field(min_length=1)]
CODE = r"[A-Za-z0-9][A-Za-z0-9_-]*"
"""How the code of a language is written: it is part of paths."""
Code = Annotated[Word, Field(pattern=f"^{CODE}$")]


class OwnBenchmark(Settings):
    """Your own benchmark: `<name>/<language>/{train,valid,test}.csv` and `corpora/<language>.txt` under a data root.

    It is part of the stages that read it, so a worker needs no other file than the tables. Targets are not part of it,
    so that one more target leaves the trained stages as they are.
    """

    name: Code = Field(description="its folder under the data root")
    kind: TaskKind = Field("sentiment", description="sentiment: a label for a text; nli: for a text and its hypothesis")
    labels: tuple[Word, ...] = Field(
        min_length=2, description="every label as the files spell it, in either case and any of Unicode's normal forms"
    )
    metric: Metric = Field("macro_f1", description="what is optimised and reported")
    source_language: Code = Field(description="the language that has labelled training data")

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        first: dict[str, str] = {}
        for label in labels:
            if (form := normal(label)) in first:
                raise ValueError(_said_twice(first[form], label))
            first[form] = label
        return labels

    @field_validator("name")
    @classmethod
    def _not_built_in(cls, name: str) -> str:
        if name in BENCHMARKS:
            raise ValueError(f"{name} is built in: write `benchmark: {name}`, or give your own another name")
        return name


def _premise(row: str) -> str:
    """The premise of an AmericasNLI row: in every language its hypotheses are numbered 3n+1, 3n+2, 3n+3."""
    return str((int(row) - 1) // 3) if row.isdecimal() else row


def _prompt(pair: str) -> str:
    """The promptID of the premise: MultiNLI's pairID is that and the first letter of the label (c, e or n)."""
    return pair.rstrip("cen")


def _taxinli_share(pair: str, split: Split) -> bool:
    """Whether a pair belongs to train or valid: valid is a tenth of the premises, chosen by a hash of their id.

    So no premise is in both.
    """
    held_out = int(hashlib.sha256(_prompt(pair).encode()).hexdigest()[:8], 16) % 10 == 0
    return held_out == (split == "valid")


_GITHUB = "https://raw.githubusercontent.com"
_SENTIMENTS = ("negative", "neutral", "positive")
_NLI = ("entailment", "neutral", "contradiction")
_CSV = Layout(id="id", text="text", label="label", quoted=True)
_SMSA = Layout(text="text", label="label", header=("text", "label"))
# Three premises of the Nahuatl test set are blank in the original. They stay: the published scores are over all rows.
_AMERICAS = Layout(id="id", text="premise", pair="hypothesis", label="label", blank_text=True)
_AMERICAS_SPLITS: Mapping[Split, str] = {"valid": "dev", "test": "test"}

NUSAX = Benchmark(
    name="nusax",
    kind="sentiment",
    labels=_SENTIMENTS,
    metric="macro_f1",
    source_language="id",
    targets=("ace", "ban", "bjn", "mad", "min"),
    languages={
        "ace": "acehnese",
        "ban": "balinese",
        "bjn": "banjarese",
        "bug": "buginese",
        "en": "english",
        "id": "indonesian",
        "jv": "javanese",
        "mad": "madurese",
        "min": "minangkabau",
        "nij": "ngaju",
        "su": "sundanese",
        "bbc": "toba_batak",
    },
    evaluation=Labelled(
        local=Files("nusax/{language}/{split}.csv", _CSV, "datasets/sentiment of github.com/IndoNLP/nusax"),
        # Rows by number: the mirror keeps the order of the files, which is the same in all languages.
        online=Parquet(
            "mteb/NusaX-senti",
            Layout(text="text", label="label", codes=_SENTIMENTS),
            {"valid": "validation", "test": "test"},
            {"en": "eng", "id": "ind", "jv": "jav", "su": "sun"},
        ),
    ),
    training=Labelled(
        local=Files("smsa/{split}.tsv", _SMSA, "dataset/smsa_doc-sentiment-prosa of github.com/IndoNLP/indonlu"),
        online=Files(
            f"{_GITHUB}/IndoNLP/indonlu/5ec863db9e04beeb5430e833e0ef26c7a47762bc"
            "/dataset/smsa_doc-sentiment-prosa/{split}_preprocess.tsv",
            _SMSA,
            "GitHub",
        ),
    ),
    training_splits=("train", "valid", "test"),  # nothing trains on test, but LT-SFT's rule for leaks looks there too
    leaks=True,
)

AMERICASNLI = Benchmark(
    name="americasnli",
    kind="nli",
    labels=_NLI,
    metric="accuracy",
    source_language="en",
    targets=("aym", "bzd", "cni", "gn", "hch", "nah", "oto", "quy", "shp", "tar"),
    languages={code: code for code in ("aym", "bzd", "cni", "gn", "hch", "nah", "oto", "quy", "shp", "tar")},
    evaluation=Labelled(
        local=Files(
            "americasnli/{split}/{language}.tsv",
            _AMERICAS,
            "data/anli_final of github.com/abteen/americasnli",
            _AMERICAS_SPLITS,
        ),
        online=Files(
            f"{_GITHUB}/abteen/americasnli/bebd02ca1e4529016fca2e4554a5c48c285b8fba"
            "/data/anli_final/{split}/{language}.tsv",
            _AMERICAS,
            "GitHub",
            _AMERICAS_SPLITS,
        ),
        item=_premise,
    ),
    training=Labelled(
        local=Files(
            "nli_en/taxinli/taxinli10k.tsv",
            Layout(id="pairID", text="prem", pair="hyp", label="label"),
            "github.com/microsoft/TaxiNLI",
            share=_taxinli_share,
        ),
        # Not XNLI's English validation: AmericasNLI's development sets are translations of it.
        online=Parquet(
            "nyu-mll/multi_nli",
            Layout(id="pairID", text="premise", pair="hypothesis", label="label", codes=_NLI),
            {"train": "train", "valid": "validation_matched"},
            {"en": None},
        ),
        item=_prompt,
        unique=False,
    ),
)

ARCHIPELAGO = Benchmark(
    name="archipelago",
    kind="sentiment",
    labels=_SENTIMENTS,
    metric="macro_f1",
    source_language="sor",
    targets=("ila", "vek", "tum"),
    languages={code: code for code in ("sor", "ila", "vek", "tum")},
    evaluation=Labelled(Files("archipelago/{language}/{split}.csv", _CSV, "deftx.data.archipelago"), online=None),
    training=Labelled(Files("archipelago/{language}/{split}.csv", _CSV, "deftx.data.archipelago"), online=None),
)

BENCHMARKS: Mapping[str, Benchmark] = {entry.name: entry for entry in (NUSAX, AMERICASNLI, ARCHIPELAGO)}


def from_own(given: OwnBenchmark) -> Benchmark:
    """The benchmark that a definition describes: a table for each language and split, of the same columns everywhere.

    Where there is a column `id`, equal ids in two languages are the same item. An id is unique in its table, except
    that the pairs of one NLI text may share it.
    """
    pair = "hypothesis" if given.kind == "nli" else None
    layout = Layout(id="id", id_optional=True, text="text", pair=pair, label="label", quoted=True)
    origin = f"your benchmark {given.name!r}, with the columns {', '.join(layout.columns)} and, if you like, id"
    files = Files(f"{given.name}/{{language}}/{{split}}.csv", layout, origin)
    tables = Labelled(files, online=None, unique=given.kind != "nli")
    return Benchmark(
        name=given.name,
        kind=given.kind,
        labels=given.labels,
        metric=given.metric,
        source_language=given.source_language,
        targets=(),
        languages=None,
        evaluation=tables,
        training=tables,
    )


def benchmark(given: str | OwnBenchmark) -> Benchmark:
    """A built-in benchmark by name, or the one that a definition describes.

    Raises:
        ConfigError: with the nearest name, for one that does not exist.
    """
    if isinstance(given, OwnBenchmark):
        return from_own(given)
    if given not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {given!r}{hint(given, BENCHMARKS)}; valid: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[given]


def name_in_files(benchmark: Benchmark, language: str, languages: Iterable[str] | None) -> str:
    """The name of a language in the files.

    Args:
        benchmark: for the names, and for the error.
        language: its code.
        languages: the codes that are valid; None: any.

    Raises:
        ConfigError: for a code that is not valid, with the nearest one that is.
    """
    if languages is not None and language not in set(languages):
        raise ConfigError(
            f"{benchmark.name} has no language {language!r}{hint(language, languages)}; valid: {', '.join(languages)}"
        )
    return benchmark.folder(language)

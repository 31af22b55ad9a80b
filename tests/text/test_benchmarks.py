"""Benchmarks: every trap of the original files and of the hub, every message, and the counts of the real files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deftx.config import Split
from deftx.data import corpora, examples
from deftx.data.catalogue import BENCHMARKS, Benchmark, benchmark
from deftx.data.corpora import corpus_source, read_lines
from deftx.data.examples import Examples, evaluation_source, read_examples, read_training, training_sources
from deftx.errors import ConfigError, DataError, HubError
from deftx.sources import files as sources
from deftx.sources import hub as hub_module
from deftx.sources.files import FileSource
from deftx.sources.hub import HubSource

NUSAX, AMERICASNLI, ARCHIPELAGO = (BENCHMARKS[name] for name in ("nusax", "americasnli", "archipelago"))
COMMIT = "0123456789" * 4

needs_real_files = pytest.mark.skipif(not os.environ.get("DEFTX_DATA_ROOT"), reason="DEFTX_DATA_ROOT is not set")


def put(root: Path, path: str, content: str | bytes) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def ace(root: Path, content: str | bytes, split: Split = "test") -> Examples:
    """NusaX examples of Acehnese from a file with this content."""
    put(root, f"nusax/acehnese/{split}.csv", content)
    return evaluation(NUSAX, root, "ace", split)


def nahuatl(root: Path, *rows: str) -> Examples:
    put(root, "americasnli/test/nah.tsv", "\n".join(("id\tlanguage\tpremise\thypothesis\tlabel", *rows)) + "\n")
    return evaluation(AMERICASNLI, root, "nah", "test")


def evaluation(of: Benchmark, root: Path | str, language: str, split: Split) -> Examples:
    return read_examples(of, evaluation_source(of, language, split, str(root)), language, split)


def training(of: Benchmark, root: Path | str) -> dict[Split, Examples]:
    return {split: read_training(of, found, split) for split, found in training_sources(of, str(root)).items()}


# --- files


def test_nusax_keeps_line_breaks_and_quotes_within_cells_and_strips_edges(tmp_path: Path) -> None:
    found = ace(tmp_path, 'id,text,label\r\n7," dua\nbaris, ""kutip"" \n",positive\r\n9,\tbiasa ,negative\r\n')
    assert found == Examples(("7", "9"), ('dua\nbaris, "kutip"', "biasa"), None, (2, 0))


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert ace(tmp_path, b"\xef\xbb\xbfid,text,label\n1,a,neutral\n").labels == (1,)


def test_smsa_has_no_header_no_quoting_and_may_repeat_rows(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        put(tmp_path, f"smsa/{split}.tsv", '"satu , dua\tpositive\nsama\tneutral\nsama\tneutral\n')
    found = training(NUSAX, tmp_path)
    assert tuple(found) == ("train", "valid", "test")
    assert found["train"] == Examples(("0", "1", "2"), ('"satu , dua', "sama", "sama"), None, (2, 1, 1))


def test_americasnli_reads_quotes_as_text_and_keeps_blank_premises(tmp_path: Path) -> None:
    found = nahuatl(tmp_path, '4\tnah\t"a" b"\t c\tentailment', "5\tnah\t \td\tcontradiction")
    assert found.texts == ('"a" b"', "")
    assert found.pairs == ("c", "d")
    assert found.labels == (0, 2)


def test_hypotheses_of_one_premise_are_one_parallel_item(tmp_path: Path) -> None:
    rows = (f"{row}\tnah\tp\th\tneutral" for row in (25051, 25052, 25053, 25054, 25056, 25057))
    assert nahuatl(tmp_path, *rows).ids == ("8350", "8350", "8350", "8351", "8351", "8352")


def test_a_control_character_does_not_end_a_line(tmp_path: Path) -> None:
    assert nahuatl(tmp_path, "1\tnah\ta\x85b\u2028c\x9d\td\tneutral\r").texts == ("a\x85b\u2028c\x9d",)


def test_taxinli_is_split_by_premise_whatever_the_order(tmp_path: Path) -> None:
    rows = [f"p{n}\th{n}{letter}\tneutral\t{n}{letter}" for n in range(200) for letter in "cen"]
    found = []
    for order in (rows, rows[::-1]):
        put(tmp_path, "nli_en/taxinli/taxinli10k.tsv", "\n".join(("prem\thyp\tlabel\tpairID", *order)))
        found.append(training(AMERICASNLI, tmp_path))
    forward, backward = found
    assert set(forward["train"].texts) & set(forward["valid"].texts) == set()
    assert len(forward["train"]) + len(forward["valid"]) == 600
    assert len(forward["valid"]) == 3 * 14
    assert forward["valid"].pairs == (backward["valid"].pairs or ())[::-1]


def test_archipelago_reads_as_nusax_does(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        put(tmp_path, f"archipelago/sor/{split}.csv", f"id,text,label\n0,{split} a,negative\n")
    assert {split: found.texts for split, found in training(ARCHIPELAGO, tmp_path).items()} == {
        "train": ("train a",),
        "valid": ("valid a",),
    }
    assert evaluation(ARCHIPELAGO, tmp_path, "sor", "test").texts == ("test a",)


def test_passages_are_stripped_and_not_empty(tmp_path: Path) -> None:
    put(tmp_path, "corpora/bjn.txt", " satu\r\n\n \ndua\x85 tiga \n")
    source = corpus_source(NUSAX, "bjn", f"{tmp_path}/")
    assert list(read_lines(source)) == ["satu", "dua\x85 tiga"]


def test_examples_can_be_taken_by_row() -> None:
    found = Examples(("a", "b", "c"), ("x", "y", "z"), ("1", "2", "3"), (0, 1, 2))
    assert found.take([2, 0]) == Examples(("c", "a"), ("z", "x"), ("3", "1"), (2, 0))
    assert len(found.take([])) == 0


# --- messages


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,a\n", "line 1: no column 'label'; found: id, text; expected: id, text, label"),
        ("id\ttext\tlabel\n1\ta\tneutral\n", "line 1: no column 'id'; found: id\ttext\tlabel; expected: id, text"),
        ("id,text,label\n", "the table has no rows"),
        ("id,text,label\n1,a,neutral\n2,b\n", "line 3: 2 cells where there should be 3 (id, text, label)"),
        ('id,text,label\n1,"a\nb",neutral\n2, ,neutral\n', "line 4: the column 'text' is empty"),
        ("id,text,label\n1,a,\n", "line 2: the column 'label' is empty"),
        ("id,text,label\n,a,neutral\n", "line 2: the column 'id' is empty"),
        ("id,text,label\n1,a,positif\n", "line 2: unknown label 'positif' (did you mean 'positive'?); valid: negative"),
        ("id,text,label\n1,a,neutral\n2,b,neutral\n1,c,neutral\n", "line 4: the id '1' stands a second time, first at"),
        (
            'id,text,label\n1,a,neutral\n2,"b,neutral\n3,c,neutral\n',
            "line 3: a quote opens in this row and is never closed",
        ),
        (b"id,text,label\n1,a,neutral\n2,caf\xe9,neutral\n", "line 3: not UTF-8 (byte 0xe9)"),
        (" \n", "the file is empty"),
    ],
)
def test_bad_file_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        ace(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/nusax/acehnese/test.csv")
    assert message in str(error.value)


def test_blank_hypothesis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nah\.tsv, line 2: the column 'hypothesis' is empty"):
        nahuatl(tmp_path, "1\tnah\ta\t \tneutral")


def test_missing_file_is_named_with_the_layout_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        evaluation_source(NUSAX, "ace", "valid", str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/nusax/acehnese/valid.csv: no such file; a data root holds nusax/<language>/<split>.csv: "
        "the files of datasets/sentiment of github.com/IndoNLP/nusax"
    )
    with pytest.raises(DataError, match=r"smsa/train\.tsv: no such file; a data root holds smsa/<split>\.tsv"):
        training_sources(NUSAX, str(tmp_path))
    with pytest.raises(DataError, match=r"corpora/ace\.txt: no such file; a data root holds corpora/<code>\.txt"):
        corpus_source(NUSAX, "ace", str(tmp_path))


def test_changed_file_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, "corpora/ace.txt", "a\n")
    source = corpus_source(NUSAX, "ace", str(tmp_path))
    file.write_text("b\n")
    with pytest.raises(DataError, match="changed since the sweep was planned"):
        read_lines(source)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown benchmark 'nusaxx' \(did you mean 'nusax'\?\); valid: nusax, ameri"
    ):
        benchmark("nusaxx")
    with pytest.raises(ConfigError, match=r"nusax has no language 'aces' \(did you mean 'ace'\?\)"):
        evaluation_source(NUSAX, "aces", "test")
    with pytest.raises(ConfigError, match=r"americasnli has no language 'en' \(did you mean 'gn'\?\); valid: aym"):
        evaluation_source(AMERICASNLI, "en", "test")
    with pytest.raises(ConfigError, match="nothing is evaluated on the split train"):
        evaluation_source(NUSAX, "ace", "train")


# --- hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub in memory: repository to columns, or to columns and names of the labels."""
    import datasets

    tables: dict[str, Any] = {}

    def load_dataset(repo: str, config: str | None, *, split: str, revision: str, trust_remote_code: bool) -> Any:
        assert (revision, trust_remote_code) == (COMMIT, False)
        if repo not in tables:
            raise datasets.exceptions.DatasetNotFoundError(f"{repo} is not there")
        columns, names = tables[repo]
        table = datasets.Dataset.from_dict(columns)
        return table.cast_column("label", datasets.ClassLabel(names=names)) if names else table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub_module, "hub_info", lambda *_: None)
    for module in (examples, corpora):
        monkeypatch.setattr(module, "hub_commit", lambda repo, kind: COMMIT)
    return tables


def from_hub(of: Benchmark, language: str) -> Examples:
    return read_examples(of, evaluation_source(of, language, "test"), language, "test")


@pytest.mark.usefixtures("hub")
def test_sources_on_the_hub() -> None:
    assert evaluation_source(NUSAX, "id", "valid") == HubSource(
        repo="mteb/NusaX-senti", commit=COMMIT, config="ind", split="validation"
    )
    mnli = {"repo": "nyu-mll/multi_nli", "commit": COMMIT}
    assert training_sources(AMERICASNLI) == {
        "train": (HubSource(**mnli, split="train"),),
        "valid": (HubSource(**mnli, split="validation_matched"),),
    }
    wikipedia = {code: corpus_source(AMERICASNLI, code) for code in ("aym", "gn", "quy")}
    assert [found.config for found in wikipedia.values() if isinstance(found, HubSource)] == [
        "20231101.ay",
        "20231101.gn",
        "20231101.qu",
    ]
    with pytest.raises(DataError, match="bzd: no Wikipedia is known to be in it"):
        corpus_source(AMERICASNLI, "bzd")
    with pytest.raises(DataError, match="archipelago cannot be downloaded"):
        evaluation_source(ARCHIPELAGO, "ila", "test")


def test_labels_of_the_hub_go_by_name(hub: dict[str, Any]) -> None:
    columns = {"text": [" a ", "b", "c"], "label": [0, 1, 2]}
    hub["mteb/NusaX-senti"] = columns, ["positive", "neutral", "negative"]
    assert from_hub(NUSAX, "ace") == Examples(("0", "1", "2"), ("a", "b", "c"), None, (2, 1, 0))
    hub["mteb/NusaX-senti"] = columns, None
    assert from_hub(NUSAX, "ace").labels == (0, 1, 2)
    hub["mteb/NusaX-senti"] = {**columns, "label": ["neutral", "positive", "negative"]}, None
    assert from_hub(NUSAX, "ace").labels == (1, 2, 0)


def test_bad_tables_of_the_hub(hub: dict[str, Any]) -> None:
    with pytest.raises(HubError, match="mteb/NusaX-senti/ace/test: could not be loaded from the hub"):
        from_hub(NUSAX, "ace")
    hub["mteb/NusaX-senti"] = {"text": ["a", "b"], "label": [0, -1]}, None
    with pytest.raises(DataError, match="mteb/NusaX-senti/ace/test, row 1: label -1 has no name; names: negative"):
        from_hub(NUSAX, "ace")
    hub["mteb/NusaX-senti"] = {"tweet": ["a"], "label": [0]}, None
    with pytest.raises(DataError, match="no column 'text'; found: tweet, label; expected: text, label"):
        from_hub(NUSAX, "ace")


def test_articles_of_the_hub_become_passages(hub: dict[str, Any]) -> None:
    hub["wikimedia/wikipedia"] = {"text": ["a\n\n b", " ", "c"], "id": ["1", "2", "3"]}, None
    assert list(read_lines(corpus_source(NUSAX, "ace"))) == ["a", "b", "c"]


def test_original_files_come_from_github_where_the_hub_lacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def online_file(url: str) -> FileSource:
        asked.append(url.removeprefix("https://raw.githubusercontent.com/"))
        return FileSource(sha256="", url=url)

    monkeypatch.setattr(examples, "online_file", online_file)
    training_sources(NUSAX)
    evaluation_source(AMERICASNLI, "nah", "valid")
    smsa = "IndoNLP/indonlu/5ec863db9e04beeb5430e833e0ef26c7a47762bc/dataset/smsa_doc-sentiment-prosa"
    assert asked == [
        *(f"{smsa}/{split}_preprocess.tsv" for split in ("train", "valid", "test")),
        "abteen/americasnli/bebd02ca1e4529016fca2e4554a5c48c285b8fba/data/anli_final/dev/nah.tsv",
    ]


def test_a_file_that_is_missing_or_empty_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    for name, problem in (("no.txt", "no such file"), ("empty.txt", "the file is empty")):
        for expected, more in (("", ""), ("corpora/<code>.txt", "; a data root holds corpora/<code>.txt")):
            with pytest.raises(DataError) as told:
                sources.file_source(str(tmp_path / name), expected)
            assert str(told.value) == f"{tmp_path / name}: {problem}{more}"


def test_a_languages_name_leads_to_its_code() -> None:
    with pytest.raises(ConfigError, match=r"no language 'minangkabau' \(did you mean 'min'\?\); valid: ace, ban"):
        corpora.corpus_source(NUSAX, "minangkabau")


def test_unreachable_addresses_are_hub_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise LookupError("connection refused")

    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9/x: could not be fetched"):
        sources.file_source("http://127.0.0.1:9/x")
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    with pytest.raises(HubError, match=r"could not be reached for dataset 'no/such' \(connection refused\)"):
        hub_module.hub_commit("no/such", kind="dataset")


# --- the whole


def test_benchmarks_agree_with_the_paper() -> None:
    assert {name: (found.metric, found.source_language, found.targets) for name, found in BENCHMARKS.items()} == {
        "nusax": ("macro_f1", "id", ("ace", "ban", "bjn", "mad", "min")),
        "americasnli": ("accuracy", "en", ("aym", "bzd", "cni", "gn", "hch", "nah", "oto", "quy", "shp", "tar")),
        "archipelago": ("macro_f1", "sor", ("ila", "vek", "tum")),
    }
    assert all(set(found.targets) <= set(found.languages) for found in BENCHMARKS.values())


def test_import_is_light() -> None:
    heavy = "{'datasets', 'pandas', 'torch', 'rapidfuzz', 'transformers', 'numpy'}"
    code = f"import sys, deftx.data.examples, deftx.data.leaks; print({heavy} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@needs_real_files
def test_real_nusax() -> None:
    root = os.environ["DEFTX_DATA_ROOT"]
    labels = {"valid": Counter({0: 38, 1: 24, 2: 38}), "test": Counter({0: 153, 1: 96, 2: 151})}
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        reference = evaluation(NUSAX, root, "id", split)
        assert Counter(reference.labels) == labels[split]
        for language in NUSAX.languages:
            found = evaluation(NUSAX, root, language, split)
            assert (found.ids, found.labels) == (reference.ids, reference.labels)
    assert {split: len(found) for split, found in training(NUSAX, root).items()} == {
        "train": 11000,
        "valid": 1260,
        "test": 500,
    }


@needs_real_files
def test_real_americasnli() -> None:
    root = os.environ["DEFTX_DATA_ROOT"]
    sizes: dict[str, dict[Split, int]] = {"nah": {"valid": 585, "test": 738}, "oto": {"valid": 222, "test": 748}}
    sizes["cni"] = {"valid": 658, "test": 750}
    for language in AMERICASNLI.languages:
        for split, size in sizes.get(language, {"valid": 743, "test": 750}).items():
            found = evaluation(AMERICASNLI, root, language, split)
            assert len(found) == size
            premises = {(item, text) for item, text in zip(found.ids, found.texts, strict=True)}
            assert len(premises) == len(set(found.ids))
            assert found.texts.count("") == (3 if (language, split) == ("nah", "test") else 0)
    assert {split: len(found) for split, found in training(AMERICASNLI, root).items()} == {"train": 9057, "valid": 1014}

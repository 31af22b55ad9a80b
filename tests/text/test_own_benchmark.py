"""A benchmark of one's own: scores of the built-in one from the same files, what an address counts, and mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.islands import SPACE, TRAINING, folder_of, run, sweep, write_data, write_space

from deftx.config import Split
from deftx.data.catalogue import OwnBenchmark, benchmark
from deftx.data.examples import evaluation_source, read_examples
from deftx.errors import ConfigError, DataError
from deftx.stages.stage import Stage
from orchestrator.space.load import load_space
from orchestrator.space.schema import Space

OWN: dict[str, Any] = {
    "name": "reviews", "kind": "sentiment", "labels": ["negative", "neutral", "positive"], "metric": "macro_f1",
    "source_language": "sor",
}  # fmt: skip
SMALL: dict[str, Any] = {"source": None, "rank_l": [2], "rank_t": [2], "baselines": ["lt-sft", "task"]}
LEARNS = {**SPACE["task"], "training": {**TRAINING, "max_steps": 60, "learning_rate": 2e-2, "validate_every": 20}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The demo family, its tables in the layout of a benchmark called `reviews` as well."""
    folder = write_data(tmp_path / "data")
    shutil.copytree(folder / "archipelago", folder / "reviews")
    return folder


def own(name: str, split: Split, root: Path, **definition: Any) -> Any:
    of = benchmark(OwnBenchmark.model_validate({**OWN, **definition}))
    return read_examples(of, evaluation_source(of, name, split, str(root)), name, split)


def table(folder: Path, *rows: str, language: str = "gay", split: str = "test") -> Path:
    file = folder / "reviews" / language / f"{split}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return folder


def problems(folder: Path, benchmark: Any = OWN, **changes: Any) -> str:
    space = write_space(folder / "own.yaml", benchmark=benchmark, **{"targets": ["ila"], **changes})
    with pytest.raises(ConfigError) as caught:
        load_space(str(space))
    return str(caught.value)


@pytest.mark.slow
def test_the_scores_are_those_of_the_built_in_benchmark_on_the_same_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws are seeded by addresses, which count the definition: one seed for all stages makes them comparable."""
    monkeypatch.setattr(Stage, "seed", property(lambda stage: 7))
    for name, of in (("built-in", "archipelago"), ("own", OWN)):
        space = write_space(tmp_path / f"{name}.yaml", benchmark=of, task=LEARNS, **SMALL)
        result = run(space, data, tmp_path / "results")
        assert result.exit_code == 0, result.output
    rows = [folder_of(tmp_path / "results", name).state().rows for name in ("built-in", "own")]
    scores: list[list[Any]] = [[], []]
    for side, found in zip(scores, rows, strict=True):
        for row in found:
            for address in row.grades.values():
                attempt = next((tmp_path / "results" / "stages" / address).glob("attempt-*"))
                side += [json.loads((attempt / file).read_text()) for file in ("scores.json", "sealed_test.json")]
    assert len(scores[0]) == 2 * 2 * 3, "two languages, two splits; a combination, LT-SFT and the task vector alone"
    assert scores[0] == scores[1]
    assert len({score["macro_f1"] for score in scores[0]}) > 3, "a comparison of constants would show nothing"
    assert [row.language_sfts for row in rows[0]] == [row.language_sfts for row in rows[1]], "languages are shared"
    assert {row.task_sft for row in rows[0]}.isdisjoint(row.task_sft for row in rows[1])
    assert "reviews" in (tmp_path / "results" / "sweeps" / "own" / "report.md").read_text()
    changed = write_space(tmp_path / "own.yaml", benchmark={**OWN, "labels": OWN["labels"][::-1]}, **SMALL)
    refused = run(changed, data, tmp_path / "results")
    assert refused.exit_code == 2
    assert "sweep 'own' has benchmark" in refused.output


def test_the_definition_counts_and_targets_do_not(data: Path, tmp_path: Path) -> None:
    def task_address(**changes: Any) -> str:
        _, space = load_space(str(write_space(tmp_path / "own.yaml", **{"benchmark": OWN, **SMALL, **changes})))
        return planned(space, data)

    first = task_address()
    assert task_address(targets=["ila", "vek", "tum"]) == first
    assert task_address(benchmark={**OWN, "metric": "accuracy"}) != first
    assert task_address(benchmark={**OWN, "labels": OWN["labels"][::-1]}) != first
    assert task_address(benchmark="archipelago") != first


def planned(space: Space, data: Path) -> str:
    from orchestrator.plan.inputs import resolve
    from orchestrator.plan.rows import Planner

    return Planner(space, resolve(space, str(data))).combination(0, space.cells()[0]).task.address


def test_columns_may_stand_in_any_order_and_id_may_be_missing(tmp_path: Path) -> None:
    found = own("gay", "test", table(tmp_path, "label,note,text", 'positive,x," a, b "', "negative,y,c"))
    assert (found.texts, found.labels, found.pairs) == (("a, b", "c"), (2, 0), None)
    other = own("ban", "test", table(tmp_path, "label,text", "positive,d", "negative,e", language="ban"))
    assert len({*found.ids, *other.ids}) == 4, "the second row here and the second row there are not one item"


def test_ids_tie_languages_together_and_are_unique(tmp_path: Path) -> None:
    assert own("gay", "test", table(tmp_path, "id,text,label", "7,a,positive")).ids == ("7",)
    result = read_error(table(tmp_path, "id,text,label", "7,a,positive", "7,b,negative"))
    assert "test.csv, line 3: the id '7' stands a second time" in result
    assert "test.csv, line 2: the column 'id' is empty" in read_error(table(tmp_path, "id,text,label", ",a,positive"))


def test_ids_compare_in_normal_form_within_a_table_and_between_languages(tmp_path: Path) -> None:
    gay = own("gay", "test", table(tmp_path, "id,text,label", "\u00f1-7,a,positive"))
    ban = own("ban", "test", table(tmp_path, "id,text,label", "N\u0303-\u200b7,b,positive", language="ban"))
    assert gay.ids == ban.ids == ("\u00f1-7",)
    assert read_error(
        table(tmp_path, "id,text,label", "\u00f1-7,a,positive", "8,c,neutral", "n\u0303-7,b,negative")
    ).endswith(
        "test.csv, line 4: the id 'n\u0303-7' stands a second time, first at "
        f"{tmp_path}/reviews/gay/test.csv, line 2 as '\u00f1-7'"
    )


def test_a_label_is_known_in_any_spelling_with_its_normal_form(tmp_path: Path) -> None:
    labels = ["\u00f1embotavy", "y'\u1ef9mbovy", "Ipor\u00e3"]
    root = table(
        tmp_path,
        "text,label",
        "a,n\u0303embotavy",
        "b,Y\u2019y\u0303mbovy",
        "\u200bc,ipora\u0303\u200b",
        "d,\u00d1EMBOTAVY",
    )
    assert own("gay", "test", root, labels=labels).labels == (0, 1, 2, 0)
    with pytest.raises(DataError, match="line 2: unknown label 'nembotavy' \\(did you mean '\u00f1embotavy'"):
        own("gay", "test", table(tmp_path, "text,label", "a,nembotavy"), labels=labels)


def test_inference_has_pairs_whose_text_may_be_shared(tmp_path: Path) -> None:
    nli = {"kind": "nli", "labels": ["yes", "no"], "metric": "accuracy"}
    found = own("gay", "test", table(tmp_path, "id,text,hypothesis,label", "1,a,b,yes", "1,a,c,no"), **nli)
    assert (found.ids, found.pairs, found.labels) == (("1", "1"), ("b", "c"), (0, 1))
    assert benchmark(OwnBenchmark.model_validate({**OWN, **nli})).metric == "accuracy"
    with pytest.raises(
        Exception, match="no column 'hypothesis'; found: text, label; expected: text, hypothesis, label"
    ):
        own("gay", "test", table(tmp_path, "text,label", "a,yes"), **nli)


def read_error(root: Path) -> str:
    with pytest.raises(Exception) as caught:
        own("gay", "test", root)
    return str(caught.value)


def test_everything_wrong_with_the_files_is_told_at_once(data: Path, tmp_path: Path) -> None:
    reviews = data / "reviews"
    (reviews / "ila" / "valid.csv").unlink()
    (data / "corpora" / "vek.txt").unlink()
    edit(reviews / "vek" / "test.csv", header=["id", "sentence", "label"])
    edit(reviews / "sor" / "train.csv", label="positif")
    result = sweep(write_space(tmp_path / "own.yaml", benchmark=OWN, **SMALL), "--data-root", data, "--plan")
    assert result.exit_code == 2
    expected = (
        "a data root holds reviews/<language>/<split>.csv: the files of your benchmark 'reviews', with the columns"
    )
    for message in (
        f"{reviews}/ila/valid.csv: no such file; {expected} text, label and, if you like, id",
        f"{data}/corpora/vek.txt: no such file; a data root holds corpora/<code>.txt",
        f"{reviews}/vek/test.csv, line 1: no column 'text'; found: id, sentence, label; expected: text, label",
        f"{reviews}/sor/train.csv, line 2: unknown label 'positif' (did you mean 'positive'?); valid: negative",
    ):
        assert message in result.output, message


def edit(path: Path, *, header: list[str] | None = None, label: str | None = None) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        first, second, *rest = list(csv.reader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header or first, [*second[:2], label or second[2]], *rest])


def test_without_a_data_root_it_says_so(tmp_path: Path) -> None:
    result = sweep(write_space(tmp_path / "own.yaml", benchmark=OWN, **SMALL), "--plan", "--storage", tmp_path)
    assert result.exit_code == 2
    assert "reviews" in result.output
    assert "data root" in result.output


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "nusax"}, "benchmark.name: nusax is built in"),
        ({"name": "../up"}, "benchmark.name: String should match pattern"),
        ({"labels": ["good"]}, "benchmark.labels: Tuple should have at least 2 items"),
        ({"labels": ["good", "bad", "good"]}, "benchmark.labels: 'good' is named twice"),
        ({"labels": ["good", "bad", "Good"]}, "benchmark.labels: 'good' and 'Good' are one label: neither case nor"),
        (
            {"labels": ["\u00f1a", "bad", "n\u0303a"]},
            "benchmark.labels: '\u00f1a' and 'n\u0303a' are one label: neither",
        ),
        ({"labels": ["good", "fair", True]}, "benchmark.labels.2: YAML reads a bare yes, no, on, off"),
        ({"source_language": False}, "benchmark.source_language: YAML reads a bare yes, no"),
        ({"metric": "f1"}, "benchmark.metric: Input should be 'macro_f1' or 'accuracy' (given: 'f1')"),
        ({"lables": ["a", "b"]}, "benchmark.lables: unknown key (did you mean 'labels'?)"),
        ({"source_language": "ila"}, "'ila' is the source language and cannot be a target"),
    ],
)
def test_mistakes_in_a_definition(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    text = problems(tmp_path, {**OWN, **changes})
    assert "1 problem(s)" in text
    assert expected in text


def test_targets_must_be_named(tmp_path: Path) -> None:
    assert "targets: name the target languages" in problems(tmp_path, targets=[])


def test_a_missing_part_of_the_definition_is_named(tmp_path: Path) -> None:
    text = problems(tmp_path, {"name": "reviews"})
    assert "2 problem(s)" in text
    assert "benchmark.labels: missing" in text
    assert "benchmark.source_language: missing" in text


def test_whole_numbers_are_labels_as_they_are_written() -> None:
    assert OwnBenchmark.model_validate({**OWN, "labels": [0, 1]}).labels == ("0", "1")


def test_a_label_that_yaml_reads_as_nothing_is_told(tmp_path: Path) -> None:
    text = problems(tmp_path, {**OWN, "labels": ["negative", None]})
    assert "benchmark.labels.1: YAML reads a bare null or ~ as nothing: write it in quotes" in text


def test_the_preset_follows_the_kind_of_task(tmp_path: Path) -> None:
    """Batches of 16 for sentiment, of 32 for inference (Section 3.2 of the paper)."""
    for kind, batch in (("sentiment", 16), ("nli", 32)):
        space = write_space(tmp_path / "own.yaml", benchmark={**OWN, "kind": kind}, preset="paper", task={})
        assert load_space(str(space))[1].task.training.batch_size == batch

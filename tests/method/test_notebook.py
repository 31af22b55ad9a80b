"""The doors of a notebook: lazy names, mistakes told all at once, bars, and a classifier that predicts."""

from __future__ import annotations

import io
import random
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score
from support.tiny import LABELS, make_sft, same_bits, weights_of, write_backbone
from support.world import sentences
from transformers import pipeline

import deftx
from deftx import hardware
from deftx.config import Training
from deftx.errors import ConfigError, DataError, DeftxError
from deftx.models.load import load_classifier
from deftx.notebook import classify as door
from deftx.notebook import progress
from deftx.notebook.stages import language_stage, task_stage
from deftx.sft.compose import composed
from deftx.sft.vector import SparseFineTuning
from deftx.stages.settings import DenseSettings
from deftx.stages.stage import walk
from deftx.stages.store import Store
from deftx.train.objectives import predict

TABLES: dict[str, Any] = {"train": "a.csv", "valid": "b.csv", "labels": ["x", "y"]}
SHORT: dict[str, Any] = {
    "k": "20%", "epochs": None, "max_steps": 4, "batch_size": 4, "learning_rate": 5e-3, "validate_every": 2,
}  # fmt: skip
TEXT: dict[str, Any] = {**SHORT, "block": 12, "valid_fraction": 0.2, "rank": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "ace.txt"
    path.write_text("\n".join(sentences(60, 1)))
    return path


def table(path: Path, rows: int, seed: int, labels: tuple[str, ...] = LABELS, pairs: bool = False) -> Path:
    texts, seconds = sentences(rows, seed), sentences(rows, seed + 1)
    lines = [
        ",".join([text, *([second] if pairs else []), labels[number % len(labels)]])
        for number, (text, second) in enumerate(zip(texts, seconds, strict=True))
    ]
    path.write_text("\n".join(["text,hypothesis,label" if pairs else "text,label", *lines]))
    return path


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(deftx.__all__) <= set(dir(deftx))
    for name in deftx.__all__:
        assert getattr(deftx, name).__name__ == name
    with pytest.raises(AttributeError, match="'learn_languages'"):
        deftx.learn_languages  # type: ignore[attr-defined]  # noqa: B018


def test_every_mistake_of_a_language_is_told_at_once(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        deftx.learn_language(
            tmp_path / "my text.txt",
            backbone="./nowhere",
            rank=0.9,
            retention=2,
            seed=-1,
            max_step=5,
            batch_size=0,  # type: ignore[arg-type]
            store=tmp_path / "store",
        )
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "max_step", "batch_size", "rank", "retention", "language", "seed", f"{tmp_path}/my text.txt", "./nowhere",
    ]  # fmt: skip
    assert lines[0] == "max_step: unknown setting (did you mean 'max_steps'?)"
    assert lines[1] == "batch_size: Input should be greater than or equal to 1 (given: 0)"
    assert "write 90% for a share of variance" in lines[2]
    assert lines[4] == "language: 'my text' is no code of a language; name it, such as language='ace'"
    assert lines[6].endswith("no such file")
    assert not (tmp_path / "store").exists()


def test_a_preset_that_there_is_not_and_a_k_without_room_are_told_before_anything_runs(
    backbone: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'papr'"):
        deftx.learn_language(text, backbone=backbone, preset="papr", store=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^k: k = 7667712 is 7,667,712 entries; it must lie between 1 and"):
        deftx.learn_language(text, backbone=backbone, store=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "give a benchmark (nusax, americasnli, archipelago), or tables of your own as train=, valid= and labels="),
        ({"train": "a.csv", "labels": ["x", "y"]}, "labels=; there is no valid="),
        (
            {"of": "nusax", "kind": "nli", "metric": "accuracy", "data_root": "x"},
            "kind: 'nli' is for tables of your own; a benchmark has its own\nmetric: 'accuracy' is for",
        ),
        ({"of": 5}, "benchmark: a name or a deftx.OwnBenchmark, not int"),
        ({**TABLES, "data_root": "x"}, "data_root: is where a benchmark's files lie"),
        ({**TABLES, "kind": "pos", "metric": "f1"}, "(given: 'pos')\nmetric: Input should be"),
        ({**TABLES, "language": "a b"}, "language: String should match"),
        ({**TABLES, "labels": {"x", "y"}}, "labels: a list such as ['negative', 'positive'], not set"),
        ({**TABLES, "labels": "xy"}, "labels: a list such as ['negative', 'positive'], not str\na.csv: no such file\n"),
        ({**TABLES, "labels": np.array(["x", "y"])}, "labels: a list such as ['negative', 'positive'], not ndarray"),
        ({**TABLES, "train": np.array(["x"])}, "train: a path, URL or hub id, not ndarray"),
        ({**TABLES, "source": 5}, "source: the vector of a language, such as learn_language returns"),
        ({"of": "nusacks", "data_root": "x"}, "unknown benchmark 'nusacks' (did you mean 'nusax'?)"),
        ({"of": "nusax", "language": "ace", "data_root": "x"}, "'ace' is for tables of your own"),
        (
            {"of": "nusax", "leaks": "stric", "data_root": "x"},
            "leaks: strict, lt-sft, none (given: 'stric') (did you mean",
        ),
        ({"of": "nusax", "data_root": "nowhere"}, "nowhere/smsa/train.tsv: no such file"),
        ({"of": "nusax", "data_root": "nowhere"}, "nowhere/nusax/indonesian/test.csv: no such file"),
        ({"train": "a.csv", "valid": "b.csv", "labels": ["x"]}, "labels: "),
        ({"train": "a.csv", "valid": "b.csv", "labels": ["x", "y"]}, "b.csv: no such file"),
        ({"of": "nusax", "train": "a", "valid": "b", "labels": ["x", "y"]}, "nusax is built in"),
    ],
)
def test_what_a_task_is_learnt_from_is_told_where_it_is_not_clear(
    backbone: Path, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeftxError) as caught:
        task_stage(**call, backbone=backbone, k="10%")
    assert message in str(caught.value)


def test_an_unknown_label_is_told_by_file_and_line(backbone: Path, tmp_path: Path) -> None:
    train, valid = table(tmp_path / "train.csv", 9, 1), table(tmp_path / "valid.csv", 6, 2, ("negative", "neutrl"))
    with pytest.raises(DataError, match=r"valid.csv, line 3: unknown label 'neutrl' \(did you mean 'neutral'\?\)"):
        task_stage(train=train, valid=valid, labels=LABELS, backbone=backbone, k="10%")


def test_a_vector_that_lies_nowhere_is_no_start(backbone: Path, tmp_path: Path) -> None:
    loose = make_sft(load_classifier(backbone, LABELS, seed=0))
    train, valid = table(tmp_path / "train.csv", 9, 1), table(tmp_path / "valid.csv", 6, 2)
    common: dict[str, Any] = {"train": train, "valid": valid, "labels": LABELS, "backbone": backbone, "k": "10%"}
    common |= {"max_length": 16}
    with pytest.raises(ConfigError, match="does not say where it lies"):
        task_stage(**common, source=loose)
    loose.save_pretrained(tmp_path / "vector")
    dense = dict(task_stage(**common, source=tmp_path / "vector").inputs)["dense"].settings
    assert isinstance(dense, DenseSettings)
    assert dense.start is not None


def test_settings_go_to_their_group_and_a_smaller_max_steps_is_meant(backbone: Path, text: Path) -> None:
    stage = language_stage(text, backbone=backbone, k="10%", block=32, max_steps=7, language="gay")
    dense = dict(stage.inputs)["dense"]
    words = dict(dense.inputs)["text"].settings
    assert words.text.block == 32  # type: ignore[attr-defined]
    assert words.language == dense.language == "gay"  # type: ignore[attr-defined]
    expected = Training(epochs=100, max_steps=7, min_steps=7, l1=0.1, l1_gradient=False)
    assert dense.settings.training == expected  # type: ignore[attr-defined]


def test_objects_in_memory_and_devices_that_are_not_there_are_told_at_once(
    backbone: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        deftx.learn_language(
            ["a", "b"], backbone=make_sft, lm_head=None, store=None, execution=deftx.Execution(device="gpu"),  # type: ignore[arg-type]
        )  # fmt: skip
    told = str(caught.value).splitlines()
    assert told[:3] == [
        "text: a path, URL or hub id, not list",
        "backbone: a path, URL or hub id, not function",
        "lm_head: a path, URL or hub id, not NoneType",
    ]
    assert told[3].startswith("device: 'gpu' cannot be computed on here: ")
    assert told[4:] == ["store: a path, URL or hub id, not NoneType"]
    with pytest.raises(ConfigError) as caught:
        deftx.learn_language(text, backbone=make_sft, execution=deftx.Execution(device="gpu"), precision="auto")  # type: ignore[arg-type]
    told = str(caught.value).splitlines()
    assert told[0] == "backbone: a path, URL or hub id, not function"
    assert told[1].startswith("device: 'gpu' cannot be computed on here: ")
    for call in (language_stage, deftx.learn_language):
        with pytest.raises(ConfigError) as caught:
            call(text, backbone=make_sft, execution=5)  # type: ignore[operator]
        assert str(caught.value).splitlines() == [
            "execution: a deftx.Execution, such as Execution(threads=8), not int",
            "backbone: a path, URL or hub id, not function",
        ]
    for wrong, message in (
        ({"execution": {"device": "cpu"}}, "execution: a deftx.Execution, such as Execution(threads=8), not dict"),
        ({"language": 5}, "language: 5 is no code of a language"),
        ({"language": ""}, "language: '' is no code of a language"),
        ({"preset": ["paper"]}, "unknown preset"),
        ({"betas": (0.9, 2)}, "betas: Input should be less than 1 (given: 2)"),
        ({"retention_of": "all"}, "retention_of: Input should be 'numel' or 'nonzero' (given: 'all')"),
        ({"store": " "}, "store: is empty; a path, URL or hub id is expected"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            deftx.learn_language(text, **{"backbone": backbone, "store": tmp_path, **TEXT, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_task_starts_from_the_vector_of_a_language_only(
    backbone: Path, language: SparseFineTuning, task: SparseFineTuning, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"labels": LABELS, "backbone": backbone, "k": "10%", "max_length": 16}
    common |= {"train": table(tmp_path / "train.csv", 9, 1), "valid": table(tmp_path / "valid.csv", 6, 2)}
    assert dict(task_stage(**common, source=language).inputs)["dense"].input("start") == language.stage
    assert language.stage is not None
    for wrong in (task, task.stage, language.stage.input("dense"), language.stage.input("dense.text")):
        with pytest.raises(ConfigError, match="source: the vector of a language"):
            task_stage(**common, source=wrong)


def test_no_more_tokens_than_the_backbone_reads(backbone: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("\n".join(f"{sentence} " * 9 for sentence in sentences(40, 1)))
    with pytest.raises(ConfigError, match=r"block: 39 tokens, but .* reads 38 at most"):
        deftx.learn_language(long, backbone=backbone, store=tmp_path, **{**TEXT, "block": 39})
    deftx.learn_language(long, backbone=backbone, store=tmp_path, **{**TEXT, "block": 38})
    lines = [f"{sentence * 9},{LABELS[n % 3]}" for n, sentence in enumerate(sentences(12, 1))]
    rows = tmp_path / "long.csv"
    rows.write_text("\n".join(["text,label", *(line.replace("w", " w") for line in lines)]))
    own = {"train": rows, "valid": rows, "labels": LABELS, "backbone": backbone, "store": tmp_path, "rank": 2, **SHORT}
    with pytest.raises(ConfigError, match=r"^max_length: 128 tokens, but .* reads 38 at most$"):
        deftx.learn_task(**own)
    task = deftx.learn_task(**own, max_length=38)
    classify = deftx.compose(backbone, task)
    assert classify.tokenizer.model_max_length == 38
    classify.tokenizer.model_max_length = 10**30
    assert deftx.grade(classify, rows, metric="accuracy").low >= 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def language(backbone: Path, text: Path, store: Path) -> SparseFineTuning:
    return deftx.learn_language(text, backbone=backbone, store=store, **TEXT)


@pytest.fixture(scope="module")
def task(backbone: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> SparseFineTuning:
    folder = tmp_path_factory.mktemp("tables")
    train, valid = table(folder / "train.csv", 30, 3), table(folder / "valid.csv", 12, 5)
    return deftx.learn_task(
        "reviews",
        train=train,
        valid=valid,
        labels=LABELS,
        backbone=backbone,
        store=store,
        rank=2,
        max_length=16,
        **SHORT,
    )


def test_a_vector_shows_itself_in_a_line(backbone: Path, language: SparseFineTuning, task: SparseFineTuning) -> None:
    assert repr(language) == f"<SparseFineTuning ace · rank 2: {len(language):,} entries of {backbone}>"
    assert repr(task) == f"<SparseFineTuning reviews · und · rank 2: {len(task):,} entries of {backbone}>"
    assert "dense" not in repr(make_sft(load_classifier(backbone, LABELS, seed=0)))


def test_a_classifier_predicts_as_the_composition(
    backbone: Path, language: SparseFineTuning, task: SparseFineTuning, tmp_path: Path
) -> None:
    classify = deftx.compose(backbone, task, language, weights=(0.5, 2.0))
    with composed(load_classifier(backbone, LABELS, seed=0), task, language, (0.5, 2.0)) as model:
        assert same_bits(weights_of(classify.model), weights_of(model))
    answers = classify(["w1 w2 w3", "w4 " * 50])
    assert [sorted(answer) for answer in answers] == [["label", "score"]] * 2
    assert classify.tokenizer.model_max_length == 16
    classify.save_pretrained(tmp_path / "out")
    again = pipeline("text-classification", model=str(tmp_path / "out"))
    assert again("w1 w2 w3") == classify("w1 w2 w3")


def test_folders_of_vectors_are_composed_too(
    backbone: Path, language: SparseFineTuning, task: SparseFineTuning, tmp_path: Path
) -> None:
    language.save_pretrained(tmp_path / "ace")
    task.save_pretrained(tmp_path / "task")
    ours, theirs = (deftx.compose(backbone, t, v) for t, v in ((task, language), (tmp_path / "task", tmp_path / "ace")))
    assert same_bits(weights_of(ours.model), weights_of(theirs.model))


def test_what_does_not_fit_is_not_composed(
    backbone: Path, headless: Path, language: SparseFineTuning, task: SparseFineTuning, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="fingerprint"):
        deftx.compose(headless, task, language)
    with pytest.raises(ConfigError, match="name two or more as labels="):
        deftx.compose(backbone, replace(task, metadata=task.metadata.model_copy(update={"labels": None})))
    with pytest.raises(DataError) as caught:
        deftx.compose(backbone, language, task)
    assert str(caught.value).splitlines() == [
        "task: this vector brings no classifier; learn_task returns one that does",
        "language: this vector brings a classifier, so it is a task's",
    ]
    with pytest.raises(ConfigError) as faults:
        deftx.compose(backbone, task, weights=(1.0,), max_length=0, device="gpu")  # type: ignore[arg-type]
    assert [line.partition(":")[0] for line in str(faults.value).splitlines()] == ["weights", "max_length", "device"]
    with pytest.raises(ConfigError, match="labels: a list such as"):
        deftx.compose(backbone, task, labels="xy")
    with pytest.raises(DataError) as caught:
        deftx.compose("./nowhere", tmp_path / "nothing", tmp_path / "neither")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "./nowhere", f"{tmp_path}/nothing", f"{tmp_path}/neither",
    ]  # fmt: skip


@pytest.mark.parametrize("pairs", [False, True])
def test_a_grade_is_scikit_learns(
    backbone: Path, task: SparseFineTuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: bool
) -> None:
    rows = table(tmp_path / "test.csv", 60, 7, pairs=pairs)
    classify = deftx.compose(backbone, task)
    cells = [line.split(",") for line in rows.read_text().splitlines()[1:]]
    asked: Any = [{"text": c[0], "text_pair": c[1]} for c in cells] if pairs else [c[0] for c in cells]
    gold, said = [c[-1] for c in cells], [answer["label"] for answer in classify(asked)]
    read: list[Any] = []
    monkeypatch.setattr(door, "predict", lambda *given: read.append(given[1]) or predict(*given))
    ours = deftx.grade(classify, rows)
    assert ours.value == pytest.approx(f1_score(gold, said, labels=LABELS, average="macro", zero_division=0.0))
    assert deftx.grade(classify, rows, metric="accuracy").value == pytest.approx(accuracy_score(gold, said))
    columns = [[c[n] for c in cells] for n in range(1 + pairs)]
    assert list(read[0].ids) == classify.tokenizer(*columns, truncation=True, max_length=16)["input_ids"]
    assert ours.low <= ours.value <= ours.high
    assert str(ours) == f"{100 * ours.value:.1f} [{100 * ours.low:.1f}, {100 * ours.high:.1f}]"


def test_a_label_that_no_row_has_is_said_with_the_score_over_those_that_occur(
    backbone: Path, task: SparseFineTuning, tmp_path: Path
) -> None:
    classify, rows = deftx.compose(backbone, task), table(tmp_path / "test.csv", 30, 7, LABELS[:2])
    cells = [line.split(",") for line in rows.read_text().splitlines()[1:]]
    gold, said = [c[-1] for c in cells], [answer["label"] for answer in classify([c[0] for c in cells])]
    occurring = f1_score(gold, said, labels=LABELS[:2], average="macro", zero_division=0.0)
    expected = f"no row is labelled {LABELS[2]!r}, which macro F1 counts as 0; over the labels that occur it is "
    with pytest.warns(UserWarning, match=re.escape(f"{rows}: {expected}{100 * occurring:.1f}")):
        assert deftx.grade(classify, rows).value == pytest.approx(2 / 3 * occurring)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deftx.grade(classify, rows, metric="accuracy")
        deftx.grade(classify, table(tmp_path / "whole.csv", 30, 7))


def test_a_table_that_cannot_be_graded_says_why(backbone: Path, task: SparseFineTuning, tmp_path: Path) -> None:
    classify = deftx.compose(backbone, task)
    with pytest.raises(DataError, match=r"test.csv, line 2: unknown label 'good'"):
        deftx.grade(classify, table(tmp_path / "test.csv", 6, 1, ("good", "bad")))
    with pytest.raises(DataError, match=r"missing.csv: no such file"):
        deftx.grade(classify, tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match=r"metric: macro_f1 or accuracy \(given: 'f1'\)"):
        deftx.grade(classify, tmp_path / "test.csv", metric="f1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="classifier: a pipeline such as compose returns, not SparseFineTuning"):
        deftx.grade(task, tmp_path / "test.csv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="table: a path, URL or hub id, not list"):
        deftx.grade(classify, ["a"])  # type: ignore[arg-type]


def test_a_misspelt_argument_is_told_its_name(backbone: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^retension: unknown setting \(did you mean 'retention'\?\)$"):
        deftx.learn_language(text, backbone=backbone, store=tmp_path, retension=0.1)


def test_learning_leaves_the_notebooks_process_as_it_was(backbone: Path, text: Path, tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), float(torch.rand(()))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    deftx.learn_language(
        text, backbone=backbone, store=tmp_path, execution=deftx.Execution(threads=threads + 1), **TEXT
    )
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_nothing_is_shown_where_nobody_watches(
    backbone: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    deftx.learn_language(text, backbone=backbone, store=tmp_path, **TEXT)
    assert capfd.readouterr() == ("", "")


def watched(monkeypatch: pytest.MonkeyPatch, **kind: Any) -> io.StringIO:
    """What is written for somebody who watches."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=out, width=120, **kind))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return out


def test_a_terminal_sees_a_bar_for_each_stage(
    backbone: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = watched(monkeypatch, force_terminal=True, color_system=None)
    vector = deftx.learn_language(text, backbone=backbone, store=tmp_path, **TEXT)
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()))
    last = [line.split() for line in lines if line.strip()][-3:]
    manifest = Store(str(tmp_path)).manifest(vector.stage.address)  # type: ignore[union-attr]
    assert manifest is not None
    assert [" ".join(words[:3]) for words in last] == ["ace · text", "ace · dense", "ace · sparse"]
    assert not any("/" in word for word in last[0]), "a text has no steps"
    assert "4/4" in last[1]
    assert ["4/4", "validation", "loss", f"{manifest.curve[-1]['valid_loss']:.3f}"] == last[2][-5:-1]
    out.truncate(0)
    deftx.learn_language(text, backbone=backbone, store=tmp_path, **TEXT)
    assert not out.getvalue().strip("\0"), "what is in the store is not made again"
    deftx.learn_language(text, backbone=backbone, store=tmp_path / "other", progress=False, **TEXT)
    assert not out.getvalue().strip("\0")


def test_a_notebooks_cell_is_drawn_again_at_each_report_and_needs_no_widgets(
    backbone: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cells: list[str] = []

    def draw(bars: Any) -> None:
        cells.append(bars._repr_mimebundle_([], [])["text/plain"])

    def display(bars: Any, display_id: bool) -> Any:
        draw(bars)
        return SimpleNamespace(update=draw)

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    out = watched(monkeypatch, force_jupyter=True)
    deftx.learn_language(text, backbone=backbone, store=tmp_path, **TEXT)
    # a row begins for text, dense and sparse; each training then says its steps and validates twice; the end
    assert len(cells) == 3 + 2 * 3 + 1
    assert "ace · text" in cells[0]
    assert "2/4" in cells[3]
    assert cells[-1].count("4/4") == 2
    assert not out.getvalue()
    assert capfd.readouterr() == ("", "")


def test_another_backbone_of_the_same_shape_is_refused(
    task: SparseFineTuning, language: SparseFineTuning, tmp_path: Path
) -> None:
    other = write_backbone(tmp_path / "other", seed=5)
    with pytest.raises(DataError, match="fingerprint"):
        deftx.compose(other, task, language)


def test_auto_is_decided_by_the_device_that_learns(
    backbone: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"backbone": backbone, **TEXT}
    on_cpu, in_bf16 = language_stage(text, **given), language_stage(text, **given, precision="bf16")
    auto = {**given, "precision": "auto"}
    assert language_stage(text, **auto, execution=deftx.Execution()) == on_cpu
    assert language_stage(text, **auto, execution=deftx.Execution(device="cuda:1")) == in_bf16
    for has_gpu, expected in ((True, in_bf16), (False, on_cpu)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert language_stage(text, **auto) == expected
    own = {**TABLES, **{split: table(tmp_path / f"{split}.csv", 20, 3) for split in ("train", "valid")}}
    of_task = {"backbone": backbone, **own, "labels": LABELS, **SHORT, "rank": 2, "max_length": 16}
    expected_task = task_stage(**of_task, precision="bf16")
    assert task_stage(**of_task, precision="auto", execution=deftx.Execution(device="cuda")) == expected_task


def test_bf16_on_a_processor_without_it_is_refused_where_a_stage_would_train_in_it(
    backbone: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    with pytest.raises(ConfigError, match=r"^precision: bf16, but the CPU here has no bf16 instructions, "):
        deftx.learn_language(text, backbone=backbone, store=tmp_path, precision="bf16", **TEXT)
    stage = language_stage(text, backbone=backbone, precision="bf16", **TEXT)
    made = [needed.kind for needed in walk([stage]) if Store(str(tmp_path)).has(needed.address)]
    assert made == []
    assert not list(tmp_path.iterdir())
    in_float32 = deftx.learn_language(text, backbone=backbone, store=tmp_path, **TEXT)
    own = {**TABLES, **{split: table(tmp_path / f"{split}.csv", 20, 3) for split in ("train", "valid")}}
    task = {**own, "labels": LABELS, "backbone": backbone, "source": in_float32, "store": tmp_path, **SHORT, "rank": 2}
    task |= {"max_length": 16}
    with pytest.raises(ConfigError, match=r"^precision: bf16, but the CPU here has no bf16 instructions, "):
        deftx.learn_task(**task, precision="bf16")
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: True)
    in_bf16 = deftx.learn_language(text, backbone=backbone, store=tmp_path, precision="bf16", **TEXT)
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    assert deftx.learn_language(text, backbone=backbone, store=tmp_path, precision="bf16", **TEXT).stage == stage
    assert deftx.learn_task(**{**task, "source": in_bf16}).stage is not None, "what is made already is only read"

"""The chosen combination as a model that transformers loads by itself: weights, logits, predictions, mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from huggingface_hub import ModelCard
from pydantic import ValidationError
from safetensors.torch import load_file
from support.islands import folder_of, run, write_data, write_space
from support.patience import PATIENCE
from support.tiny import LABELS, make_sft, same_bits
from typer.testing import CliRunner, Result

from deftx.cli.app import app
from deftx.data.catalogue import BENCHMARKS
from deftx.data.examples import read_examples
from deftx.errors import ConfigError
from deftx.models.load import load_classifier, load_masked_lm, load_tokenizer
from deftx.models.parameters import head_of
from deftx.sft import card as cards
from deftx.sft.compose import composed
from deftx.sft.composition import Composition, SplitScore, Stored, read_chosen
from deftx.sft.export import export
from deftx.sft.vector import SFTMetadata, SparseFineTuning
from deftx.sources.files import file_source
from deftx.sources.published import resolve_folder
from deftx.train.objectives import encode, pad

KNOWN = BENCHMARKS["archipelago"]
ONE = {"rank_l": [2], "rank_t": ["90%"], "baselines": []}

PLAIN = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
found = {}
for folder, texts in json.load(sys.stdin).items():
    said = pipeline("text-classification", folder, truncation=True)(texts)
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts[:8], truncation=True, padding=True, return_tensors="pt")).logits
    found[folder] = {
        "said": [one["label"] for one in said], "logits": logits.numpy().tobytes().hex(), "kind": type(model).__name__
    }
assert not {"deftx", "orchestrator"} & set(sys.modules)
print(json.dumps(found))
"""


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


def complaint(*arguments: object) -> str:
    """What the command says of a mistake."""
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ") and "Traceback" not in result.output
    return result.output


def sentences(data: Path, language: str) -> list[str]:
    """The sealed test set."""
    source = file_source(f"{data}/archipelago/{language}/test.csv")
    return [*read_examples(KNOWN, source, language, "test").texts]


@pytest.fixture(scope="module")
def plain(exported: dict[str, Path], data: Path) -> dict[str, Any]:
    """What transformers makes of the exported folders and the test sets, in a process that imports no deftx."""
    texts = {str(folder): sentences(data, language) for language, folder in exported.items()}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN], input=json.dumps(texts), capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str]:
    """The storage of a sweep of one combination, and what the command said at its end."""
    storage = tmp_path_factory.mktemp("finished")
    result = run(write_space(storage / "tiny.yaml", **ONE), data, storage, "--name", "tiny")
    assert result.exit_code == 0, result.output
    return storage, result.output


@pytest.fixture(scope="module")
def chosen(finished: tuple[Path, str]) -> Path:
    return finished[0] / "sweeps" / "tiny"


@pytest.fixture(scope="module")
def exported(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each target language."""
    out = tmp_path_factory.mktemp("models")
    for language in ("ila", "vek"):
        result = command(chosen, language, out / language)
        assert (result.exit_code, result.output) == (0, f"{out / language}\n")
    return {language: out / language for language in ("ila", "vek")}


@pytest.fixture
def copy(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The sweep's folder in a storage of its own."""
    return shutil.copytree(finished[0], tmp_path / "moved") / "sweeps" / "tiny"


@pytest.fixture(scope="module")
def vectors(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `task`, `language` and `headless` of vectors that fit the tiny backbone; the task's says its labels."""
    folder, model = tmp_path_factory.mktemp("vectors"), load_classifier(backbone, LABELS, seed=5)
    made = {role: make_sft(load_masked_lm(backbone), seed=n) for n, role in enumerate(("task", "language"))}
    head = {name: parameter.detach() for name, parameter in head_of(model).items()}
    about = SFTMetadata(backbone="tiny", k=len(made["task"]), task="moods", language="sor", labels=[*LABELS])
    task = SparseFineTuning(made["task"].indices, made["task"].values, made["task"].shapes, about, head)
    for role, sft in {"task": task, "language": made["language"], "headless": made["task"]}.items():
        sft.save_pretrained(folder / role)
    return folder


# --- what is written


@pytest.mark.parametrize("language", ["ila", "vek"])
def test_plain_transformers_says_what_the_sweep_graded(
    plain: dict[str, Any], exported: dict[str, Path], finished: tuple[Path, str], data: Path, language: str
) -> None:
    """Every prediction on the sealed test set, and logits that are deftx's own bit for bit."""
    storage, _ = finished
    folder = folder_of(storage, "tiny")
    row = folder.state().chosen_row
    assert row is not None
    graded = json.loads(folder.store.fetch(row.grades[language], "sealed_test.json").read_text())
    found = plain[str(exported[language])]
    assert found["said"] == [KNOWN.labels[index] for index in graded["predicted"]]
    assert found["kind"] == "XLMRobertaForSequenceClassification"

    composition, store = read_chosen(str(folder.path), language)
    backbone = store.fetch_folder(composition.backbone.address, "model")  # type: ignore[union-attr]
    task, vector = (
        SparseFineTuning.from_pretrained(store.fetch_folder(str(address), "sft"))
        for address in (row.task_sft, row.language_sfts[language])
    )
    tokenizer, model = load_tokenizer(backbone), load_classifier(backbone, KNOWN.labels, seed=0).eval()
    batch = pad(encode(tokenizer, sentences(data, language)[:8], None, [0] * 8, 32).ids, tokenizer.pad_token_id)
    with composed(model, task, vector), torch.no_grad():
        logits = model(**batch).logits
    assert found["logits"] == logits.numpy().tobytes().hex()


def test_the_weights_are_the_sum_of_the_files(exported: dict[str, Path], chosen: Path) -> None:
    """theta0 + phi_T + phi_L entry by entry from the safetensors files, then the head: no code of deftx adds here."""
    record = json.loads((chosen / "chosen.json").read_text())["vek"]

    def stored(role: str, name: str) -> dict[str, torch.Tensor]:
        (path,) = (chosen.parents[1] / "stages" / record[role]["address"]).glob(f"attempt-*/{name}.safetensors")
        return load_file(path)

    base, parts = stored("backbone", "model/model"), [stored(role, "sft/sft") for role in ("task", "language")]
    expected = {name: tensor for name, tensor in base.items() if name.startswith("roberta.")}
    for part in parts:
        for key, values in part.items():
            if key.startswith("values/"):
                flat = expected[f"roberta.{key.removeprefix('values/')}"].view(-1)
                flat[part[key.replace("values/", "indices/")].long()] += values
    expected |= {key.removeprefix("head/"): value for key, value in parts[0].items() if key.startswith("head/")}
    assert same_bits(load_file(exported["vek"] / "model.safetensors"), expected)
    assert sum(key.startswith("values/") for key in parts[1]) > 0


@pytest.mark.parametrize(("written", "split"), [("validation", "valid"), ("valid", "valid"), ("test", "test")])
def test_a_score_is_read_as_this_and_earlier_versions_wrote_it(written: str, split: str) -> None:
    numbers = {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "items": 10}
    score = SplitScore.model_validate({"split": written, **numbers})
    assert score.split == split
    assert SplitScore.model_validate_json(score.model_dump_json()) == score


def test_a_card_says_the_score_over_the_classes_that_occur() -> None:
    score = SplitScore(split="test", metric="macro_f1", value=0.6, low=0.5, high=0.7, items=10, occurring=0.9)
    (lines, _) = cards._scores((score, score.model_copy(update={"occurring": None})))
    assert lines.splitlines()[2:] == [
        "| test | macro F1 | 60.0 [50.0, 70.0] (90.0 over the classes that occur) | 10 |",
        "| test | macro F1 | 60.0 [50.0, 70.0] | 10 |",
    ]


def test_no_other_split_is_scored() -> None:
    with pytest.raises(ValidationError):
        SplitScore(split="train", metric="accuracy", value=0.5, low=0.4, high=0.6, items=10)


def test_config_tokenizer_and_card(exported: dict[str, Path], chosen: Path) -> None:
    folder = exported["ila"]
    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"}
    assert config["label2id"] == {"negative": 0, "neutral": 1, "positive": 2}
    assert config["problem_type"] == "single_label_classification"
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 32

    card = ModelCard.load(folder / "README.md")
    assert (card.data.language, card.data.pipeline_tag, card.data.license) == ("ila", "text-classification", None)
    (test,) = [line for line in (chosen / "results.csv").read_text().splitlines() if ",ila,test,macro_f1,36," in line]
    value, low, high = (f"{float(cell):.1f}" for cell in test.split(",")[-6:-3])
    assert f"| test | macro F1 | {value} [{low}, {high}] | 36 |" in card.text
    assert "| validation | macro F1 | " in card.text
    assert "DEFT-X r_l 2, r_t 90%, retention 5 %, of 1 combinations" in card.text and "few-label selection" in card.text
    assert "| language vector | ila | 1 | 2 | 5 % |" in card.text
    assert "Licences are not asserted" in card.text
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")], "nothing half-written"


def test_the_sweep_says_what_to_type_next(finished: tuple[Path, str], tmp_path: Path) -> None:
    storage, said = finished
    (line,) = [line for line in said.splitlines() if line.startswith("export: deftx export ")]
    *given, out = line.split()[3:]
    assert given == [str(storage / "sweeps" / "tiny"), "ila"]
    assert command(*given, tmp_path / out).exit_code == 0


def test_a_moved_storage_and_one_that_is_no_file_system(copy: Path, exported: dict[str, Path], tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{copy.parents[1]}/", "/exported/results/", recursive=True)
    for number, where in enumerate((copy, copy / "chosen.json", "memory://exported/results/sweeps/tiny")):
        out = tmp_path / f"out-{number}"
        assert command(where, "vek", out).exit_code == 0
        assert same_bits(load_file(out / "model.safetensors"), load_file(exported["vek"] / "model.safetensors"))


def test_without_a_sweep_as_a_notebook_does_it(vectors: Path, backbone: Path, tmp_path: Path) -> None:
    parts = {role: resolve_folder(str(vectors / role)) for role in ("task", "language")}
    composition = Composition(backbone=resolve_folder(str(backbone)), **parts, weights=(0.5, 2.0), labels=LABELS)  # type: ignore[arg-type]
    folder = export(composition, tmp_path / "half")
    task, language = (SparseFineTuning.from_pretrained(vectors / role) for role in ("task", "language"))
    with composed(load_classifier(backbone, LABELS, seed=0), task, language, (0.5, 2.0)) as model:
        assert same_bits(load_file(folder / "model.safetensors"), dict(model.state_dict()))


def test_without_a_sweep_by_the_command(vectors: Path, backbone: Path, tmp_path: Path) -> None:
    named = ("--backbone", backbone, "--task", vectors / "task")
    assert command(tmp_path / "both", *named, "--language", vectors / "language").exit_code == 0
    assert command(tmp_path / "task", *named).exit_code == 0
    both, alone = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "task"))
    assert both.keys() == alone.keys() and not same_bits(both, alone)
    card = (tmp_path / "task" / "README.md").read_text()
    assert "# moods classifier\n" in card and "language vector" not in card and "It was not graded" in card
    assert str(backbone.parent) not in card, "a path of this machine is nobody's business"


def test_a_backbone_outside_the_storage_is_named_again(finished: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path / "tiny.yaml", **{**ONE, "targets": ["ila"]})
    storage = tmp_path / "storage"
    (made,) = finished[0].glob("stages/*/attempt-*/model")
    backbone = shutil.copytree(made, tmp_path / "backbone")
    result = run(space, data, storage, "--backbone", backbone)
    assert result.exit_code == 0, result.output
    assert f"--backbone {backbone}" in result.output
    folder = storage / "sweeps" / "tiny"
    assert str(backbone) not in (folder / "chosen.json").read_text()
    assert "name it with --backbone FOLDER" in complaint(folder, "ila", tmp_path / "out")
    other = shutil.copytree(backbone, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    assert "not the backbone of the sweep" in complaint(folder, "ila", tmp_path / "out", "--backbone", other)
    assert command(folder, "ila", tmp_path / "out", "--backbone", shutil.copytree(backbone, tmp_path / "same")).output


# --- mistakes


def test_a_folder_that_holds_something_is_left_alone(vectors: Path, backbone: Path, tmp_path: Path) -> None:
    out, named = tmp_path / "out", ("--backbone", backbone, "--task", vectors / "task")
    out.mkdir()
    assert command(out, *named).exit_code == 0, "an empty folder is filled"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "replace it with --force" in complaint(out, *named)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "mine.txt").write_text("left over")
    assert command(out, *named, "--force").exit_code == 0
    assert not (out / "mine.txt").exists()
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    (home / "config.json").write_text("{}")
    for taken in (home, home / "thesis.txt", backbone):
        assert "not from an earlier export" in complaint(taken, *named, "--force")
    assert "cannot be made: Not a directory" in complaint(home / "thesis.txt" / "out", *named)
    assert (home / "thesis.txt").read_text() == "years of work"


def test_nothing_half_written_stays(
    vectors: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, named = tmp_path / "out", ("--backbone", backbone, "--task", vectors / "task")
    assert command(out, *named).exit_code == 0
    before = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr("deftx.sft.card.model_card", lambda *_: 1 / 0)
    assert isinstance(command(out, *named, "--force", "--language", vectors / "language").exception, ZeroDivisionError)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").read_bytes() == before


def test_unknown_names_come_with_the_nearest(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "has no language 'veck' (did you mean 'vek'?); valid: ila, vek" in complaint(copy, "veck", out)
    assert "no sweep 'tinny' there (did you mean 'tiny'?)" in complaint(copy.with_name("tinny"), "vek", out)
    assert "there is none" in complaint(tmp_path / "none/sweeps/tiny", "vek", out)
    assert "not the folder of a sweep" in complaint(tmp_path, "vek", out)
    assert not out.exists() and not (tmp_path / "none").exists()


def test_a_search_that_has_not_ended_has_chosen_nothing(
    copy: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    space, storage = write_space(tmp_path / "tiny.yaml", **{**ONE, "rank_l": [2, 4]}), copy.parents[1]
    with monkeypatch.context() as patch:
        patch.setattr("deftx.method.make.make", interrupted)
        assert run(space, data, storage).exit_code == 130
    assert "nothing is chosen before the search has ended" in complaint(copy, "ila", tmp_path / "out")
    assert run(space, data, storage).exit_code == 0
    assert command(copy, "ila", tmp_path / "out").exit_code == 0


def test_a_language_that_failed_leaves_no_choice(data: Path, tmp_path: Path) -> None:
    poor = shutil.copytree(data, tmp_path / "poor")
    (poor / "corpora" / "vek.txt").write_text("ka\n")
    assert run(write_space(tmp_path / "tiny.yaml", **ONE), poor, tmp_path / "storage").exit_code == 3
    said = complaint(tmp_path / "storage/sweeps/tiny", "vek", tmp_path / "out")
    assert "no combination was completed, so none was chosen" in said
    assert not (tmp_path / "out").exists()


def test_a_vector_that_is_gone_or_altered(copy: Path, tmp_path: Path) -> None:
    address = json.loads((copy / "chosen.json").read_text())["ila"]["language"]["address"]
    (path,) = (copy.parents[1] / "stages" / address).glob("attempt-*/sft/sft.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    said = complaint(copy, "ila", tmp_path / "out")
    assert "the language vector is missing" in said and "does not match its manifest" in said
    shutil.rmtree(path.parents[2])
    said = complaint(copy, "ila", tmp_path / "out")
    assert "the language vector is missing" in said and "run the sweep again" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("role", "part", "expected"),
    [
        ("task", {"kind": "stage", "address": "../../../etc"}, "task.stage.address: String should match"),
        ("task", {"kind": "local", "sha256": "0" * 64, "path": "/etc"}, "its task is a folder"),
        ("language", {"kind": "local", "sha256": "0" * 64}, "its language is a folder"),
        ("backbone", {"kind": "local", "sha256": "0" * 64, "path": "../.."}, "its backbone is a folder"),
        ("task", {"kind": "hub", "repo": "/etc/passwd", "commit": "0" * 40}, "is no hub id"),
        ("task", {"kind": "hub", "repo": "../etc", "commit": "0" * 40}, "is no hub id"),
        ("task", {"kind": "hub", "repo": "a/b", "commit": "main"}, "is no commit"),
        ("weights", [1.0], "weights"),
    ],
)
def test_a_file_that_leads_out_of_the_storage_is_refused(
    copy: Path, tmp_path: Path, role: str, part: Any, expected: str
) -> None:
    found = json.loads((copy / "chosen.json").read_text())
    (copy / "chosen.json").write_text(json.dumps({"ila": found["ila"] | {role: part}}))
    said = complaint(copy, "ila", tmp_path / "out")
    assert "chosen.json: not what a sweep writes" in said and expected in said
    (copy / "chosen.json").write_text("[1]")
    assert "not what a sweep writes" in complaint(copy, "ila", tmp_path / "out")


def test_parts_that_do_not_fit(vectors: Path, backbone: Path, headless: Path, tmp_path: Path) -> None:
    out, task = tmp_path / "out", ("--task", vectors / "task")
    assert "give SWEEP LANGUAGE OUT" in complaint(out, *task)
    assert "give SWEEP LANGUAGE OUT" in complaint("a", "b", out, *task)
    assert "name two or more with --labels" in complaint(out, "--backbone", backbone, "--task", vectors / "headless")
    once = ("--backbone", backbone, "--labels", "good, good,", "--task", vectors / "headless")
    assert "name two or more with --labels" in complaint(out, *once)
    labelled = ("--backbone", backbone, "--labels", "bad, good")
    assert "it brings no classifier" in complaint(out, *labelled, "--task", vectors / "headless")
    assert "the labels are bad, good; the task vector's: negative" in complaint(out, *labelled, *task)
    assert "no such folder" in complaint(out, "--backbone", backbone, *task, "--language", tmp_path / "nowhere")
    part = Stored(address="0" * 32)
    whole = Composition(backbone=resolve_folder(str(backbone)), task=part, labels=LABELS)
    with pytest.raises(ConfigError, match="say which store it lies in"):
        export(whole, out)
    assert not out.exists()

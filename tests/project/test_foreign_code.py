"""Python code that lies in somebody's model folder never runs, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE
from support.tiny import LABELS

import deftx
from deftx.errors import DataError
from deftx.models.load import load_classifier, load_masked_lm, load_tokenizer
from deftx.models.sizes import size_of_folder

ROOT = Path(deftx.__file__).parent.parent
LOADERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "pipeline"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a loader of transformers or datasets, whatever it is called on, with its file."""
    for room in ("deftx", "orchestrator", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and called(node) in LOADERS and not ours(node):
                    yield str(path.relative_to(ROOT)), node


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def ours(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "SparseFineTuning"


def test_every_loader_is_told_to_trust_no_code() -> None:
    seen = Counter(file for file, _ in calls())
    assert seen == {
        "deftx/models/load.py": 3,
        "deftx/models/outline.py": 2,
        "deftx/notebook/classify.py": 1,
        "deftx/models/sizes.py": 1,
        "deftx/sources/hub.py": 1,
    }
    for file, node in calls():
        trusted = [ast.unparse(word.value) for word in node.keywords if word.arg == "trust_remote_code"]
        assert trusted == ["False"], f"{file}, line {node.lineno}: {ast.unparse(node)}"


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("")
import transformers
class C(transformers.PretrainedConfig):
    model_type = "evil"
class M(transformers.XLMRobertaForMaskedLM): ...
class S(transformers.XLMRobertaForSequenceClassification): ...
class T(transformers.PreTrainedTokenizerFast): ...
"""
MODELS = {"AutoConfig": "evil.C", "AutoModelForMaskedLM": "evil.M", "AutoModelForSequenceClassification": "evil.S"}
TOKENIZER = {"AutoTokenizer": ["evil.T", "evil.T"]}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """There only if foreign code ran."""
    return tmp_path / "RAN"


@pytest.fixture
def folder(backbone: Path, tmp_path: Path, mark: Path) -> Path:
    """A backbone with code beside it that nothing names yet."""
    copy = Path(shutil.copytree(backbone, tmp_path / "evil"))
    (copy / "evil.py").write_text(CODE.format(mark=str(mark)))
    return copy


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refused(folder: Path, what: str) -> str:
    return f"{folder}: {what}, and the Python code that comes with it .*is never run; give a model and a tokenizer"


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(prompt: str = "") -> str:
        raise AssertionError(prompt)

    monkeypatch.setattr("builtins.input", ask)


def test_a_model_type_of_its_own_is_refused(folder: Path, mark: Path) -> None:
    change(folder / "config.json", model_type="evil", auto_map=MODELS)
    for load in (load_masked_lm, lambda path: load_classifier(path, LABELS, 0)):
        with pytest.raises(DataError, match=refused(folder, "not a model that can be loaded")):
            load(folder)
    assert size_of_folder(folder) is None
    assert not mark.exists()


def test_a_tokenizer_of_its_own_is_refused(folder: Path, mark: Path) -> None:
    change(folder / "config.json", model_type="evil", auto_map=MODELS)
    change(folder / "tokenizer_config.json", tokenizer_class="T", auto_map=TOKENIZER)
    with pytest.raises(DataError, match=refused(folder, "no tokenizer there")):
        load_tokenizer(folder)
    assert not mark.exists()


def test_a_known_model_type_is_loaded_by_the_class_of_transformers(folder: Path, mark: Path, backbone: Path) -> None:
    change(folder / "config.json", auto_map=MODELS)
    change(folder / "tokenizer_config.json", auto_map=TOKENIZER)
    model = load_masked_lm(folder)
    assert type(model).__module__.startswith("transformers.models.xlm_roberta")
    assert model.deftx_fingerprint == load_masked_lm(backbone).deftx_fingerprint
    assert type(load_classifier(folder, LABELS, 0)).__module__.startswith("transformers.models.xlm_roberta")
    assert load_tokenizer(folder)("w0 w3") == load_tokenizer(backbone)("w0 w3")
    assert size_of_folder(folder) == size_of_folder(backbone)
    assert not mark.exists()


@pytest.mark.parametrize("answer", ["y\n" * 9, ""])
def test_the_command_neither_asks_nor_runs_it(tmp_path: Path, mark: Path, answer: str) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}')
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "t.txt").write_text("some words\n")
    words = [sys.executable, "-m", "deftx", "check", str(tmp_path / "t.txt"), "--backbone", str(folder)]
    done = subprocess.run(words, input=answer, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {folder}: no tokenizer there, and the Python code that comes with it")
    assert not mark.exists()

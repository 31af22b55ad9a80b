"""A whole sweep on a tiny random model of each architecture, and its export, which transformers loads by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encoders import CONFIGS
from support.islands import folder_of, run, sweep, write_data, write_space
from transformers import AutoModel, AutoModelForMaskedLM, pipeline
from typer.testing import CliRunner

from deftx.cli.app import app
from deftx.data.catalogue import BENCHMARKS
from deftx.data.examples import read_examples
from deftx.method.pretrain import train_tokenizer
from deftx.sources.files import file_source
from deftx.stages.files import SEALED
from deftx.stages.kinds import KINDS

ONE = {"source": {"learn": {"rank": 4, "retention": 0.05}}, "rank_l": [2], "rank_t": ["90%"], "targets": ["ila", "vek"]}
BASELINES = ["lt-sft", "task+source", "dense-task"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Any:
    return train_tokenizer([path.read_text().splitlines() for path in sorted((data / "corpora").glob("*.txt"))], 300)


def write_model(folder: Path, tokenizer: Any, kind: str, *, lm_head: bool) -> Path:
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if lm_head else AutoModel
    auto.from_config(CONFIGS[kind](vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lm_head"),
    [
        ("bert", "own"),
        ("bert", "random"),
        ("deberta-v2", "own"),
        ("deberta-v3", "own"),
        ("modernbert", "donor"),
    ],
)
def test_a_sweep_and_its_export(data: Path, tokenizer: Any, tmp_path: Path, kind: str, lm_head: str) -> None:
    """The plan's counts are what is made; the exported classifier predicts what the sweep's grade says it does."""
    backbone = write_model(tmp_path / "backbone", tokenizer, kind, lm_head=lm_head == "own")
    head = str(write_model(tmp_path / "donor", tokenizer, kind, lm_head=True)) if lm_head == "donor" else lm_head
    space = write_space(tmp_path / "tiny.yaml", **ONE, baselines=BASELINES, backbone=str(backbone), lm_head=head)
    storage = tmp_path / "storage"
    plan = sweep(space, "--data-root", data, "--storage", storage, "--plan")
    assert plan.exit_code == 0, plan.output
    assert "in the store" in plan.output and "size of the backbone unknown" not in plan.output
    result = run(space, data, storage)
    assert result.exit_code == 0, result.output
    folder = folder_of(storage, "tiny")
    state = folder.state()
    kinds = [entry.kind for entry in state.stages.values()]
    assert {kind: kinds.count(kind) for kind in KINDS if kinds.count(kind)} == {
        "check": 3, "text": 3, "dense": 4, "sparse": 7, "grade": 8,
    }  # fmt: skip
    chosen = state.chosen_row
    assert chosen is not None
    out = tmp_path / "exported"
    arguments = [storage / "sweeps" / "tiny", "ila", out, "--backbone", backbone]
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    record = json.loads((folder.store.fetch(chosen.grades["ila"], SEALED)).read_text())
    source = file_source(f"{data}/archipelago/ila/test.csv")
    texts = [*read_examples(BENCHMARKS["archipelago"], source, "ila", "test").texts]
    said = [one["label"] for one in pipeline("text-classification", str(out), truncation=True)(texts)]
    assert said == [record["labels"][number] for number in record["predicted"]]

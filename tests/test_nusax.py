"""The user's own command on NusaX files, the shipped space otherwise unchanged: to report and MLflow.

Runs on files of the original layouts written here, and on the real ones where DEFTX_DATA_ROOT names them.
"""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import pandas as pd
import pytest
from islands import folder_of, published, sweep

from benchmarks.random_backbone import write
from deftx.data.benchmarks import benchmark

LABELS = ("negative", "neutral", "positive")
STEPS = [
    word
    for setting in ("language.training.max_steps=5", "task.training.max_steps=5", "language.k=10%", "task.k=10%")
    for word in ("--set", setting)
]


def write_files(root: Path) -> Path:
    """NusaX, SmSA and corpora in their original layouts, with made-up words; one test sentence leaks into SmSA."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abdeikmnrstu", k=draw.randint(3, 8))) for _ in range(400)]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(6, 14)))

    known = benchmark("nusax")
    for language in (*known.targets, "id"):
        folder = root / "nusax" / known.languages[language]
        folder.mkdir(parents=True)
        for split, rows in (("train", 5), ("valid", 12), ("test", 18)):
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                table = [[n, f" {sentence()},\n{sentence()} ", LABELS[n % 3]] for n in range(rows)]
                csv.writer(file).writerows([["id", "text", "label"], *table])
                leak = table[0][1]
        (root / "corpora").mkdir(exist_ok=True)
        (root / "corpora" / f"{language}.txt").write_text("\n".join(sentence() for _ in range(900)), encoding="utf-8")
    (root / "smsa").mkdir()
    for split, rows in (("train", 40), ("valid", 10), ("test", 10)):
        lines = [f"{sentence()}\t{LABELS[n % 3]}" for n in range(rows)]
        lines += ["\t".join([" ".join(str(leak).split()), "positive"])] if split == "train" else []
        (root / "smsa" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "real",
    [False, pytest.param(True, marks=pytest.mark.skipif("DEFTX_DATA_ROOT" not in os.environ, reason="no real data"))],
)
def test_the_users_command_runs_to_report_and_mlflow(tmp_path: Path, real: bool) -> None:
    root = Path(os.environ["DEFTX_DATA_ROOT"]) if real else write_files(tmp_path / "data")
    backbone = tmp_path / "random-xlmr"
    corpora = [root / "corpora" / f"{language}.txt" for language in ("ace", "id")]
    write(backbone, corpora, layers=2, hidden=32, heads=2, feed_forward=64, vocabulary=1000, tokens=1000)
    storage = tmp_path / "results"
    result = sweep(
        "nusax",
        "--backbone",
        backbone,
        "--data-root",
        root,
        "--storage",
        storage,
        "--combinations",
        2,
        "--serial",
        *STEPS,
    )
    assert result.exit_code == 0, result.output
    folder = folder_of(storage, "nusax")
    state = folder.state()
    assert state.ended
    assert published(storage) == set(state.stages)
    assert [row.parameters["rank_t"] for row in state.combinations] == ["100", "90%"], "the paper's settings first"
    table = pd.read_csv(storage / "sweeps/nusax/results.csv")
    assert set(table["language"]) == {"ace", "ban", "bjn", "mad", "min", "average"}
    assert set(table["kind"]) == {"combination", "lt-sft", "task", "task+source", "dense-task"}
    dense = next(a for a, entry in state.stages.items() if (entry.kind, entry.subject) == ("dense", "task"))
    manifest = folder.store.manifest(dense)
    assert manifest is not None
    assert manifest.details["dropped_rows"] >= 1, "SmSA loses what leaks into NusaX"

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "nusax"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len(runs) == len(state.stages) + 1

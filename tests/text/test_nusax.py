"""The user's own command on NusaX files, the shipped space otherwise unchanged: to report and MLflow.

Runs on files of the original layouts written here, and on the real ones where DEFTX_DATA_ROOT names them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from support.islands import folder_of, published, sweep
from support.nusax_files import write_files

from benchmarks.random_backbone import write

STEPS = [
    word
    for setting in (
        "language.training.max_steps=2", "task.training.max_steps=2", "language.k=10%", "task.k=10%",
        "language.training.precision=float32", "task.training.precision=float32",  # a CPU here may have no bf16
    )
    for word in ("--set", setting)
]  # fmt: skip


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


def test_the_small_space_runs_from_pre_training_to_report(tmp_path: Path) -> None:
    shorter = ["--set", "backbone.training.max_steps=2", "--set", "backbone.vocabulary=400", "--combinations", 1]
    storage = tmp_path / "results"
    result = sweep(
        "nusax-small", "--data-root", write_files(tmp_path / "data"), "--storage", storage, "--serial", *STEPS, *shorter
    )
    assert result.exit_code == 0, result.output
    state = folder_of(storage, "nusax-small").state()
    assert [row.kind for row in state.rows] == ["combination", "lt-sft", "task", "other-language"]
    (combination,) = state.combinations
    assert set(combination.grades) == {"ace", "ban", "bjn", "mad", "min"}
    assert (storage / "sweeps/nusax-small/report.md").is_file()

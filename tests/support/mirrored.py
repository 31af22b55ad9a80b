"""A sweep whose stages are published by hand, and mirrored into MLflow as a driver would."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from support.facts import metrics_of

from deftx.config import Denoise, TextSettings, Training
from deftx.sources.files import FileSource
from deftx.sources.published import HubFolder
from deftx.stages.manifest import Manifest
from deftx.stages.settings import DenseSettings, GradeSettings, SparseSettings, TaskData, TextStageSettings
from deftx.stages.stage import Stage, walk
from deftx.stages.store import Store
from orchestrator.record.sweep import GradeRow, StageEntry, State, SweepFolder, SweepInfo
from orchestrator.tracking.content import sweep_status
from orchestrator.tracking.mirror import Mirror

BACKBONE = HubFolder(repo="owner/tiny", commit="c" * 40)
FILE = FileSource(sha256="f" * 64, url="/nowhere/text.txt")
CURVE = [{"step": 10, "train_loss": 2.0, "valid_loss": 1.75}, {"step": 20, "train_loss": 1.0, "valid_loss": 1.5}]
_numbers = itertools.count(1)


def language_stage(language: str, seed: int, rank: str | None = "100") -> Stage:
    text = TextStageSettings(language=language, source=FILE, text=TextSettings(), backbone=BACKBONE, seed=seed)
    dense = DenseSettings(language=language, task=None, backbone=BACKBONE, training=Training(), seed=seed)
    denoise = Denoise(rank=rank, retention=0.05) if rank else None
    inputs = (("dense", Stage("dense", dense, (("text", Stage("text", text)),))),)
    return Stage("sparse", SparseSettings(denoise=denoise, k=5), inputs)


def task_stage(seed: int) -> Stage:
    data = TaskData(
        benchmark="made-up", training={"train": (FILE,)}, leaks="none",
        evaluation_texts=None, evaluation={}, max_length=64,
    )  # fmt: skip
    dense = DenseSettings(language="ind", task=data, backbone=BACKBONE, training=Training(), seed=seed)
    return Stage("sparse", SparseSettings(denoise=None, k="10%"), (("dense", Stage("dense", dense)),))


def grade_stage(language: str, seed: int, rank: str) -> Stage:
    settings = GradeSettings(language=language, benchmark="made-up", valid=FILE, test=FILE, max_length=64)
    return Stage("grade", settings, (("language", language_stage(language, seed, rank)), ("task", task_stage(seed))))


def publish(store: Store, stage: Stage, test_score: float = 0.5) -> Manifest:
    attempt = store.attempt(stage.address)
    facts: dict[str, Any] = {
        "metrics": metrics_of(stage),
        "seconds": 40.0,
        "peak_bytes": 2**29,
        "created": "2026-11-21T10:00:00+00:00",
    }
    if stage.kind == "sparse":
        (attempt.folder / "sft").mkdir()
        (attempt.folder / "sft" / "sft.safetensors").write_bytes(b"weights of " + stage.address.encode())
        (attempt.folder / "sft" / "sft.json").write_text("{}")
        facts["details"] = {"jaccard": 0.25}
    if stage.kind in ("dense", "sparse"):
        (attempt.folder / "delta.bin").write_bytes(b"large")
        facts["curve"] = CURVE
        if stage.subject != "task":
            facts["metrics"] |= {"best_step": 20.0, "steps": 20.0, "valid_loss": 1.5}
    if stage.kind == "grade":
        predictions = {"labels": ["no", "yes"], "ids": ["1"], "gold": [0], "predicted": [0]}
        scores = {"metric": "macro_f1", "macro_f1": test_score, "accuracy": 0.125}
        sealed = {"language": stage.language, **predictions, **scores}
        (attempt.folder / "sealed_test.json").write_text(json.dumps(sealed))
        facts["metrics"] = {"valid_macro_f1": 0.625, "valid_accuracy": 0.75}
    return attempt.publish(stage, git_commit="abc123", **facts)


@dataclass
class Sweep:
    """A sweep of two combinations over two languages, none of its stages made yet."""

    store: Store
    uri: str
    name: str
    number: int = field(default_factory=lambda: next(_numbers))
    languages: tuple[str, ...] = ("ace",)

    def __post_init__(self) -> None:
        self.folder = SweepFolder(self.store, self.name)
        self.info = SweepInfo(
            name=self.name, benchmark="made-up", backbone="owner/tiny", seed=self.number,
            space={"name": f"space-{self.number}", "rank_l": ["100", "90%"]}, command=["python", "-m", "x"],
            packages={}, git_commit="def456", created=f"2026-11-21T09:00:{self.number:02}+00:00",
        )  # fmt: skip
        self.folder.write_info(self.info)
        self.rows = [self.row(0, "100", 0.5), self.row(1, "90%", 0.75)]
        self.grades = [
            grade_stage(language, self.number, rank) for rank in ("100", "90%") for language in self.languages
        ]
        self.stages = list(walk(self.grades))
        self.state = State(stages={stage.address: StageEntry.of(stage) for stage in self.stages}, rows=self.rows)
        self.folder.write_state(self.state)

    def row(self, number: int, rank: str, score: float) -> GradeRow:
        parameters: dict[str, str | float] = {"rank_l": rank, "rank_t": "100", "retention_l": 0.05, "retention_t": 0.05}
        grades = {language: grade_stage(language, self.number, rank).address for language in self.languages}
        return GradeRow(
            kind="combination", number=number, parameters=parameters, status="complete", score=score, grades=grades
        )

    def mark(self, stage: Stage, status: str) -> None:
        self.state.stages[stage.address].status = status  # type: ignore[assignment]
        self.folder.write_state(self.state)

    def make(self, stages: list[Stage], status: str = "done") -> None:
        for index, stage in enumerate(stages):
            publish(self.store, stage, test_score=0.25 + index / 64)
            self.folder.append_log(stage.address, "it ran here")
            self.mark(stage, status)

    def end(self, chosen: int = 1) -> None:
        self.state.chosen, self.state.ended = chosen, True
        self.folder.write_state(self.state)
        self.folder.write_file(b"# Report", "report.md")
        self.folder.write_file(b"row,ace\n", "results.csv")
        self.folder.write_file(b"\x89PNG", "plots", "heat.png")

    def mirror(self, uri: str | None = None) -> Mirror:
        return Mirror(self.store, self.folder, self.info, uri or self.uri)

    def runs(self) -> dict[str, Any]:
        """The sweep's runs by address; each address has one."""
        client = mlflow_client(self.uri)
        experiment = client.get_experiment_by_name(f"space-{self.number}")
        found = client.search_runs([experiment.experiment_id], f"tags.sweep_created = '{self.info.created}'")
        runs = {run.data.tags["address"]: run for run in found}
        assert len(runs) == len(found)
        return runs

    def snapshot(self) -> dict[str, Any]:
        """All that a reader of MLflow sees of the sweep, but for wall times and the ids of runs and attempts."""
        runs = self.runs()
        parents = {run.info.run_id: address for address, run in runs.items()}
        return {
            address: {
                "name": run.info.run_name,
                "status": run.info.status,
                "parent": parents.get(run.data.tags.get("mlflow.parentRunId")),
                "tags": {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"},
                "params": run.data.params,
                "metrics": {key: self.history(run, key) for key in run.data.metrics},
                "artifacts": self.artifacts(run),
            }
            for address, run in runs.items()
        }

    def history(self, run: Any, key: str) -> list[tuple[int, float]]:
        history = mlflow_client(self.uri).get_metric_history(run.info.run_id, key)
        return sorted((point.step, point.value) for point in history)

    def artifacts(self, run: Any, path: str | None = None) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for file in mlflow_client(self.uri).list_artifacts(run.info.run_id, path):
            found += self.artifacts(run, file.path) if file.is_dir else [(file.path, file.file_size)]
        return found


def mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def run_live(sweep: Sweep) -> None:
    """What a driver does from the first stage to the report."""
    mirror = sweep.mirror()
    mirror.start()
    for stage in sweep.stages:
        mirror.stage_started(stage)
        if stage.kind in ("dense", "sparse"):
            mirror.progress(stage.address, 10, {"train_loss": 2.0, "valid_loss": 1.75})
        sweep.make([stage])
        mirror.stage_done(stage, reused=False)
    sweep.end()
    mirror.finish(sweep_status(sweep.state))
    assert mirror.warning is None

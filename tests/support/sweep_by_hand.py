"""A finished sweep written by hand: every score is the share of items that a row is made to be right on."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from support.facts import metrics_of

from deftx.config import Denoise, LanguageRecipe, TaskRecipe, TextSettings, Training
from deftx.sources.files import FileSource
from deftx.sources.published import HubFolder
from deftx.stages.settings import DenseSettings, GradeSettings, SparseSettings, TaskData, TextStageSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.sweep import BASELINE_TITLES, GradeRow, RowKind, StageEntry, State, SweepFolder, SweepInfo
from orchestrator.report.markdown import write_report

TARGETS = ("ace", "ban")
LABELS = ["negative", "positive"]
ITEMS = {"scores.json": 50, "sealed_test.json": 200}
BACKBONE = HubFolder(repo="tiny", commit="0" * 40)
FILE = FileSource(sha256="0" * 64, url="file.csv")

# right answers of 50 validation and 200 test items in (ace, ban); the best test row is not the chosen one
COMBINATIONS: dict[tuple[str, str], tuple[tuple[int, int], tuple[int, int]]] = {
    ("8", "8"): ((30, 32), (130, 132)),
    ("8", "90%"): ((40, 42), (150, 152)),
    ("90%", "8"): ((35, 33), (170, 172)),
}
BASELINES: dict[RowKind, tuple[tuple[int, int], tuple[int, int]]] = {
    "dense-task": ((25, 25), (100, 104)),
    "task": ((24, 25), (102, 100)),
    "task+source": ((26, 25), (110, 112)),
    "other-language": ((24, 22), (96, 98)),
    "lt-sft": ((39, 42), (148, 151)),
}


def sparse_stage(subject: str, rank: str | None) -> Stage:
    """A sparse stage of a language or of the task, with real settings."""
    training = Training(max_steps=10)
    if subject == "task":
        task = TaskData(
            benchmark="demo", training={}, leaks="none", evaluation_texts=None, evaluation={}, max_length=8
        )  # fmt: skip
        dense = DenseSettings(language="src", task=task, backbone=BACKBONE, training=training, seed=0)
        inputs: tuple[tuple[str, Stage], ...] = ()
    else:
        text = TextStageSettings(language=subject, source=FILE, text=TextSettings(), backbone=BACKBONE, seed=0)
        dense = DenseSettings(language=subject, task=None, backbone=BACKBONE, training=training, seed=0)
        inputs = (("text", Stage("text", text)),)
    settings = SparseSettings(denoise=Denoise(rank=rank, retention=0.05) if rank else None, k=100)
    return Stage("sparse", settings, (("dense", Stage("dense", dense, inputs)),))


def grade_stage(language: str, task: Stage, vector: Stage | None, weights: tuple[float, float] = (1.0, 1.0)) -> Stage:
    settings = GradeSettings(language=language, benchmark="demo", valid=FILE, test=FILE, max_length=8, weights=weights)
    inputs = [("task", task), *([("language", vector)] if vector else [])]
    return Stage("grade", settings, tuple(inputs))


def grade_json(language: str, items: int, right: int) -> bytes:
    """Right on the first `right` items: the rows of two systems then differ as little as they can."""
    gold = [number % 2 for number in range(items)]
    predicted = [label if number < right else 1 - label for number, label in enumerate(gold)]
    ids = [str(number) for number in range(items)]
    grade = {
        "language": language, "labels": LABELS, "metric": "accuracy", "ids": ids, "gold": gold, "predicted": predicted,
        "macro_f1": 0.0, "accuracy": right / items,
    }  # fmt: skip
    return json.dumps(grade).encode()


class HandMade:
    """A sweep in a store, as the driver would have left it."""

    def __init__(self, root: Path, selection: str = "target-valid") -> None:
        self.store, self.selection, self.note = Store(str(root)), selection, ""
        self.folder = SweepFolder(self.store, "demo")
        self.state = State(chosen=1, ended=True)
        for number, ((rank_l, rank_t), right) in enumerate(COMBINATIONS.items()):
            self.add("combination", right, rank_l, rank_t, number)
        for kind, right in BASELINES.items():
            self.add(kind, right)
        self.save()

    def add(
        self,
        kind: RowKind,
        right: tuple[tuple[int, ...], tuple[int, ...]],
        rank_l: str | None = None,
        rank_t: str | None = None,
        number: int | None = None,
    ) -> GradeRow:
        """Publish the grades of a row, for as many targets as there are numbers, and its vectors."""
        bare = kind in ("task", "task+source", "dense-task")
        vectors = {} if bare else {language: sparse_stage(language, rank_l) for language in TARGETS}
        task = sparse_stage("task", rank_t)
        shares = {"retention_l": 0.05, "retention_t": 0.05}
        given: dict[str, str | float] = {"rank_l": rank_l, "rank_t": rank_t, **shares} if rank_l and rank_t else {}
        row = GradeRow(kind=kind, number=number, status="complete", task_sft=task.address, parameters=given)
        row.language_sfts = {language: stage.address for language, stage in vectors.items()}
        for stage in [*vectors.values(), task]:
            self.publish_vector(stage)
        for language, valid, test in zip(TARGETS, *right, strict=False):
            weights = (1.0, float([*BASELINE_TITLES, kind].index(kind)))
            stage = grade_stage(language, task, vectors.get(language), weights)
            row.grades[language] = stage.address
            right_in = {"scores.json": valid, "sealed_test.json": test}
            self.publish(stage, {name: grade_json(language, ITEMS[name], right_in[name]) for name in ITEMS})
        self.state.rows.append(row)
        return row

    def publish(self, stage: Stage, files: dict[str, bytes], **facts: object) -> None:
        attempt = self.store.attempt(stage.address)
        for name, content in files.items():
            (attempt.folder / name).write_bytes(content)
        attempt.publish(stage, **{"metrics": metrics_of(stage), "seconds": 12.5, **facts})
        self.state.stages[stage.address] = StageEntry.of(stage)

    def publish_vector(self, stage: Stage) -> None:
        assert isinstance(stage.settings, SparseSettings)
        if self.store.manifest(stage.address) is not None:
            return
        metrics = metrics_of(stage, k=1234.0)
        if stage.settings.denoise:
            metrics |= {"jaccard_lt_sft": 0.42, "nonzero_retention": 0.05, "energy_retention": 0.314, "mean_rank": 7.5}
        self.publish(stage, {"sft.safetensors": b"x"}, metrics=metrics)

    def save(self) -> None:
        training = {"training": {"l1": 0.1, "l1_gradient": False}}
        space = {
            "benchmark": "demo", "backbone": "tiny", "targets": [*TARGETS], "selection": self.selection, "seed": 3,
            "language": LanguageRecipe.model_validate(training).model_dump(mode="json"),
            "task": TaskRecipe().model_dump(mode="json"), "note": self.note,
        }  # fmt: skip
        self.folder.write_info(
            SweepInfo(
                name="demo", benchmark="demo", backbone="tiny", seed=3, space=space, git_commit="abc",
                command=["python", "-m", "orchestrator.sweep", "demo", "--set", "rank_l=[8, 90%]"],
                packages={"torch": "2.13.0", "zipp": "1"}, created="2026-11-21",
            )
        )  # fmt: skip
        self.folder.write_state(self.state)

    def report(self) -> str:
        """Write the report and return its text."""
        self.save()
        write_report(self.store, self.folder)
        return self.read("report.md").decode()

    def read(self, *parts: str) -> bytes:
        content = self.store.read("sweeps", "demo", *parts)
        assert content is not None
        return content

    def results(self) -> pd.DataFrame:
        return pd.read_csv(Path(self.folder.path) / "results.csv")

    def remove_test_scores(self) -> None:
        """So that whoever opens them is found out."""
        for path in Path(self.store.root).rglob("sealed_test.json"):
            path.unlink()

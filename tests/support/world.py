"""A store, a backbone and data small enough to make every kind of stage."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.tiny import LABELS, WORDS

from deftx.config import TextSettings, Training
from deftx.data.catalogue import benchmark
from deftx.data.corpora import corpus_source
from deftx.data.examples import evaluation_source, read_examples, training_sources
from deftx.data.leaks import texts_digest
from deftx.sources.published import resolve_folder
from deftx.stages.settings import (
    DenseSettings,
    GradeSettings,
    TaskData,
    TextStageSettings,
)
from deftx.stages.stage import Stage

NUSAX = benchmark("nusax")

LANGUAGE_TRAINING = Training(max_steps=8, batch_size=4, learning_rate=5e-3, validate_every=4)

TASK_TRAINING = Training(max_steps=8, batch_size=4, learning_rate=5e-3, validate_every=4)


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randrange(4, 9))) for _ in range(count)]


def write_files(root: Path) -> Path:
    """A data root in the layout of NusaX, SmSA and plain text."""
    for number, language in enumerate(("indonesian", "acehnese")):
        folder = root / "nusax" / language
        folder.mkdir(parents=True)
        for split, count in (("valid", 12), ("test", 9)):
            rows = [f"{i},{text},{LABELS[i % 3]}" for i, text in enumerate(sentences(count, 10 * number + count))]
            (folder / f"{split}.csv").write_text("\n".join(["id,text,label", *rows]) + "\n")
    (root / "smsa").mkdir()
    for split, count in (("train", 40), ("valid", 12), ("test", 6)):
        rows = [f"{text}\t{LABELS[i % 3]}" for i, text in enumerate(sentences(count, 100 + count))]
        (root / "smsa" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    (root / "corpora").mkdir()
    for seed, language in enumerate(("ace", "id")):
        (root / "corpora" / f"{language}.txt").write_text("\n".join(sentences(60, 1000 + seed)))
    return root


@dataclass
class World:
    """Stages over a data root and a backbone, as the planner makes them."""

    root: str
    folder: Path

    def text(self) -> Stage:
        settings = TextStageSettings(
            language="ace", source=corpus_source(NUSAX, "ace", self.root),
            text=TextSettings(block=12, valid_fraction=0.2), backbone=resolve_folder(str(self.folder)), seed=0,
        )  # fmt: skip
        return Stage("text", settings)

    def dense(self, **changes: Any) -> Stage:
        given = {
            "language": "ace",
            "task": None,
            "backbone": resolve_folder(str(self.folder)),
            "training": LANGUAGE_TRAINING,
            "seed": 0,
        }
        return Stage("dense", DenseSettings(**{**given, **changes}), (("text", self.text()),))

    def task_data(self) -> TaskData:
        evaluation = {split: evaluation_source(NUSAX, "id", split, self.root) for split in ("valid", "test")}
        read = {split: read_examples(NUSAX, source, "id", split) for split, source in evaluation.items()}  # type: ignore[arg-type]
        return TaskData(
            benchmark="nusax", training=training_sources(NUSAX, self.root), leaks="lt-sft",
            evaluation_texts=texts_digest(read), evaluation=evaluation, max_length=16,
        )  # type: ignore[arg-type]  # fmt: skip

    def task_dense(self, **changes: Any) -> Stage:
        given = {
            "language": "id",
            "task": self.task_data(),
            "backbone": resolve_folder(str(self.folder)),
            "training": TASK_TRAINING,
            "seed": 0,
        }
        return Stage("dense", DenseSettings(**{**given, **changes}))

    def grade(self, task: Stage, language: Stage | None, **changes: Any) -> Stage:
        sources = {split: evaluation_source(NUSAX, "ace", split, self.root) for split in ("valid", "test")}  # type: ignore[arg-type]
        settings = GradeSettings(language="ace", benchmark="nusax", max_length=16, **sources, **changes)  # type: ignore[arg-type]
        return Stage("grade", settings, (("task", task), *([("language", language)] if language else [])))

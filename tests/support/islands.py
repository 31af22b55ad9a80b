"""A sweep small enough for tests: a few hundred sentences of the demo's family, a backbone of 16 dimensions."""

from __future__ import annotations

import csv
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from deftx.data.archipelago import Sizes, write_family
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder
from orchestrator.sweep import app

SIZES = Sizes(pretraining=80, corpus=60, train=60, valid=24, test=36)
TRAINING = {"epochs": None, "max_steps": 4, "batch_size": 8, "learning_rate": 2e-3, "validate_every": 2}
SPACE: dict[str, Any] = {
    "benchmark": "archipelago",
    "backbone": {
        "languages": ["sor"], "vocabulary": 300, "layers": 1, "hidden": 16, "heads": 2, "feed_forward": 16,
        "block": 32, "training": TRAINING,
    },
    "preset": "lt-sft",
    "targets": ["ila", "vek"],
    "source": {"learn": {"rank": 4, "retention": 0.05}},
    "language": {"text": {"block": 32, "pack": False}, "k": "40%", "training": TRAINING},
    "task": {"k": "20%", "max_length": 32, "training": TRAINING},
    "rank_l": [2, "90%"],
    "rank_t": [2, "90%"],
    "baselines": ["lt-sft", "task", "task+source", "other-language", "dense-task"],
    "max_failures": 1,
    "parallel": 2,
}  # fmt: skip


def write_data(folder: Path, seed: int = 0) -> Path:
    write_family(str(folder), seed, SIZES)
    return folder


def write_space(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**SPACE, **changes}), encoding="utf-8")
    return path


def shuffle_test_labels(data: Path, target: Path) -> Path:
    """A copy of the data in which every test label is drawn anew."""
    shutil.copytree(data, target)
    for path in target.glob("archipelago/*/test.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        labels = [row[2] for row in rows]
        random.Random(0).shuffle(labels)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *([*row[:2], label] for row, label in zip(rows, labels, strict=True))])
    return target


def sweep(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(space: Path, data: Path, storage: Path, *options: object) -> Result:
    """A sweep in this process, without Ray."""
    return sweep(space, "--data-root", data, "--storage", storage, "--serial", *options)


def folder_of(storage: Path, name: str) -> SweepFolder:
    return SweepFolder(Store(str(storage)), name)


def attempts(storage: Path) -> dict[str, list[str]]:
    """The attempts at each stage, by address."""
    stages = storage / "stages"
    return {path.name: sorted(p.name for p in path.glob("attempt-*")) for path in stages.glob("*")}


def published(storage: Path) -> set[str]:
    return {path.parent.name for path in (storage / "stages").glob("*/manifest.json")}

"""Stages from end to end at XLM-R base's shape, by `make`: seconds around the steps and validations.

A backbone of random weights, random words as its text, and tables of random sentences in NusaX's layout, all in a
folder that is removed. The task vector that is graded is made up, so that no other stage has to run for it.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from benchmarks.deltas import k_of, shape_of, vector_of
from benchmarks.gpu.rows import Piece, Row
from benchmarks.measure import GIB, Options
from benchmarks.random_backbone import write
from deftx.config import (
    EVALUATION_SPLITS,
    PAPER_K_LANGUAGE,
    PAPER_K_TASK,
    Denoise,
    Execution,
    LanguageRecipe,
    TaskRecipe,
    TextSettings,
    Training,
)
from deftx.data.catalogue import benchmark
from deftx.data.corpora import corpus_source
from deftx.data.examples import evaluation_source
from deftx.data.inputs import task_inputs
from deftx.method import environment
from deftx.method.make import make
from deftx.models.load import load_classifier
from deftx.models.parameters import head_of
from deftx.sources.published import resolve_folder
from deftx.stages.build import dense_language, dense_task, grade_stage, sparse_stage, text_stage
from deftx.stages.files import SFT
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from deftx.train.loop import CurvePoint

NUSAX, LANGUAGE = benchmark("nusax"), "ace"
STEPS = 200
LINES = 15_000
"""Of about 41 tokens each: 30,000 steps of 8 x 256 that read a text a hundred times have one of 614,400."""
SENTENCES = {"valid": 500, "test": 400}
WORDS = 3000


def pieces() -> list[Piece]:
    """One, since every stage reads those before it."""
    return [("stages", rows)]


def rows(options: Options) -> Iterator[Row]:
    """The text, both phases of a language, and a grade."""
    with _world(options) as world:
        manifest, seconds, _ = world.make(world.text)
        note = "{train_blocks:,.0f} blocks, {valid_blocks:,.0f} more held out".format(**manifest.metrics)
        yield Row("text stage", "seconds", seconds, note=note)
        for name in ("dense", "sparse"):
            manifest, seconds, times = world.make(getattr(world, name))
            # twice the second half: what is captured in the first one is outside
            inside = 2 * (times[-1] - times[-2])
            work = f"{name} stage, {world.training.max_steps} steps"
            peak = f"peak {manifest.peak_bytes / GIB:.1f} GiB"
            yield Row(work, "seconds in steps and validations", inside, note=peak)
            yield Row(work, "seconds outside of them", seconds - inside, limit=f"{name} stage")
        world.publish_task()
        for note in ("the first of a process", "the next one"):
            _, seconds, _ = world.make(world.grade)
            yield Row("grade stage, 500 + 400 sentences", "seconds", seconds, limit="grade stage", note=note)
            world.store.discard(world.grade.address)


@dataclass
class _World:
    """Stages of one language on a backbone, and where they are made."""

    options: Options
    root: Path

    def __post_init__(self) -> None:
        """Build the stages of what lies in the folder."""
        small, data = self.options.small, str(self.root)
        self.training = Training(
            max_steps=4 if small else STEPS, validate_every=2 if small else STEPS // 2, precision="bf16"
        )
        text, k = TextSettings(block=16 if small else 256), k_of(self.options, PAPER_K_LANGUAGE)
        language = LanguageRecipe(text=text, training=self.training, k=k)
        task = TaskRecipe(training=self.training, k=k_of(self.options, PAPER_K_TASK))
        backbone = resolve_folder(str(self.root / "backbone"))
        self.store = Store(str(self.root / "store"))
        self.text = text_stage(LANGUAGE, corpus_source(NUSAX, LANGUAGE, data), text, backbone, 0)
        self.dense = dense_language(self.text, self.training)
        self.sparse = sparse_stage(self.dense, language, Denoise(rank=100, retention=0.05))
        inputs = task_inputs(NUSAX, "none", data)
        self.task = sparse_stage(dense_task("nusax", inputs, task, backbone, None, 0), task, None)
        tables = {split: evaluation_source(NUSAX, LANGUAGE, split, data) for split in EVALUATION_SPLITS}
        self.grade = grade_stage(self.task, self.sparse, LANGUAGE, "nusax", tables, 128)

    def make(self, stage: Stage) -> tuple[Manifest, float, list[float]]:
        """A stage's manifest, the seconds it took, and the times of its training's reports: its begin, validations.

        The seconds are those of `make`, which also looks whether what it reads is whole.
        """
        began, times = time.monotonic(), list[float]()

        def report(point: CurvePoint) -> None:
            times.append(time.monotonic())

        execution = Execution(device=self.options.device, threads=self.options.threads)
        manifest = make(stage, self.store, execution, lambda _: report)
        return manifest, time.monotonic() - began, times

    def publish_task(self) -> None:
        """A vector of as many entries as a task's, in place of what its stages would make."""
        vector = vector_of(shape_of(self.options), k_of(self.options, PAPER_K_TASK))
        model = load_classifier(self.root / "backbone", NUSAX.labels, seed=0)
        vector.head.update({name: parameter.detach() for name, parameter in head_of(model).items()})
        attempt = self.store.attempt(self.task.address)
        vector.save_pretrained(attempt.folder / SFT)
        facts = {"k": float(len(vector)), "steps": 1.0, "best_step": 1.0, "valid_score": 0.5}
        attempt.publish(self.task, metrics=facts, seconds=0.0, versions=environment.versions())


@contextmanager
def _world(options: Options) -> Iterator[_World]:
    shape = shape_of(options)
    with tempfile.TemporaryDirectory(prefix="deftx-stages-") as folder:
        root = Path(folder)
        _write_data(root, 400 if options.small else LINES)
        write(
            root / "backbone", [root / "corpora" / f"{LANGUAGE}.txt"], layers=shape.layers, hidden=shape.hidden,
            heads=shape.heads, feed_forward=shape.feed_forward, vocabulary=shape.vocabulary, tokens=2000,
        )  # fmt: skip
        yield _World(options, root)


def _write_data(root: Path, lines: int) -> None:
    """Plain text of a language, and tables for it and for the task, in the layout of a data root."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abdegiklmnoprstu", k=draw.randrange(2, 9))) for _ in range(WORDS)]
    weights = [*accumulate(1 / (rank + 1) for rank in range(WORDS))]

    def sentence() -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=draw.randrange(15, 55)))

    for name in ("corpora", f"nusax/{NUSAX.folder(LANGUAGE)}", "smsa"):
        (root / name).mkdir(parents=True)
    (root / "corpora" / f"{LANGUAGE}.txt").write_text("\n".join(sentence() for _ in range(lines)), encoding="utf-8")
    for split, count in SENTENCES.items():
        table = ["id,text,label", *(f"{n},{sentence()},{NUSAX.labels[n % 3]}" for n in range(count))]
        (root / "nusax" / NUSAX.folder(LANGUAGE) / f"{split}.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    for split in NUSAX.training_splits:
        table = [f"{sentence()}\t{NUSAX.labels[n % 3]}" for n in range(30)]
        (root / "smsa" / f"{split}.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")

"""A sweep's own cost: stages publish a tiny result at once; what is left is driver, Ray Tune, store and tracker.

The sweep is real but for its stages and for the texts and models that it would read: a `Driver` on Ray Tune, and a
`Store` in a local folder. Beside it plain Ray Tune runs Optuna over the same parameters, as many trials at once and
with `reuse_actors`; its trials report one number. With a tracker both write to a SQLite file of MLflow: the sweep by
its mirror, plain Tune by the calls that log what the run of a stage has. All of them take turns, a block at a time.

A trial of the sweep makes one stage, or all grades of a combination; a trial of plain Tune stands for one stage. It
publishes nothing, so what a stage writes (its files, claim, log and manifest, each on the disk before the next) is on
our side alone. The reference never runs more trials than the sweep asks combinations (500): Optuna is as slow in both.

Listing and garbage collection are timed on 100,000 stages that were written by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Options, median, start, timed
from benchmarks.results import BenchmarkRow, at_most, below, command
from deftx import hardware
from deftx.config import EVALUATION_SPLITS, Execution, Training
from deftx.data.inputs import TaskInputs
from deftx.method.context import Context, Made
from deftx.method.environment import versions
from deftx.sources.files import FileSource
from deftx.sources.published import HubFolder
from deftx.stages.facts import CheckFacts
from deftx.stages.kinds import KINDS, kind_of
from deftx.stages.manifest import MANIFEST, FileEntry, Manifest
from deftx.stages.stage import Stage, address_of
from deftx.stages.store import Store
from orchestrator.plan.inputs import ResolvedInputs
from orchestrator.plan.rows import Planner
from orchestrator.record.gc import collect
from orchestrator.record.sweep import Failure, StageEntry, State, SweepFolder, SweepInfo
from orchestrator.run.driver import Driver
from orchestrator.run.machine import Machine, Workplace
from orchestrator.space.schema import Space

PARALLEL = 2
TARGETS = ("ace", "ban", "bjn", "bug", "en", "jv", "mad", "min", "nij", "su", "bbc")
"""Eleven: of 500 combinations eight make 8,500 stages at most, a grade and a vector for each, and a task's."""
NOTHING: dict[str, dict[str, float]] = {
    "check": dict.fromkeys(CheckFacts.model_fields, 0.0),
    "text": dict.fromkeys(("lines", "train_blocks", "valid_blocks", "train_tokens"), 1.0),
    "dense": {"best_step": 1.0, "steps": 1.0, "valid_loss": 1.0, "changed_entries": 1.0},
    "sparse": {"best_step": 1.0, "steps": 1.0, "valid_loss": 1.0, "k": 1.0, "mean_rank": 1.0},
}  # fmt: skip
"""What no-op stages measure; grades are made up of their addresses."""


def rows(options: Options) -> list[BenchmarkRow]:
    """What a sweep costs beside plain Ray Tune, how that grows, and how long a large storage takes to list."""
    small = options.small
    tracked = _in_turns(options, tracked=True, stages=24 if small else 800, blocks=2 if small else 8)
    plain = _in_turns(options, tracked=False, stages=40 if small else 10_000, blocks=2 if small else 20)
    return [
        *_costs(plain, "without a tracker"), *_costs(tracked, "with MLflow"), _growth(plain),
        _memory(plain, "without a tracker"), _memory(tracked, "with MLflow"), *_listing(options),
    ]  # fmt: skip


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """What a stretch of a sweep, or of plain Tune, took.

    Attributes:
        ended: stages (trials of plain Tune) at its end, since the beginning.
        stages: in it.
        jobs: trials in it.
        memory: bytes of the driver's process at its end.
    """

    ended: int
    stages: int
    jobs: int
    seconds: float
    memory: int

    @property
    def a_stage(self) -> float:
        """Seconds a stage."""
        return self.seconds / self.stages


Turns = dict[str, list[Block]]


def _costs(turns: Turns, how: str) -> list[BenchmarkRow]:
    ours, theirs = turns["ours"][1:], turns["plain"][1:]  # the first has Ray start its workers
    plain, ratios = _pace(theirs), [o.a_stage / t.a_stage for o, t in zip(ours, theirs, strict=True)]
    stages, jobs = sum(block.stages for block in ours), sum(block.jobs for block in ours)
    a_stage = BenchmarkRow(
        f"a stage of a sweep {how}", "seconds", _pace(ours), plain,
        note=f"{stages:,} stages in {jobs:,} trials, {sum(block.stages for block in theirs):,} trials of plain Tune; "
        f"medians of {len(ours)} blocks, of which one took {min(ratios):.2f} to {max(ratios):.2f} of the reference",
    )  # fmt: skip
    a_job = BenchmarkRow(
        f"a trial of a sweep {how}", "seconds", median([block.seconds / block.jobs for block in ours]), plain,
        note=f"{stages / jobs:.1f} stages a trial: one, or all grades of a combination",
    )  # fmt: skip
    return [at_most(a_stage, 1.5), a_job]


def _growth(turns: Turns) -> BenchmarkRow:
    """The last blocks beside the first ones, five of each: others' work disturbs a single one."""
    ours, theirs = turns["ours"][1:], turns["plain"][1:]
    few = min(5, len(ours))
    row = BenchmarkRow(
        f"a stage up to {ours[-1].ended:,} beside one up to {ours[few - 1].ended:,}", "seconds", _pace(ours[-few:]),
        _pace(ours[:few]), note=f"medians of {few} blocks of {ours[-1].stages} stages; of plain Tune in turn with them "
        f"{_pace(theirs[-few:]):.3g} and {_pace(theirs[:few]):.3g} s a trial",
    )  # fmt: skip
    return at_most(row, 1.5)


def _pace(blocks: list[Block]) -> float:
    return median([block.a_stage for block in blocks])


def _memory(turns: Turns, how: str) -> BenchmarkRow:
    kilobytes = {name: _slope(blocks[1:]) / 1000 for name, blocks in turns.items()}
    note = f"slope of the resident set over stages; plain Tune: {kilobytes['plain']:.0f} kB a trial"
    return below(BenchmarkRow(f"memory of the driver {how}", "kB a stage", kilobytes["ours"], note=note), 50)


def _slope(blocks: list[Block]) -> float:
    """Bytes a stage, by least squares."""
    if len(blocks) < 2:
        return 0.0
    return float(np.polyfit([b.ended for b in blocks], [b.memory for b in blocks], 1)[0])


# -- taking turns ------------------------------------------------------------------------------------------------------


def _in_turns(options: Options, *, tracked: bool, stages: int, blocks: int) -> Turns:
    """The blocks of a sweep and of plain Tune, in processes of their own that wait for each other."""
    size = stages // blocks
    asks = max(size // (5 if tracked else 20), 5)  # trials of plain Tune a block
    processes = {
        name: start(f"benchmarks.sweep:{name}", options, tracked=tracked, size=each, blocks=blocks)
        for name, each in (("ours", size), ("plain", asks))
    }
    turns: Turns = {name: [] for name in processes}
    for _ in range(blocks):
        for name, process in processes.items():
            assert process.stdin and process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise subprocess.CalledProcessError(process.wait(), f"benchmarks.sweep:{name}")
            turns[name].append(Block(**json.loads(line)))
            print(f"  {name} {line.strip()}", file=sys.stderr, flush=True)
    for process in processes.values():
        process.communicate()
    return turns


@dataclass
class Turn:
    """One side's clock: it stands still while the other side has its turn."""

    size: int
    blocks: int
    settle: Callable[[], object] = lambda: None
    """Waits for what is still under way at the end of a block."""
    stages: int = 0
    jobs: int = 0
    _began: float = 0.0
    _jobs_before: int = 0
    _said: int = 0

    def wait(self) -> None:
        """Wait for the turn."""
        sys.__stdin__.readline()  # type: ignore[union-attr]
        self._began = time.perf_counter()

    def count(self) -> bool:
        """Count a stage; at the end of a block that is said, and the next turn waited for. Whether one is left."""
        self.stages += 1
        if self.stages - self._said < self.size or self.over:
            return not self.over
        self.settle()
        seconds = time.perf_counter() - self._began
        block = Block(
            self.stages, self.stages - self._said, self.jobs - self._jobs_before, seconds, hardware.memory("VmRSS")
        )
        self._said, self._jobs_before, self.blocks = self.stages, self.jobs, self.blocks - 1
        print(json.dumps(vars(block)), file=sys.__stdout__, flush=True)
        if not self.over:
            self.wait()
        return not self.over

    @property
    def over(self) -> bool:
        """Whether the last block has ended."""
        return self.blocks == 0


# -- the sweep ---------------------------------------------------------------------------------------------------------


class _Workplace(Workplace):
    """Where stages are made of nothing: asked for how a stage is carried out, as a worker does, it swaps the kinds."""

    def execution(self, kind: str) -> Execution:
        made_of_nothing()
        return super().execution(kind)


def made_of_nothing() -> None:
    """Let every kind of stage publish one tiny file at once, in this process."""
    for name, kind in KINDS.items():
        KINDS[name] = replace(kind, runs="benchmarks.sweep:nothing", publishes=())


def nothing(context: Context) -> Made:
    """A stage that does nothing: a file of two bytes, and made-up facts."""
    stage = context.stage
    (context.folder / "nothing.json").write_text("{}", encoding="utf-8")
    if kind_of(stage.kind).seals:
        score = stage.seed % 1000 / 1000
        return Made(kind_of(stage.kind).facts(valid_macro_f1=score, valid_accuracy=score))
    return Made(kind_of(stage.kind).facts(**NOTHING[stage.kind]))


def space_of(combinations: int) -> Space:
    """The space: 200 ranks and 20 retentions of a language, 5 and 5 of the task, searched by TPE."""
    recipe = {"training": Training(max_steps=10), "k": "10%"}
    return Space.model_validate({
        "benchmark": "nusax", "backbone": "somebody/backbone", "language": recipe, "task": recipe, "targets": TARGETS,
        "rank_l": list(range(1, 201)), "rank_t": list(range(1, 6)), "retention_l": [n / 100 for n in range(20)],
        "retention_t": [n / 100 for n in range(5)], "search": "tpe", "combinations": combinations,
        "parallel": PARALLEL, "baselines": ["lt-sft", "dense-task"],
    })  # fmt: skip


def planner_of(space: Space, size: Callable[[str], int | None] = lambda language: None) -> Planner:
    """A planner of inputs that nobody reads.

    Args:
        size: bytes of a language's text.
    """

    def file(name: str, of: int | None = None) -> FileSource:
        return FileSource(sha256=hashlib.sha256(name.encode()).hexdigest(), url="nowhere", size=of)

    evaluation = {
        (language, split): file(language + split) for language in space.targets for split in EVALUATION_SPLITS
    }
    languages = (*space.targets, space.benchmark_spec.source_language)
    corpora = {language: file(language, size(language)) for language in languages}
    tables = {"valid": file("valid"), "test": file("test")}
    task = TaskInputs({"train": (file("train", 2_200_000),), "valid": (file("held out"),)}, "strict", tables, "0")
    backbone = HubFolder(repo=str(space.backbone), commit="0" * 40)
    source = HubFolder(repo=space.source.sft, commit="0" * 40) if space.source.sft else None
    return Planner(space, ResolvedInputs(backbone, "own", source, corpora, task, evaluation))  # type: ignore[arg-type]


@dataclass
class _Counting:
    """A callback of the driver that counts stages, and ends the sweep after the last block."""

    turn: Turn
    driver: Driver

    def stage_started(self, stage: Stage) -> None:
        pass

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        pass

    def stage_done(self, stage: Stage, reused: bool) -> None:
        if not self.turn.count():
            self.driver.refused = "enough"

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        raise AssertionError(f"{stage.label}: {failure.reason}")


def ours(options: Options, tracked: bool, size: int, blocks: int) -> None:
    """The sweep's side of a comparison."""
    from orchestrator.run import session
    from orchestrator.run.tune import run_tune
    from orchestrator.terminal.progress import Progress
    from orchestrator.terminal.screen import Screen
    from orchestrator.tracking.client import default_tracking_uri
    from orchestrator.tracking.content import sweep_status
    from orchestrator.tracking.mirror import Mirror

    made_of_nothing()
    with tempfile.TemporaryDirectory(prefix="deftx-sweep-") as storage:
        store, space = Store(storage), space_of(max(size * blocks // 20, 10))
        folder, machine, planner = SweepFolder(store, "load"), Machine(PARALLEL, 0), planner_of(space)
        info = info_of(space)
        folder.write_info(info)
        workplace = _Workplace(**vars(Workplace.of(space, folder, machine)))
        driver = Driver(space, planner, workplace, folder)
        turn = Turn(size, blocks)
        screen = Screen(_silent())
        driver.callbacks += [screen]
        if tracked:
            mirror = Mirror(store, folder, info, default_tracking_uri(store), driver.rows_of)
            driver.callbacks += [mirror]
            turn.settle = lambda: mirror._calls.apply(lambda: None)
            mirror.start()
        driver.callbacks += [_Counting(turn, driver)]
        settle = driver.settle

        def counted(*job: Any) -> None:
            turn.jobs += 1
            settle(*job)

        driver.settle = counted  # type: ignore[method-assign]
        driver.write_state()
        screen.start(Progress(driver, planner, PARALLEL))
        turn.wait()
        session.run(driver, lambda driver: run_tune(driver, machine, None))
        if tracked:
            mirror.finish(sweep_status(folder.state()))
            assert not mirror.warning, mirror.warning


def _silent() -> Any:
    from rich.console import Console

    return Console(file=open(os.devnull, "w", encoding="utf-8"))


def info_of(space: Space) -> SweepInfo:
    """A record of the sweep, as `session` writes it."""
    return SweepInfo(
        name="load", benchmark="nusax", backbone=str(space.backbone), seed=0, command=["python"], packages={},
        space={"name": "load", **space.model_dump(mode="json")}, git_commit=None, created="2026-11-26T00:00:00+00:00",
    )  # fmt: skip


# -- plain Ray Tune ----------------------------------------------------------------------------------------------------


def plain(options: Options, tracked: bool, size: int, blocks: int) -> None:
    """Plain Tune's side of a comparison."""
    from orchestrator.run.tune import _connect, tune  # sets what Ray reads when it is imported

    # isort: split
    from ray.tune.search.optuna import OptunaSearch

    space, turn = space_of(1), Turn(size, blocks)

    class Counting(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            if log:
                log(trial.config)
            turn.jobs += 1
            turn.count()

    def trial(config: dict[str, Any]) -> None:
        tune.report({"score": int(hashlib.sha256(json.dumps(config).encode()).hexdigest()[:6], 16) / 2**24})

    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="deftx-plain-") as scratch:
        log = _logger(scratch) if tracked else None
        _connect(Machine(PARALLEL, 0), None, stack)  # the same Ray
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            param_space={name: tune.choice(list(values)) for name, values in space.parameters.items()},
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(metric="score", mode="max", seed=0), num_samples=size * blocks,
                max_concurrent_trials=PARALLEL, reuse_actors=True, metric="score", mode="max",
            ),
            run_config=tune.RunConfig(storage_path=scratch, name="plain", verbose=0, callbacks=[Counting()]),
        )  # fmt: skip
        turn.wait()
        tuner.fit()


def _logger(folder: str) -> Callable[[dict[str, Any]], None]:
    """Logs to MLflow what the run of a stage has: tags, params, metrics, files and an end."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    from orchestrator.tracking.content import RunContent, SweepContent

    contents: list[RunContent] = []
    made_of_nothing()
    space = space_of(1)
    with tempfile.TemporaryDirectory() as storage:
        store, info = Store(storage), info_of(space)
        row = planner_of(space).combination(0, space.cells()[0])
        content = SweepContent(SweepFolder(store, "load"), info)
        for stage in (row.grades["ace"], row.languages["ace"]):  # a combination has as many of one as of the other
            attempt = store.attempt(stage.address)
            made = nothing(Context(stage, store, attempt.folder, Execution(), None))
            attempt.publish(stage, metrics=made.facts.metrics(), seconds=0.0, created=info.created)
            entry = StageEntry.of(stage).model_copy(update={"status": "done"})
            ended = content.ended(stage.address, entry, State(), None)
            assert ended is not None
            contents.append(ended)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("plain", Path(folder, "artifacts").as_uri())
    files = Path(folder, "files")
    files.mkdir()
    for name in {name for each in contents for name in each.files}:
        (files / name).write_text("{}", encoding="utf-8")

    def log(config: dict[str, Any]) -> None:
        contents.append(it := contents.pop(0))
        run = client.create_run(experiment, tags=it.tags, run_name=it.name)
        metrics = [Metric(name, value, 0, 0) for name, value in it.metrics.items()]
        params = [Param(name, str(value)) for name, value in it.params.items()]
        client.log_batch(run.info.run_id, metrics, params, [RunTag("state", "done")])
        client.log_artifacts(run.info.run_id, str(files))
        client.set_terminated(run.info.run_id)

    return log


# -- a large storage ---------------------------------------------------------------------------------------------------


def _listing(options: Options) -> list[BenchmarkRow]:
    stages = 1_000 if options.small else 100_000
    with tempfile.TemporaryDirectory(prefix="deftx-large-") as storage:
        fill(Store(storage), stages)
        works: dict[str, Callable[[], object]] = {
            "the addresses": lambda: sum(1 for _ in Store(storage).addresses()),
            "a sweep's state": lambda: SweepFolder(Store(storage), "load").state(),
            "gc, removing nothing": lambda: collect(Store(storage), remove=False),
        }
        found = {name: timed(work) for name, work in works.items()}
    return [
        below(BenchmarkRow(f"{stages:,} stages of a local folder: {name}", "seconds", seconds), 10)
        for name, seconds in found.items()
    ]


def fill(store: Store, stages: int) -> None:
    """Write so many published stages by hand, and the state of a sweep that has them all."""
    entries = {}
    kind = kind_of("text")
    for number in range(stages):
        identity = {"kind": "text", "version": kind.version, "settings": {"language": f"l{number}"}, "inputs": {}}
        address = address_of(identity)
        manifest = Manifest(
            address=address, kind="text", label="text", identity=identity, attempt="attempt-0",
            files={"nothing.json": FileEntry(size=2, sha256=hashlib.sha256(b"{}").hexdigest())},
            metrics=NOTHING["text"], seconds=0.0,
            versions=versions(),
        )  # fmt: skip
        folder = Path(store.path("stages", address, "attempt-0"))
        folder.mkdir(parents=True)
        (folder / "nothing.json").write_text("{}", encoding="utf-8")
        (folder.parent / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        entries[address] = StageEntry(kind="text", label="text", subject="l", language="l", inputs={}, status="done")
    SweepFolder(store, "load").write_state(State(stages=entries, ended=True))


if __name__ == "__main__":
    command({"sweep": rows}, __doc__)

"""Plans without files: spaces and resolved inputs by hand, and the schedule run by simulated workers."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deftx.config import Training
from deftx.data.inputs import TaskInputs
from deftx.sources.files import FileSource
from deftx.sources.published import HubFolder
from deftx.stages.kinds import F
from deftx.stages.stage import Stage
from orchestrator.plan.inputs import ResolvedInputs
from orchestrator.plan.rows import PlannedRow, Planner
from orchestrator.search.choice import Choice
from orchestrator.search.replay import Replay
from orchestrator.search.schedule import Job, Schedule
from orchestrator.space.schema import Space

FILE = FileSource(sha256="0" * 64, url="somewhere")
BACKBONE = HubFolder(repo="somebody/backbone", commit="0" * 40)


def make_space(**settings: Any) -> Space:
    recipe = {"training": Training(max_steps=10), "k": "10%"}
    defaults = {
        "benchmark": "nusax", "backbone": "somebody/backbone", "language": recipe, "task": recipe,
        "targets": ["ace", "ban"],
        "rank_l": [8, "90%"], "rank_t": [8, "90%"],
    }  # fmt: skip
    return Space.model_validate({**defaults, **settings})


def make_planner(space: Space) -> Planner:
    evaluation = {(language, split): FILE for language in space.targets for split in ("valid", "test")}
    corpora = dict.fromkeys([*space.targets, "id"], FILE)
    task = TaskInputs({"train": (FILE,), "valid": (FILE,)}, "strict", {"valid": FILE, "test": FILE}, "0")
    return Planner(space, ResolvedInputs(BACKBONE, "own", None, corpora, task, evaluation))  # type: ignore[arg-type]


@dataclass
class World:
    """What outlives a driver: the published addresses, and every stage ever run, in order."""

    published: set[str] = field(default_factory=set)
    runs: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    flipped: set[str] = field(default_factory=set)
    """Published, with a bit that is not right."""

    def intact(self, address: str) -> bool:
        return address in self.published and address not in self.flipped


def score_of(row: PlannedRow) -> float:
    """A made-up score that depends on the combination alone."""
    assert row.combination is not None
    return random.Random(str(sorted(row.combination.record().items()))).random()


def unmeasured(stage: Stage, kind: type[F], /) -> F:
    raise AssertionError(f"{stage.label}: nothing was measured")


class MadeUp(Choice):
    """A choice by made-up scores; ties go to the earlier combination, for no rank was measured."""

    def score(self, row: PlannedRow) -> float:
        return score_of(row)

    def _mean_ranks(self, row: PlannedRow) -> tuple[float, float]:
        return 0.0, 0.0


def make_schedule(
    space: Space, world: World, *, baselines: bool = True, checks: bool = False
) -> tuple[Replay, Schedule]:
    planner, replay = make_planner(space if baselines else space.model_copy(update={"baselines": ()})), Replay(space)
    if not checks:
        planner.checks = list  # type: ignore[method-assign]
    choice = MadeUp(space, unmeasured)
    schedule = Schedule(replay, planner, choice, world.published.__contains__, world.intact, world.failed)
    schedule.begin()
    return replay, schedule


def simulate(
    schedule: Schedule, world: World, workers: int, seed: int,
    *, stop_after: int | None = None, fails: Callable[[Job], str | None] = lambda job: None,
) -> int:  # fmt: skip
    """Run the schedule with workers that take random times; returns the most jobs ever at once.

    Args:
        stop_after: the driver dies after so many jobs have ended; running ones leave no trace.
        fails: the reason why a job fails, or None.
    """
    clock, most, draw, running = 0.0, 0, random.Random(seed), []
    while True:
        while len(running) < workers and (job := schedule.ready()) is not None:
            heapq.heappush(running, (clock + draw.expovariate(1.0), job.name, job))
        most = max(most, len(running))
        if not running or stop_after == 0:
            return most
        clock, _, job = heapq.heappop(running)
        for stage in job.stages:
            reason = fails(job)
            if reason is None:
                world.published.add(stage.address)
                world.runs.append(stage.address)
                schedule.done(stage.address)
            else:
                world.failed[stage.address] = reason
                schedule.failed(stage.address, reason)
        stop_after = None if stop_after is None else stop_after - 1

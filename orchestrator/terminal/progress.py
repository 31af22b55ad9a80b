"""How far a sweep is and how long it still takes, from the stage times measured so far. Nothing is drawn here.

A number is "about" only where every stage that is left, those of later combinations included, is known and has a
measured time; else it is "at least". The measured times are of finished stages, reused ones included, and of the pace
of running ones; a sparse stage unlike all measured ones is expected to take as long as its dense stage.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from deftx.stages.facts import TextFacts, TrainingFacts
from deftx.stages.kinds import KINDS
from deftx.stages.stage import Stage
from orchestrator.plan.rows import PlannedRow, Planner, with_vectors
from orchestrator.run.driver import Driver
from orchestrator.search.schedule import Job, unmade
from orchestrator.wording import format_score

Subject = str
Tallies = dict[tuple[Subject, str], Counter[str]]
"""How many stages of a subject and kind are done, running, waiting and failed."""


@dataclass(frozen=True)
class Left:
    """Seconds until the end; a lower bound where not `exact`."""

    seconds: float
    exact: bool


@dataclass(frozen=True)
class Running:
    """A running stage.

    Attributes:
        began: when, by `Progress.clock`.
        step: its latest optimiser step; 0 before the first report.
        steps: the number of all its steps; None while that is unknown.
    """

    stage: Stage
    began: float
    step: int = 0
    steps: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """The progress of a sweep at a moment `at` of `Progress.clock`. Immutable: another thread may draw it."""

    name: str
    at: float
    began: float
    reused: int
    tallies: Tallies
    running: tuple[Running, ...]
    mean_seconds: dict[str, float]
    left: Left | None
    best: str
    unasked: int
    """Combinations whose stages are not known yet."""


@dataclass
class _Pace:
    """The first and the latest report of a running stage: (step, time)."""

    first: tuple[int, float]
    last: tuple[int, float]

    @property
    def seconds_per_step(self) -> float | None:
        """None until there are two reports: a run that continues a checkpoint does not begin at step 0."""
        steps = self.last[0] - self.first[0]
        return (self.last[1] - self.first[1]) / steps if steps > 0 else None


@dataclass
class Progress:
    """Follows a driver, and estimates what is left.

    Attributes:
        planner: plans the rows that are certain to come.
        slots: trials that run at once.
        clock: seconds that only go up.
    """

    driver: Driver
    planner: Planner
    slots: int = 1
    clock: Callable[[], float] = time.monotonic
    _began: dict[str, float] = field(default_factory=dict)
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _durations: dict[tuple[object, ...], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._cells = self.driver.space.cells()
        self._row = lru_cache(maxsize=None)(self.planner.combination)
        self._controls = lru_cache(maxsize=8)(self.planner.controls)

    def started(self, stage: Stage) -> None:
        """Note that a trial has begun the stage."""
        self._began[stage.address] = self.clock()

    def stepped(self, address: str, step: int) -> None:
        """Note that a running stage has made so many steps."""
        now = (step, self.clock())
        pace = self._paces.setdefault(address, _Pace(now, now))
        if step < pace.last[0]:  # tried again from an earlier checkpoint
            pace.first = now
        pace.last = now

    def done(self, stage: Stage) -> float:
        """The seconds that a stage now in the store took when it was made, which are noted."""
        seconds = self.driver.seconds(stage)
        for key in _similarity(stage):
            self._durations.setdefault(key, []).append(seconds)
        return seconds

    def snapshot(self) -> Snapshot:
        """The progress of the sweep now."""
        schedule = self.driver.schedule
        left = {stage.address: stage for stage in self._left()}
        stages, tallies = {**schedule.stages, **left}, Tallies()
        for address, stage in stages.items():
            if (status := self._status(address, address in left)) is not None:
                tallies.setdefault((stage.subject, stage.kind), Counter())[status] += 1
        return Snapshot(
            self.driver.folder.name, self.clock(), self._start, len(schedule.done_before), tallies,
            tuple(self._running()),
            {kind: statistics.fmean(self._durations[(kind,)]) for kind in KINDS if (kind,) in self._durations},
            self._time_left(list(left.values())), self._best(), self._unasked(),
        )  # fmt: skip

    def _status(self, address: str, is_left: bool) -> str | None:
        """The status of a stage; None for one that is not published and that nothing needs any more."""
        schedule = self.driver.schedule
        if schedule.is_done(address):
            return "done"
        if address in schedule.failures:
            return "failed"
        if schedule.is_running(address):
            return "running"
        return "waiting" if is_left else None

    def _running(self) -> Iterator[Running]:
        for job in self.driver.jobs:
            for stage in job.stages:
                pace, began = self._paces.get(stage.address), self._began.get(stage.address, self.clock())
                yield Running(stage, began, pace.last[0] if pace else 0, self._steps(stage))

    def _best(self) -> str:
        best = self.driver.schedule.best
        if best is None:
            return ""
        title = best[0].record().title
        return f"{title}, {format_score(best[1], self.driver.space.selection)}"

    # -- what is left -------------------------------------------------------------------------------------------------

    def _left(self) -> list[Stage]:
        """Every stage still to be made, of the rows that are certain to come too; inputs first."""
        schedule = self.driver.schedule
        stages = {stage.address: stage for stage in schedule.missing()}
        for row in self._rows_to_come():
            grades = [grade for grade in row.grades.values() if not self._doomed(grade)]
            stages |= {stage.address: stage for stage in unmade(with_vectors(grades), self._settled)}
        return list(stages.values())

    def _rows_to_come(self) -> Iterator[PlannedRow]:
        """The rows that are certain to come: of a grid the cells not asked yet, and the controls of any choice."""
        driver, space = self.driver, self.driver.space
        asked = driver.asked
        if space.search == "grid":
            for number in range(len(asked), len(asked) + self._not_asked()):
                yield self._row(number, self._cells[number])
        if not driver.schedule.complete:
            chosen = driver.schedule.chosen
            yield from self._controls(chosen.combination if chosen and chosen.combination else asked[0])

    def _not_asked(self) -> int:
        cells = len(self._cells)
        return min(self.driver.space.combinations or cells, cells) - len(self.driver.asked)

    def _unasked(self) -> int:
        """The number of combinations that are not known yet: 0 for a grid."""
        complete = self.driver.schedule.complete or self.driver.space.search == "grid"
        return 0 if complete else self._not_asked()

    def _settled(self, address: str) -> bool:
        schedule = self.driver.schedule
        return schedule.is_done(address) or address in schedule.failures

    def _doomed(self, stage: Stage) -> bool:
        """Whether a stage that is not scheduled yet cannot be made, since a stage it needs has failed."""
        schedule = self.driver.schedule
        return not schedule.is_done(stage.address) and any(
            needed.address in schedule.failures or self._doomed(needed) for _, needed in stage.inputs
        )

    # -- how long it takes --------------------------------------------------------------------------------------------

    def _time_left(self, left: list[Stage]) -> Left | None:
        """The larger of all work divided by the slots and the longest chain; None while nothing is measured."""
        if not left:
            return None
        exact, need, ends = self._unasked() == 0, dict[str, float](), dict[str, float]()
        for job in self.driver.jobs:
            seconds, sure = self._remaining(job)
            exact &= sure
            need |= dict.fromkeys((stage.address for stage in job.stages), 0.0) | {job.stages[0].address: seconds}
        for stage in left:
            if stage.address not in need:
                seconds_or_none = self.expected(stage)
                exact &= seconds_or_none is not None
                need[stage.address] = seconds_or_none or 0.0
            before = max((ends.get(needed.address, 0.0) for _, needed in stage.inputs), default=0.0)
            ends[stage.address] = before + need[stage.address]
        seconds = max(sum(need.values()) / self.slots, *ends.values())
        return Left(seconds, exact) if seconds else None

    def _remaining(self, job: Job) -> tuple[float, bool]:
        """Seconds until a running job ends, and whether that is an estimate and not only a lower bound."""
        first, now = job.stages[0], self.clock()
        pace, steps = self._paces.get(first.address), self._steps(first)
        if pace and steps and pace.seconds_per_step is not None:
            left = (steps - pace.last[0]) * pace.seconds_per_step - (now - pace.last[1])
            return max(left, 0.0), left > 0
        expected = [self.expected(stage) for stage in job.stages]
        left = sum(seconds or 0.0 for seconds in expected) - (now - self._began.get(first.address, now))
        return max(left, 0.0), left > 0 and None not in expected

    def expected(self, stage: Stage) -> float | None:
        """Seconds that a whole stage takes: the mean of similar ones, else by pace, else by its dense stage."""
        for key in _similarity(stage)[:2]:
            if key in self._durations:
                return statistics.fmean(self._durations[key])
        by_pace = [seconds for job in self.driver.jobs for seconds in self._by_pace(job.stages[0], stage)]
        if by_pace:
            return statistics.fmean(by_pace)
        trained = stage.trained
        return None if trained is None or trained is stage else self.expected(trained)

    def _by_pace(self, running: Stage, stage: Stage) -> Iterator[float]:
        """The seconds that a running stage takes in all, from its pace, if it is similar to `stage`."""
        pace, steps = self._paces.get(running.address), self._steps(running)
        if pace and steps and pace.seconds_per_step is not None and _similarity(running)[1] == _similarity(stage)[1]:
            yield pace.seconds_per_step * steps

    def _steps(self, stage: Stage) -> int | None:
        """The number of optimiser steps of a stage; None where it cannot be told before the stage has ended."""
        trained, training, text = stage.trained, stage.training, stage.input("text")
        if trained is None or training is None:
            return None
        if trained is not stage:
            return self.driver.facts(trained, TrainingFacts).steps if self._is_made(trained) else None
        if training.epochs is None:
            return training.max_steps
        return training.steps(self.driver.facts(text, TextFacts).train_blocks) if text and self._is_made(text) else None

    def _is_made(self, stage: Stage) -> bool:
        return self.driver.schedule.is_done(stage.address)


def _similarity(stage: Stage) -> list[tuple[object, ...]]:
    """The keys of similar stages, the most similar first: of one subject, of any language or the task, of the kind."""
    trains = stage.trained is not None
    group = "language" if stage.subject == stage.language else stage.subject
    return [(stage.kind, stage.subject, trains), (stage.kind, group, trains), (stage.kind,)]


def duration(seconds: float) -> str:
    """Seconds in readable units: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

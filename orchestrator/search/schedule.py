"""Which job may run next. Pure: no Ray, no Optuna, no files; callables tell what the store has.

A job is one stage, or the missing grades of one row (the compose-evaluate trial). The checks of the texts come first,
then the combinations, which the search proposes as results come in, then the baselines; of a row first what most of
its time waits for. A stage that failed permanently also fails every stage that needs it, with the reason, and the rest
goes on; no row needs a check. The order changes no combination: what an ask sees depends on its number alone.

A row is finished when the store has its grades and its vectors; those of the chosen row are compared byte by byte. The
stages that they were made from are needed only to make one of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deftx.stages.kinds import kind_of
from deftx.stages.stage import Stage, walk
from orchestrator.plan.rows import PlannedRow, Planner, with_vectors
from orchestrator.search.choice import Choice
from orchestrator.space.combination import Combination


class Asks(Protocol):
    """What the schedule needs of the search; `replay.Replay` has it."""

    def may_ask(self, finished: Sequence[bool]) -> bool:
        """Whether the next combination can be asked for now."""

    def ended(self) -> bool:
        """Whether the search has ended."""

    def ask(self, scores: Sequence[float | None]) -> Combination | None:
        """The next combination; None at the end of the search."""


@dataclass(frozen=True)
class Job:
    """What one trial makes: stages of one kind, in order."""

    name: str
    stages: tuple[Stage, ...] = field(repr=False)  # Tune writes a trial's configuration into messages and records

    @property
    def kind(self) -> str:
        """The kind of its stages, which decides its resources."""
        return self.stages[0].kind


class Schedule:
    """The jobs of a sweep: which may run next, given what is done, running and failed."""

    def __init__(
        self,
        asks: Asks,
        planner: Planner,
        choice: Choice,
        published: Callable[[str], bool],
        intact: Callable[[str], bool],
        failed_before: Mapping[str, str] | None = None,
        hours: Callable[[Stage], float] = lambda stage: 0.0,
    ) -> None:
        """Create a schedule without stages; `begin` adds them.

        Args:
            asks: the search.
            planner: makes the rows: combinations, baselines, and the controls once a combination is chosen.
            choice: scores a combination whose stages are all published, and chooses one.
            published: whether the store has the stage of an address; called once for each stage.
            intact: the same with every byte compared; called for what is read at the end: grades and the chosen parts.
            failed_before: reasons of recorded failures, by address; these stages are not run again.
            hours: how long a stage is thought to take; where nothing is known, stages run in the order of their rows.
        """
        self._asks, self._planner, self._choice = asks, planner, choice
        self._published, self._intact, self._failed_before = published, intact, dict(failed_before or {})
        self.combinations: list[PlannedRow] = []
        self.baselines = planner.baselines()
        self.checks = planner.checks()
        """Checks of the texts: no row needs them, but a user wants to read them before anything is trained."""
        self.complete = False
        """Whether all rows are planned: the search has ended and the controls were added."""
        self.stages: dict[str, Stage] = {}
        self.done_before: set[str] = set()
        self.failures: dict[str, str] = {}
        self.scores: dict[int, float | None] = {}
        self._chosen_parts: list[Stage] = []
        self._open: list[PlannedRow] = []
        """Rows that something is left to run of: of combinations as many as are in flight, however many were asked."""
        self._hours = hours
        self._ahead: dict[str, float] = {}
        """Hours from the beginning of a stage to the end of the longest chain that it begins in a row."""
        self._rows_of: dict[str, list[PlannedRow]] = {}
        self._done: set[str] = set()
        self._running: set[str] = set()

    def begin(self) -> None:
        """Add the checks and the baselines, and ask the search for its first combinations."""
        self._enlist(walk(self.checks))
        for row in self.baselines:
            self._add(row)
        self._advance()

    @property
    def rows(self) -> list[PlannedRow]:
        """Combinations in ask order, then the baselines."""
        return self.combinations + self.baselines

    def ready(self) -> Job | None:
        """The next job that can run, marked as running; None when nothing can run now."""
        for stage in self._missing([*self.checks, *self._chosen_parts]):
            if self._can_run(stage):
                return self._start(stage.label, [stage])
        for row in self._open:
            together = {grade.address for grade in row.grades.values()}
            missing = (stage for stage in self._missing(self._wanted(row)) if stage.address not in together)
            if runnable := [*filter(self._can_run, missing)]:
                stage = max(runnable, key=self._longest)
                return self._start(stage.label, [stage])
            grades = [stage for stage in row.grades.values() if self._waits(stage)]
            if grades and all(self._inputs_settled(stage) for stage in grades):
                runnable = [stage for stage in grades if self._can_run(stage)]
                if runnable:
                    return self._start(f"compose-evaluate {_name(row)}", runnable)
        return None

    def done(self, address: str) -> None:
        """Record that a stage was published."""
        self._running.discard(address)
        self._done.add(address)
        self._advance()

    def failed(self, address: str, reason: str) -> None:
        """Record that a stage failed permanently, and with it every stage that needs it."""
        self._running.discard(address)
        self._fail(address, reason)
        self._advance()

    def hand_back(self, job: Job) -> None:
        """Record that a job was not begun after all."""
        self._running -= {stage.address for stage in job.stages}

    def finished(self) -> bool:
        """Whether nothing is left to run or to ask."""
        others = all(self._settled(stage) for stage in [*self.checks, *self._chosen_parts])
        return others and self.complete and all(self.settled(row) for row in self._open)

    @property
    def chosen(self) -> PlannedRow | None:
        """The best combination so far; None while no combination has a score."""
        number = self._choice.chosen(self.combinations, self.scores)
        return None if number is None else self.combinations[number]

    @property
    def best(self) -> tuple[PlannedRow, float] | None:
        """The best combination so far and its score; None while no combination has a score."""
        row = self.chosen
        score = None if row is None or row.number is None else self.scores[row.number]
        return None if row is None or score is None else (row, score)

    def is_done(self, address: str) -> bool:
        """Whether the stage is published."""
        return address in self._done

    def is_running(self, address: str) -> bool:
        """Whether a job with the stage was handed out and has not ended."""
        return address in self._running

    def settled(self, row: PlannedRow) -> bool:
        """Whether nothing of a row is left to run: every grade failed, or is settled with the vectors it composes."""
        return all(self._settled(stage) for stage in self._wanted(row))

    def rows_of(self, address: str) -> list[PlannedRow]:
        """The rows that have a grade."""
        return self._rows_of.get(address, [])

    def reason(self, row: PlannedRow) -> str | None:
        """Why a row is incomplete: the failures of its grades, or of vectors that could not be made again."""
        reasons = {
            target: self.failures[stage.address]
            for target, grade in row.grades.items()
            for stage in with_vectors([grade])
            if stage.address in self.failures
        }
        return "; ".join(f"{target}: {reason}" for target, reason in reasons.items()) or None

    def _advance(self) -> None:
        """Score finished combinations and ask for new ones until neither changes anything."""
        while True:
            ended = [row for row in self._open if self.settled(row)]
            self._open = [row for row in self._open if not self.settled(row)]
            for row in ended:
                if row.number is not None and row.number not in self.scores:
                    self.scores[row.number] = None if self.reason(row) else self._choice.score(row)
            finished = [number in self.scores for number in range(len(self.combinations))]
            if self._asks.ended() or not self._asks.may_ask(finished):
                break
            cell = self._asks.ask([self.scores.get(number) for number in range(len(self.combinations))])
            if cell is not None:
                row = self._planner.combination(len(self.combinations), cell)
                self.combinations.append(row)
                self._add(row)
        if not self.complete and self._asks.ended() and all(finished):
            self.complete = True
            chosen = (self.chosen or self.combinations[0]).combination
            for row in self._planner.controls(chosen) if chosen else ():
                self.baselines.append(row)
                self._add(row)
            self._chosen_parts = self.chosen.parts if self.chosen else []
            self._recheck(self._chosen_parts)
            self._open = self.rows  # what is made again may have been settled

    def _recheck(self, stages: Iterable[Stage]) -> None:
        """Mark stages of an earlier run as not done where a byte of one is wrong."""
        for stage in stages:
            if stage.address in self.done_before and not self._intact(stage.address):
                self.done_before.discard(stage.address)
                self._done.discard(stage.address)
                self._inherit_failure(stage)

    def _add(self, row: PlannedRow) -> None:
        self._enlist(row.stages)
        after = dict[str, float]()
        for stage in reversed(row.stages):  # what needs a stage is before it
            hours = self._hours(stage) + after.get(stage.address, 0.0)
            self._ahead[stage.address] = max(hours, self._longest(stage))
            after |= {needed.address: max(hours, after.get(needed.address, 0.0)) for _, needed in stage.inputs}
        for grade in row.grades.values():
            self._rows_of.setdefault(grade.address, []).append(row)
        self._open.append(row)
        self._open.sort(key=lambda row: row.number is None)  # the baselines after every combination

    def _enlist(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            if stage.address in self.stages:
                continue
            self.stages[stage.address] = stage
            in_store = self._intact if kind_of(stage.kind).seals else self._published
            if in_store(stage.address):
                self._done.add(stage.address)
                self.done_before.add(stage.address)
            elif stage.address in self._failed_before:
                self.failures[stage.address] = self._failed_before[stage.address]
            else:
                self._inherit_failure(stage)

    def _fail(self, address: str, reason: str) -> None:
        self.failures[address] = reason
        for stage in self.stages.values():  # inputs first, so that one pass reaches all that need it
            self._inherit_failure(stage)

    def _inherit_failure(self, stage: Stage) -> None:
        """Fail a stage that is still to be made and has an input that failed."""
        failed = next((needed for _, needed in stage.inputs if needed.address in self.failures), None)
        if failed is not None and not self._settled(stage):
            self.failures[stage.address] = f"{failed.label} failed: {self.failures[failed.address]}"

    def missing(self) -> list[Stage]:
        """Every stage still to be made, inputs first: of each row its grades and vectors, and what these need."""
        wanted = [*self.checks, *self._chosen_parts, *(stage for row in self._open for stage in self._wanted(row))]
        return list({stage.address: stage for stage in self._missing(wanted)}.values())

    def _wanted(self, row: PlannedRow) -> Iterator[Stage]:
        """The grades of a row that did not fail, each preceded by its vectors."""
        return with_vectors(grade for grade in row.grades.values() if grade.address not in self.failures)

    def _missing(self, stages: Iterable[Stage]) -> Iterator[Stage]:
        return unmade(stages, lambda address: address in self._done or address in self.failures)

    def _settled(self, stage: Stage) -> bool:
        return stage.address in self._done or stage.address in self.failures

    def _waits(self, stage: Stage) -> bool:
        return not (stage.address in self._done or stage.address in self._running or stage.address in self.failures)

    def _inputs_settled(self, stage: Stage) -> bool:
        return all(self._settled(needed) for _, needed in stage.inputs)

    def _can_run(self, stage: Stage) -> bool:
        return self._waits(stage) and all(needed.address in self._done for _, needed in stage.inputs)

    def _longest(self, stage: Stage) -> float:
        return self._ahead.get(stage.address, 0.0)

    def _start(self, name: str, stages: Sequence[Stage]) -> Job:
        self._running |= {stage.address for stage in stages}
        return Job(name, tuple(stages))


def unmade(stages: Iterable[Stage], settled: Callable[[str], bool]) -> Iterator[Stage]:
    """The stages to run so that some stages are made, inputs first; a settled stage needs none of its inputs."""
    for stage in stages:
        if not settled(stage.address):
            yield from unmade((needed for _, needed in stage.inputs), settled)
            yield stage


def _name(row: PlannedRow) -> str:
    return f"combination {row.number}" if row.kind == "combination" else row.kind

"""The driver of a sweep: hands out jobs, records how they ended, and calls the callbacks (tracker and screen).

It does not know how jobs run: `tune` (on Ray) and `serial` call `next_job`, `progress`, `settle` and `finished`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from deftx.errors import refusal
from deftx.stages.claim import claim_on, killed_for_memory
from deftx.stages.facts import Facts
from deftx.stages.kinds import F, facts_of
from deftx.stages.lease import Holder, Lease
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage
from orchestrator.plan.cost import gpu_hours
from orchestrator.plan.rows import PlannedRow, Planner
from orchestrator.record.sweep import Failure, GradeRow, StageEntry, State, SweepFolder
from orchestrator.run.machine import Workplace
from orchestrator.search.choice import Choice
from orchestrator.search.replay import Replay
from orchestrator.search.schedule import Job, Schedule
from orchestrator.space.combination import Combination
from orchestrator.space.schema import Space

NO_MESSAGE = "its worker died without a message"
"""The reason of a failure that nothing else is recorded of."""
STATE_SECONDS = 1.0
"""The least time between two writings of the state, which is written whole: each stage once would be n^2 of them."""
STATE_SHARE = 0.05
"""The most of a driver's time that goes into writing the state of a sweep that runs."""
_MANIFESTS = 64
"""Manifests kept in memory: a stage's is read some times when it has ended, and seldom later."""
LEAVE_SECONDS = 20.0
"""How long an interrupted driver waits for checkpoints; of two minutes that a spot machine has, enough is left."""


class Callback(Protocol):
    """What the driver calls as stages start, progress and end: the tracker's mirror and the screen."""

    def stage_started(self, stage: Stage) -> None:
        """The stage was handed to a trial."""

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        """A running stage reported a point of its curve."""

    def stage_done(self, stage: Stage, reused: bool) -> None:
        """The stage is in the store; `reused` when it was there before this run."""

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """The stage failed permanently."""


class Driver:
    """One run of a sweep."""

    def __init__(
        self, space: Space, planner: Planner, workplace: Workplace, folder: SweepFolder, *, retry_failed: bool = False
    ) -> None:
        """Read how far the sweep is; nothing is written.

        Args:
            retry_failed: take no failure on record for permanent.
        """
        self.space, self.folder, self.workplace = space, folder, workplace
        self.callbacks: list[Callback] = []
        self._manifests: dict[str, Manifest] = {}
        """The latest ones."""
        self._facts: dict[str, Facts] = {}
        self._unwritten, self._write_at = False, 0.0
        self._told: set[str] = set()
        self._handed_back: Counter[str] = Counter()
        self.jobs: list[Job] = []
        """Jobs that were handed out and have not ended."""
        self.interrupted: int | None = None
        """The signal that asked the sweep to end, such as Ctrl-C's: then no further job is handed out."""
        self.refused: str | None = None
        """What the machine refused, in words, such as room on a disk: then no further job is handed out either."""
        self._asks = Replay(space)
        failures = {} if retry_failed else folder.final_failures()
        reasons = {address: failure.reason for address, failure in failures.items()}
        store, choice = folder.store, Choice(space, self.facts)
        self.schedule = Schedule(self._asks, planner, choice, store.has, store.intact, reasons, gpu_hours)
        self.schedule.begin()

    @property
    def asked(self) -> list[Combination]:
        """The combinations asked so far, in order."""
        return self._asks.asked

    def next_job(self) -> Job | None:
        """The next job that can run; None when nothing can run now."""
        self._tell_reused()
        job = None if self.interrupted or self.refused else self.schedule.ready()
        self.jobs += [job] if job else []
        for stage in job.stages if job else ():
            for callback in self.callbacks:
                callback.stage_started(stage)
        return job

    def progress(self, address: str, point: dict[str, float]) -> None:
        """Pass a point of a running stage's curve on to the callbacks."""
        metrics = {name: value for name, value in point.items() if name not in ("step", "steps")}
        for callback in self.callbacks:
            callback.progress(address, int(point["step"]), metrics)

    def settle(self, job: Job, error: str = NO_MESSAGE) -> None:
        """Record the end of a job: each of its stages is done if the store has it, else failed.

        Args:
            error: the reason for a stage that is neither in the store nor recorded as failed.
        """
        failures = self.folder.failures_of(stage.address for stage in job.stages)
        self.jobs = [other for other in self.jobs if other is not job]
        ended = [(stage, self._end(stage, failures.get(stage.address), error)) for stage in job.stages]
        for stage, failure in ended:  # once all are recorded: the last grade of a combination gives it its score
            for callback in self.callbacks:
                if failure:
                    callback.stage_failed(stage, failure)
                else:
                    callback.stage_done(stage, False)
        self._tell_reused()
        self._unwritten = True
        self.keep_state()

    def hand_back(self, job: Job) -> bool:
        """Whether a job whose worker died is handed out again: where nothing says that it was begun, some times."""
        claims = (claim_on(self.folder.store, stage.address) for stage in job.stages)
        failures = self.folder.failures_of(stage.address for stage in job.stages)
        begun = bool(failures) or any(map(self._worker, claims))
        self._handed_back[job.name] += not begun
        if begun or self._handed_back[job.name] > max(self.space.max_failures, 1):
            return False
        self.jobs = [other for other in self.jobs if other is not job]
        self.schedule.hand_back(job)
        return True

    def short_of_memory(self, job: Job) -> None:
        """Note, for whoever makes them again, that the worker of a job's stages was killed for want of memory."""
        for claim in (claim_on(self.folder.store, stage.address) for stage in job.stages):
            if self._worker(claim):
                claim.say_short_of_memory()

    def let_leave(self) -> None:
        """Ask the workers that train to keep a checkpoint after their step, and wait for them, though not for long."""
        trained = [stage for job in self.jobs for stage in job.stages if stage.training is not None]
        claims = [claim_on(self.folder.store, stage.address) for stage in trained]
        until = time.monotonic() + LEAVE_SECONDS
        with self.refusals():
            for claim in filter(self._works, claims):
                claim.ask_to_leave()
            while any(map(self._works, claims)) and time.monotonic() < until:
                time.sleep(0.1)

    def _death(self, stage: Stage) -> str | None:
        """How the worker died that left a claim on a stage, if for want of memory; the claim is removed then."""
        claim = claim_on(self.folder.store, stage.address)
        worker = self._worker(claim)
        words = killed_for_memory(worker) if worker else None
        if words:
            claim.forget()
        return words

    def _worker(self, claim: Lease) -> Holder | None:
        """The worker of this sweep, dead or alive, that has a claim: another sweep may be making the stage."""
        holder = claim.holder()
        return holder if holder and holder.by == self.workplace.maker else None

    def _works(self, claim: Lease) -> bool:
        worker = self._worker(claim)
        return worker is not None and not worker.gone

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """A context in which what the machine refuses ends the run, and raises nothing: trials that run may end."""
        try:
            yield
        except OSError as error:
            if (words := refusal(error)) is None:
                raise
            self.refused = self.refused or words

    def finished(self) -> bool:
        """Whether nothing is left to run."""
        return self.schedule.finished()

    def keep_state(self, *, now: bool = False) -> None:
        """Write the state if a job has ended since, unless it was written just before; called every now and then.

        Args:
            now: write it however late it was written: before a job that nothing is called in.
        """
        if self._unwritten and (now or time.monotonic() >= self._write_at):
            with self.refusals():
                self.write_state()

    def write_state(self, *, ended: bool = False) -> State:
        """The state of the sweep, after writing it to its folder; with the chosen combination once it has ended."""
        began, chosen = time.monotonic(), self.schedule.chosen if ended else None
        state = State(
            stages={stage.address: self._entry(stage) for stage in self.schedule.stages.values()},
            rows=[self._row(row) for row in self.schedule.rows],
            chosen=chosen.number if chosen else None,
            ended=ended,
        )
        try:
            self.folder.write_state(state)
            self._unwritten = False
        finally:  # one that is refused is not tried at once again either
            now = time.monotonic()
            self._write_at = now + max(STATE_SECONDS, (now - began) / STATE_SHARE)
        return state

    def _end(self, stage: Stage, recorded: Failure | None, error: str) -> Failure | None:
        """Record the end of a stage; the failure, where the store has it not."""
        if self.folder.store.has(stage.address):
            if recorded:
                self.folder.forget_failure(stage.address)
            for known in (self._manifests, self._facts):
                known.pop(stage.address, None)  # a stage that is made again has a new one
            self.schedule.done(stage.address)
            return None
        reason, log = self._death(stage) or error, self.folder.log_path(stage.address)
        failure = recorded or Failure(address=stage.address, label=stage.label, reason=reason, final=True, log=log)
        failure = failure.model_copy(update={"final": True})
        if failure.passing:
            self.refused = self.refused or failure.reason
        with self.refusals():
            self.folder.write_failure(failure)
        self.schedule.failed(stage.address, failure.reason)
        return failure

    def _tell_reused(self) -> None:
        for address in sorted(self.schedule.done_before - self._told):
            self._told.add(address)
            for callback in self.callbacks:
                callback.stage_done(self.schedule.stages[address], True)

    def _entry(self, stage: Stage) -> StageEntry:
        schedule, address = self.schedule, stage.address
        entry = StageEntry.of(stage)
        if address in schedule.failures:
            return entry.model_copy(update={"status": "failed"})
        if schedule.is_done(address):
            return entry.model_copy(update={"status": "reused" if address in schedule.done_before else "done"})
        return entry

    def _row(self, row: PlannedRow) -> GradeRow:
        record = row.record()
        if not self.schedule.settled(row):
            return record
        reason = self.schedule.reason(row)
        score = self.schedule.scores.get(row.number) if row.number is not None else None
        return record.model_copy(
            update={"status": "failed" if reason else "complete", "reason": reason, "score": score}
        )

    def rows_of(self, address: str) -> list[GradeRow]:
        """The rows that have a grade, as the state has them."""
        return [self._row(row) for row in self.schedule.rows_of(address)]

    def seconds(self, stage: Stage) -> float:
        """How many seconds a published stage took."""
        return self.manifest(stage).seconds

    def facts(self, stage: Stage, kind: type[F]) -> F:
        """What a published stage measured.

        Args:
            kind: the class of facts that stages of its kind have.
        """
        facts = self._facts.get(stage.address)
        if not isinstance(facts, kind):
            facts = self._facts[stage.address] = facts_of(self.manifest(stage), kind)
        return facts

    def manifest(self, stage: Stage) -> Manifest:
        """The manifest of a published stage."""
        address = stage.address
        if address not in self._manifests:
            if len(self._manifests) >= _MANIFESTS:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[address] = self.folder.store.published(address)
        return self._manifests[address]

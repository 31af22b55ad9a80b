"""What a stage costs a sweep does not grow with the sweep; in which order jobs start, and how long that takes."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.plans import MadeUp, World, make_planner, make_space, simulate, unmeasured

from benchmarks import makespan
from benchmarks import sweep as load
from benchmarks.sweep import Block, Turn
from deftx.config import Execution
from deftx.method.context import Context
from deftx.stages.kinds import KINDS
from deftx.stages.objects import Objects
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.sweep import Failure, SweepFolder
from orchestrator.run import driver as driver_module
from orchestrator.run import session
from orchestrator.run.driver import _MANIFESTS, Driver
from orchestrator.run.machine import Machine, Workplace
from orchestrator.run.serial import run_serial
from orchestrator.run.tune import ScheduleSearcher, _ProgressCallback
from orchestrator.search.replay import Replay
from orchestrator.search.schedule import Job, Schedule

GRID = {
    "search": "grid", "combinations": None, "rank_l": list(range(1, 21)), "rank_t": [1, 2], "targets": ("ace", "ban"),
}  # fmt: skip


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A driver of stages that do nothing, whose clock stands still."""
    before = dict(KINDS)
    load.made_of_nothing()
    monkeypatch.setattr(driver_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    settings = load.space_of(1).model_dump(mode="json") | GRID | {"retention_l": None, "retention_t": None}
    space = type(load.space_of(1)).model_validate(settings)
    folder = SweepFolder(Store(str(tmp_path)), "load")
    folder.write_info(load.info_of(space))
    workplace = Workplace.of(space, folder, Machine(2, 0))
    yield Driver(space, load.planner_of(space), workplace, folder)
    KINDS.update(before)


def publish(driver: Driver, job: Job) -> None:
    for stage in job.stages:
        attempt = driver.folder.store.attempt(stage.address)
        made = load.nothing(Context(stage, driver.folder.store, attempt.folder, Execution(), None))
        attempt.publish(stage, metrics=made.facts.metrics(), seconds=0.0)


def called(work: Callable[[], object]) -> int:
    """How many functions of Python are called meanwhile."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_settling_a_job_costs_the_same_at_the_end_as_at_the_beginning(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is called and by what is done in the store; at every tenth job two failures come on record."""
    done: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            done[name] += 1
            return real(*arguments)

        return work

    for name in ("read", "write", "names", "create", "remove"):
        monkeypatch.setattr(Objects, name, counted(name, getattr(Objects, name)))
    costs: dict[tuple[str, int], list[tuple[int, Counter[str]]]] = {}
    driver.write_state()
    number = 0
    while (job := driver.next_job()) is not None:
        publish(driver, job)
        if number % 10 == 0:
            for address in (job.stages[0].address, f"{number:032}"):
                driver.folder.write_failure(Failure(address=address, label="a stage", reason="no", final=False))
        number += 1
        done.clear()
        before = len(driver.schedule.stages)
        calls = called(lambda job=job: (driver.settle(job), driver.schedule.finished()))  # type: ignore[misc]
        if number % 10 != 1:  # a settled combination may let the next be asked for, whose stages are looked up
            like = " ".join(job.name.split()[:2]), len(driver.schedule.stages) - before
            costs.setdefault(like, []).append((calls, done.copy()))
    assert driver.finished()
    assert set(driver.folder.failures()) == {f"{other:032}" for other in range(0, number, 10)}
    for name in (("ace ·", 0), ("compose-evaluate combination", 2), ("compose-evaluate combination", 4)):
        found = costs[name]
        assert len(found) > 10
        assert all(store == found[0][1] for _, store in found), name
        early, late = (sorted(calls for calls, _ in part)[2] for part in (found[:6], found[-6:]))
        assert late < 1.3 * early, name


def test_the_state_is_written_once_a_second_and_when_that_is_asked_for(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(driver_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def done() -> int:
        return sum(entry.status == "done" for entry in driver.folder.state().stages.values())

    driver.write_state()
    for _ in range(3):
        job = driver.next_job()
        assert job
        publish(driver, job)
        driver.settle(job)
    assert done() == 0
    clock[0] += 1.0
    driver.keep_state()
    assert done() == 3
    job = driver.next_job()
    assert job
    publish(driver, job)
    driver.settle(job)
    assert done() == 3
    driver.keep_state(now=True)
    assert done() == 4
    at = driver.folder.state()
    assert driver.write_state() == at, "what is on disk is what there is"


def test_writing_a_large_state_takes_a_twentieth_of_the_time_at_most(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = [100.0], []
    monkeypatch.setattr(driver_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(state: object) -> None:
        clock[0] += 0.5
        written.append(clock[0])

    monkeypatch.setattr(driver.folder, "write_state", slow)
    driver.write_state()
    for _ in range(400):
        clock[0] += 0.1
        driver._unwritten = True
        driver.keep_state()
    gaps = [round(later - earlier, 1) for earlier, later in pairwise(written)]
    assert set(gaps) <= {10.5, 10.6}


def test_a_driver_keeps_the_latest_manifests_alone(driver: Driver) -> None:
    while (job := driver.next_job()) is not None:
        publish(driver, job)
        driver.settle(job)
        for stage in job.stages:
            assert driver.manifest(stage).address == stage.address
    assert len(driver.schedule.stages) > _MANIFESTS == len(driver._manifests)


def test_the_benchmarks_stages_run_where_jobs_run_and_are_counted(driver: Driver) -> None:
    driver.workplace = load._Workplace(**vars(driver.workplace))
    turn = Turn(10**6, 1)
    driver.callbacks.append(load._Counting(turn, driver))
    run_serial(driver)
    assert driver.finished()
    assert turn.stages == len(driver.schedule.stages)
    assert driver.write_state(ended=True) == driver.folder.state()


def test_rows_of_the_load_by_hand() -> None:
    """The first block counts for nothing; then 0.2, 0.4, and a disturbed 9 seconds a stage, beside 0.1 a trial."""
    seconds = (90.0, 2.0, 4.0, 90.0)
    ours = [Block(10 * n, 10, 5, taken, 400_000 * n) for n, taken in enumerate(seconds, 1)]
    turns = {"ours": ours, "plain": [Block(2 * n, 2, 2, 0.2, 0) for n in range(1, 5)]}
    stage, job = load._costs(turns, "")
    assert (stage.ours, stage.reference, stage.met) == (0.4, 0.1, False)
    assert (job.ours, job.reference, job.met) == (0.8, 0.1, None)
    growth = load._growth({"ours": [ours[0], *ours[1:3] * 5], "plain": [turns["plain"][0]] * 11})
    assert (growth.ours, growth.reference, growth.met) == (0.4, 0.2, False)
    assert load._memory(turns, "").ours == pytest.approx(40)


# -- the order of jobs -------------------------------------------------------------------------------------------------

HOURS = {"ace · dense": 1.0, "ban · dense": 5.0, "task · dense": 3.0}


def hours(stage: Stage) -> float:
    return HOURS.get(stage.label, 1.0 if stage.kind == "sparse" else 0.0)


def schedule_of(space: Any, world: World, hours: Callable[[Stage], float]) -> tuple[Replay, Schedule]:
    planner, replay = make_planner(space.model_copy(update={"baselines": ()})), Replay(space)
    planner.checks = list  # type: ignore[method-assign]
    choice = MadeUp(space, unmeasured)
    schedule = Schedule(replay, planner, choice, world.published.__contains__, world.intact, hours=hours)
    schedule.begin()
    return replay, schedule


def test_of_a_row_the_longest_chain_starts_first() -> None:
    """ban: 0 + 5 + 1 hours to its grade, task: 3 + 1, ace: 0 + 1 + 1; of equal ones the first of the row."""
    world = World()
    _, schedule = schedule_of(make_space(rank_l=[8], rank_t=[8]), world, hours)
    names = {stage.address: stage.label.split(" · rank")[0] for stage in schedule.stages.values()}
    simulate(schedule, world, workers=1, seed=0)
    assert [names[address] for address in world.runs[:8]] == [
        "ban · text", "ban · dense", "task · dense", "ace · text", "ace · dense",
        "task · sparse", "ace · sparse", "ban · sparse",
    ]  # fmt: skip
    assert [schedule.stages[address].kind for address in world.runs[8:]] == ["grade", "grade"]


def test_the_order_of_jobs_changes_no_combination() -> None:
    space = make_space(
        search="tpe", combinations=12, rank_l=[2, 4, 8, 16], rank_t=[2, 4, 8, 16], retention=[0, 0.05]
    )  # fmt: skip
    asked = []
    for of in (hours, lambda stage: 0.0, lambda stage: -hours(stage)):
        for workers in (1, 4):
            world = World()
            replay, schedule = schedule_of(space, world, of)
            simulate(schedule, world, workers, seed=workers)
            assert schedule.finished()
            asked.append(replay.asked)
    assert len(asked[0]) == 12
    assert all(other == asked[0] for other in asked)


def test_a_tiny_plan_is_simulated_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: texts, checks and grades take nothing here; 12 hours of work, the longest chain is ban's 6.

    One worker: 12. Two: ban 0-6; task 0-4 and ace's dense and sparse phase 4-6.
    """
    monkeypatch.setattr(makespan, "gpu_hours", hours)
    monkeypatch.setattr(makespan, "ASSUMED", {})
    space = make_space(rank_l=[8], rank_t=[8], baselines=())
    for workers, expected in ((1, 12.0), (2, 6.0), (8, 6.0)):
        found, schedule = makespan.simulate(space, workers, hours, make_planner(space))
        assert found == expected
        assert makespan.bounds(schedule) == (6.0, 12.0)
    # in the order of the row the task is first, and ban's text waits for a worker
    assert makespan.simulate(space, 2, lambda stage: 0.0, make_planner(space))[0] == 8.0


def settled(driver: Driver) -> int:
    """How many stages are done in the state on record, after one more is in fact."""
    job = driver.next_job()
    assert job
    publish(driver, job)
    driver.settle(job)
    return sum(entry.status == "done" for entry in driver.folder.state().stages.values())


def test_what_was_put_off_is_written_at_a_step_of_tune_and_before_an_error_ends_the_run(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(driver_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    driver.write_state()
    assert settled(driver) == 0
    clock[0] += 60
    _ProgressCallback(driver, ScheduleSearcher(driver)).on_step_end(1, [])
    assert sum(entry.status == "done" for entry in driver.folder.state().stages.values()) == 1

    def work(driver: Driver) -> None:
        assert settled(driver) == 1
        raise RuntimeError("the head of the cluster is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        session.run(driver, work)
    assert sum(entry.status == "done" for entry in driver.folder.state().stages.values()) == 2


def test_a_state_that_cannot_be_written_is_not_tried_at_every_step(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def full(*_: Any) -> None:
        tried.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    driver.write_state()
    monkeypatch.setattr(Objects, "write", full)
    driver._unwritten, driver._write_at = True, -1.0
    for _ in range(20):
        driver.keep_state()
    assert (len(tried), driver.refused is not None) == (1, True)

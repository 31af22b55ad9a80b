"""Workers that die: what Tune says of them, and what the driver makes of it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.islands import write_data, write_space

from deftx import hardware
from deftx.stages.claim import claim_on
from deftx.stages.lease import Holder
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder
from orchestrator.run import session
from orchestrator.run.driver import NO_MESSAGE, Driver
from orchestrator.run.machine import Machine, Workplace
from orchestrator.run.tune import ScheduleSearcher, _ProgressCallback
from orchestrator.search.schedule import Job
from orchestrator.space.load import load_space

LOW = "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.\nMemory on the node was"
DIED = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\nSIGKILL"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(hardware, "oom_kills", lambda: 5)
    monkeypatch.setattr(hardware, "memory_limit", lambda: 8 * 2**30)
    title, space = load_space(str(write_space(tmp_path / "tiny.yaml")), [])
    folder = SweepFolder(Store(str(tmp_path / "storage")), "tiny")
    prepared = session.prepare(title, space, folder, str(write_data(tmp_path / "data")))
    return Driver(space, prepared.planner, Workplace.of(space, folder, Machine(2, 0)), folder)


def trial(error: str | None) -> Any:
    return SimpleNamespace(trial_id="t", get_error=lambda: error)


def left_behind(driver: Driver, job: Job, by: str = "sweep 'tiny'", **facts: object) -> None:
    """The claim of a worker that died making the job's first stage."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    fields = {"token": "t", "by": by, "host": socket.gethostname(), "pid": ended.pid, "born": "1", "beat": 0}
    holder = Holder.model_validate({**fields, "micro_batch": 4, "memory": 2**31, "oom_kills": 5, **facts})
    driver.folder.store.write(holder.model_dump_json().encode(), "stages", job.stages[0].address, "claim.json")


def given_up(driver: Driver, error: str | None, **facts: object) -> str:
    """The reason on record of a job that Tune gave up."""
    searcher = ScheduleSearcher(driver)
    job = searcher.suggest("t")["job"]
    left_behind(driver, job, **facts)
    callback = _ProgressCallback(driver, searcher)
    callback.on_trial_recover(1, [], trial(error))
    searcher.on_trial_complete("t", error=True)
    callback.on_trial_error(1, [], trial(error))
    assert searcher.jobs == {}
    assert driver.jobs == []
    return driver.folder.failures()[job.stages[0].address].reason


KILLED = (
    "killed for want of memory with 4 examples at once; it held 2.0 GiB when last looked at (there are 8.0 GiB in all)"
)


@pytest.mark.parametrize(
    ("error", "facts", "reason"),
    [
        (DIED, {"oom_kills": 4}, KILLED),  # the kernel killed one more than when it began
        (LOW, {}, KILLED),
        (DIED, {}, "SIGKILL"),
        (None, {}, NO_MESSAGE),
    ],
)
def test_a_death_for_want_of_memory_is_told_apart_from_others(
    driver: Driver, error: str | None, facts: dict[str, Any], reason: str
) -> None:
    found = given_up(driver, error, **facts)
    assert found.partition(";")[0] == reason.partition(";")[0]
    assert found.startswith(reason)


def test_once_it_is_on_record_the_claim_is_gone_so_that_the_next_try_begins_afresh(driver: Driver) -> None:
    given_up(driver, DIED, oom_kills=4)
    assert not list(driver.folder.store.fs.glob(driver.folder.store.path("stages", "*", "claim*")))


def test_a_trial_that_fails_before_it_begins_is_handed_out_again_once(driver: Driver) -> None:
    """As one that was given a worker that had died between two trials; a space of one failure allows one."""
    searcher = ScheduleSearcher(driver)
    callback = _ProgressCallback(driver, searcher)
    job = searcher.suggest("t")["job"]
    searcher.on_trial_complete("t", error=True)
    callback.on_trial_error(1, [], trial(DIED))
    assert (driver.jobs, searcher.jobs, driver.folder.failures()) == ([], {}, {})
    assert searcher.suggest("t")["job"] == job
    callback.on_trial_error(1, [], trial(DIED))
    assert driver.folder.failures()[job.stages[0].address].reason == "SIGKILL"


def test_ray_says_why_it_killed_a_worker_before_the_trial_is_tried_again(driver: Driver) -> None:
    searcher = ScheduleSearcher(driver)
    job = searcher.suggest("t")["job"]
    left_behind(driver, job)
    _ProgressCallback(driver, searcher).on_trial_recover(1, [], trial(LOW))
    holder = claim_on(driver.folder.store, job.stages[0].address).holder()
    assert holder is not None and holder.killed_for_memory
    assert searcher.jobs == {"t": job}
    assert driver.jobs == [job]

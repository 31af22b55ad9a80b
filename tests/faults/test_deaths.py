"""Processes that end before their time, at moments a seed draws: the same command goes on, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.faults import Signalled, Sweep
from support.islands import attempts, published
from support.patience import PATIENCE

from orchestrator.run.driver import Driver
from orchestrator.run.signals import interruptible

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def test_a_driver_killed_at_any_moment_loses_no_finished_stage(
    sweep: Sweep, undisturbed: Sweep, operations: int, seed: int
) -> None:
    """Four times in a row, at once or amid what came after."""
    draw = random.Random(seed)
    for _ in range(4):
        kill = Signalled(draw.randrange(operations // 2), later=draw.choice([0.0, draw.uniform(0.001, 0.3)]))
        assert sweep.run(kill) in (-signal.SIGKILL, 0)
    sweep.until_done(most=1)
    sweep.collect()
    sweep.check(undisturbed)


def test_a_signal_that_comes_amid_logging_is_heeded_when_its_lock_is_given_back() -> None:
    driver = cast(Driver, SimpleNamespace(interrupted=None))
    of_logging: dict[str, Any] = {"__name__": "logging", "sys": sys}
    exec("frame = sys._getframe()", of_logging)
    with pytest.raises(KeyboardInterrupt), interruptible(driver):
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, of_logging["frame"])
        assert driver.interrupted is None
        time.sleep(PATIENCE)
    assert driver.interrupted == signal.SIGTERM


@pytest.mark.faults
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_driver_told_to_end_at_any_moment_says_so_and_goes_on(
    sweep: Sweep, undisturbed: Sweep, operations: int, seed: int, number: signal.Signals
) -> None:
    """Twice in a row; what the first left is gone on with, checkpoints too."""
    draw = random.Random(seed)
    for _ in range(2):
        code = sweep.run(Signalled(draw.randrange(operations // 2), number, draw.uniform(0.001, 0.3)))
        assert code in (CODES[number], 0), sweep.log.read_text()
        assert not list(sweep.storage.rglob("*.json.leave")) and not list(sweep.storage.rglob("lease.json"))
        assert not sweep.database.exists() or sweep.runs()["RUNNING"] == 0
    sweep.until_done(most=1)
    sweep.collect()
    sweep.check(undisturbed)


@pytest.mark.faults
def test_of_two_drivers_of_one_name_one_works_and_the_other_says_who(
    sweep: Sweep, undisturbed: Sweep, seed: int
) -> None:
    first = sweep.start()
    time.sleep(random.Random(seed).uniform(0, 3))
    second = sweep.start()
    assert sorted([sweep.end(first), sweep.end(second)]) == [0, 2]
    assert "is being driven by process" in sweep.log.read_text()
    assert all(len(made) == 1 for made in attempts(sweep.storage).values())
    sweep.until_done(most=1)
    sweep.check(undisturbed)


@pytest.mark.faults
def test_two_sweeps_make_the_stages_they_share_once(sweep: Sweep, undisturbed: Sweep, seed: int) -> None:
    other = replace(sweep, name="other", kept={})
    first = sweep.start()
    time.sleep(random.Random(seed).uniform(0, 3))
    second = other.start()
    assert [sweep.end(first), other.end(second)] == [0, 0]
    assert all(len(made) == 1 for made in attempts(sweep.storage).values())
    assert other.table() == sweep.table()
    for one in (sweep, other):
        one.until_done(most=1)
        assert one.runs() == {"FINISHED": 14}
    sweep.check(undisturbed)


@pytest.mark.faults
def test_a_stage_claimed_by_a_sweep_that_is_killed_is_made_by_the_other(
    sweep: Sweep, undisturbed: Sweep, operations: int, seed: int
) -> None:
    other, draw = replace(sweep, name="other", kept={}), random.Random(seed)
    first = sweep.start(Signalled(draw.randrange(operations // 2), later=draw.uniform(0.001, 0.3)))
    second = other.start()
    assert sweep.end(first) in (-signal.SIGKILL, 0)
    assert other.end(second) == 0
    sweep.until_done(most=1)
    sweep.collect()
    sweep.check(undisturbed)


def workers_of(pid: int) -> list[int]:
    """The processes below one in which Ray runs trials, at work or between two."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                if b"ray::ImplicitFunc" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue

    def below(one: int) -> bool:
        return one == pid or (one in parents and below(parents[one]))

    return [one for one in found if below(one)]


@pytest.mark.faults
def test_a_ray_worker_that_is_killed_at_any_moment_costs_one_try_at_most(
    sweep: Sweep, undisturbed: Sweep, seed: int
) -> None:
    words = [word for word in sweep.words() if word != "--serial"]
    with sweep.log.open("wb") as log:
        driver = subprocess.Popen([sys.executable, "-m", "orchestrator.sweep", *words], stdout=log, stderr=log)
    draw, deadline = random.Random(seed), time.monotonic() + PATIENCE
    moment, killed = draw.randrange(1, 8), 0
    while driver.poll() is None and not killed and time.monotonic() < deadline:
        if len(published(sweep.storage)) >= moment and (workers := workers_of(driver.pid)):
            os.kill(draw.choice(workers), signal.SIGKILL)
            killed += 1
        time.sleep(0.05)
    assert driver.wait(PATIENCE) == 0, sweep.log.read_text()
    assert killed == 1
    sweep.look()
    sweep.until_done(most=1)
    sweep.collect()
    sweep.check(undisturbed)

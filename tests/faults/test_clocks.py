"""A clock that jumps, and a language whose training becomes NaN."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
from support.faults import ClockJumps, Elsewhere, NotANumber, Sweep
from support.islands import folder_of
from support.patience import PATIENCE

HOUR = 3600.0


def test_a_clock_that_jumps_changes_nothing(sweep: Sweep, undisturbed: Sweep, operations: int, seed: int) -> None:
    draw = random.Random(seed)
    by = draw.choice([-1, 1]) * draw.uniform(HOUR, 48 * HOUR)
    assert sweep.run(ClockJumps(draw.randrange(operations), by)) == 0, sweep.log.read_text()
    sweep.check(undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("by", [-6 * HOUR, 6 * HOUR])
def test_a_driver_elsewhere_whose_clock_is_wrong_is_respected_while_it_lives(
    sweep: Sweep, undisturbed: Sweep, by: float
) -> None:
    first = sweep.start(Elsewhere(), ClockJumps(-1, by))
    lease, deadline = sweep.folder / "lease.json", time.monotonic() + PATIENCE
    while not lease.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first_beat = json.loads(lease.read_bytes())["beat"]
    assert abs(first_beat - time.time()) > 5 * HOUR
    assert sweep.run(Elsewhere("here")) == 2
    assert "on elsewhere; wait for it" in sweep.log.read_text()
    first.kill()
    assert sweep.end(first) == -signal.SIGKILL
    assert sweep.run(Elsewhere("here")) == 0, sweep.log.read_text()
    sweep.check(undisturbed)


def scores(sweep: Sweep, language: str) -> list[str]:
    """Of each row of the table with the language: the language and what follows it."""
    lines = (sweep.folder / "results.csv").read_text().splitlines()
    return [line[line.index(f",{language},") :] for line in lines if f",{language}," in line]


@pytest.mark.faults
def test_nan_in_one_language_fails_its_stages_and_no_other(sweep: Sweep, undisturbed: Sweep, seed: int) -> None:
    step = random.Random(seed).randrange(1, 4)
    assert sweep.run(NotANumber("vek", step)) == 3, sweep.log.read_text()
    failures = folder_of(sweep.storage, "tiny").failures()
    assert [failure.label for failure in failures.values()] == ["vek · dense"]
    assert "NaN" in next(iter(failures.values())).reason or "nan" in next(iter(failures.values())).reason
    assert len(sweep.kept) == 13 - 3, "all but vek's dense and sparse stages and its grade"
    assert sweep.runs() == {"FINISHED": 10, "FAILED": 4}, "what needs it and the sweep too"
    assert scores(sweep, "ila") == scores(undisturbed, "ila") != []
    assert sweep.run() == 3, "it stays failed"
    sweep.options += ("--retry-failed",)
    sweep.until_done(most=1)
    sweep.check(undisturbed)

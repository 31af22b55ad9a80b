"""Runs the jobs of a driver in this process, one after the other (`--serial`): for debugging, and for most tests."""

from __future__ import annotations

from deftx.errors import reason, refusal
from deftx.train.leave import Left
from orchestrator.run.driver import NO_MESSAGE, Driver
from orchestrator.run.trial import carry_out


def run_serial(driver: Driver) -> None:
    """Carry out jobs until none is left.

    An unexpected failure is tried again as often as the space allows, as Tune would.
    """
    while (job := driver.next_job()) is not None:
        driver.keep_state(now=True)
        why = NO_MESSAGE
        for attempt in range(driver.space.max_failures + 1):
            try:
                carry_out(job, driver.workplace, driver.progress)
                break
            except Left:
                raise KeyboardInterrupt from None
            except Exception as error:  # every kind of error is tried again; it is on record, if that can be written
                why = refusal(error) or f"{type(error).__name__}: {reason(error)}"
                if attempt == driver.space.max_failures:
                    break
        driver.settle(job, why)

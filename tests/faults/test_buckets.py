"""A storage that is no file system, and misbehaves: calls fail, take long, or are refused from a moment on."""

from __future__ import annotations

import random

import pytest
from support.faults import Calls, Sweep


def check(bucket: Sweep, undisturbed: Sweep) -> None:
    """As on a folder; but a claim whose removal was refused stays until what nobody needs is collected."""
    bucket.until_done(most=2)
    bucket.collect()
    bucket.check(undisturbed)


def test_calls_that_fail_now_and_then_end_the_run_or_are_tried_again(
    bucket: Sweep, undisturbed: Sweep, seed: int
) -> None:
    """With errors of the disk and of the network; the same command goes on each time, and no flag is needed."""
    draw = random.Random(seed)
    for start in range(12):
        every = draw.randrange(100, 400)
        if (code := bucket.run(Calls(every, first=draw.randrange(every) * (1 + start)))) == 0:
            break
        assert code == 4, bucket.log.read_text()
    check(bucket, undisturbed)


@pytest.mark.faults
def test_a_slow_storage_is_only_slow(bucket: Sweep, undisturbed: Sweep) -> None:
    assert bucket.run(Calls(seconds=0.02)) == 0, bucket.log.read_text()
    bucket.check(undisturbed)


@pytest.mark.faults
def test_a_storage_that_takes_no_more_from_any_moment_on_ends_the_run_with_4(
    bucket: Sweep, undisturbed: Sweep, seed: int
) -> None:
    draw = random.Random(seed)
    for _ in range(2):
        code = bucket.run(Calls(read_only=draw.randrange(600)))
        assert code in (4, 0), bucket.log.read_text()
    check(bucket, undisturbed)


@pytest.mark.faults
def test_a_driver_killed_amid_any_call_loses_no_finished_stage(bucket: Sweep, undisturbed: Sweep, seed: int) -> None:
    draw = random.Random(seed)
    assert bucket.run(Calls(read_only=40)) == 4  # makes MLflow's database, which is not what may be torn here
    for _ in range(3):
        assert bucket.run(Calls(dies=draw.randrange(600))) in (-9, 0)
    check(bucket, undisturbed)

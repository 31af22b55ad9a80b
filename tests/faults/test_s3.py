"""A whole sweep in a bucket of S3, by s3fs and over HTTP, whose requests fail in every way that they can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import s3 as servers
from support.faults import Environment, Patience, Sweep
from support.s3 import S3, Fault

EVERYTHING = (servers.SLOW_DOWN, servers.INTERNAL, servers.reset, servers.cut_upload, servers.lost_answer)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with servers.running() as server:
        yield server


@pytest.fixture
def bucket(s3: S3, undisturbed: Sweep, tmp_path: Path) -> Sweep:
    """The same command on an empty bucket."""
    return Sweep(undisturbed.space, undisturbed.data, tmp_path / "storage", ("--serial",), url=s3.bucket())


def run(s3: S3, bucket: Sweep, fault: Fault) -> int:
    """The exit code of the command, each of whose requests may meet a fault."""
    with s3.meeting(fault):
        return bucket.run(Environment(s3.environment()), Patience(200))  # each failure is waited after


def check(s3: S3, bucket: Sweep, undisturbed: Sweep) -> None:
    """What is in the bucket is what the undisturbed run left, with one manifest and one attempt for each stage."""
    objects = s3.objects(str(bucket.url))
    for key, content in objects.items():
        path = bucket.storage / key.removeprefix("results/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    bucket.check(undisturbed)
    stages = [key.removeprefix("results/stages/").split("/")[:2] for key in objects if "/stages/" in key]
    assert "Timeout (" not in bucket.log.read_text()
    assert len({tuple(parts) for parts in stages}) == 2 * len(undisturbed.kept) == 26
    assert not [key for key in objects if "probe-" in key]


@pytest.mark.faults
def test_a_bucket_whose_every_seventh_request_fails_changes_no_bit(s3: S3, bucket: Sweep, undisturbed: Sweep) -> None:
    assert run(s3, bucket, servers.every(7, *EVERYTHING)) == 0, bucket.log.read_text()
    check(s3, bucket, undisturbed)


@pytest.mark.faults
def test_a_bucket_that_is_away_amid_the_run_ends_it_with_4_and_the_same_command_goes_on(
    s3: S3, bucket: Sweep, undisturbed: Sweep
) -> None:
    away: Fault = lambda number, _: servers.DENIED if number > 400 else None  # noqa: E731
    assert run(s3, bucket, away) == 4, bucket.log.read_text()
    assert f"{bucket.url}: Access Denied" in bucket.log.read_text() or "Forbidden" in bucket.log.read_text()
    assert run(s3, bucket, lambda *_: None) == 0, bucket.log.read_text()
    check(s3, bucket, undisturbed)

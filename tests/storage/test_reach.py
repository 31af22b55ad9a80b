"""A storage that cannot be used is told at the start of every command: in words, soon, and before anything is done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import s3 as faults
from support.islands import sweep, write_space
from support.s3 import S3, Fault
from typer.testing import CliRunner, Result

from deftx.cli import app as deftx
from deftx.errors import StoreError
from deftx.stages import reach
from deftx.stages.objects import Objects
from deftx.stages.reach import reachable
from orchestrator.report import __main__ as report
from orchestrator.run import session
from orchestrator.tracking import __main__ as tracking

RIGHTS = "need s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and s3:DeleteObject on what is in it"
KEYS = "give this machine an instance profile that may use the bucket, or set AWS_ACCESS_KEY_ID"
NETWORK = "see whether this machine has a network, and what region (AWS_DEFAULT_REGION) and endpoint it is told"
PLACEHOLDER = "still holds the placeholder REPLACE: fill it in, in the cluster file where it comes from one"


@pytest.fixture(autouse=True)
def _nothing_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "prepare", lambda *_, **__: pytest.fail("it was prepared"))
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return write_space(tmp_path / "tiny.yaml")


@pytest.fixture
def run(space: Path) -> Callable[..., Result]:
    """The sweep on a storage, tracked where nothing is."""
    return lambda url, *options: sweep(space, "--storage", url, "--tracking-uri", "http://127.0.0.1:9", *options)


def told(result: Result, code: int, url: str, *words: str) -> None:
    """One message that names the storage and says what would be right."""
    assert result.exit_code == code, result.output
    (line,) = result.output.splitlines()
    assert line.startswith(f"error: {url}: "), line
    for part in words:
        assert part in line


def gone(s3: S3) -> str:
    """The URL of a bucket that is not there."""
    return s3.bucket().replace("deftx-", "gone-")


COMMANDS: dict[str, Callable[[str, Path], Result]] = {
    "run": lambda url, space: sweep(space, "--storage", url, "--tracking-uri", "http://127.0.0.1:9"),
    "plan": lambda url, space: sweep(space, "--storage", url, "--plan"),
    "status": lambda url, _: sweep("status", "tiny", "--storage", url),
    "failed": lambda url, _: sweep("failed", "tiny", "--storage", url),
    "gc": lambda url, _: sweep("gc", "--storage", url),
    "gc --yes": lambda url, _: sweep("gc", "--storage", url, "--yes"),
    "report": lambda url, _: CliRunner().invoke(report.app, [f"{url}/sweeps/tiny"]),
    "tracking": lambda url, _: CliRunner().invoke(tracking.app, [url, "--tracking-uri", "http://127.0.0.1:9"]),
    "export": lambda url, space: CliRunner().invoke(
        deftx.app, ["export", f"{url}/sweeps/tiny", "ila", str(space.parent / "out")]
    ),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_names_a_bucket_that_is_not_there(
    s3: S3, space: Path, command: Callable[[str, Path], Result]
) -> None:
    url = gone(s3)
    name = url.split("/")[2]
    make = f"correct the bucket's name, or make the bucket: aws s3 mb s3://{name}"
    told(command(url, space), 2, url, "The specified bucket does not exist", make)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("url", ["s3://REPLACE-with-a-bucket/results", "gs://REPLACE/results"])
def test_every_command_names_a_placeholder(url: str, space: Path, command: Callable[[str, Path], Result]) -> None:
    told(command(url, space), 2, url, PLACEHOLDER)


@pytest.mark.parametrize("url", ["s3://bucket/results", "memory://bucket/results"])
def test_a_remote_storage_without_a_tracking_uri_is_told_before_it_is_asked(
    url: str, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objects, "asked", lambda *_: pytest.fail("it was asked"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told(sweep(space, "--storage", url), 2, url, "needs --tracking-uri, such as http")


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (faults.always(faults.DENIED), 2, ("Forbidden", RIGHTS)),
        (faults.always(faults.DENIED, "PUT"), 2, ("Access Denied", RIGHTS)),
        (faults.always(faults.DENIED, "DELETE", "POST"), 2, ("Access Denied", RIGHTS)),
        (faults.always(faults.error("403 Forbidden", "InvalidAccessKeyId", "No such key"), "GET"), 2, (KEYS,)),
        (faults.always(faults.error("400 Bad Request", "ExpiredToken", "It has expired"), "GET"), 2, (KEYS,)),
        (faults.always(faults.INTERNAL), 4, ("Internal Server Error", NETWORK)),
        (faults.always(faults.SLOW_DOWN), 4, ("Service Unavailable", NETWORK)),
        (faults.always(faults.reset), 4, ("Connection was closed before we received a valid response", NETWORK)),
    ],
    ids=["denied", "no writing", "no removing", "unknown key", "expired", "500", "503", "reset"],
)
def test_what_the_bucket_answers_is_told_with_what_would_be_right(
    s3: S3, run: Callable[..., Result], fault: Fault, code: int, words: tuple[str, ...]
) -> None:
    url, began = s3.bucket(), time.monotonic()
    with s3.meeting(fault):
        told(run(url), code, url, *words)
    assert time.monotonic() - began < reach.SECONDS
    assert len(s3.requests) <= 20
    left = [re.sub("[0-9a-f]{32}", "N", key) for key in s3.objects(url)]
    assert left == (["results/probe-N"] if "DELETE" in str(s3.requests) or "POST" in str(s3.requests) else [])


def test_a_removal_that_s3_refuses_within_a_good_answer_is_noticed(s3: S3, run: Callable[..., Result]) -> None:
    def refused(application: object, request: faults.Request, start: Callable[..., object]) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/xml")])
        error = b"<Error><Key>x</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        return [b"<?xml version='1.0'?><DeleteResult>" + error + b"</DeleteResult>"]

    url = s3.bucket()
    with s3.meeting(faults.always(refused, "POST")):
        told(run(url), 2, url, "nothing can be removed there", RIGHTS)


def test_a_plan_and_a_look_write_nothing(s3: S3, space: Path) -> None:
    url = s3.bucket()
    with s3.meeting(faults.always(faults.DENIED, "PUT")):
        told(sweep("status", "tiny", "--storage", url), 2, url, "no sweep 'tiny' there (sweeps: none yet)")
    assert not [request for request in s3.requests if not request.startswith(("GET", "HEAD"))]


def test_a_bucket_that_is_right_is_taken_and_nothing_is_left_in_it(s3: S3) -> None:
    url = s3.bucket()
    store = Objects(url)
    assert reachable(store, writes=True) is store
    assert s3.objects(url) == {}
    with s3.meeting(faults.every(4, faults.reset, faults.INTERNAL, faults.SLOW_DOWN)):
        assert reachable(store, writes=True) is store


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 4, ("Could not connect to the endpoint URL", NETWORK)),
        ({"AWS_ENDPOINT_URL": "nonsense"}, 2, ("cannot be used as a storage: Invalid endpoint: nonsense",)),
        ({"AWS_DEFAULT_REGION": "us east"}, 2, ("set AWS_DEFAULT_REGION to the bucket's own region",)),
        ({"AWS_PROFILE": "nobody"}, 2, ("The config profile (nobody) could not be found", KEYS)),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 2, ("Unable to locate credentials", KEYS)),
    ],
    ids=["refused", "no endpoint", "no region", "no profile", "no credentials"],
)
def test_what_this_machine_is_told_wrong_is_told(
    s3: S3,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    code: int,
    words: tuple[str, ...],
) -> None:
    import s3fs

    url = s3.bucket()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        told(run(url), code, url, *words)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


class _HttpError(Exception):
    """As gcsfs raises it."""

    __module__ = "gcsfs.retry"
    code = 401


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_HttpError("Anonymous caller does not have storage.objects.get access, 401"), KEYS),
        (OSError("Forbidden: bucket/results\nno such right"), "of Google Cloud: the role Storage Object Admin"),
    ],
)
def test_what_gcs_answers_is_told_too(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    store = Objects("memory://bucket/results")
    monkeypatch.setattr(store.fs, "info", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(StoreError, match=f"^memory://bucket/results: {str(error).splitlines()[0]}; .*{words}"):
        reachable(store)


def test_what_is_no_name_of_a_bucket_is_told_without_the_pattern(s3: S3, run: Callable[..., Result]) -> None:
    told(run("s3://no bucket/x"), 2, "s3://no bucket/x", 'Invalid bucket name "no bucket"; correct the bucket\'s name')


def test_a_bucket_that_does_not_answer_is_not_waited_for_long(
    s3: S3, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "SECONDS", 0.5)
    url, began = s3.bucket(), time.monotonic()
    with s3.meeting(faults.always(faults.late(3))):
        told(run(url), 4, url, "no answer within 0.5 seconds", NETWORK)
        assert time.monotonic() - began < 3


def test_passwords_in_a_url_are_not_shown(space: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Objects("s3://me:CANARY@REPLACE/x")
    assert "CANARY" not in str(caught.value)

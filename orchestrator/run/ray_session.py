"""Which Ray a sweep runs on, and what one of its own gets: a folder for logs and sockets, a token. No Ray here."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

AUTO = "auto"
"""The address of the cluster that this machine is a node of; in a Ray job, of the job's."""
_JOB, _ADDRESS = "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS"
_SOCKET_PATH = 107
"""Most bytes of a socket's path that Linux takes."""
_BELOW = len("/ray-xxxxxxxx/s/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of the paths that Ray makes there, with our folder's name."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def in_ray_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return _JOB in os.environ


def forget_other_clusters() -> None:
    """Let `auto` mean this machine's cluster: outside of a job Ray would follow a RAY_ADDRESS that points elsewhere."""
    if not in_ray_job():
        os.environ.pop(_ADDRESS, None)


def use_own_token() -> None:
    """Let Ray, which reads this when it is imported, let nobody in who has not a token that is made here.

    Nothing changes where it is imported already. Its own token, in the user's home, is the same for every run, and
    readable for others as far as the home is.
    """
    if "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


@contextmanager
def session_folder() -> Iterator[str]:
    """A folder for one run of Ray, removed at its end: in TMPDIR, or where that is too long for a socket in /tmp.

    No other user reads it: Ray's logs hold the AWS keys of the environment.

    Raises:
        OSError: where no folder can be made.
    """
    private = _made()
    try:
        yield f"{private}/s"  # Ray opens to everyone the folder that it is given
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _made() -> str:
    places = [tempfile.gettempdir(), *_SHORT]
    for place in (place for place in places if len(place.encode()) + _BELOW <= _SOCKET_PATH):
        with suppress(OSError):
            return tempfile.mkdtemp(prefix="ray-", dir=place)
    return tempfile.mkdtemp(prefix="ray-")

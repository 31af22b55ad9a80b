"""A local session of Ray: its folder is short enough for sockets and nobody else's, and so is what listens."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.patience import PATIENCE

from orchestrator.run import ray_session
from orchestrator.run.ray_session import session_folder


def test_it_lies_in_tmpdir_is_private_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_SOCKET_PATH", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with session_folder() as folder:
        private = Path(folder).parent
        assert private.parent == tmp_path
        assert private.stat().st_mode & 0o077 == 0
        Path(folder).mkdir(mode=0o777)
        (Path(folder) / "log").write_text("AWS_SECRET_ACCESS_KEY")
    assert not private.exists()


def test_where_tmpdir_is_too_long_or_cannot_be_written_to_it_lies_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    for place in (deep, tmp_path / "none"):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with session_folder() as folder:
            assert not folder.startswith(str(tmp_path))
            assert len(folder) + len("/session_2026-11-26_20-10-10_123456_4194304/sockets/plasma_store.1") <= 107
            assert Path(folder).parent.stat().st_mode & 0o077 == 0
        assert not Path(folder).parent.exists()


def test_where_no_folder_can_be_made_the_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_SHORT", (str(tmp_path / "neither"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError, match="none"), session_folder():
        pass


LISTENING = """
import json, os
from contextlib import ExitStack
from pathlib import Path
from orchestrator.run.machine import Machine
from orchestrator.run.ray_session import use_own_token
use_own_token()
from orchestrator.run.tune import _connect

def sockets():
    parents, inodes = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            links = [os.readlink(link) for link in (entry / "fd").iterdir()]
            inodes[int(entry.name)] = {link[8:-1] for link in links if link.startswith("socket:[")}
        except OSError:
            continue
    below = lambda pid: pid == os.getpid() or (pid in parents and below(parents[pid]))
    return set().union(*(found for pid, found in inodes.items() if below(pid)))

with ExitStack() as stack:
    _connect(Machine(1, 0), None, stack)
    ours = sockets()
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    addresses = [line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in ours]
print(json.dumps([addresses, len(os.environ["RAY_AUTH_TOKEN"])]))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as /proc/net has it, in version 4 and mapped into 6."""


@pytest.mark.slow
def test_ray_listens_on_loopback_alone_and_wants_a_token() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    addresses, length = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) >= 3
    assert set(addresses) <= LOOPBACK
    assert length == 64

"""The kinds of storage that have one contract: a folder, one on NFS, and object stores."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import s3 as servers
from support.nfs import Nfs
from support.s3 import S3

from deftx.stages.store import Store

KINDS = ("folder", "nfs", "nfs without links", "memory", "s3")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch, servers.running() as server:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        # the waits before requests are made again are this times 1, 2, 4 ... seconds
        patch.setattr("botocore.retryhandler.random", SimpleNamespace(random=lambda: 0.02))
        yield server


@pytest.fixture
def nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nfs:
    (tmp_path / "nfs").mkdir()
    return Nfs(tmp_path / "nfs", monkeypatch)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty storage of each kind."""
    if request.param.startswith("nfs"):
        (tmp_path / "nfs").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Nfs(tmp_path / "nfs", patch, links=request.param == "nfs")
            yield Store(str(tmp_path / "nfs"), cache=tmp_path / "cache")
        return
    if request.param == "s3":
        yield Store(request.getfixturevalue("s3").bucket(), cache=tmp_path / "cache")
        return
    url = str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    yield Store(url, cache=tmp_path / "cache")
    if request.param == "memory":
        Store(url).remove()

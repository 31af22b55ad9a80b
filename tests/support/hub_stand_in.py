"""A stand-in for the Hugging Face hub on this machine, and a process that talks to it and to nothing else.

Of the hub's HTTP API it has what reading needs: revisions of models and data sets, listings, files whole or in part,
and the codes by which a client tells a missing repository, revision or file. All else is an HTTP error 501.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
from support.patience import PATIENCE

T = TypeVar("T")
Files = Mapping[str, bytes]

_NAME = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_API = re.compile(rf"/api/(?P<kind>model|dataset)s/{_NAME}(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.+))?")
_RESOLVE = re.compile(rf"/(?:(?P<kind>dataset)s/)?{_NAME}/resolve/(?P<rest>.+)")


class HubStandIn:
    """The hub at `url`, in a thread. A client must be told of it before it imports huggingface_hub (`Client`)."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, Files]] = {}
        self.branches: dict[tuple[str, str], dict[str, str]] = {}
        self.gated: set[str] = set()
        """Repositories of which anyone may read the description, and nobody here the files."""
        self.web: dict[str, bytes] = {}
        """Files by path under `/web/`, which is no part of the hub."""
        self.asked: list[str] = []
        self.sent: Counter[str] = Counter()
        """Bytes by path of what was asked for."""
        self.out_of_order = False
        self._server: ThreadingHTTPServer | None = None
        self._start(0)

    def push(self, repo: str, files: Files | Path, *, branch: str = "main", kind: str = "model") -> str:
        """Make a commit of these files, or of a folder's, the head of a branch."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        content = f"{repo}{branch}{ {name: _digest(data) for name, data in sorted(files.items())} }"
        commit = _digest(content.encode())
        self.commits.setdefault((kind, repo), {})[commit] = files
        self.branches.setdefault((kind, repo), {})[branch] = commit
        return commit

    def stop(self) -> None:
        """From now on connections to `url` are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def start_again(self) -> None:
        self._start(int(self.url.rpartition(":")[2]))

    def _start(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Client:
    """A fresh process whose hub is at `url` and whose cache is `home`; what a call raises there is raised here."""

    def __init__(self, url: str, home: Path, *, offline: bool = False) -> None:
        self.environment = environment(url, home, offline=offline)
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(self.environment,))

    def __call__(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return self._pool.submit(function, *arguments, **named).result(timeout=PATIENCE)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        strays = self(_strays)
        os.kill(self(os.getpid), signal.SIGKILL)  # torch, ray and the like take seconds to say goodbye
        self._pool.shutdown()
        assert not strays, f"a connection beyond this machine was tried: {strays}"


def environment(url: str, home: Path, *, offline: bool = False) -> dict[str, str]:
    """What the hub's client reads when it is imported."""
    return {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


_STRAYS: list[str] = []
_HERE = re.compile(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0|")


def _begin(variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(variables)
    sys.addaudithook(_stay)


def _stay(event: str, arguments: tuple[Any, ...]) -> None:
    """Lets no connection leave this machine, nor a name be looked up."""
    address = {"socket.connect": arguments[1:2], "socket.getaddrinfo": (arguments[:1],)}.get(event)
    if address and isinstance(address[0], tuple) and not _HERE.fullmatch(str(address[0][0] or "")):
        _STRAYS.append(f"{event} {address[0]}")
        raise ConnectionRefusedError(_STRAYS[-1])


def _strays() -> list[str]:
    return _STRAYS


class _Missing(Exception):
    """Named as the hub names it: RepoNotFound, RevisionNotFound, EntryNotFound or GatedRepo."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {url.path}")
        try:
            if self.hub.out_of_order:
                self._answer(503, b"", {})
            elif url.path.startswith("/web/"):
                there = self.hub.web.get(url.path.removeprefix("/web/"))
                self._answer(404 if there is None else 200, there or b"", {})
            elif found := _API.fullmatch(url.path):
                self._api(found, recursive="recursive" in parse_qs(url.query))
            elif found := _RESOLVE.fullmatch(url.path):
                self._file(found)
            else:
                self.send_error(501)
        except _Missing as error:
            status = 401 if str(error) == "GatedRepo" else 404
            self._answer(status, b"", {"X-Error-Code": str(error), "X-Error-Message": str(error)})

    do_HEAD = do_POST = do_GET

    def _api(self, found: re.Match[str], *, recursive: bool) -> None:
        kind, repo, what = found["kind"], found["repo"], found["what"]
        commit, path = self._revision(kind, repo, found["rest"] or "main")
        files = self.hub.commits[kind, repo][commit]
        if repo in self.hub.gated and what in ("tree", "paths-info"):
            raise _Missing("GatedRepo")
        if what == "tree":
            answer: Any = _listing(files, path, recursive)
        elif what == "paths-info":
            wanted = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            answer = [entry for entry in _listing(files, "", True) if entry["path"] in wanted]
        else:
            names = [{"rfilename": name} for name in files]
            answer = {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": names}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, found: re.Match[str]) -> None:
        kind, repo = found["kind"] or "model", found["repo"]
        commit, path = self._revision(kind, repo, found["rest"])
        if repo in self.hub.gated:
            raise _Missing("GatedRepo")
        headers = {"X-Repo-Commit": commit}
        if (content := self.hub.commits[kind, repo][commit].get(path)) is None:
            self._answer(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        headers |= {"ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._answer(206, content[first : last + 1], headers)
        else:
            self._answer(200, content, headers)

    def _revision(self, kind: str, repo: str, rest: str) -> tuple[str, str]:
        """Commit and path of `<revision>/<path>`, in which a branch's own slashes are quoted."""
        if (kind, repo) not in self.hub.commits:
            raise _Missing("RepoNotFound")
        revision, _, path = rest.partition("/")
        commit = self.hub.branches[kind, repo].get(unquote(revision), unquote(revision))
        if commit not in self.hub.commits[kind, repo]:
            raise _Missing("RevisionNotFound")
        return commit, unquote(path)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent[urlsplit(self.path).path] += len(body)
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the screen."""


def _listing(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, content in files.items():
        if name.startswith(prefix):
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                path = prefix + "/".join(parts[:depth])
                entries[path] = {"type": "directory", "path": path, "oid": _digest(path.encode()), "size": 0}
            entries[name] = {"type": "file", "path": name, "oid": _digest(content), "size": len(content)}
    if prefix and not entries:
        raise _Missing("EntryNotFound")
    return [entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)]


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


NUSAX, WIKIPEDIA = "mteb/NusaX-senti", "wikimedia/wikipedia"

TINY, VECTOR, ANSELL = "somebody/tiny", "somebody/vector", "somebody/composable-sft"


def parquet(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def dataset(**configs: dict[str, bytes]) -> dict[str, bytes]:
    """A repository of parquet files whose card names its configurations, as the real ones do."""
    files, card = {}, "---\nconfigs:\n"
    for config, splits in configs.items():
        card += f"- config_name: '{config}'\n  data_files:\n"
        for split, content in splits.items():
            card += f"  - split: {split}\n    path: {config}/{split}-*\n"
            files[f"{config}/{split}-00000-of-00001.parquet"] = content
    return {"README.md": f"{card}---\n".encode(), **files}

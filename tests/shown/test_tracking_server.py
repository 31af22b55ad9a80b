"""A real MLflow server, away for a minute while a sweep runs on Ray; what it holds is read back by plain REST."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.islands import folder_of, published, write_data, write_space
from support.patience import PATIENCE

from deftx.sft.vector import SparseFineTuning
from deftx.stages.manifest import Manifest
from orchestrator.record.sweep import SweepFolder

pytestmark = pytest.mark.slow

OUTAGE_SECONDS, MEANWHILE = 60, 5
"""The server is away for so long at least, and until more stages than that were finished."""
# what a manifest calls the points of a curve -> what MLflow calls them, times what
CURVES = {
    "train_loss": ("curve/training loss", 1),
    "valid_loss": ("curve/validation loss", 1),
    "valid_score": ("curve/validation score points", 100),
}


@dataclass
class Server:
    """`mlflow server` on loopback, with one database and one place for artifacts, on one port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    experiment: str = "tiny"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        words = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """The server and its worker, at once and without a word, as when a machine goes down."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def answers(self) -> bool:
        try:
            return self.bytes("/health") == b"OK"
        except OSError:
            return False

    def bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.uri + path, timeout=60) as answer:
            return bytes(answer.read())

    def get(self, call: str, **query: object) -> dict[str, Any]:
        return dict(json.loads(self.bytes(f"/api/2.0/mlflow/{call}?{urllib.parse.urlencode(query)}")))

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the experiment, whatever sweep they are of."""
        found = self.get("experiments/get-by-name", experiment_name=self.experiment)["experiment"]
        body = json.dumps({"experiment_ids": [found["experiment_id"]], "max_results": 1000}).encode()
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return list(json.loads(answer.read())["runs"])

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        points = self.get("metrics/get-history", run_id=run, metric_key=metric, max_results=1000)["metrics"]
        return sorted((int(point.get("step", 0)), float(point["value"])) for point in points)

    def artifacts(self, run: str, path: str = "") -> dict[str, int]:
        """Sizes by path."""
        listed = self.get("artifacts/list", run_id=run, **({"path": path} if path else {})).get("files", [])
        found: dict[str, int] = {}
        for file in listed:
            found |= self.artifacts(run, file["path"]) if file.get("is_dir") else {file["path"]: int(file["file_size"])}
        return found

    def download(self, run: str, path: str) -> bytes:
        return self.bytes(f"/get-artifact?{urllib.parse.urlencode({'path': path, 'run_uuid': run})}")

    def content(self) -> dict[str, Any]:
        """All that the server shows, by stage address, but for times, ids and attempts."""
        runs = {tags(run)["address"]: run for run in self.runs()}
        addresses = {run["info"]["run_id"]: address for address, run in runs.items()}
        return {
            address: {
                "name": run["info"]["run_name"],
                "status": run["info"]["status"],
                "parent": addresses.get(tags(run).get("mlflow.parentRunId", "")),
                "tags": {key: value for key, value in tags(run).items() if key != "mlflow.parentRunId"},
                "params": pairs(run, "params"),
                "metrics": {key: self.history(run["info"]["run_id"], key) for key in pairs(run, "metrics")},
                "artifacts": self.artifacts(run["info"]["run_id"]),
            }
            for address, run in runs.items()
        }


def pairs(run: dict[str, Any], what: str) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in run["data"].get(what, [])}


def tags(run: dict[str, Any]) -> dict[str, str]:
    return pairs(run, "tags")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """One for the living sweep, which answers, and one that is empty and may not answer yet."""
    pair = Server(tmp_path / "one", free_port()), Server(tmp_path / "two", free_port())
    try:
        for server in pair:
            server.folder.mkdir()
            server.launch()
        pair[0].wait()
        yield pair
    finally:
        for server in pair:
            server.kill()


@dataclass
class Outage:
    """When the server was away, and how far the sweep was."""

    published_before: int
    published_after: int
    sweep_ended_within: bool
    seconds: float


def with_an_outage(server: Server, storage: Path, sweep: subprocess.Popen[str]) -> Outage:
    """Kill the server at the first finished stage, and bring it back after `OUTAGE_SECONDS` or later."""
    deadline = time.monotonic() + PATIENCE
    while not published(storage) and time.monotonic() < deadline:
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.02)
    assert published(storage), "no stage was finished in time"
    server.kill()
    away, before = time.monotonic(), len(published(storage))
    with suppress(subprocess.TimeoutExpired):
        sweep.wait(OUTAGE_SECONDS)
    # a slow machine may not have done enough in a minute to show that the sweep goes on
    while sweep.poll() is None and len(published(storage)) <= before + MEANWHILE:
        assert time.monotonic() < away + PATIENCE, "no stage was finished without the server"
        time.sleep(0.02)
    ended = sweep.poll() is not None
    time.sleep(max(0.0, away + OUTAGE_SECONDS - time.monotonic()))
    after = len(published(storage))
    server.launch()
    server.wait()
    return Outage(before, after, ended, time.monotonic() - away)


def mirror_afterwards(storage: Path, server: Server) -> str:
    words = [sys.executable, "-m", "orchestrator.tracking", str(storage), "--tracking-uri", server.uri]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_server_that_is_away_for_a_minute_misses_nothing(servers: tuple[Server, Server], tmp_path: Path) -> None:
    server, empty = servers
    data, storage = write_data(tmp_path / "data"), tmp_path / "storage"
    space = write_space(tmp_path / "tiny.yaml")
    words = [
        sys.executable, "-m", "orchestrator.sweep", str(space), "--data-root", str(data), "--storage", str(storage),
        "--tracking-uri", server.uri,
    ]  # fmt: skip
    sweep = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        outage = with_an_outage(server, storage, sweep)
        out, err = sweep.communicate(timeout=PATIENCE)
    finally:
        sweep.kill()
        sweep.wait()
    print(outage)
    assert sweep.returncode == 0, out + err
    assert "Traceback" not in out + err
    assert f"browse: {server.uri}\n" in out
    assert outage.seconds >= OUTAGE_SECONDS
    assert outage.published_after > outage.published_before + MEANWHILE, "the sweep went on without its tracker"
    if outage.sweep_ended_within:
        assert f"MLflow at {server.uri} did not take an update" in (out + err).replace("\n", " ")
        mirror_afterwards(storage, server)

    folder = folder_of(storage, "tiny")
    check_runs(server, folder)
    check_vectors(server, folder, tmp_path)
    live = server.content()
    empty.wait()
    for _ in range(2):  # again, it changes nothing
        assert mirror_afterwards(storage, empty) == f"tiny: {len(live)} runs in {empty.uri}\n"
        assert empty.content() == live
    assert mirror_afterwards(storage, server) == f"tiny: {len(live)} runs in {server.uri}\n"
    assert server.content() == live


def check_runs(server: Server, folder: SweepFolder) -> None:
    """Counts, names, parents, statuses and every point of every curve, against the store."""
    runs, stages = server.runs(), folder.state().stages
    assert len(runs) == len(stages) + 1 == len(published(Path(folder.store.root))) + 1
    (parent,) = [run for run in runs if tags(run)["kind"] == "sweep"]
    assert parent["info"]["run_name"] == folder.name
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    by_address = {tags(run)["address"]: run for run in runs if run is not parent}
    assert by_address.keys() == stages.keys()
    points = 0
    for address, run in by_address.items():
        manifest = manifest_of(folder, address)
        assert run["info"]["run_name"] == stages[address].label
        assert tags(run)["mlflow.parentRunId"] == parent["info"]["run_id"]
        points += check_curve(server, run, manifest)
    assert points >= 2 * 2 * sum(entry.kind in ("dense", "sparse") for entry in stages.values())


def check_curve(server: Server, run: dict[str, Any], manifest: Manifest) -> int:
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in manifest.curve:
        for key, value in row.items():
            if key != "step":
                name, factor = CURVES[key]
                expected.setdefault(name, []).append((int(row["step"]), factor * value))
    shown = {key for key in pairs(run, "metrics") if key.startswith("curve/")}
    assert shown == expected.keys()
    for name, curve in expected.items():
        assert server.history(run["info"]["run_id"], name) == curve
    return sum(map(len, expected.values()))


def check_vectors(server: Server, folder: SweepFolder, tmp_path: Path) -> None:
    """Every SFT comes down as the bytes of the store, and loads."""
    vectors = [run for run in server.runs() if tags(run)["kind"] == "sparse"]
    assert len(vectors) == sum(entry.kind == "sparse" for entry in folder.state().stages.values())
    for run in vectors:
        address, run_id = tags(run)["address"], run["info"]["run_id"]
        manifest = manifest_of(folder, address)
        names = [name for name in manifest.files if name.startswith("sft/")]
        assert {name for name in server.artifacts(run_id) if name.startswith("sft/")} == set(names)
        for name in names:
            got = tmp_path / "down" / address / name
            got.parent.mkdir(parents=True, exist_ok=True)
            got.write_bytes(server.download(run_id, name))
            assert got.read_bytes() == folder.store.fetch(address, name).read_bytes()
        vector = SparseFineTuning.from_pretrained(tmp_path / "down" / address / "sft")
        assert len(vector) == manifest.metrics["k"]


def manifest_of(folder: SweepFolder, address: str) -> Manifest:
    manifest = folder.store.manifest(address)
    assert manifest is not None
    return manifest

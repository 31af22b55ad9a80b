"""`ray up clusters/local.yaml` onto three hosts of namespaces (support/hosts.py), and a sweep that loses much of them.

The file is as shipped, its marked values filled in, but for two things: `pip install` installs nothing (the packages
are there already), and the check of GPUs is left out (there are none). Each host gives Ray one CPU, so that three
trials take three hosts. Left out: a shared folder that is slow or late (this one is a mount of the machine's own disk).
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.cluster_file import fill
from support.hosts import Host, Network, checkout, lacking, new_key, tail, wait_until
from support.islands import TRAINING, published, run, write_data, write_space

from deftx.stages.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(lacking()), reason=lacking())]

ADDRESSES = {"head": "10.77.0.2", "one": "10.77.0.3", "two": "10.77.0.4"}
SHARED = "/run/shared"
LONG = {**TRAINING, "max_steps": 2000, "validate_every": 500}
RAY = "cd ~/deftx-sweeps && . ~/venv/bin/activate && ray"
SUBMIT = (
    "ray job submit --address http://127.0.0.1:8265 --no-wait --submission-id {name} -- "
    f"python -m orchestrator.sweep {SHARED}/tiny.yaml --data-root {SHARED}/data"
)
READ_BACK = """
import hashlib, json, pathlib, tempfile
from mlflow import MlflowClient
client = MlflowClient("http://127.0.0.1:5001")
runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
vectors = {}
for run in runs:
    for file in client.list_artifacts(run.info.run_id, "sft"):
        content = pathlib.Path(client.download_artifacts(run.info.run_id, file.path, tempfile.mkdtemp())).read_bytes()
        vectors.setdefault(run.data.tags["address"], {})[file.path] = hashlib.sha256(content).hexdigest()
print(json.dumps({"statuses": [run.info.status for run in runs], "vectors": vectors}))
"""


class Makers:
    """Which hosts were seen to make stages, read from the claims that lie beside them while they are made."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.seen = storage, defaultdict[str, set[str]](set)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Makers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def told(self) -> str:
        return str({host: len(stages) for host, stages in self.seen.items()})

    def now(self) -> dict[str, str]:
        """The host that holds the claim of each stage in the making, by address."""
        found = {}
        for path in self.storage.glob("stages/*/claim.json"):
            try:
                found[path.parent.name] = json.loads(path.read_text())["host"]
            except (OSError, ValueError):  # given back, or not written whole yet
                continue
        return found

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for address, host in self.now().items():
                self.seen[host].add(address)


class Cluster:
    """A laptop, a head and two workers, on which nothing runs yet."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder, self.network, self.boots, self.began = folder, network, 0, time.monotonic()
        (folder / "shared").mkdir()
        self.key = new_key(folder / "id")
        self.stack = ExitStack()
        self.hosts: dict[str, Host] = {}
        self.laptop = self.stack.enter_context(Host(folder / "laptop", network, "laptop", "10.77.0.1"))
        for suffix in ("id", "id.pub"):
            shutil.copy(folder / suffix, self.laptop.home / ".ssh")
        for name in ADDRESSES:
            self.boot(name)

    def boot(self, name: str) -> None:
        """A host with this name, with nothing on it; one that was there before must be gone."""
        self.boots += 1
        self.hosts[name] = self.stack.enter_context(
            Host(
                self.folder / f"{name}-{self.boots}", self.network, name, ADDRESSES[name], keys=self.key,
                mounts={SHARED: self.folder / "shared"}, environment={"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'},
            )
        )  # fmt: skip

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    def logs(self) -> str:
        return "\n".join(host.logs() for host in self.hosts.values())

    def nodes(self) -> int:
        """How many nodes Ray has."""
        code = "import ray; ray.init('auto', log_to_driver=False); print('alive', sum(n['Alive'] for n in ray.nodes()))"
        return int(self.head.run(f'python -c "{code}"').rsplit("alive", 1)[1])

    def job(self, name: str) -> str:
        """How far a job is, in Ray's word."""
        return self.head.run(f"ray job status --address http://127.0.0.1:8265 {name}").lower()

    def printed(self, name: str) -> str:
        """The end of what a job has printed."""
        return tail(self.head.run(f"ray job logs --address http://127.0.0.1:8265 {name}"))

    def until(self, what: Callable[[], Any], seconds: float, job: str, told: Callable[[], str] = lambda: "") -> None:
        """Wait for something while a job runs; a job that ends before fails the test at once."""
        end, look = time.monotonic() + seconds, time.monotonic() + 20
        while not what():
            problem = f"not within {seconds} s" if time.monotonic() > end else ""
            if not problem and time.monotonic() > look:  # seldom: asking is seconds of work
                look = time.monotonic() + 20
                problem = "" if "running" in self.job(job) or what() else f"job {job} has ended before"
            assert not problem, f"{problem}; {told()}\n{self.printed(job)}\n{self.logs()}"
            time.sleep(0.2)

    def say(self, what: str) -> None:
        """Print how long it took to come here."""
        print(f"{time.monotonic() - self.began:4.0f} s: {what}")


def test_a_sweep_outlives_a_worker_and_the_heads_ray(tmp_path: Path) -> None:
    space = write_space(
        tmp_path / "tiny.yaml", parallel=3, max_failures=4, baselines=["lt-sft"],
        language={"text": {"block": 32, "pack": False}, "k": "20%", "training": LONG},
        task={"k": "20%", "max_length": 32, "training": LONG},
    )  # fmt: skip
    with Network("10.77.0.0/24") as network:
        cluster = Cluster(tmp_path, network)
        with cluster.stack:
            shared = tmp_path / "shared"
            write_data(shared / "data")
            shutil.copy(space, shared)
            went_through(cluster, shared / "deft-x")
            alone = tmp_path / "alone"
            assert run(space, shared / "data", alone).exit_code == 0
            tables = [storage / "sweeps" / "tiny" / "results.csv" for storage in (shared / "deft-x", alone)]
            assert tables[0].read_bytes() == tables[1].read_bytes()
            # the head's Ray has ended at once; a worker's does when it has missed the head for a minute
            wait_until(lambda: not left(cluster), 120, lambda: "\n".join(left(cluster)))


def went_through(cluster: Cluster, storage: Path) -> None:
    laptop = cluster.laptop
    fill(
        checkout(laptop) / "clusters" / "local.yaml",
        {
            "REPLACE-head": ADDRESSES["head"], "REPLACE-worker": f"{ADDRESSES['one']}, {ADDRESSES['two']}",
            "REPLACE-user": "ubuntu", "~/.ssh/id_ed25519": "~/.ssh/id", "/REPLACE-shared-folder": SHARED,
        },
        {"worker_setup_commands": []},
    )  # fmt: skip
    laptop.run(f"{RAY} get-auth-token --generate")
    laptop.run(f"{RAY} up -y clusters/local.yaml", 180)
    wait_until(lambda: cluster.nodes() == 3, 120, cluster.logs)
    cluster.say("three nodes")
    with Makers(storage) as makers:
        cluster.head.run(SUBMIT.format(name="first"))
        cluster.until(lambda: {*makers.seen} == {*ADDRESSES}, 240, "first", makers.told)
        cluster.say("the first job trains on all")
        cluster.until(lambda: "two" in makers.now().values(), 60, "first", makers.told)
        done = published(storage)
        cluster.hosts["two"].close()
        cluster.until(lambda: len(published(storage) - done) > 3, 120, "first")
        cluster.say("it goes on without a worker")

        cluster.boot("two")
        assert "running" in cluster.job("first")
        assert cluster.head.kill("/ray/") > 5
        laptop.run(f"{RAY} up -y clusters/local.yaml", 180)
        wait_until(lambda: cluster.nodes() == 3, 180, cluster.logs)
        cluster.say("three nodes again")
        makers.seen.clear()
        cluster.head.run(SUBMIT.format(name="second"))
        # of the stages that are left, one host may make several while another waits for the claims of the dead
        cluster.until(lambda: len(makers.seen) > 1, 240, "second", makers.told)
        cluster.say("the second job trains on more than one")
        assert cluster.head.kill("mlflow server")
        cluster.until((storage / "sweeps" / "tiny" / "chosen.json").exists, 600, "second")
        cluster.say("the sweep has ended")
    wait_until(lambda: "running" not in cluster.job("second"), 120, lambda: cluster.printed("second"))
    assert "succeeded" in cluster.job("second"), cluster.printed("second")
    read_back(cluster, storage)
    cluster.say("read back")
    laptop.run(f"{RAY} down -y clusters/local.yaml", 120)
    assert not cluster.head.processes(), cluster.head.processes()


def left(cluster: Cluster) -> list[str]:
    return [f"{host.name}: {command}" for host in cluster.hosts.values() for command in host.processes()]


def read_back(cluster: Cluster, storage: Path) -> None:
    """That MLflow has a run of every stage, each ended well, and hands out every vector as it is in the storage."""
    told = json.loads(cluster.head.run(f"python - <<'EOF'\n{READ_BACK}\nEOF", 120).splitlines()[-1])
    stages = {path.name: Store(str(storage)).manifest(path.name) for path in storage.glob("stages/*")}
    assert {*told["statuses"]} == {"FINISHED"}
    assert len(told["statuses"]) >= len(stages)
    assert told["vectors"] == {
        address: {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith("sft/")}
        for address, manifest in stages.items()
        if manifest is not None and manifest.kind == "sparse"
    }

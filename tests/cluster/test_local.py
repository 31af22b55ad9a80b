"""`ray up clusters/local.yaml` onto three hosts of namespaces (support/hosts.py), and a sweep that loses one after another.

The file is as shipped, its marked values filled in, but for two things: `pip install` installs nothing (the packages are
there already), and the check of GPUs is left out (there are none). Each host gives Ray one CPU, so that three trials
take three hosts. Left out: a shared folder that is slow or late (this one is a mount of the machine's own disk).
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cluster_file import fill
from support.hosts import Network, Host, checkout, lacking, new_key, tail, wait_until
from support.islands import TRAINING, published, run, write_data, write_space

from deftx.sft.vector import SparseFineTuning

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(lacking()), reason=lacking())]

ADDRESSES = {"head": "10.77.0.2", "one": "10.77.0.3", "two": "10.77.0.4"}
SHARED = "/home/shared"
LONG = {**TRAINING, "max_steps": 60, "validate_every": 30}
RAY = "cd ~/deftx-sweeps && . ~/venv/bin/activate && ray"
SUBMIT = (
    "ray job submit --address http://127.0.0.1:8265 --no-wait --submission-id {name} -- "
    f"python -m orchestrator.sweep {SHARED}/tiny.yaml --data-root {SHARED}/data"
)
READ_BACK = """
import json, pathlib, tempfile
from mlflow import MlflowClient
client = MlflowClient("http://127.0.0.1:5000")
experiments = [one.experiment_id for one in client.search_experiments()]
runs = client.search_runs(experiments, max_results=1000)
vectors = {}
for run in runs:
    for file in client.list_artifacts(run.info.run_id):
        if file.path.endswith(".safetensors") and run.data.tags.get("address"):
            there = client.download_artifacts(run.info.run_id, file.path, tempfile.mkdtemp())
            vectors[run.data.tags["address"]] = pathlib.Path(there).read_bytes().hex()
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
        self.folder, self.network, self.boots = folder, network, 0
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
        return self.head.run(f"ray job logs --address http://127.0.0.1:8265 {name}")


def test_a_sweep_outlives_a_worker_and_the_heads_ray(tmp_path: Path) -> None:
    space = write_space(
        tmp_path / "tiny.yaml", parallel=3, max_failures=4,
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
            table = (shared / "deft-x" / "sweeps" / "tiny" / "report" / "results.csv").read_bytes()
    alone = tmp_path / "alone"
    assert run(space, shared / "data", alone).exit_code == 0
    assert table == (alone / "sweeps" / "tiny" / "report" / "results.csv").read_bytes()


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
    with Makers(storage) as makers:
        cluster.head.run(SUBMIT.format(name="first"))
        wait_until(lambda: {*makers.seen} == {*ADDRESSES}, 180, lambda: cluster.printed("first"))
        wait_until(lambda: "two" in makers.now().values(), 60, lambda: cluster.printed("first"))
        done = published(storage)
        cluster.hosts["two"].close()
        wait_until(lambda: len(published(storage) - done) > 3, 120, lambda: cluster.printed("first"))

        cluster.boot("two")
        assert "running" in cluster.job("first")
        assert cluster.head.kill("gcs_server") == 1
        laptop.run(f"{RAY} up -y clusters/local.yaml", 180)
        makers.seen.clear()
        cluster.head.run(SUBMIT.format(name="second"))
        wait_until(lambda: {*makers.seen} == {*ADDRESSES}, 180, lambda: cluster.printed("second") + cluster.logs())
        assert cluster.head.kill("mlflow server")
        wait_until(lambda: "running" not in cluster.job("second"), 300, lambda: cluster.printed("second"))
    assert "succeeded" in cluster.job("second"), tail(cluster.printed("second"))
    read_back(cluster, storage)
    laptop.run(f"{RAY} down -y clusters/local.yaml", 120)
    wait_until(lambda: not left(cluster), 30, lambda: "\n".join(left(cluster)))


def left(cluster: Cluster) -> list[str]:
    return [f"{host.name}: {command}" for host in cluster.hosts.values() for command in host.processes()]


def read_back(cluster: Cluster, storage: Path) -> None:
    """That MLflow has every run, ended well, and hands out each vector as it is in the storage."""
    told = json.loads(cluster.head.run(f"python - <<'EOF'\n{READ_BACK}\nEOF", 120).splitlines()[-1])
    assert {*told["statuses"]} == {"FINISHED"}
    print(len(told["statuses"]), len(told["vectors"]))

"""Sweeps on a cluster: where they find it, and what is said of its file and its nodes before anything is trained."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.islands import folder_of, sweep, write_data, write_space
from typer.testing import CliRunner

from deftx import hardware
from deftx.errors import ConfigError
from deftx.stages.store import Store
from orchestrator import cluster
from orchestrator import sweep as command
from orchestrator.record.sweep import SweepFolder
from orchestrator.run import node, session
from orchestrator.run.driver import Driver
from orchestrator.run.machine import Machine, Workplace, check_fit
from orchestrator.run.ray_session import forget_other_clusters
from orchestrator.run.trial import carry_out
from orchestrator.space.load import load_space
from orchestrator.space.schema import Resources

ROOT = Path(__file__).parents[2]
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
ONE = {"rank_l": [2], "rank_t": ["90%"], "baselines": ["lt-sft"]}


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """Of a sweep whose trials run on other machines."""
    title, space = load_space(str(write_space(tmp_path / "tiny.yaml", **ONE)), [])
    folder = SweepFolder(Store(str(tmp_path / "storage")), "tiny")
    prepared = session.prepare(title, space, folder, str(write_data(tmp_path / "data")))
    with session.held(prepared):
        pass
    return Driver(space, prepared.planner, Workplace.of(space, folder), folder)


def checked(path: object) -> tuple[int, str]:
    result = CliRunner().invoke(cluster.app, ["check", str(path)])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        (
            "ray_cluster.yaml",
            ["provider.region", "node_config.ImageId", "node_config.IamInstanceProfile.Name", "setup_commands[0]"],
        ),
        (
            "clusters/gcp.yaml",
            ["provider.project_id", "initializeParams.sourceImage", "serviceAccounts[0].email", "setup_commands[0]"],
        ),
        ("clusters/local.yaml", ["provider.head_ip", "provider.worker_ips[0]", "auth.ssh_user", "setup_commands[0]"]),
    ],
)  # fmt: skip
def test_every_value_to_fill_in_is_named_once_and_then_the_file_is_right(
    file: str, fields: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("secret")
    code, said = checked(ROOT / file)
    *placeholders, token = said.splitlines()
    assert code == 2
    assert [field in line and "FILL IN" in line for field, line in zip(fields, placeholders, strict=True)] == [True] * 4
    assert "there is no ~/.ray/auth_token here; make it once: ray get-auth-token --generate" in token
    text = (ROOT / file).read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if "# FILL IN" in line]) == 4
    (tmp_path / ".ray").mkdir()
    secret = tmp_path / ".ray" / "auth_token"
    secret.write_text("secret")
    secret.chmod(0o600)
    filled = tmp_path / "filled.yaml"
    filled.write_text(text.replace("REPLACE", "x"))
    assert checked(filled) == (0, f"{filled}: filled in; next: ray up {filled}\n")
    secret.chmod(0o644)
    assert "other users can read it" in checked(filled)[1]
    monkeypatch.chdir(tmp_path)
    assert checked(filled)[1].count("run this, and ray up, in the checkout's root") == 8
    (tmp_path / ".ssh" / "id_ed25519").unlink()
    assert ("auth.ssh_private_key: there is no ~/.ssh/id_ed25519" in checked(filled)[1]) == (
        file == "clusters/local.yaml"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"a: [", "not a YAML file"), (b"\xff", "not a YAML file"), (b"- 1", "a mapping with")],
)
def test_a_file_that_is_no_cluster_file_is_a_clear_error(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_bytes(content)
    code, said = checked(path)
    assert (code, words in said, "Traceback" in said) == (2, True, False)


def test_head_and_workers_have_one_image_and_one_profile_and_the_bucket_is_named_once() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    nodes = [kind["node_config"] for kind in config["available_node_types"].values()]
    assert [len({str(each[name]) for each in nodes}) for name in ("ImageId", "IamInstanceProfile")] == [1, 1]
    assert (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8").count("s3://") == 1
    kinds = {name: kind for name, kind in config["available_node_types"].items() if name != "head"}
    assert [kind["priority"] for kind in kinds.values()] == [2, 1]
    markets = [kind["node_config"].get("InstanceMarketOptions") for kind in kinds.values()]
    assert markets == [{"MarketType": "spot"}, None]


def set_up(home: Path, storage: str) -> subprocess.CompletedProcess[str]:
    """What clusters/setup.sh does on a node, where a venv is already."""
    (home / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    if not (home / "venv" / "bin" / "python").exists():
        for name in ("python", "pip"):
            (home / "venv" / "bin" / name).symlink_to("/bin/true")
    variables = {"HOME": str(home), "PATH": os.environ["PATH"]}
    script = ROOT / "clusters" / "setup.sh"
    return subprocess.run(["bash", str(script), storage], env=variables, text=True, capture_output=True)


def test_shells_and_ray_start_get_the_settings_of_a_sweep_once(tmp_path: Path) -> None:
    home = tmp_path / "o'home of one"
    assert [set_up(home, "s3://a b$c/deft-x").returncode for _ in range(2)] == [0, 0]
    for name in (".bashrc", ".profile"):
        assert (home / name).read_text() == ". ~/deftx.sh\n"
        shown = 'echo "$DEFTX_STORAGE|$DEFTX_ADDRESS|$MLFLOW_TRACKING_URI|$RAY_AUTH_MODE|$PATH"'
        done = subprocess.run(
            ["bash", "-c", f". ~/{name}; . ~/{name}; {shown}"],
            env={"HOME": str(home), "PATH": "/bin"}, text=True, capture_output=True,
        )  # fmt: skip
        assert done.stdout.strip() == f"s3://a b$c/deft-x|auto|http://127.0.0.1:5001|token|{home}/venv/bin:/bin"


def test_a_bucket_that_is_not_filled_in_stops_a_node_at_once(tmp_path: Path) -> None:
    done = set_up(tmp_path, "s3://REPLACE-bucket/deft-x")
    assert (done.returncode, "put your bucket's name into the cluster file" in done.stderr) == (2, True)
    assert not (tmp_path / "deftx.sh").exists()


@pytest.mark.parametrize(
    ("environment", "options", "address"),
    [
        ({}, [], None),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, [], None),
        ({"DEFTX_ADDRESS": "auto"}, [], "auto"),
        ({"DEFTX_ADDRESS": "auto"}, ["--address", "head:6379"], "head:6379"),
        ({"DEFTX_ADDRESS": "auto"}, ["--serial"], None),
        ({JOB: "{}"}, [], "auto"),
    ],
)
def test_the_environment_says_where_a_sweep_runs_and_options_win(
    environment: dict[str, str],
    options: list[str],
    address: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(command, "_run", lambda prepared, *rest, **_: asked.append((prepared, *rest)) or 0)
    server = "http://127.0.0.1:9"
    for name, value in {**environment, "DEFTX_STORAGE": str(tmp_path / "s"), "MLFLOW_TRACKING_URI": server}.items():
        monkeypatch.setenv(name, value)
    space, data = write_space(tmp_path / "tiny.yaml"), write_data(tmp_path / "data")
    result = sweep(space, "--data-root", data, *options)
    assert result.exit_code == 0, result.output
    prepared, uri, found, _ = asked[0]
    assert (prepared.folder.store.url, uri, found) == (str(tmp_path / "s"), server, address)
    sweep(space, "--data-root", data, "--storage", tmp_path / "t", "--tracking-uri", "http://127.0.0.1:8")
    assert (asked[1][0].folder.store.url, asked[1][1]) == (str(tmp_path / "t"), "http://127.0.0.1:8")


def test_an_address_of_elsewhere_is_followed_in_a_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv(JOB, "{}")
    forget_other_clusters()
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    monkeypatch.delenv(JOB)
    forget_other_clusters()
    assert "RAY_ADDRESS" not in os.environ


def test_a_stage_that_fits_no_node_is_told_with_what_there_is(driver: Driver) -> None:
    stages, resources = driver.schedule.missing(), dict(driver.workplace.resources)
    resources["dense"], resources["sparse"] = Resources(cpu=4, gpu=2), Resources(cpu=4, gpu=0.5)
    workplace = Workplace("s", "tiny", resources, "code")
    check_fit(workplace, stages, [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 2.0, "memory": 1e9}])
    check_fit(workplace, stages, [{"CPU": 2.0}], [{}])  # a node that may come, of which nothing is known
    resources["text"] = Resources(cpu=8)
    with pytest.raises(ConfigError, match="a stage 'text' asks for 8 CPUs and 0 GPUs, and a node of the cluster has 4"):
        check_fit(workplace, stages, [{"CPU": 4.0}], [{"CPU": 96, "GPU": 8}])  # started for GPUs alone
    resources["text"] = Resources()
    with pytest.raises(ConfigError) as told:
        check_fit(workplace, stages, [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}])
    assert str(told.value) == (
        "a stage 'dense' asks for 4 CPUs and 2 GPUs, and a node of the cluster has 2 CPUs and 0 GPUs or 8 CPUs and 1 "
        "GPUs: set resources.dense in the space, or add a worker type to the cluster file"
    )


def test_the_digest_of_the_code_is_that_of_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("deftx", "orchestrator"):
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "inner" / "module.py").write_text("1")
    monkeypatch.setattr(
        node.importlib.util, "find_spec",
        lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path / name)]}),
    )  # fmt: skip
    before = node.code.__wrapped__()
    assert before == node.code.__wrapped__() != node.code()
    (tmp_path / "orchestrator" / "inner" / "module.py").write_text("2")
    assert node.code.__wrapped__() != before


@pytest.mark.parametrize("fault", ["code", "gpu"])
def test_a_node_that_joined_later_and_does_not_fit_ends_the_sweep_and_no_stage(
    fault: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = driver.next_job()
    assert job is not None
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    resources = {kind: need.model_copy(update={"gpu": 1.0}) for kind, need in driver.workplace.resources.items()}
    other = {"code": {"code": "0" * 16}, "gpu": {"resources": resources}}[fault]
    unfit = Workplace(**{**driver.workplace.__dict__, **other})
    assert carry_out(job, unfit, lambda *_: None) == "failed"
    driver.settle(job)
    assert driver.refused is not None
    assert {"code": "another version of the project", "gpu": "torch sees none"}[fault] in driver.refused
    assert driver.folder.final_failures() == {}
    (failure,) = driver.folder.failures().values()
    assert failure.trace.startswith("orchestrator.run.trial._Unfit: node ")
    assert not driver.folder.store.has(job.stages[0].address)


def test_on_one_machine_no_code_is_compared(driver: Driver) -> None:
    here = Workplace.of(driver.space, driver.folder, Machine(2, 0))
    assert (here.code, here.unfit("dense"), driver.workplace.code) == (None, None, node.code())


def test_gpus_that_torch_does_not_see_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"2.13.0+cu130 8": None, "2.13.0+cu130 2": "sees 2 GPUs where there should be 4: install a torch"}
    for answer, words in answers.items():
        monkeypatch.setattr(node, "_COUNT", f"print({answer!r})")
        told = node.lacks_gpus(4)
        assert (told is None) if words is None else (words in str(told))
    monkeypatch.setattr(node, "_COUNT", "raise ImportError('libcudart.so.13')")
    assert "torch cannot be imported (ImportError: libcudart.so.13)" in str(node.lacks_gpus(4))
    result = CliRunner().invoke(cluster.app, ["gpus", "4"])
    assert (result.exit_code, "libcudart" in result.output) == (2, True)


def test_nothing_is_trained_on_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    space, data = write_space(tmp_path / "tiny.yaml", **ONE), write_data(tmp_path / "data")
    places = ("--data-root", data, "--storage", tmp_path / "storage")
    result = sweep(space, *places, "--address", "127.0.0.1:1")
    assert result.exit_code == 2
    assert "--address 127.0.0.1:1: no Ray cluster there ([Errno 111] Connection refused)" in result.output
    assert folder_of(tmp_path / "storage", "tiny").state().ended is False


@pytest.mark.slow
def test_every_node_is_looked_over_before_anything_is_trained(driver: Driver) -> None:
    from orchestrator.run.tune import _check_cluster, _connect

    with ExitStack() as stack:
        _connect(Machine(2, 99), None, stack)
        _check_cluster(driver)  # no stage asks for a GPU, so that none has to be right
        resources = {**driver.workplace.resources, "dense": Resources(gpu=1)}
        driver.workplace = Workplace(**{**driver.workplace.__dict__, "code": "0" * 16, "resources": resources})
        with pytest.raises(ConfigError) as told:
            _check_cluster(driver)
        driver.workplace.resources["dense"] = Resources(gpu=100)
        with pytest.raises(ConfigError, match="a stage 'dense' asks for 1 CPUs and 100 GPUs"):
            _check_cluster(driver)
    version, gpus = str(told.value).splitlines()
    assert f"another version of the project (deftx-sweeps 0.1.0, code {node.code()}) than the driver" in version
    assert "GPUs where there should be 99" in gpus


def test_a_node_that_does_not_see_the_storage_says_so(driver: Driver, tmp_path: Path) -> None:
    store = driver.folder.store
    assert node.lacks_storage(store.url, "tiny") is None
    other = str(tmp_path / "of-this-node-alone")
    assert f"storage {other}: nothing of the sweep is there: it must be one that all nodes share" in str(
        node.lacks_storage(other, "tiny")
    )
    from orchestrator.run.tune import _look_over

    (told,) = _look_over._function(0, node.code(), other, "tiny")
    assert told == node.lacks_storage(other, "tiny")
    (tmp_path / "file").write_text("")
    assert "file: is a file; a storage is a folder" in str(node.lacks_storage(str(tmp_path / "file"), "tiny"))

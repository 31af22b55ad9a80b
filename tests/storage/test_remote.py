"""A whole sweep on a storage that is no file system, tracked in a SQLite file of this machine."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.islands import sweep, write_data, write_space
from typer.testing import CliRunner, Result

from deftx.sft.vector import SparseFineTuning
from deftx.stages.kinds import KINDS
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder
from orchestrator.report.__main__ import app
from orchestrator.tracking import __main__ as tracking

_numbers = itertools.count(1)


@dataclass
class Remote:
    """A bucket in this process's memory, and what the commands get besides."""

    url: str
    uri: str
    space: Path
    data: Path

    @property
    def store(self) -> Store:
        return Store(self.url)

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.store, "tiny")

    def run(self, *options: object) -> Result:
        """The sweep, in this process."""
        places = ("--data-root", self.data, "--storage", self.url, "--tracking-uri", self.uri)
        return sweep(self.space, *places, "--serial", *options)

    def attempts(self) -> dict[str, list[str]]:
        """What lies beside the manifest of each stage, by address."""
        store = self.store
        return {a: [n for n in store.names("stages", a) if n != "manifest.json"] for a in store.names("stages")}

    def copy(self) -> Remote:
        """The same in a bucket and a database of its own."""
        number = next(_numbers)
        url, uri = f"memory://deftx-{number}/results", f"{self.uri}-{number}"
        shutil.copy(self.uri.removeprefix("sqlite:///"), uri.removeprefix("sqlite:///"))
        fs = self.store.fs
        for path in fs.find(self.store.root):
            fs.pipe_file(path.replace(self.store.root, Store(url).root, 1), fs.cat_file(path))
        return Remote(url, uri, self.space, self.data)

    def runs(self) -> list[Any]:
        """The runs in MLflow."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=1000))


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache of remote files lies in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Remote, Result]:
    """A finished sweep, to be looked at; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("remote")
    space, data = write_space(folder / "tiny.yaml"), write_data(folder / "data")
    remote = Remote(f"memory://deftx-{next(_numbers)}/results", f"sqlite:///{folder}/mlflow.db", space, data)
    return remote, remote.run()


@pytest.fixture
def finished(outcome: tuple[Remote, Result]) -> Remote:
    return outcome[0]


def whole(url: str) -> Any:
    """The file system and the path of a URL that a command printed."""
    assert url.startswith("memory://"), url
    return fsspec.core.url_to_fs(url)


def test_it_ends_well_and_prints_urls_that_lead_there(outcome: tuple[Remote, Result]) -> None:
    remote, result = outcome
    assert result.exit_code == 0, result.output
    assert "warning:" not in result.output  # of the mirror; a stage's own have no colon
    printed = dict(re.findall(r"^ *(report|vector of \w+|browse): (.+)$", result.output, re.MULTILINE))
    fs, path = whole(printed["report"])
    assert fs.cat_file(path) == remote.store.read("sweeps", "tiny", "report.md")
    row = remote.folder.state().chosen_row
    assert row is not None
    for name, address in {"task": row.task_sft, **row.language_sfts}.items():
        fs, vector = whole(printed[f"vector of {name}"])
        assert f"stages/{address}/" in vector and fs.isfile(f"{vector}/sft.safetensors")
    assert printed["browse"] == f"mlflow ui --backend-store-uri {remote.uri}"


def test_the_store_holds_exactly_what_the_plan_said(finished: Remote) -> None:
    state = finished.folder.state()
    kinds = [entry.kind for entry in state.stages.values()]
    assert [kinds.count(kind) for kind in KINDS] == [1, 3, 3, 4, 10, 18]
    assert set(finished.store.addresses()) == set(state.stages) == set(finished.store.names("stages"))
    assert all(len(made) == 1 and made[0].startswith("attempt-") for made in finished.attempts().values())
    assert all(finished.store.intact(address) for address in state.stages)
    assert finished.store.names("sweeps", "tiny", "lease.json") == []


def test_the_report_lies_in_the_storage(finished: Remote) -> None:
    text = finished.store.read("sweeps", "tiny", "report.md")
    assert text is not None and b"few-label selection" in text
    assert {"heatmap.png", "languages.png"} <= set(finished.store.names("sweeps", "tiny", "plots"))
    results = finished.store.read("sweeps", "tiny", "results.csv")
    assert results is not None and results.count(b"combination") > 4
    assert finished.store.read("sweeps", "tiny", "optuna.log")


def test_the_report_command_writes_it_again(finished: Remote) -> None:
    there = finished.copy()
    before = there.store.read("sweeps", "tiny", "report.md")
    there.store.remove("sweeps", "tiny", "report.md")
    result = CliRunner().invoke(app, [f"{there.url}/sweeps/tiny"])
    assert result.exit_code == 0, result.output
    fs, path = whole(result.output.strip())
    assert fs.cat_file(path) == before


def test_status_and_failed_read_it(finished: Remote) -> None:
    status = sweep("status", "tiny", "--storage", finished.url)
    assert status.exit_code == 0 and "(chosen)" in status.output
    failed = sweep("failed", "tiny", "--storage", finished.url)
    assert (failed.exit_code, failed.output) == (0, "nothing failed\n")
    unknown = sweep("status", "tinny", "--storage", finished.url)
    assert unknown.exit_code == 2 and f"{finished.url}: no sweep 'tinny' there (sweeps: tiny)" in unknown.output


def test_every_run_is_finished_and_vectors_load_from_mlflow(finished: Remote, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    runs = finished.runs()
    assert len(runs) == 39 + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    sparse = [run for run in runs if run.data.tags["kind"] == "sparse"]
    assert len(sparse) == 10
    client = MlflowClient(finished.uri)
    for run in sparse:
        got = client.download_artifacts(run.info.run_id, "sft", str(tmp_path))
        assert len(SparseFineTuning.from_pretrained(got)) > 0
    (parent,) = [run for run in runs if run.data.tags["kind"] == "sweep"]
    assert {"report.md", "plots"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_a_second_run_trains_nothing_and_a_widened_space_only_what_is_new(finished: Remote) -> None:
    there = finished.copy()
    before, runs = there.attempts(), {run.info.run_id for run in finished.runs()}
    result = there.run()
    assert result.exit_code == 0 and "nothing is left to do" in result.output
    assert there.attempts() == before
    assert {run.info.run_id for run in there.runs()} == runs

    assert there.run("--set", "rank_l=[2,4,90%]").exit_code == 0
    after = there.attempts()
    assert {address: after[address] for address in before} == before
    state = there.folder.state()
    assert sorted(state.stages[address].kind for address in after.keys() - before.keys()) == (
        ["grade"] * 4 + ["sparse"] * 2
    )
    assert {run.info.status for run in there.runs()} == {"FINISHED"}
    assert len(there.runs()) == 39 + 1 + 6


def test_a_plan_writes_nothing_and_what_is_there_is_found(finished: Remote) -> None:
    nowhere = Remote(f"memory://deftx-{next(_numbers)}", finished.uri, finished.space, finished.data)
    assert nowhere.run("--plan").exit_code == 0
    assert nowhere.store.names() == []
    assert "0 dense and 0 sparse trainings" in finished.run("--plan").output


def test_mirroring_again_from_the_storage_changes_nothing(finished: Remote) -> None:
    before = {run.info.run_id: run.data.tags["mirrored"] for run in finished.runs()}
    result = CliRunner().invoke(tracking.app, [finished.url, "--tracking-uri", finished.uri])
    assert (result.exit_code, result.output) == (0, f"tiny: 40 runs in {finished.uri}\n")
    assert {run.info.run_id: run.data.tags["mirrored"] for run in finished.runs()} == before


def test_gc_removes_the_deltas_only(finished: Remote) -> None:
    there = finished.copy()
    before = there.attempts()
    assert "removed: 0 stages, 0 attempts, 4 deltas" in sweep("gc", "--storage", there.url, "--yes").output
    assert there.attempts() == before


def test_a_failed_stage_says_where_its_log_lies(finished: Remote, tmp_path: Path) -> None:
    data = write_data(tmp_path / "poor")
    (data / "corpora" / "vek.txt").write_text("ka\n")
    poor = Remote(f"memory://deftx-{next(_numbers)}/results", f"sqlite:///{tmp_path}/mlflow.db", finished.space, data)
    result = poor.run("--set", "targets=[vek]", "--set", "baselines=[]", "--set", "rank_l=[2]", "--set", "rank_t=[2]")
    assert result.exit_code == 3, result.output
    listed = sweep("failed", "tiny", "--storage", poor.url).output
    assert "vek · text" in listed
    fs, log = whole(listed.partition("log: ")[2].splitlines()[0])
    assert fs.exists(log)
    assert {run.info.status for run in poor.runs()} == {"FINISHED", "FAILED"}


def test_artifacts_that_mlflow_cannot_keep_are_told_before_anything_runs(finished: Remote) -> None:
    nowhere = Remote("memory://deftx-nowhere", "postgresql://host/db", finished.space, finished.data)
    result = nowhere.run()
    assert result.exit_code == 2
    assert "MLflow can keep no artifacts there" in result.output.replace("\n", " ")
    assert nowhere.store.names("stages") == []

"""The command on a tiny family, in one process: the store, a second run, and every mistake a user can make."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.islands import attempts, folder_of, published, run, shuffle_test_labels, sweep, write_data, write_space
from support.patience import PATIENCE

import deftx.method.make
from deftx.errors import DataError
from deftx.sft.vector import SparseFineTuning
from deftx.stages.kinds import KINDS
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.lease import driving
from orchestrator.record.sweep import Failure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_space(tmp_path_factory.mktemp("space") / "tiny.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, space: Path) -> Path:
    """The storage of a finished 2 x 2 sweep; tests that change it copy it."""
    storage = tmp_path_factory.mktemp("finished")
    result = run(space, data, storage)
    assert result.exit_code == 0, result.output
    return storage


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_store_holds_exactly_what_the_plan_said(finished: Path, space: Path, data: Path, tmp_path: Path) -> None:
    plan = sweep(space, "--data-root", data, "--storage", tmp_path, "--plan").output
    assert "4 dense and 7 sparse trainings for 4 combinations; baselines: 0 dense and 3 sparse trainings more" in plan
    state = folder_of(finished, "tiny").state()
    assert published(finished) == set(state.stages)
    kinds = [entry.kind for entry in state.stages.values()]
    assert [kinds.count(kind) for kind in KINDS] == [1, 3, 3, 4, 10, 18]
    assert all(len(made) == 1 for made in attempts(finished).values())
    assert not list(finished.glob("stages/*/checkpoint"))
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_a_second_run_trains_nothing(copy: Path, space: Path, data: Path) -> None:
    before = attempts(copy)
    result = run(space, data, copy)
    assert result.exit_code == 0
    assert "nothing is left to do" in result.output
    assert attempts(copy) == before


def test_a_widened_space_runs_only_what_is_new(copy: Path, space: Path, data: Path) -> None:
    before = published(copy)
    assert run(space, data, copy, "--set", "rank_l=[2,4,90%]").exit_code == 0
    state = folder_of(copy, "tiny").state()
    new = [state.stages[address].kind for address in published(copy) - before]
    assert sorted(new) == ["grade"] * 4 + ["sparse"] * 2


def test_shuffled_test_labels_change_nothing_that_is_asked_or_chosen(
    finished: Path, copy: Path, space: Path, data: Path, tmp_path: Path
) -> None:
    shuffled = shuffle_test_labels(data, tmp_path / "shuffled")
    for search in (("--name", "grid"), ("--name", "tpe", "--set", "search=tpe", "--combinations", "3")):
        states = []
        for root in (data, shuffled):
            name = f"{search[1]}-{root.name}"
            assert run(space, root, copy, *search[2:], "--name", name).exit_code == 0
            states.append(folder_of(copy, name).state())
        honest, sealed = states
        assert [row.parameters for row in honest.combinations] == [row.parameters for row in sealed.combinations]
        assert [row.score for row in honest.combinations] == [row.score for row in sealed.combinations]
        assert honest.chosen == sealed.chosen
        assert [row.task_sft for row in honest.rows] == [row.task_sft for row in sealed.rows]
        assert {row.grades["ila"] for row in honest.rows}.isdisjoint(row.grades["ila"] for row in sealed.rows)


def test_test_scores_lie_in_a_file_of_their_own(finished: Path) -> None:
    for path in finished.glob("stages/*/manifest.json"):
        manifest = json.loads(path.read_text())
        assert not any("test" in name for name in manifest["metrics"])
        if manifest["kind"] == "grade":
            assert set(manifest["files"]) == {"scores.json", "sealed_test.json"}


def test_the_report_and_its_pictures_are_there(finished: Path) -> None:
    folder = finished / "sweeps" / "tiny"
    assert "few-label selection" in (folder / "report.md").read_text()
    assert {"heatmap.png", "languages.png"} <= {path.name for path in (folder / "plots").iterdir()}
    assert (folder / "results.csv").read_text().count("combination") > 4


def test_mlflow_mirrors_every_stage_once(copy: Path, space: Path, data: Path) -> None:
    from mlflow import MlflowClient

    run(space, data, copy)
    client = MlflowClient(f"sqlite:///{copy}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len(runs) == 39 + 1
    assert {one.info.status for one in runs} == {"FINISHED"}


def test_the_vectors_load_by_the_paths_printed(copy: Path, space: Path, data: Path) -> None:
    printed = run(space, data, copy).output.replace("\n", "")
    paths = re.findall(r"vector of (\w+): (\S+?/sft)", printed)
    assert [name for name, _ in paths] == ["task", "ila", "vek"]
    assert all(len(SparseFineTuning.from_pretrained(path)) > 0 for _, path in paths)


def test_selection_without_target_labels(copy: Path, space: Path, data: Path) -> None:
    """Scores are the task's source score less the mean held-out loss; the choice is the best of each part."""
    result = run(space, data, copy, "--name", "unlabelled", "--set", "selection=unlabelled")
    assert "selection without target labels" in result.output
    folder = folder_of(copy, "unlabelled")
    state, store = folder.state(), folder.store

    def metric(address: str | None, name: str) -> float:
        manifest = store.manifest(str(address))
        assert manifest is not None
        return manifest.metrics[name]

    def loss(row: object) -> float:
        return sum(metric(a, "valid_loss") for a in row.language_sfts.values()) / 2  # type: ignore[attr-defined]

    for row in state.combinations:
        assert row.score == pytest.approx(metric(row.task_sft, "valid_score") - loss(row), abs=1e-12)
    chosen = state.chosen_row
    assert chosen is not None
    assert loss(chosen) == min(map(loss, state.combinations))


def test_status_and_failed_read_the_store_without_ray(finished: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from orchestrator.sweep import app\n"
        f"a = CliRunner().invoke(app, ['status', 'tiny', '--storage', {str(finished)!r}])\n"
        f"b = CliRunner().invoke(app, ['failed', 'tiny', '--storage', {str(finished)!r}])\n"
        "print(a.output, b.output); print(a.exit_code, b.exit_code, {'ray', 'torch', 'mlflow'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "nothing failed" in out
    assert "(chosen)" in out
    assert out.strip().endswith("0 0 set()")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seed", "1"], "has seed 0, not 1"),
        (["--set", "benchmark=nusax", "--set", "targets=null"], "problem"),
        (
            ["--set", "backbone.hidden=32"],
            "newer version of this software, changed it; --name starts a new sweep beside this",
        ),
        (["--set", "rank_l=[0.9]"], "write 90%"),
        (["--name", "a/b"], "sweep name 'a/b'"),
        (["--tracking-uri", "ftp://x"], "ftp://x"),
        (["--set", "language.k=999999999"], "language.k: k = 999999999 is 999,999,999 entries"),
    ],
)
def test_a_users_mistake_is_exit_code_2_and_loses_nothing(
    copy: Path, space: Path, data: Path, options: list[str], expected: str
) -> None:
    before = attempts(copy)
    result = run(space, data, copy, *options)
    assert result.exit_code == 2
    assert expected in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert attempts(copy) == before


def test_the_same_name_with_another_benchmark_is_refused(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny.yaml"
    other.write_text("benchmark: nusax\nbackbone: some/thing\nrank_l: [2]\nrank_t: [2]\n")
    result = sweep(other, "--storage", copy, "--serial")
    assert result.exit_code == 2
    assert "has benchmark archipelago, not nusax" in result.output.replace("\n", " ")


def test_missing_files_are_all_named_at_once(space: Path, tmp_path: Path) -> None:
    result = run(space, tmp_path / "nowhere", tmp_path / "storage")
    assert result.exit_code == 2
    for name in ("corpora/ila.txt", "corpora/vek.txt", "archipelago/ila/test.csv", "archipelago/sor/train.csv"):
        assert name in result.output.replace("\n", "")


def test_an_unreachable_hub_is_a_clear_error(space: Path, data: Path, tmp_path: Path) -> None:
    result = run(space, data, tmp_path, "--backbone", "somebody/model")
    assert result.exit_code == 2
    assert "the hub could not be reached for model 'somebody/model'" in result.output.replace("\n", " ")


def test_a_remote_storage_needs_a_tracking_uri_before_anything_runs(space: Path, data: Path) -> None:
    result = sweep(space, "--data-root", data, "--storage", "memory://bucket", "--serial")
    assert result.exit_code == 2
    assert "--tracking-uri" in result.output


def test_unknown_sweeps_and_spaces_name_the_known_ones(finished: Path) -> None:
    result = sweep("status", "tinny", "--storage", finished)
    assert (result.exit_code, "tiny" in result.output) == (2, True)
    result = sweep("nusaxx")
    assert (result.exit_code, "did you mean 'nusax'" in result.output) == (2, True)


def test_a_language_with_too_little_text_fails_alone(data: Path, space: Path, tmp_path: Path) -> None:
    poor = shutil.copytree(data, tmp_path / "poor")
    (poor / "corpora" / "vek.txt").write_text("ka\n")
    storage = tmp_path / "storage"
    result = run(space, poor, storage)
    assert result.exit_code == 3
    assert "FAILED" in result.output
    folder = folder_of(storage, "tiny")
    state = folder.state()
    assert [failure.label for failure in folder.failures().values()] == ["vek · text"]
    assert all(row.status == "failed" and "vek" in str(row.reason) for row in state.combinations)
    assert all(row.grades["ila"] in published(storage) for row in state.combinations)
    assert "vek · text failed" in (storage / "sweeps/tiny/report.md").read_text()
    listed = sweep("failed", "tiny", "--storage", storage).output
    assert "vek · text" in listed
    assert "logs" in listed


def test_unexpected_failures_are_tried_again_and_expected_ones_are_not(
    data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    honest = deftx.method.make.make

    def make(stage: Stage, store: Store, *rest: object) -> object:
        if stage.kind == "text" and not store.has(stage.address):
            tries.append(stage.label)
            if stage.language == "ila" and tries.count(stage.label) == 1:
                raise RuntimeError("the disk hiccuped")
            if stage.language == "vek":
                raise DataError("this text is no good")
        return honest(stage, store, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(deftx.method.make, "make", make)
    assert run(space, data, tmp_path).exit_code == 3
    assert (tries.count("ila · text"), tries.count("vek · text")) == (2, 1)
    failures = folder_of(tmp_path, "tiny").failures()
    assert [failure.reason for failure in failures.values()] == ["this text is no good"]

    before = attempts(tmp_path)
    assert run(space, data, tmp_path).exit_code == 3, "a permanent failure stays one"
    assert attempts(tmp_path) == before
    monkeypatch.setattr(deftx.method.make, "make", honest)
    assert run(space, data, tmp_path, "--retry-failed").exit_code == 0
    assert not folder_of(tmp_path, "tiny").failures()


def test_an_error_on_record_that_was_not_final_does_not_stop_a_resume(copy: Path, space: Path, data: Path) -> None:
    folder = folder_of(copy, "tiny")
    address = next(a for a, entry in folder.state().stages.items() if entry.label == "task · dense")
    shutil.rmtree(copy / "stages" / address)
    for stage, entry in folder.state().stages.items():
        if entry.kind in ("sparse", "grade") and entry.subject in ("task", "ila"):
            shutil.rmtree(copy / "stages" / stage)
    folder.write_failure(Failure(address=address, label="task · dense", reason="CUDA out of memory", final=False))
    assert run(space, data, copy).exit_code == 0
    assert not folder.failures()


def test_an_error_in_one_language_keeps_no_other_from_being_graded(
    data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = deftx.method.make.make

    def make(stage: Stage, *rest: object) -> object:
        if stage.kind == "grade" and stage.language == "ila":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] [/no closing tag]")
        return honest(stage, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(deftx.method.make, "make", make)
    result = run(space, data, tmp_path, "--set", "max_failures=0")
    assert result.exit_code == 3
    assert "[enforce fail at alloc_cpu.cpp:117]" in result.output
    state = folder_of(tmp_path, "tiny").state()
    assert all(row.grades["vek"] in published(tmp_path) for row in state.rows)
    assert all("ila" in str(row.reason) and "vek:" not in str(row.reason) for row in state.rows)
    assert "enforce fail" in sweep("failed", "tiny", "--storage", tmp_path).output


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("archipelago/vek/test.csv", b"id,text,label\n1,ka,possitive\n", "unknown label 'possitive'"),
        ("archipelago/vek/valid.csv", b"id,label\n1,positive\n", "text"),
        ("corpora/vek.txt", b"ka\nk\xff\n", "line 2: not UTF-8"),
        ("archipelago/sor/train.csv", b"", "is empty"),
    ],
)
def test_a_file_that_is_wrong_is_told_before_anything_runs(
    data: Path, space: Path, tmp_path: Path, file: str, content: bytes, expected: str
) -> None:
    wrong = shutil.copytree(data, tmp_path / "wrong")
    (wrong / file).write_bytes(content)
    result = run(space, wrong, tmp_path / "storage")
    assert result.exit_code == 2
    assert file in result.output.replace("\n", "")
    assert expected in result.output.replace("\n", " ")
    assert not attempts(tmp_path / "storage")


def test_a_spoilt_grade_is_made_again(copy: Path, space: Path, data: Path) -> None:
    path = next(copy.glob("stages/*/attempt-*/scores.json"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run(space, data, copy).exit_code == 0
    address = path.parts[-3]
    assert len(attempts(copy)[address]) == 2
    assert folder_of(copy, "tiny").store.intact(address)


def test_a_plan_of_the_demo_writes_nothing(tmp_path: Path) -> None:
    result = sweep("demo", "--plan", "--storage", tmp_path)
    assert result.exit_code == 0
    assert not list(tmp_path.iterdir())


def test_a_second_driver_is_refused_while_the_first_lives_and_a_dead_ones_lease_is_taken_over(
    copy: Path, space: Path, data: Path
) -> None:
    folder = folder_of(copy, "tiny")
    with driving(folder):
        result = run(space, data, copy)
        assert result.exit_code == 2
        assert f"is being driven by process {os.getpid()}" in result.output.replace("\n", " ")
        assert sweep("gc", "--storage", copy).exit_code == 2
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = {"token": "x", "host": os.uname().nodename, "pid": ended.pid, "born": "1", "beat": time.time()}
    (copy / "sweeps/tiny/lease.json").write_text(json.dumps(holder))
    assert run(space, data, copy).exit_code == 0
    assert not (copy / "sweeps/tiny/lease.json").exists()


def test_gc_keeps_what_is_needed_and_an_ended_sweep_is_unharmed(copy: Path, space: Path, data: Path) -> None:
    large = ("delta", "vectors")  # a change and the factors of its matrices
    counts = [len(list(copy.glob(f"stages/*/*/{name}.safetensors"))) for name in large]
    assert counts[0] == counts[1] > 0
    stray = copy / "stages" / ("f" * 32) / "attempt-0"
    stray.mkdir(parents=True)
    (stray / "file").write_text("left behind")
    assert "would remove" in sweep("gc", "--storage", copy).output
    assert stray.exists()
    sweep("gc", "--storage", copy, "--yes")
    assert not stray.exists()
    assert {len(list(copy.glob(f"stages/*/*/{name}.safetensors"))) for name in large} == {0}
    before = attempts(copy)
    assert run(space, data, copy).exit_code == 0
    assert attempts(copy) == before
    assert run(space, data, copy, "--set", "rank_l=[2,4,90%]").exit_code == 0, "deltas are made again when needed"


def command(space: Path, data: Path, storage: Path, *options: str) -> list[str]:
    words = [sys.executable, "-m", "orchestrator.sweep", space, "--data-root", data, "--storage", storage, *options]
    return [str(word) for word in words]


def wait_for(storage: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many stages are published, or the driver has ended."""
    deadline = time.monotonic() + PATIENCE
    while len(published(storage)) < number and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, b"interrupted: "),
        (signal.SIGTERM, 143, b"told to end: "),
        pytest.param(signal.SIGHUP, 129, b"the terminal was closed: ", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_ends_cleanly_and_the_same_command_goes_on(
    space: Path, data: Path, tmp_path: Path, number: signal.Signals, code: int, words: bytes
) -> None:
    process = subprocess.Popen(
        command(space, data, tmp_path, "--serial"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(tmp_path, 4, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, (out, err)
    assert words in out
    assert b"goes on from here" in out + err
    assert (tmp_path / "sweeps/tiny/report.md").is_file()
    assert b"Traceback" not in out + err
    assert not (tmp_path / "sweeps/tiny/lease.json").exists()
    before = {address: attempts(tmp_path)[address] for address in published(tmp_path)}
    assert run(space, data, tmp_path).exit_code == 0
    assert {address: attempts(tmp_path)[address] for address in before} == before


@pytest.mark.slow
def test_after_kill_9_at_several_moments_no_finished_stage_runs_again(
    finished: Path, space: Path, data: Path, tmp_path: Path
) -> None:
    for moment in (1, 6, 13, 25):
        process = subprocess.Popen(command(space, data, tmp_path, "--serial"), stdout=subprocess.DEVNULL)
        wait_for(tmp_path, moment, process)
        process.kill()
        process.wait()
        before = {address: attempts(tmp_path)[address] for address in published(tmp_path)}
        assert moment <= len(before) < 39
    assert run(space, data, tmp_path).exit_code == 0
    assert {address: attempts(tmp_path)[address] for address in before} == before
    one, other = (folder_of(storage, "tiny").state() for storage in (finished, tmp_path))
    assert one.rows == other.rows
    assert sft_bytes(finished) == sft_bytes(tmp_path)


def sft_bytes(storage: Path) -> dict[str, bytes]:
    """The bytes of every vector, by address."""
    return {path.parts[-4]: path.read_bytes() for path in storage.glob("stages/*/attempt-*/sft/sft.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_ray_gives_the_same_vectors_bit_for_bit_and_the_same_choice(
    finished: Path, space: Path, data: Path, tmp_path: Path, parallel: int
) -> None:
    words = command(space, data, tmp_path, "--set", f"parallel={parallel}")
    result = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sft_bytes(tmp_path) == sft_bytes(finished)
    one, other = (folder_of(storage, "tiny").state() for storage in (finished, tmp_path))
    assert one.rows == other.rows
    assert one.chosen == other.chosen
    assert all(len(made) == 1 for made in attempts(tmp_path).values())


@pytest.mark.slow
def test_ray_is_interrupted_cleanly_and_survives_its_drivers_death(data: Path, tmp_path: Path) -> None:
    """One combination without baselines: 15 stages."""
    space = write_space(tmp_path / "tiny.yaml", rank_l=[2], rank_t=[2], baselines=[], source=None)
    for moment, number, code in ((2, signal.SIGTERM, 143), (4, signal.SIGINT, 130)):
        process = subprocess.Popen(command(space, data, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(tmp_path, moment, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, (out, err)
        assert b"***" not in err and b"Stack trace" not in err and b"Traceback" not in err, err
    process = subprocess.Popen(command(space, data, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path, 9, process)
    process.kill()
    process.wait()
    before = {address: attempts(tmp_path)[address] for address in published(tmp_path)}
    result = subprocess.run(command(space, data, tmp_path), capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {address: attempts(tmp_path)[address][:1] for address in before} == {a: v[:1] for a, v in before.items()}
    assert all(folder_of(tmp_path, "tiny").store.manifest(address) for address in before)

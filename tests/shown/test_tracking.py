"""The mirror against a real MLflow on SQLite: what it shows, that repeating changes nothing, what a dead one costs."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.facts import metrics_of
from support.mirrored import Sweep, language_stage, mlflow_client, publish, run_live, task_stage
from support.mlflow_stand_in import MlflowStandIn
from support.patience import PATIENCE
from typer.testing import CliRunner, Result

from deftx.errors import ConfigError
from deftx.stages.store import Store
from orchestrator.record.sweep import Failure
from orchestrator.tracking.__main__ import app
from orchestrator.tracking.client import artifact_place, check_tracking_uri, default_tracking_uri
from orchestrator.tracking.content import PARENT, sweep_status
from orchestrator.tracking.mirror import MirrorError, mirror_sweep

NOT_MADE_HERE = (
    "denoising/mean rank", "denoising/retention of residual energy percent", "mask/overlap with LT-SFT mask percent",
    "result/best validation score points",
)  # fmt: skip
FILES_OF_A_VECTOR = ["details.json", "sft/sft.json", "sft/sft.safetensors", "stage.json"]


def comparable(snapshot: dict[str, Any]) -> dict[str, Any]:
    """A snapshot without what the plan says of reuse: the parent's copy of it, and the digest over that."""
    parent = snapshot[PARENT]
    tags = {key: value for key, value in parent["tags"].items() if key != "mirrored"}
    artifacts = [(path, size) for path, size in parent["artifacts"] if path != "plan.json"]
    return snapshot | {PARENT: parent | {"tags": tags, "artifacts": artifacts}}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("storage")))


@pytest.fixture(scope="module")
def finished(storage: Store) -> Sweep:
    """A sweep over two languages that went well; to be looked at and not to be touched."""
    sweep = Sweep(storage, default_tracking_uri(storage), "finished", languages=("ace", "min"))
    run_live(sweep)
    return sweep


@pytest.fixture
def sweep(storage: Store, request: pytest.FixtureRequest) -> Sweep:
    return Sweep(storage, default_tracking_uri(storage), request.function.__name__)


@pytest.fixture(scope="module", autouse=True)
def every_point_is_sent_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.tracking.mirror.FLUSH_SECONDS", 0.0)
        yield


@pytest.fixture
def dead_uri() -> Iterator[str]:
    """A port that is bound and does not listen: nobody else takes it while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_sweep_reads_well(finished: Sweep) -> None:
    seen = finished.snapshot()
    assert seen.keys() == {PARENT, *(stage.address for stage in finished.stages)}
    assert (
        len(seen) == 1 + 2 + 2 + 4 + 1 + 1 + 4
    )  # the sweep; text, dense, 2 sparse by language; the task's two; grades
    assert {run["status"] for run in seen.values()} == {"FINISHED"}
    assert {run["parent"] for address, run in seen.items() if address != PARENT} == {PARENT}
    sparse = seen[language_stage("ace", finished.number).address]
    assert sparse["name"] == "ace · sparse · rank 100 · retention 5 %"
    assert sparse["params"] == {
        "denoise.rank": "100", "denoise.retention": "0.05", "denoise.retention_of": "numel", "k": "5", "retrain": "true"
    }  # fmt: skip
    expected = {
        "kind": "sparse", "language": "ace", "subject": "ace", "reused": "false",
        "address": language_stage("ace", finished.number).address,
        "mlflow.source.git.commit": "abc123", "sweep": finished.name,
    }  # fmt: skip
    assert expected.items() <= sparse["tags"].items()
    assert "**the vector of ace**" in sparse["tags"]["mlflow.note.content"]
    assert {tag for tag in sparse["tags"] if not tag.startswith("mlflow.")} - expected.keys() == {
        "sweep_created", "mirrored"
    }  # fmt: skip


def test_the_experiment_says_what_it_is_and_has_two_views_that_a_user_may_change(finished: Sweep) -> None:
    client = mlflow_client(finished.uri)
    name = f"space-{finished.number}"
    experiment = client.get_experiment_by_name(name)
    assert experiment.tags["mlflow.note.content"].startswith("DEFT-X on made-up.")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    views = {key: json.loads(value) for key, value in experiment.tags.items() if "ViewState" in key}
    assert [view["name"] for view in views.values()] == ["finished: scores", "finished: vectors"]
    shown: set[str] = set()
    for view in views.values():
        state = json.loads(view["state"])
        found = client.search_runs([experiment.experiment_id], state["searchFilter"], order_by=[state["orderByKey"]])
        assert len(found) == {"grade": 4, "sparse": 5}[found[0].data.tags["kind"]]
        shown |= {f"metrics.`{key}`" for run in found for key in run.data.metrics}
        shown |= {f"params.`{key}`" for run in found for key in run.data.params}
        shown |= {f"tags.`{key}`" for run in found for key in run.data.tags}
        unknown = set(state["selectedColumns"]) - shown
        assert unknown <= {f"metrics.`{shown_name}`" for shown_name in NOT_MADE_HERE}
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "my own words")
    mirror_sweep(finished.store, finished.folder, finished.uri)
    assert client.get_experiment_by_name(name).tags["mlflow.note.content"] == "my own words"


def test_curves_have_each_point_once_and_results_stand_beside_them(finished: Sweep) -> None:
    assert finished.snapshot()[language_stage("ace", finished.number).address]["metrics"] == {
        "curve/training loss": [(10, 2.0), (20, 1.0)],
        "curve/validation loss": [(10, 1.75), (20, 1.5)],
        "result/best validation loss": [(0, 1.5)],
        "result/best step": [(0, 20.0)],
        "result/steps": [(0, 20.0)],
        "mask/entries trained": [(0, 100.0)],
        "time and memory/seconds": [(0, 40.0)],
        "time and memory/peak GiB": [(0, 0.5)],
    }
    run = finished.runs()[task_stage(finished.number).address]
    times = {
        point.step: point.timestamp
        for point in mlflow_client(finished.uri).get_metric_history(run.info.run_id, "curve/validation loss")
    }
    assert times[20] == run.info.end_time == run.info.end_time // 1000 * 1000  # when it was made, not when mirrored


def test_a_sparse_stage_carries_its_sft(finished: Sweep, tmp_path: Path) -> None:
    address = language_stage("min", finished.number, "90%").address
    run = finished.runs()[address]
    assert [path for path, _ in finished.artifacts(run)] == [
        "details.json",
        "sft/sft.json",
        "sft/sft.safetensors",
        "stage.json",
    ]
    got = mlflow_client(finished.uri).download_artifacts(run.info.run_id, "sft/sft.safetensors", str(tmp_path))
    assert Path(got).read_bytes() == b"weights of " + address.encode()
    assert Path(finished.store.path("mlartifacts"), run.info.run_id, "artifacts", "sft", "sft.json").is_file()


def test_the_parent_has_what_was_asked_and_what_was_chosen(finished: Sweep) -> None:
    parent = finished.snapshot()[PARENT]
    assert parent["name"] == finished.name
    assert [path for path, _ in parent["artifacts"]] == [
        "plan.json", "plots/heat.png", "report.md", "results.csv", "space.json", "sweep.json"
    ]  # fmt: skip
    assert parent["metrics"]["search/combination points"] == [(0, 75.0)]
    assert parent["metrics"]["score/validation macro F1 points"] == [(0, 62.5)]
    assert parent["tags"]["chosen"] == "#1 DEFT-X r_l 90%, r_t 100, retention 5 %"
    assert parent["tags"]["chosen"] in parent["tags"]["mlflow.note.content"]
    assert "Chosen by few-label selection" in parent["tags"]["mlflow.note.content"]
    assert parent["params"] == {"benchmark": "made-up", "backbone": "owner/tiny", "seed": str(finished.number)}
    grade = finished.runs()[finished.rows[0].grades["ace"]]
    assert grade.data.tags["rows"] == "#0 DEFT-X r_l 100, r_t 100, retention 5 %" and "chosen" not in grade.data.tags
    assert grade.data.params["rank_l"] == "100" and grade.data.metrics["search/combination points"] == 50.0
    assert finished.runs()[finished.rows[1].grades["ace"]].data.tags["chosen"] == "yes"


def test_mirroring_again_changes_nothing(sweep: Sweep) -> None:
    run_live(sweep)
    ids = {address: run.info.run_id for address, run in sweep.runs().items()}
    before = sweep.snapshot()
    assert mirror_sweep(sweep.store, sweep.folder, sweep.uri) == len(before) == 9
    assert sweep.snapshot() == before
    resumed = sweep.mirror()
    resumed.start()
    for stage in sweep.stages:
        resumed.stage_done(stage, reused=True)
    resumed.finish(sweep_status(sweep.state))
    assert sweep.snapshot() == before
    assert {address: run.info.run_id for address, run in sweep.runs().items()} == ids


def test_a_mirror_made_afterwards_is_the_same(sweep: Sweep) -> None:
    run_live(sweep)
    live = sweep.snapshot()
    client = mlflow_client(sweep.uri)
    for resumed in (False, True):
        old = client.get_experiment_by_name(f"space-{sweep.number}")
        client.rename_experiment(old.experiment_id, f"old-{sweep.number}-{resumed}")
        mirror_sweep(sweep.store, sweep.folder, sweep.uri)
        assert comparable(sweep.snapshot()) == comparable(live)
        for stage in sweep.stages:  # what a second run of the command finds
            sweep.mark(stage, "reused")


def test_a_stage_of_another_sweep_points_to_its_sft(sweep: Sweep) -> None:
    stage = language_stage("ace", sweep.number)
    manifest = publish(sweep.store, stage)
    sweep.mark(stage, "reused")
    mirror = sweep.mirror()
    mirror.stage_done(stage, reused=True)
    mirror.finish("KILLED")
    run = sweep.runs()[stage.address]
    assert run.data.tags["reused"] == "true"
    assert Path(run.data.tags["sft"], "sft.safetensors").is_file() and manifest.attempt in run.data.tags["sft"]
    assert [path for path, _ in sweep.artifacts(run)] == ["details.json", "stage.json"]
    assert sweep.history(run, "curve/training loss") == [(10, 2.0), (20, 1.0)]


def test_points_are_sent_together_every_few_seconds(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.mirror.FLUSH_SECONDS", 3600.0)
    mirror = sweep.mirror()
    sent: list[dict[str, list[int]]] = []
    monkeypatch.setattr(
        mirror._sweep.runs, "add", lambda grown: sent.append({a: [p.step for p in grown[a]] for a in grown})
    )
    for step, address in enumerate(["one", "one", "two", "one"]):
        if step == 3:
            mirror._flush_at = 0.0
        mirror.progress(address, step, {"train_loss": 2.0})
        mirror._calls.apply(int)  # all calls before it have been made
    assert sent == [{"one": [0]}, {"one": [1, 3], "two": [2]}]


def test_runs_of_a_dead_driver_are_ended_and_opened_again(sweep: Sweep) -> None:
    stage, other = sweep.stages[1], sweep.stages[0]
    dead = sweep.mirror()
    dead.start()
    dead.stage_started(stage)
    dead.stage_started(other)
    dead.progress(stage.address, 10, {"train_loss": 2.0})
    dead._calls.close()  # the driver is gone: its thread ends without `finish`
    dead._calls.join()
    before = sweep.runs()
    assert {run.info.status for run in before.values()} == {"RUNNING"}

    mirror = sweep.mirror()
    mirror.start()
    mirror._calls.apply(int)  # all calls before it have been made
    assert {run.info.status for address, run in sweep.runs().items() if address != PARENT} == {"KILLED"}
    mirror.stage_started(stage)
    mirror.progress(stage.address, 10, {"train_loss": 2.0})  # again, from a checkpoint
    sweep.make([stage])
    mirror.stage_done(stage, reused=False)
    mirror.finish("KILLED")
    after = sweep.runs()
    assert {address: run.info.status for address, run in after.items()} == {
        PARENT: "KILLED", stage.address: "FINISHED", other.address: "KILLED"
    }  # fmt: skip
    assert after[stage.address].info.run_id == before[stage.address].info.run_id
    assert "reason" in after[other.address].data.tags and "reason" not in after[stage.address].data.tags
    assert sweep.history(after[stage.address], "curve/training loss") == [(10, 2.0), (20, 1.0)]


def test_a_failed_stage_says_why_and_may_be_tried_again(sweep: Sweep) -> None:
    stage = sweep.stages[0]
    failure = Failure(address=stage.address, label=stage.label, reason="too little text", final=True, trace="Trace")
    sweep.folder.write_failure(failure)
    sweep.mark(stage, "failed")
    mirror = sweep.mirror()
    mirror.stage_started(stage)
    mirror.stage_failed(stage, failure)
    mirror.finish("KILLED")
    run = sweep.runs()[stage.address]
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "too little text")
    assert [path for path, _ in sweep.artifacts(run)] == ["failure.txt"]

    sweep.make([stage])
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    again = sweep.runs()[stage.address]
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert "reason" not in again.data.tags


def test_test_scores_stay_sealed_until_the_search_has_ended(storage: Store) -> None:
    sweep = Sweep(storage, default_tracking_uri(storage), "sealed", languages=("ace", "min"))
    sweep.make(sweep.stages)
    mirror = sweep.mirror()
    mirror.start()
    for stage in sweep.stages:
        mirror.stage_done(stage, reused=False)
    mirror.finish("KILLED")
    shown = [key for run in sweep.snapshot().values() for key in run["metrics"]]
    assert "score/validation macro F1 points" in shown and not [key for key in shown if "test" in key]

    sweep.end(chosen=0)
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    seen = sweep.snapshot()
    exact = [100 * (0.25 + sweep.stages.index(grade) / 64) for grade in sweep.grades[:2]]
    for language, score in zip(sweep.languages, exact, strict=True):
        grade = seen[sweep.rows[0].grades[language]]["metrics"]
        assert grade["score/test macro F1 points"] == [(0, round(score, 2))]
        assert grade["score/test accuracy points"] == [(0, 12.5)]
        assert seen[PARENT]["metrics"][f"test macro F1 by language/{language} points"] == [(0, round(score, 2))]
    assert seen[PARENT]["metrics"]["score/test macro F1 points"] == [(0, round(sum(exact) / 2, 2))]


def test_a_later_choice_replaces_the_earlier_one(sweep: Sweep) -> None:
    sweep.make(sweep.stages)
    sweep.end(chosen=1)
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    first = sweep.runs()[PARENT].data
    sweep.end(chosen=0)
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    second = sweep.runs()[PARENT].data
    assert (first.tags["chosen"][:2], second.tags["chosen"][:2]) == ("#1", "#0")
    grade = sweep.runs()[sweep.rows[0].grades["ace"]].data
    ace, test = "test macro F1 by language/ace points", "score/test macro F1 points"
    assert second.metrics[ace] == grade.metrics[test] < first.metrics[ace]
    assert [data.metrics["search/combination points"] for data in (first, second)] == [75.0, 50.0]
    assert grade.tags["chosen"] == "yes" and "chosen" not in sweep.runs()[sweep.rows[1].grades["ace"]].data.tags


def test_a_dead_tracker_costs_nothing_and_is_mirrored_later(sweep: Sweep, dead_uri: str) -> None:
    mirror = sweep.mirror(dead_uri)
    begun, making = time.monotonic(), 0.0
    mirror.start()
    for stage in sweep.stages:
        mirror.stage_started(stage)
        mirror.progress(stage.address, 10, {"train_loss": 2.0})
        before = time.monotonic()
        sweep.make([stage])
        making += time.monotonic() - before
        mirror.stage_done(stage, reused=False)
    # giving up on a dead tracker takes more than 2 s on any machine, and there were 25 calls
    assert time.monotonic() - begun - making < 5
    sweep.end()
    ending = time.monotonic()
    mirror.finish("FINISHED")
    assert time.monotonic() - ending < 40
    assert mirror.warning is not None and dead_uri in mirror.warning and "\n" not in mirror.warning
    assert mirror.warning.endswith(f"`python -m orchestrator.tracking {sweep.folder.path} --tracking-uri {dead_uri}`")
    assert len(mirror.warning) < 600

    assert mirror_sweep(sweep.store, sweep.folder, sweep.uri) == 9
    assert {run.info.status for run in sweep.runs().values()} == {"FINISHED"}


def test_a_stage_takes_few_requests_and_no_run_is_asked_for(storage: Store, tmp_path: Path) -> None:
    mlflow = MlflowStandIn(tmp_path, "me", "x")
    with mlflow.serving() as port:
        sweep = Sweep(storage, f"http://me:x@127.0.0.1:{port}", "counted", languages=("ace", "min"))
        run_live(sweep)
        made = len(mlflow.sent)
        assert mirror_sweep(sweep.store, sweep.folder, sweep.uri) == len(sweep.stages) + 1
        assert len(mlflow.sent) == made + 2  # the experiment and its runs
    calls = Counter(sent.split()[1].partition("?")[0].removeprefix("/api/2.0/mlflow/") for sent in mlflow.sent[:made])
    runs, trained = len(sweep.stages) + 1, sum(stage.kind in ("dense", "sparse") for stage in sweep.stages)
    # the sweep's at both ends; what a grade is told when the search has ended; the points of a running stage, if it is
    # not done before they are sent
    least = runs + 1 + len(sweep.grades)
    assert least <= calls.pop("runs/log-batch") <= least + trained
    assert calls == {
        "experiments/get-by-name": 1,
        "experiments/create": 1,
        "runs/search": 1,
        "runs/create": runs,
        "runs/update": runs,
        "runs/set-tag": 1,
    }
    assert made / len(sweep.stages) < 4.2


def wait_until_quiet(mlflow: MlflowStandIn) -> None:
    """Wait for requests, and until none comes any more."""
    known = -1
    while not mlflow.sent or len(mlflow.sent) != known:
        known = len(mlflow.sent)
        time.sleep(0.5)


def test_a_slow_tracker_is_given_up_in_time_with_what_is_missing(sweep: Sweep, tmp_path: Path) -> None:
    sweep.make(sweep.stages)
    sweep.end()
    mlflow, told = MlflowStandIn(tmp_path, "me", "x"), list[str]()
    with mlflow.serving() as port:
        mirror = sweep.mirror(f"http://me:x@127.0.0.1:{port}")
        mirror.start()
        wait_until_quiet(mlflow)  # MLflow is imported by now
        mlflow.seconds = 0.1
        begun = time.monotonic()
        mirror.finish("FINISHED", 1.5, told.append)
        assert 1.5 <= time.monotonic() - begun < 4
        found = re.search(
            r"has 0 of 9 runs, and (\d) without their files; the sweep is not affected", str(mirror.warning)
        )
        assert found is not None and int(found[1]) > 0 and told == []
        statuses = [run["info"]["status"] for run in mlflow.runs.values()]
        assert statuses[0] == "FINISHED" and int(found[1]) <= statuses.count("FINISHED") <= int(found[1]) + 1
        again = f"`python -m orchestrator.tracking {sweep.folder.path} --tracking-uri http://me:***@127.0.0.1:{port}`"
        assert "was waited for 1.5 s after all else was done (--tracking-seconds)" in str(mirror.warning)
        assert f"the rest is mirrored by {again}" in str(mirror.warning)
        mlflow.seconds = 0.0
        wait_until_quiet(mlflow)  # a call that was given up is made all the same while the process lives
        assert mirror_sweep(sweep.store, sweep.folder, f"http://me:x@127.0.0.1:{port}") == 9
    assert {run["info"]["status"] for run in mlflow.runs.values()} == {"FINISHED"}


def test_how_far_the_mirror_is_is_told(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.mirror._TELL_SECONDS", 0.01)
    sweep.make(sweep.stages)
    sweep.end()
    mirror, told = sweep.mirror(), list[str]()
    mirror.finish("FINISHED", tell=told.append)
    assert mirror.warning is None
    assert told[0].startswith("mirroring to MLflow: ") and len(set(told)) > 3
    assert mirror._sweep.progress() == "9 of 9 runs"


def test_no_time_at_all_for_the_tracker_is_said_too(sweep: Sweep, dead_uri: str) -> None:
    mirror = sweep.mirror(dead_uri)
    mirror.finish("FINISHED", 0.0)
    assert f"MLflow at {dead_uri} was waited for 0 s" in str(mirror.warning)


DRIVER = """
import signal
import sys
from deftx.stages.store import Store
from orchestrator.record.sweep import known_sweep
from orchestrator.tracking.mirror import Mirror

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
storage, name, uri, end = sys.argv[1:]
folder, info = known_sweep(Store(storage), name)
mirror = Mirror(folder.store, folder, info, uri)
mirror.start()
if end == "finish":
    print("waits", flush=True)
    mirror.finish("KILLED")
sys.stdin.read()
raise RuntimeError("before it could finish")
"""


@pytest.mark.parametrize("end", ["finish", "an error"])
def test_a_driver_that_is_cut_short_waits_for_no_answer(sweep: Sweep, end: str) -> None:
    """A second Ctrl-C while `finish` waits, or an error before it: Python does not wait for the thread at its exit."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        words = [sys.executable, "-c", DRIVER, str(sweep.store.root), sweep.name, uri, end]
        driver = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            deaf.settimeout(PATIENCE)
            with deaf.accept()[0] as asked:
                assert asked.recv(4) == b"GET "
                if end == "finish":
                    assert driver.stdout is not None and driver.stdout.readline() == "waits\n"
                    driver.send_signal(signal.SIGINT)
                _, err = driver.communicate(timeout=40)  # the thread gives up after three times 20 s
        finally:
            driver.kill()
            driver.wait()
    assert err.count("Traceback") == 1
    assert err.splitlines()[-1].startswith("KeyboardInterrupt" if end == "finish" else "RuntimeError")


def test_what_an_outage_missed_is_mirrored_at_the_end(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.mirror.PAUSE_SECONDS", 0.0)
    mirror = sweep.mirror()
    write = mirror._sweep.runs.write
    down: list[bool] = []
    outage = {2: lambda: down.append(True), 6: down.clear}
    warnings: list[str | None] = []

    def flaky(address: str, content: Any) -> None:
        if down:
            raise ConnectionError("the server is away\nfor a minute")
        write(address, content)

    monkeypatch.setattr(mirror._sweep.runs, "write", flaky)
    mirror.start()
    for number, stage in enumerate(sweep.stages):
        if number in outage:
            mirror._submit(outage[number])
        mirror.stage_started(stage)
        sweep.make([stage])
        mirror.stage_done(stage, reused=False)
    mirror._submit(lambda: warnings.append(mirror.warning))
    sweep.end()
    mirror.finish("FINISHED")
    assert "(the server is away)" in str(warnings[0]) and mirror.warning is None
    assert len(sweep.runs()) == 9
    assert {run.info.status for run in sweep.runs().values()} == {"FINISHED"}


def test_two_sweeps_of_one_name_are_kept_apart(sweep: Sweep, tmp_path: Path) -> None:
    sweep.make([sweep.stages[0]])
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    theirs = Sweep(Store(str(tmp_path)), sweep.uri, sweep.name)
    theirs.info.space["name"] = sweep.info.space["name"]
    theirs.folder.write_info(theirs.info)
    mirror = theirs.mirror()
    mirror.start()
    mirror.finish("KILLED")
    assert sweep.runs().keys() == {PARENT, sweep.stages[0].address}
    theirs.number = sweep.number  # one experiment for both
    assert theirs.runs().keys() == {PARENT}


def test_a_long_curve_arrives_whole(sweep: Sweep) -> None:
    stage = sweep.stages[1]
    curve = [{"step": step, "train_loss": 1.0 / step} for step in range(1, 1202)]
    sweep.store.attempt(stage.address).publish(stage, metrics=metrics_of(stage), curve=curve, seconds=1.0)
    sweep.mark(stage, "done")
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    assert sweep.history(sweep.runs()[stage.address], "curve/training loss") == [
        (p["step"], p["train_loss"]) for p in curve
    ]


def test_a_spoilt_sft_is_named_and_the_rest_is_mirrored(sweep: Sweep) -> None:
    sweep.make(sweep.stages)
    spoilt = language_stage("ace", sweep.number)
    manifest = sweep.store.manifest(spoilt.address)
    assert manifest is not None
    Path(sweep.store.path("stages", spoilt.address, manifest.attempt, "sft", "sft.json")).write_text("[]")
    with pytest.raises(MirrorError, match=r"1 incomplete: ace · sparse .*sft\.json: does not match its manifest"):
        mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    runs = sweep.runs()
    statuses = {address: run.info.status for address, run in runs.items()}
    assert len(statuses) == 9 and statuses.pop(PARENT) == "KILLED" and set(statuses.values()) == {"FINISHED"}
    assert [address for address, run in runs.items() if "mirrored" not in run.data.tags] == [spoilt.address]
    cli = run_cli(f"{sweep.folder.path}", "--tracking-uri", sweep.uri)
    assert cli.exit_code == 1 and f"error: {sweep.name}: 1 incomplete: ace · sparse" in cli.output


def refuse_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the bucket is gone\nTraceback")

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifacts", refuse)


def test_without_a_place_for_files_every_run_is_ended_all_the_same(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.mirror.PAUSE_SECONDS", 0.0)
    with monkeypatch.context() as broken:
        refuse_files(broken)
        mirror = sweep.mirror()
        mirror.start()
        for stage in sweep.stages:
            mirror.stage_started(stage)
            sweep.make([stage])
            mirror.stage_done(stage, reused=False)
        sweep.end()
        mirror.finish("FINISHED")
    runs = sweep.runs()
    assert len(runs) == 9 and {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[PARENT].data.metrics["search/combination points"] == 75.0
    assert runs[sweep.grades[0].address].data.metrics["score/test macro F1 points"] > 0
    assert mirror.warning is not None and "(9 incomplete: " in mirror.warning and "the bucket is gone" in mirror.warning

    assert mirror_sweep(sweep.store, sweep.folder, sweep.uri) == 9
    again = sweep.runs()
    assert "sft/sft.json" in dict(sweep.artifacts(again[language_stage("ace", sweep.number).address]))
    assert {address: run.info.run_id for address, run in again.items()} == {a: r.info.run_id for a, r in runs.items()}


def test_a_stage_that_mlflow_refuses_does_not_stop_the_others(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.make(sweep.stages)
    sweep.end()
    mirror = sweep.mirror()
    write = mirror._sweep.runs.write

    def picky(address: str, content: Any) -> None:
        if address == sweep.stages[0].address:
            raise ValueError("no such run for me")
        write(address, content)

    monkeypatch.setattr(mirror._sweep.runs, "write", picky)
    mirror.finish("FINISHED")
    assert {run.info.status for run in sweep.runs().values()} == {"FINISHED"}
    assert sweep.runs().keys() == {PARENT, *(stage.address for stage in sweep.stages[1:])}
    assert f"(1 incomplete: {sweep.stages[0].label}: no such run for me)" in str(mirror.warning)


def test_the_sweeps_own_run_ends_even_when_a_test_score_is_spoilt(sweep: Sweep) -> None:
    sweep.make(sweep.stages)
    sweep.end()
    grade = sweep.rows[1].grades["ace"]
    manifest = sweep.store.manifest(grade)
    assert manifest is not None
    Path(sweep.store.path("stages", grade, manifest.attempt, "sealed_test.json")).write_text("{}")
    with pytest.raises(MirrorError, match=r"2 incomplete: .*test scores of the sweep"):
        mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    parent = sweep.runs()[PARENT]
    assert parent.info.status == "FINISHED" and "score/test macro F1 points" not in parent.data.metrics


def test_a_widened_space_leaves_no_score_with_another_combination(sweep: Sweep) -> None:
    run_live(sweep)
    one, two = (row.grades["ace"] for row in sweep.rows)
    sweep.rows[0].number, sweep.rows[1].number = 1, 0
    sweep.state.rows[1].score = 0.25
    sweep.end(chosen=1)
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    runs = sweep.runs()
    shown = {
        address: (runs[address].data.tags["rows"][:2], runs[address].data.metrics["search/combination points"])
        for address in (one, two)
    }
    assert shown == {one: ("#1", 50.0), two: ("#0", 25.0)}

    sweep.state.ended, sweep.state.chosen = False, None
    sweep.folder.write_state(sweep.state)
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    assert not [tag for tag in sweep.runs()[PARENT].data.tags if tag.startswith("chosen")]


def test_a_rerun_writes_no_stage_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    run_live(sweep)
    written: set[str] = set()
    for name in ("log_batch", "set_tag", "delete_tag", "set_terminated", "update_run"):
        honest = getattr(MlflowClient, name)

        def noted(self: Any, run_id: str, *rest: Any, honest: Any = honest, **more: Any) -> Any:
            written.add(run_id)
            return honest(self, run_id, *rest, **more)

        monkeypatch.setattr(MlflowClient, name, noted)
    mirror = sweep.mirror()
    mirror.start()
    for stage in sweep.stages:
        mirror.stage_done(stage, reused=True)
    mirror.finish("FINISHED")
    assert mirror.warning is None
    assert written == {sweep.runs()[PARENT].info.run_id}


def test_an_sft_of_a_remote_store_keeps_its_file_name(sweep: Sweep, tmp_path: Path) -> None:
    store = Store(f"memory://deftx-{sweep.number}", cache=tmp_path / "cache")
    remote = Sweep(store, sweep.uri, sweep.name)
    client = mlflow_client(remote.uri)
    stage = language_stage("ace", remote.number)
    remote.make([stage])
    mirror_sweep(store, remote.folder, remote.uri)
    run = remote.runs()[stage.address]
    assert [path for path, _ in remote.artifacts(run)] == [
        "details.json",
        "sft/sft.json",
        "sft/sft.safetensors",
        "stage.json",
    ]
    got = Path(client.download_artifacts(run.info.run_id, "sft/sft.safetensors"))
    assert got.read_bytes() == b"weights of " + stage.address.encode() and not got.is_symlink()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "/tmp/mlflow.db", "sqlite", "ftp://host/x"])
def test_a_tracking_uri_that_cannot_work_is_refused(uri: str, sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match=r"write sqlite:////absolute/path/mlflow\.db or http://HOST:5000"):
        sweep.mirror(uri)


@pytest.mark.parametrize("uri", ["sqlite:////x/y.db", "postgresql+psycopg2://h/db", "https://h", "databricks"])
def test_a_tracking_uri_that_may_work_is_taken(uri: str) -> None:
    assert check_tracking_uri(uri) == uri


def test_a_remote_store_needs_a_tracking_uri(tmp_path: Path) -> None:
    assert default_tracking_uri(Store(str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(
        ConfigError, match=r"memory://x: a remote storage needs --tracking-uri, such as http://HOST:5000"
    ):
        default_tracking_uri(Store("memory://x"))


def test_artifacts_go_to_the_server_the_storage_or_beside_the_database(tmp_path: Path) -> None:
    local, remote = Store(str(tmp_path / "a b")), Store("memory://x")
    database = f"sqlite:///{tmp_path}/runs/mlflow.db?timeout=9"
    for store in (local, remote):
        assert artifact_place(store, "http://host:5000") is None and artifact_place(store, "databricks") is None
    assert artifact_place(local, database) == (tmp_path / "a b" / "mlartifacts").as_uri()
    assert artifact_place(remote, database) == (tmp_path / "runs" / "mlartifacts").as_uri()
    assert artifact_place(remote, "sqlite:///mlflow.db") == (Path.cwd() / "mlartifacts").as_uri()
    with pytest.raises(ConfigError, match=r"memory://x: MLflow can keep no artifacts there; give --tracking-uri http"):
        artifact_place(remote, "postgresql://host/db")
    remote.fs = SimpleNamespace(unstrip_protocol=lambda path: f"s3:/{path}")  # s3fs itself comes with the cluster extra
    assert artifact_place(remote, database) == "s3://x/mlartifacts"


def run_cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_command_mirrors_one_sweep_or_all_of_a_storage(sweep: Sweep, tmp_path: Path) -> None:
    for name in ("one", "two"):
        sweep_there = Sweep(Store(str(tmp_path)), sweep.uri, name)
        sweep_there.make(sweep_there.stages[:1])
    one = run_cli(f"{tmp_path}/sweeps/two/", "--tracking-uri", sweep.uri)
    assert (one.exit_code, one.output) == (0, f"two: 2 runs in {sweep.uri}\n")
    both = run_cli(str(tmp_path), "--tracking-uri", sweep.uri)
    assert (both.exit_code, both.output) == (0, f"one: 2 runs in {sweep.uri}\ntwo: 2 runs in {sweep.uri}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/nowhere"], "no sweeps there; give a sweep's storage, or STORAGE/sweeps/NAME"),
        (["{folder}/sweeps/other"], "no sweep 'other' there (sweeps: known)"),
        (["{folder}", "--tracking-uri", "./mlruns"], "write sqlite:////absolute/path/mlflow.db"),
        (["{folder}", "--tracking-uri", "sqlite:///{folder}/sweeps/known/sweep.json/x.db"], "cannot be opened"),
        (["{folder}", "--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1"),
        (["memory://deftx-cli"], "a remote storage needs --tracking-uri"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Sweep(Store(str(tmp_path)), "", "known")
    Sweep(Store("memory://deftx-cli"), "", "known")
    result = run_cli(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == (1 if "http" in arguments[-1] else 2)
    assert result.output.startswith("error: ") and message in result.output


def test_mlflow_is_imported_only_when_something_is_mirrored() -> None:
    modules = ", ".join(f"orchestrator.tracking.{name}" for name in ("__main__", "client", "content", "mirror"))
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

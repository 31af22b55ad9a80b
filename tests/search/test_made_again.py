"""What is damaged or lost behind a finished sweep's back, and that the same command makes it again or says what to do.

Every test begins with a copy of the finished storage in `fixtures` (see `test_found_again`).
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.islands import attempts, folder_of, published, sweep, write_data
from typer.testing import CliRunner, Result

import deftx.stages.store
from deftx.cli.app import app as deftx_app
from orchestrator.record.sweep import GradeRow, SweepFolder
from orchestrator.report.__main__ import app as report_app
from orchestrator.tracking.__main__ import app as tracking_app

FIXTURE = Path(__file__).parents[1] / "fixtures" / "storage_f04e5a7.tar.xz"
WRITTEN = ("results.csv", "chosen.json")
"""What the grades alone decide."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `tiny.yaml`, `storage` and `data`; its report as it is written today."""
    root = tmp_path_factory.mktemp("finished")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(root, filter="data")
    write_data(root / "data")
    assert Storage(root, root / "storage").run().exit_code == 0
    return root


class Storage:
    """A copy of the finished storage, and the commands on it."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path, self.sweep = root, path, path / "sweeps/tiny"

    @property
    def folder(self) -> SweepFolder:
        return folder_of(self.path, "tiny")

    @property
    def chosen(self) -> GradeRow:
        row = self.folder.state().chosen_row
        assert row is not None
        return row

    def run(self, *options: str) -> Result:
        space, data = self.root / "tiny.yaml", self.root / "data"
        return sweep(space, "--data-root", data, "--storage", self.path, "--serial", *options)

    def again(self, *options: str) -> str:
        result = self.run(*options)
        assert result.exit_code == 0, result.output
        return result.output

    def export(self, target: Path) -> Result:
        return CliRunner().invoke(deftx_app, ["export", str(self.sweep), "vek", str(target)])

    def address(self, label: str) -> str:
        return next(a for a, entry in self.folder.state().stages.items() if entry.label == label)

    def manifest(self, address: str) -> Path:
        return self.path / "stages" / address / "manifest.json"

    def tensors(self, address: str) -> Path:
        (path,) = self.path.glob(f"stages/{address}/attempt-*/sft/sft.safetensors")
        return path

    def written(self) -> dict[str, bytes]:
        return {name: (self.sweep / name).read_bytes() for name in WRITTEN}

    def manifests(self) -> dict[str, bytes]:
        return {address: self.manifest(address).read_bytes() for address in published(self.path)}

    def plan(self) -> dict[str, tuple[int, int]]:
        """(to make, in the store) of each kind, as `--plan` says."""
        lines = [line.replace("│", " ").split() for line in self.again("--plan").splitlines() if "│" in line]
        return {kind: (int(make), int(there)) for kind, make, there in lines}


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Storage:
    return Storage(finished, shutil.copytree(finished / "storage", tmp_path / "storage"))


def cut(storage: Storage, address: str) -> None:
    path = storage.tensors(address)
    path.write_bytes(path.read_bytes()[:100])


def flip_a_bit(storage: Storage, address: str) -> None:
    path = storage.tensors(address)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_the_file(storage: Storage, address: str) -> None:
    storage.tensors(address).unlink()


def lose_the_manifest(storage: Storage, address: str) -> None:
    storage.manifest(address).unlink()


def cut_the_manifest(storage: Storage, address: str) -> None:
    storage.manifest(address).write_text('{"half')


def lose_all(storage: Storage, address: str) -> None:
    shutil.rmtree(storage.path / "stages" / address)


Damage = Callable[[Storage, str], None]
DAMAGES = [cut, flip_a_bit, lose_the_file, lose_the_manifest, cut_the_manifest, lose_all]


def vector_of(storage: Storage, subject: str) -> str:
    return str(storage.chosen.task_sft) if subject == "task" else storage.chosen.language_sfts[subject]


@pytest.mark.parametrize("subject", ["task", "vek"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_vector_of_the_chosen_row_is_made_again_and_nothing_else(
    storage: Storage, tmp_path: Path, damage: Damage, subject: str
) -> None:
    written, before, address = storage.written(), storage.manifests(), vector_of(storage, subject)
    damage(storage, address)
    assert storage.plan()["sparse"] == (1, 6)
    output = storage.again()
    assert "nothing is left to do" not in output
    assert output.count("done    ") == 1
    assert storage.folder.store.intact(address)
    assert storage.written() == written
    after = storage.manifests()
    assert {other for other in before if after[other] != before[other]} == {address}
    statuses = {a: entry.status for a, entry in storage.folder.state().stages.items()}
    assert statuses.pop(address) == "done"
    assert set(statuses.values()) == {"reused"}
    assert storage.export(tmp_path / "model").exit_code == 0
    assert storage.plan()["sparse"] == (0, 7)


def test_large_files_of_the_chosen_row_are_compared_by_their_bytes_and_others_by_their_size(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deftx.stages.store, "_SMALL", 0)  # every file counts as a large one
    lt_sft = next(row for row in storage.folder.state().rows if row.kind == "lt-sft")
    flip_a_bit(storage, lt_sft.language_sfts["vek"])
    assert "nothing is left to do" in storage.again()
    flip_a_bit(storage, storage.chosen.language_sfts["vek"])
    (scores,) = storage.path.glob(f"stages/{lt_sft.grades['ila']}/attempt-*/scores.json")
    scores.write_bytes(scores.read_bytes().replace(b"1", b"2", 1))
    assert (storage.plan()["sparse"], storage.plan()["grade"]) == ((1, 6), (1, 11))
    assert storage.again().count("done    ") == 2
    assert storage.folder.store.intact(storage.chosen.language_sfts["vek"])


@pytest.mark.parametrize("kind", ["lt-sft", "task+source"])
def test_a_lost_vector_of_any_row_is_made_again(storage: Storage, kind: str) -> None:
    written = storage.written()
    row = next(row for row in storage.folder.state().rows if row.kind == kind)
    address = row.language_sfts["vek"]
    lose_all(storage, address)
    assert storage.plan()["sparse"] == (1, 6)
    assert storage.again().count("done    ") == 1
    assert storage.folder.store.intact(address)
    assert storage.written() == written


def test_a_lost_backbone_is_made_again_for_the_export(storage: Storage, tmp_path: Path) -> None:
    address = storage.address("backbone")
    before = {path.name: path.read_bytes() for path in storage.path.glob(f"stages/{address}/attempt-*/model/*")}
    lose_all(storage, address)
    said = storage.export(tmp_path / "model")
    assert (said.exit_code, "run the sweep again, which makes what is missing" in said.output) == (2, True)
    assert storage.plan()["backbone"] == (1, 0)
    assert storage.again().count("done    ") == 1
    after = {path.name: path.read_bytes() for path in storage.path.glob(f"stages/{address}/attempt-*/model/*")}
    assert after.keys() == before.keys()
    assert storage.export(tmp_path / "model").exit_code == 0


def test_dense_changes_that_were_collected_are_made_again_only_for_a_vector_that_is_lost(storage: Storage) -> None:
    assert sweep("gc", "--storage", storage.path, "--yes").exit_code == 0
    before = storage.manifests()
    assert "nothing is left to do" in storage.again()
    cut(storage, storage.chosen.language_sfts["vek"])
    plan = storage.plan()
    assert (plan["dense"], plan["sparse"]) == ((1, 0), (1, 6))
    output = storage.again()
    assert [line.split("  ")[2].strip() for line in output.splitlines() if line.startswith("done")] == [
        "vek · dense", "vek · sparse · rank 2 · retention 5 %",
    ]  # fmt: skip
    changed = {storage.address("vek · dense"), storage.chosen.language_sfts["vek"]}
    assert {a for a, content in storage.manifests().items() if before[a] != content} == changed


def test_a_vector_that_cannot_be_made_again_fails_its_row_and_is_told(storage: Storage) -> None:
    """What it is made of is lost too, and failed when it was tried again."""
    for label in ("vek · dense", "vek · sparse · rank 2 · retention 5 %"):
        lose_all(storage, storage.address(label))
    dense = storage.address("vek · dense")
    failure = {"address": dense, "label": "vek · dense", "reason": "no memory", "final": True}
    (storage.sweep / "failures").mkdir(exist_ok=True)
    (storage.sweep / f"failures/{dense}.json").write_text(json.dumps(failure))
    assert storage.run().exit_code == 3
    (row,) = storage.folder.state().combinations
    assert (row.status, row.reason) == ("failed", "vek: vek · dense failed: no memory")
    assert storage.run("--retry-failed").exit_code == 0
    assert storage.chosen.status == "complete"


def test_a_grade_in_anothers_place_is_not_believed(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    written, grade = storage.written(), storage.chosen.grades["vek"]
    lose_all(storage, grade)
    other = next(row for row in storage.folder.state().rows if row.kind == "dense-task").grades["ila"]
    shutil.copytree(storage.path / "stages" / other, storage.path / "stages" / grade)
    storage.again()
    assert sum("the manifest of another stage (ila · grade" in words for words in caplog.messages) == 1
    assert storage.written() == written
    assert storage.folder.store.intact(grade)
    assert len(attempts(storage.path)[grade]) == 2


@pytest.mark.parametrize("metrics", [{}, {"valid_macro_f1": float("nan"), "valid_accuracy": 0.5}])
def test_a_grade_without_its_metrics_is_made_again(
    storage: Storage, caplog: pytest.LogCaptureFixture, metrics: dict[str, float]
) -> None:
    written, before, grades = storage.written(), storage.manifests(), {*storage.chosen.grades.values()}
    for grade in grades:
        content = json.loads(storage.manifest(grade).read_text())
        storage.manifest(grade).write_text(json.dumps({**content, "metrics": metrics}))
    storage.again()
    assert sum(": valid_macro_f1: " in words for words in caplog.messages) == 2
    assert storage.written() == written
    assert {a for a, content in storage.manifests().items() if before[a] != content} == grades


def readers(storage: Storage, target: Path) -> dict[str, Result]:
    """What the commands say that only read a storage."""
    named = {name: sweep(name, *of, "--storage", storage.path) for name, of in READ_ONLY.items()}
    runner = CliRunner()
    named["report"] = runner.invoke(report_app, [str(storage.sweep)])
    named["tracking"] = runner.invoke(tracking_app, [str(storage.sweep)])
    return {**named, "export": storage.export(target)}


READ_ONLY = {"status": ["tiny"], "failed": ["tiny"], "gc": []}


def test_all_broken_manifests_are_made_again_at_once(
    storage: Storage, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    written, before = storage.written(), published(storage.path)
    entries = storage.folder.state().stages
    broken = {address for address, entry in entries.items() if entry.kind in ("backbone", "check", "grade")}
    for number, address in enumerate(sorted(broken)):
        storage.manifest(address).write_text('{"half' if number % 2 else "")
    codes = {name: result.exit_code for name, result in readers(storage, tmp_path / "model").items()}
    # the report reads the grades of complete rows, the mirror their test scores, and the export the backbone
    assert codes == {"status": 0, "failed": 0, "gc": 0, "report": 2, "tracking": 1, "export": 2}
    caplog.clear()
    storage.again()
    # those of the controls are met when the search has ended, and the screen is the sweep's own then
    words = "\n".join(caplog.messages) + (storage.sweep / "logs/driver.log").read_text()
    assert words.count("manifest.json: not a manifest") == len(broken)
    assert published(storage.path) == before
    assert all(storage.folder.store.intact(address) for address in before)
    assert storage.written() == written


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("sweep.json", "", "sweep.json: not what a sweep writes"),
        ("sweep.json", '{"half', "remove it, and the sweep's command starts with the revisions that the hub has now"),
        ("sweep.json", '{"future": 1}', "sweep.json: not what a sweep writes"),
        ("state.json", "", "state.json: not what a sweep writes"),
        ("state.json", '{"half', "the sweep's command writes it anew"),
        ("state.json", '{"future": 1}', "state.json: was written by a newer version of deftx-sweeps"),
    ],
)
def test_a_broken_record_of_the_sweep_is_told_by_every_reader(
    storage: Storage, tmp_path: Path, file: str, content: str, words: str
) -> None:
    (storage.sweep / file).write_text(content)
    told = {"status", "report", "tracking"} | ({"failed"} if file == "sweep.json" else {"gc"})
    results = readers(storage, tmp_path / "model")
    assert {name for name, result in results.items() if result.exit_code == 2} == told
    assert all(words in results[name].output.replace("\n", " ") for name in told)
    assert all(not result.exception or isinstance(result.exception, SystemExit) for result in results.values())


def test_without_its_broken_sweep_json_a_sweep_goes_on_with_what_is_made(storage: Storage) -> None:
    written, before = storage.written(), storage.manifests()
    (storage.sweep / "sweep.json").write_text('{"half')
    result = storage.run()
    assert (result.exit_code, "sweep.json: not what a sweep writes" in result.output) == (2, True)
    (storage.sweep / "sweep.json").unlink()
    assert "nothing is left to do" in storage.again()
    assert (storage.written(), storage.manifests()) == (written, before)


@pytest.mark.parametrize("content", ["", '{"half'])
def test_a_broken_state_is_written_anew_by_the_same_command(storage: Storage, content: str) -> None:
    state, written = (storage.sweep / "state.json").read_bytes(), storage.written()
    (storage.sweep / "state.json").write_text(content)
    assert "nothing is left to do" in storage.again()
    assert (storage.sweep / "state.json").read_bytes() == state
    assert storage.written() == written


@pytest.mark.parametrize("content", ["", '{"half'])
def test_a_broken_record_of_a_failure_lets_the_stage_be_tried_again(
    storage: Storage, tmp_path: Path, content: str
) -> None:
    address = storage.address("vek · sparse · rank 2 · retention 5 %")
    lose_all(storage, address)
    (storage.sweep / "failures").mkdir(exist_ok=True)
    (storage.sweep / f"failures/{address}.json").write_text(content)
    codes = {name: result.exit_code for name, result in readers(storage, tmp_path / "model").items()}
    assert codes == {"status": 0, "failed": 0, "gc": 0, "report": 0, "tracking": 0, "export": 2}
    assert "nothing failed" in sweep("failed", "tiny", "--storage", storage.path).output
    assert storage.again().count("done    ") == 1
    assert storage.folder.failures() == {}


def test_a_manifest_of_a_newer_version_is_told_and_left_as_it_is(storage: Storage, tmp_path: Path) -> None:
    path = storage.manifest(storage.chosen.grades["ila"])
    content = json.dumps({**json.loads(path.read_text()), "future": 1})
    path.write_text(content)
    results = {**readers(storage, tmp_path / "model"), "run": storage.run()}
    told = {name for name, result in results.items() if result.exit_code == 2}
    assert told == {"gc", "report", "tracking", "run"}
    assert all("was written by a newer version" in results[name].output.replace("\n", " ") for name in told)
    assert path.read_text() == content


def test_a_picture_of_damaged_spectra_is_left_out_of_the_report(storage: Storage) -> None:
    for path in storage.path.glob("stages/*/attempt-*/spectra.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    storage.again()
    assert "plots/spectra.png" not in (storage.sweep / "report.md").read_text()
    assert "plots/overlap.png" in (storage.sweep / "report.md").read_text()

"""A storage made at f04e5a7, when the stages that train had their version 3, is found again whole.

Nothing of it is made again. `fixtures/storage_f04e5a7.tar.xz` holds the space and the storage of one tiny sweep, run
with `--serial` at that commit on the data that `islands.write_data` writes (plots and the mirror in MLflow left out,
for they are made from the rest).
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from support.islands import attempts, folder_of, published, sweep, write_data
from typer.testing import CliRunner

from deftx.cli.app import app

FIXTURE = Path(__file__).parents[1] / "fixtures" / "storage_f04e5a7.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder with `tiny.yaml`, `storage` and `data`."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    write_data(tmp_path / "data")
    return tmp_path


def command(old: Path, *options: str) -> str:
    result = sweep(old / "tiny.yaml", "--data-root", old / "data", "--storage", old / "storage", "--serial", *options)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_fixture_is_small() -> None:
    assert FIXTURE.stat().st_size < 200_000


def test_a_plan_finds_every_stage(old: Path) -> None:
    plan = command(old, "--plan")
    assert "0 dense and 0 sparse trainings for 1 combinations; baselines: 0 dense and 0 sparse trainings more" in plan
    counts = [line.replace("│", " ").split() for line in plan.splitlines() if "│" in line]
    assert {kind: (int(make), int(there)) for kind, make, there in counts} == {
        "backbone": (0, 1), "check": (0, 3), "text": (0, 3), "dense": (0, 4), "sparse": (0, 7), "grade": (0, 12),
    }  # fmt: skip


def test_the_same_command_makes_nothing_again_and_reports_the_same(old: Path, tmp_path: Path) -> None:
    storage = old / "storage"
    before, sweep_folder = attempts(storage), storage / "sweeps/tiny"
    written = {name: (sweep_folder / name).read_bytes() for name in ("results.csv", "vectors.csv", "chosen.json")}
    files = {path: path.read_bytes() for path in (storage / "stages").rglob("*") if path.is_file()}
    assert "nothing is left to do" in command(old)
    assert attempts(storage) == before
    assert published(storage) == set(folder_of(storage, "tiny").state().stages)
    assert {path: path.read_bytes() for path in (storage / "stages").rglob("*") if path.is_file()} == files
    assert {name: (sweep_folder / name).read_bytes() for name in written} == written
    done = CliRunner().invoke(app, ["export", str(storage / "sweeps/tiny"), "ila", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_what_it_chose_is_exported_before_anything_else_is_written(old: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(old / "storage/sweeps/tiny"), "vek", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert "| validation | macro F1 |" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")

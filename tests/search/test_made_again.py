"""What is damaged or lost behind a finished sweep's back, and that the same command makes it again or says what to do.

Every test begins with a copy of the finished storage in `fixtures` (see `test_found_again`).
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.islands import folder_of, published, sweep, write_data
from typer.testing import CliRunner, Result

from deftx.cli.app import app as deftx_app
from orchestrator.record.sweep import Row, SweepFolder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "storage_98c4cd8.tar.xz"
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
    def chosen(self) -> Row:
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
    assert "nothing is left to do" in storage.again()

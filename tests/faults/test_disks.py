"""Storages that refuse, and storages in which something was damaged: at random moments, random files, random bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.faults import Refused, Signalled, Sweep

from deftx.stages import lease
from deftx.stages.claim import claimed
from deftx.stages.store import Store

pytestmark = pytest.mark.faults

HOSTILE = (
    b"", b"null", b"[]", b"{}", b'{"half', b"\xff\xfe\x00", b"[" * 5000, b'{"attempt": "../../x"}',
    b'{"files": {"../../../etc/passwd": {"size": 1, "sha256": ""}}}', b'{"ended": true}', b"1e999", b"9" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_storage_that_refuses_from_any_moment_on_ends_the_run_with_4(
    sweep: Sweep, undisturbed: Sweep, operations: int, seed: int, number: int
) -> None:
    """Twice in a row, the second further on; then there is room."""
    draw = random.Random(seed)
    for _ in range(2):
        code = sweep.run(Refused(draw.randrange(operations // 2), number))
        assert code in (4, 0), sweep.log.read_text()
    sweep.until_done(most=1)
    sweep.check(undisturbed)


def test_a_claim_that_could_not_be_given_back_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 3.0)
    with monkeypatch.context() as patch, claimed(store, "a" * 32, "one", bool):
        patch.setattr(store, "remove", refuse)
    began = time.monotonic()
    with claimed(store, "a" * 32, "one", bool):
        assert time.monotonic() - began < 2


def refuse(*_: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_is_full_indeed_and_then_grows(sweep: Sweep, undisturbed: Sweep, disk: Path, seed: int) -> None:
    """As above, but of libraries that write past Python too: SQLite and the files of tensors."""
    size = random.Random(seed).randrange(300, 2500)
    subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
    sweep = replace(sweep, storage=disk / "storage", kept={})
    assert sweep.run() == 4, sweep.log.read_text()
    subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
    sweep.until_done(most=1)
    sweep.check(undisturbed)


@pytest.fixture
def finished(undisturbed: Sweep, sweep: Sweep) -> Sweep:
    """A copy of the finished sweep, to be damaged."""
    shutil.copytree(undisturbed.storage, sweep.storage)
    sweep.look()
    return sweep


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def replace_by_a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def write_hostile(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice(HOSTILE))


def damage(sweep: Sweep, paths: list[Path], how: tuple[Callable[[Path, random.Random], None], ...], seed: int) -> None:
    """Four files, whose stages may be made again; large files and empty ones alike."""
    draw = random.Random(seed)
    for path in draw.sample(sorted(path for path in paths if path.stat().st_size), 4):
        draw.choice(how)(path, draw)
        sweep.kept.pop(path.relative_to(sweep.storage).parts[1], None)


def test_damaged_files_of_stages_are_made_again_where_they_are_needed(
    finished: Sweep, undisturbed: Sweep, seed: int
) -> None:
    files = [path for path in finished.storage.glob("stages/*/attempt-*/**/*") if path.is_file()]
    damage(finished, files, (flip, cut, delete, replace_by_a_folder), seed)
    finished.until_done(most=2)
    finished.check(undisturbed)


def test_damaged_manifests_are_made_again_where_they_are_needed(finished: Sweep, undisturbed: Sweep, seed: int) -> None:
    """Cut, gone, or what no manifest may say. One that was changed into another whole one is believed."""
    damage(finished, list(finished.storage.glob("stages/*/manifest.json")), (cut, delete, write_hostile), seed)
    finished.until_done(most=2)
    finished.check(undisturbed)


def test_a_stage_that_has_the_files_of_another_is_made_again(finished: Sweep, undisturbed: Sweep, seed: int) -> None:
    draw = random.Random(seed)
    grades = sorted(
        path.parent for path in finished.storage.glob("stages/*/manifest.json")
        if json.loads(path.read_bytes())["kind"] in ("grade", "sparse")
    )  # fmt: skip
    one, other = draw.sample(grades, 2)
    shutil.rmtree(one)
    shutil.copytree(other, one)
    del finished.kept[one.name]
    finished.until_done(most=1)
    finished.check(undisturbed)


RECORDS = ("state.json", "chosen.json", "lease.json", "results.csv", "report.md", "optuna.log", "sweep.json")


@pytest.mark.parametrize("ended", [True, False], ids=["finished", "amid"])
def test_broken_records_of_a_sweep_are_written_anew(
    undisturbed: Sweep, sweep: Sweep, operations: int, seed: int, ended: bool
) -> None:
    """All of them; only a broken sweep.json, which nothing can tell, has to be removed by hand, as the message says."""
    draw = random.Random(seed)
    sweep.run(*([] if ended else [Signalled(draw.randrange(operations // 4, operations // 2), signal.SIGKILL)]))
    for name in RECORDS:
        path = sweep.folder / name
        if not path.exists():
            path.write_bytes(b"{}")
        draw.choice((cut, delete, write_hostile))(path, draw)
    for path in sweep.folder.glob("failures/*.json"):
        write_hostile(path, draw)
    if (code := sweep.run()) == 2:
        assert f"{sweep.folder}/sweep.json" in sweep.log.read_text()
        (sweep.folder / "sweep.json").unlink()
        code = sweep.run()
    assert code == 0, sweep.log.read_text()
    assert sweep.table() == undisturbed.table()
    assert sweep.vectors() == undisturbed.vectors()
    assert sweep.left_over() == []
    assert sweep.runs()["RUNNING"] == 0
    assert "Traceback" not in sweep.log.read_text()


@pytest.mark.parametrize("ended", [True, False], ids=["finished", "amid"])
def test_a_broken_database_of_mlflow_is_set_aside_and_mirrored_anew(
    undisturbed: Sweep, sweep: Sweep, operations: int, seed: int, ended: bool
) -> None:
    draw = random.Random(seed)
    sweep.run(*([] if ended else [Signalled(draw.randrange(operations // 4, operations // 2), signal.SIGKILL)]))
    if sweep.database.exists():
        draw.choice((cut, delete, write_hostile))(sweep.database, draw)
    sweep.until_done(most=1)
    sweep.check(undisturbed)

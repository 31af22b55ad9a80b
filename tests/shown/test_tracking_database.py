"""MLflow's file in a storage: torn, of another version, moved with its storage, under any name; and what is printed."""

from __future__ import annotations

import random
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url
from support.mirrored import Sweep, language_stage, mlflow_client
from typer.testing import CliRunner

from deftx.passwords import to_type
from deftx.stages.store import Store
from orchestrator.tracking import __main__, database, ui
from orchestrator.tracking.client import default_tracking_uri
from orchestrator.tracking.mirror import mirror_sweep

NAMES = ["what?", "my results", "runs#3", "50%done", "a+b&c=d", "sp ace ü %20 #x?y", "it's", '"$HOME"`', "[red]x"]
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it, which takes seconds."""
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    database.make(path, mlflow_client)
    assert [p.name for p in path.parent.iterdir()] == ["mlflow.db"]
    return path


@pytest.fixture(autouse=True)
def made_by_copying(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "make", lambda path, _: shutil.copyfile(whole, path))
    monkeypatch.setattr(database, "_LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(database, "_WAIT_SECONDS", 0.1)


def sweep_in(storage: Path, name: str = "one") -> Sweep:
    store = Store(str(storage))
    sweep = Sweep(store, default_tracking_uri(store), name)
    sweep.make(sweep.stages[:1])
    return sweep


def sql(path: Path, *statements: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return [row for statement in statements for row in connection.execute(statement).fetchall()]


def half_migrated(path: Path) -> None:
    sql(path, "CREATE TABLE _alembic_tmp_jobs (id INTEGER)")


def cut_before_its_first_version(path: Path) -> None:
    sql(path, "DELETE FROM alembic_version")


def cut_between_two_steps(path: Path) -> None:
    """The table of a step is there, and the version is of the step before; MLflow meets it when it goes on."""
    sql(path, "DROP TABLE jobs", "UPDATE alembic_version SET version_num = '451aebb31d03'")


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database\n" * 1000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("tear", "why"),
    [
        (half_migrated, "tables of an upgrade that was cut short are left in it (_alembic_tmp_jobs)"),
        (cut_before_its_first_version, "cut short in its making"),
        (cut_between_two_steps, "half made ((sqlite3.OperationalError) "),
        (garbage, "damaged (file is not a database)"),
        (emptied, "empty"),
    ],
)
def test_a_torn_database_is_set_aside_and_made_anew(
    tear: Callable[[Path], None], why: str, tmp_path: Path, whole: Path
) -> None:
    sweep, path = sweep_in(tmp_path), tmp_path / "mlflow.db"
    shutil.copyfile(whole, path)
    tear(path)
    torn = path.read_bytes()
    told: list[str] = []
    assert mirror_sweep(sweep.store, sweep.folder, sweep.uri, told.append) == 2
    (line,) = told
    assert line.startswith(f"{path}: {why}") and "\n" not in line
    again = f"`python -m orchestrator.tracking {tmp_path}`"
    assert line.endswith(
        f"; it is now mlflow.db.broken-1, and the sweep is mirrored into a new one (every sweep: {again})"
    )
    if tear is not cut_between_two_steps:  # MLflow tried to go on in that one
        assert (tmp_path / "mlflow.db.broken-1").read_bytes() == torn
    assert sql(path, "SELECT count(*) FROM runs") == [(2,)]
    assert database.damage(path) is None


def test_wherever_a_file_is_cut_it_is_torn_and_its_journals_go_with_it(tmp_path: Path, whole: Path) -> None:
    path, content = tmp_path / "mlflow.db", whole.read_bytes()
    for length in [1, 99, 100, 4096, *random.Random(0).choices(range(len(content) - 1), k=20)]:
        path.write_bytes(content[:length])
        assert database.damage(path) is not None, length
    for number, end in enumerate(("-journal", "-wal", "-shm"), 1):
        path.write_bytes(b"x" * 5000)
        Path(f"{path}{end}").write_bytes(b"beside")
        assert database.set_aside(path) == tmp_path / f"mlflow.db.broken-{number}"
        assert Path(f"{path}.broken-{number}{end}").read_bytes() == b"beside"
    assert not path.exists() and len(list(tmp_path.iterdir())) == 6


def test_a_database_in_use_or_a_users_own_is_never_set_aside(tmp_path: Path, whole: Path) -> None:
    sweep, path, own = sweep_in(tmp_path), tmp_path / "mlflow.db", tmp_path / "own.db"
    for torn in (path, own):
        shutil.copyfile(whole, torn)
        half_migrated(torn)
    with closing(sqlite3.connect(path)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        assert database.damage(path) is None
    assert database.damage(path) is not None
    cut_between_two_steps(own)
    cli = CliRunner().invoke(__main__.app, [str(tmp_path), "--tracking-uri", f"sqlite:///{own}"])
    assert cli.exit_code == 2 and "cannot be opened" in cli.output and cli.output.count("\n") == 1
    assert sorted(p.name for p in tmp_path.glob("*.db*")) == ["mlflow.db", "own.db"]
    assert sweep.store.path("mlflow.db") == str(path)


def test_a_database_of_another_version_stays_and_both_ways_out_are_told_whole(tmp_path: Path, whole: Path) -> None:
    storage = tmp_path / "it's mine?"
    sweep, path = sweep_in(storage), storage / "mlflow.db"
    shutil.copyfile(whole, path)
    sql(path, "UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    before = path.read_bytes()
    mirror = sweep.mirror()
    mirror.finish("KILLED")
    from mlflow.version import VERSION

    commands = [
        ["mlflow", "db", "upgrade", sweep.uri],
        ["mv", str(path), f"{path}.other"],
        ["python", "-m", "orchestrator.tracking", str(storage)],
    ]
    assert mirror.warning is not None and mirror.notes == []
    assert f"made by another version of MLflow than the one installed, {VERSION};" in mirror.warning
    assert all(f"`{shlex.join(command)}`" in mirror.warning for command in commands)
    assert path.read_bytes() == before and [p.name for p in storage.glob("mlflow*")] == ["mlflow.db"]
    cli = CliRunner().invoke(__main__.app, [str(storage)])
    assert cli.exit_code == 2 and cli.output.startswith("error: ") and cli.output.count("\n") == 1
    assert all(f"`{shlex.join(command)}`" in cli.output for command in commands)


def test_a_moved_storage_writes_nothing_to_its_old_place(tmp_path: Path) -> None:
    before, after = tmp_path / "be fore", tmp_path / "after%20"
    sweep = sweep_in(before)
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    before.rename(after)
    moved = Sweep(Store(str(after)), default_tracking_uri(Store(str(after))), "one", number=sweep.number)
    moved.make(moved.stages[1:3])
    moved.mark(moved.stages[0], "done")
    told: list[str] = []
    for _ in range(2):  # again, there is nothing to move
        assert mirror_sweep(moved.store, moved.folder, moved.uri, told.append) == 4
    places = [(folder / "mlartifacts").as_uri() for folder in (before, after)]
    assert told == [
        f"{after}/mlflow.db: this storage was moved; artifacts that MLflow had in {places[0]} are in {places[1]} now"
    ]
    assert not before.exists()
    client = mlflow_client(moved.uri)
    for run in moved.runs().values():
        got = Path(client.download_artifacts(run.info.run_id, ""))
        assert got.is_relative_to(after / "mlartifacts") and any(got.iterdir())
    assert client.get_experiment_by_name(f"space-{moved.number}").artifact_location == places[1]


def test_artifacts_of_a_storage_beside_stay_where_they_are(tmp_path: Path, whole: Path) -> None:
    """Two storages that a user mirrors into the database of one."""
    one, other = sweep_in(tmp_path / "one"), sweep_in(tmp_path / "other", "two")
    shutil.copyfile(whole, tmp_path / "one" / "mlflow.db")
    mirror_sweep(other.store, other.folder, one.uri)
    told: list[str] = []
    mirror_sweep(one.store, one.folder, one.uri, told.append)
    assert told == []
    assert database.follow(tmp_path / "one" / "mlflow.db", tmp_path / "one" / "mlartifacts") == []


@pytest.mark.parametrize("name", NAMES)
def test_a_storage_of_any_name_keeps_its_database_and_its_artifacts(name: str, tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path / name)
    sweep.make([language_stage("ace", sweep.number)])
    mirror_sweep(sweep.store, sweep.folder, sweep.uri)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sql(tmp_path / name / "mlflow.db", "SELECT count(*) FROM runs") == [(3,)]
    run = sweep.runs()[language_stage("ace", sweep.number).address]
    got = mlflow_client(sweep.uri).download_artifacts(run.info.run_id, "sft/sft.json")
    assert Path(got).read_text() == "{}"
    assert len(list((tmp_path / name / "mlartifacts").rglob("sft.json"))) == 1
    mirror = sweep.mirror("http://127.0.0.1:9")
    assert shlex.split(mirror._again.strip("`"))[3:] == [sweep.folder.url(), "--tracking-uri", "http://127.0.0.1:9"]
    assert shlex.split(sweep.mirror()._again.strip("`"))[3:] == [sweep.folder.url()]


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map("/x/{}/mlflow.db".format)
)
def test_what_is_printed_can_be_pasted_and_read_by_sqlalchemy(path: str) -> None:
    uri = database.sqlite_uri(path)
    assert make_url(uri).database == path
    command = to_type(shlex.join(["mlflow", "ui", "--backend-store-uri", uri]))
    if "***" not in command:  # something like a password
        assert shlex.split(command)[-1] == uri


def test_make_ui_opens_a_storage_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    storage = tmp_path / NAMES[5]
    nothing = CliRunner().invoke(ui.app, [str(storage)])
    assert nothing.exit_code == 2 and "no mlflow.db there; run a sweep first" in nothing.output
    storage.mkdir()
    garbage(storage / "mlflow.db")
    torn = CliRunner().invoke(ui.app, [str(storage)])
    again = shlex.join(["python", "-m", "orchestrator.tracking", str(storage)])
    assert torn.exit_code == 2 and torn.output.endswith(f"damaged (file is not a database); mirror it again: {again}\n")
    shutil.copyfile(whole, storage / "mlflow.db")
    opened: list[Any] = []
    monkeypatch.setattr(ui, "_serve", lambda *words: opened.append(words) or 0)
    assert CliRunner().invoke(ui.app, [str(storage), "--port", "5001"]).exit_code == 0
    ((uri, artifacts, port),) = opened
    assert (make_url(uri).database, artifacts, port) == (
        str(storage / "mlflow.db"), (storage / "mlartifacts").as_uri(), 5001
    )  # fmt: skip

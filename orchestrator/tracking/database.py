"""The SQLite file that MLflow has in a local storage, `mlflow.db`: its URI, and whether it is whole. No mlflow here.

The file is a mirror: where it is torn it is set aside and made anew, under another name first, so that what is called
`mlflow.db` is never half made. MLflow keeps absolute places of artifacts in it, which follow a storage that was moved.
Databases that a user named are left to MLflow.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

_TORN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_BESIDE = ("", "-journal", "-wal", "-shm")
"""SQLite's files of one database. A journal that is left behind would be played into the next one of its name."""
_LOOK_AGAIN_SECONDS = 1.0
_WAIT_SECONDS = 5.0
_numbers = itertools.count()


def sqlite_uri(path: str) -> str:
    """The URI of a database at an absolute path, whatever characters are in it.

    SQLAlchemy decodes `%XX` and cuts at `?`. MLflow does not decode: for `sqlite:///` it makes a folder of the quoted
    name, but not where the driver is named as well.
    """
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if quoted == path else f"sqlite+pysqlite:///{quoted}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A context in which no other driver of the storage looks at its database, where folders can be locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folder
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def damage(path: Path) -> str | None:
    """Why a database is torn; None for one that is whole, not there, in use, or kept from us by the machine."""
    found = _damage(path)
    if found and found.startswith("tables"):  # also what an upgrade in progress has, for moments that it does not lock
        time.sleep(_LOOK_AGAIN_SECONDS)
        found = _damage(path)
    return found


def _damage(path: Path) -> str | None:
    if not path.exists():
        return None
    if not path.stat().st_size:
        return "empty"
    try:
        with _open(path) as database:
            database.execute("BEGIN EXCLUSIVE")  # an error while anybody writes
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if left := sorted(name for name in tables if name.startswith("_alembic_tmp_")):
                return f"tables of an upgrade that was cut short are left in it ({', '.join(left)})"
            if "alembic_version" not in tables or not database.execute("SELECT * FROM alembic_version").fetchall():
                return "cut short in its making"
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            return None if verdict == "ok" else f"damaged ({verdict.splitlines()[-1]})"
    except sqlite3.DatabaseError as error:
        return f"damaged ({error})" if error.sqlite_errorcode & 0xFF in _TORN else None


def set_aside(path: Path) -> Path:
    """Give a database the first free name `mlflow.db.broken-N`, with the files that SQLite has beside it."""
    aside = next(name for n in itertools.count(1) if not (name := Path(f"{path}.broken-{n}")).exists())
    for end in reversed(_BESIDE):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{end}", f"{aside}{end}")
    return aside


def make(path: Path, fill: Callable[[str], object]) -> None:
    """Make a database by `fill`, called with a URI, and give it its name once it is whole; one that is there stays."""
    for left in path.parent.glob(f"{path.name}.new-*"):
        left.unlink(missing_ok=True)
    new = path.with_name(f"{path.name}.new-{os.getpid()}-{next(_numbers)}")
    try:
        fill(sqlite_uri(str(new)))
        for end in _BESIDE[1:] if not path.exists() else ():
            Path(f"{path}{end}").unlink(missing_ok=True)
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.rename(new, path)
    finally:
        for end in _BESIDE:
            Path(f"{new}{end}").unlink(missing_ok=True)


def follow(path: Path, place: Path) -> list[str]:
    """Let experiments of a storage that was moved have their files in `place`, its `mlartifacts`, again.

    Files that still lie where the database says, and are not in `place` too, are another storage's.

    Returns:
        The URIs of where they were.
    """
    if not path.exists():
        return []
    with _open(path) as database:
        database.execute("BEGIN IMMEDIATE")
        olds = database.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/mlartifacts'"
        ).fetchall()
        moved = [old for (old,) in olds if old != place.as_uri() and _moved(database, old, place)]
        for old in moved:
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                [place.as_uri(), len(old) + 1, len(old) + 1, f"{old}/"],
            )
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", [place.as_uri(), old]
            )
        database.execute("COMMIT")
    return moved


def _moved(database: sqlite3.Connection, old: str, place: Path) -> bool:
    if not Path(unquote(urlsplit(old).path)).exists():
        return True
    query = "SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ?"
    return any((place / run).exists() for (run,) in database.execute(query, [len(old) + 1, f"{old}/"]))


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(os.fsencode(path))}?mode=rw"  # reading alone could not play a dead process's journal back
    with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)) as database:
        yield database

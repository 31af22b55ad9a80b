"""What lies in the folder of a model or a vector, told without reading it, so that what was read need not be again."""

from __future__ import annotations

from pathlib import Path

Contents = tuple[tuple[str, int, int, int], ...]
"""Path, bytes and times (of the content, of the entry; in nanoseconds) of each file: the same while no file changes."""


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that count, by name: not the hidden ones, and none of a folder in it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def contents_of(folder: Path) -> Contents:
    """What to remember a folder's content by; another one as soon as a file of it was written, added or removed.

    The time of the content can be set back (`touch`, `rsync -t`), that of the entry cannot.
    """
    stats = [(str(path), path.stat()) for path in files_of(folder.resolve())]
    return tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)

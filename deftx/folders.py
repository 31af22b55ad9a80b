"""The files in the folder of a model or a vector, and whether they changed since they were read."""

from __future__ import annotations

from pathlib import Path

Contents = tuple[tuple[str, int, int, int], ...]
"""Path, bytes and times (of the content, of the entry; in nanoseconds) of each file: the same while no file changes."""


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that count, by name: without hidden files and subfolders."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def contents_of(folder: Path) -> Contents:
    """The state of a folder's files, which differs as soon as one of them was written, added or removed.

    The time of the content can be set back (`touch`, `rsync -t`), that of the entry cannot.
    """
    stats = [(str(path), path.stat()) for path in files_of(folder.resolve())]
    return tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)


def pointers_in(folder: Path) -> list[Path]:
    """The files of a folder that Git LFS would have fetched: each is a few lines that say which file it stands for."""
    # a repository of which nothing was fetched has no folder
    small = [path for path in files_of(folder) if path.stat().st_size < 1024] if folder.is_dir() else []
    return [path for path in small if path.read_bytes().startswith(b"version https://git-lfs")]

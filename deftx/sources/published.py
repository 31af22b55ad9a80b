"""Models and vectors that somebody published: a folder on disk, or a hub repository at one commit.

Resolved once by the driver, so that an address counts a folder by its content and a repository by its commit. What is
inside a folder is read elsewhere (backbones, sft). No pickle is read here.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from deftx.config import Settings
from deftx.errors import DataError, HubError, reason
from deftx.sources.hub import gated_error, hub_commit, hub_info

_WEIGHT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "pytorch_model.bin", "pytorch_diff.bin"]

_WEIGHTS = (".safetensors", "pytorch_model.bin", "pytorch_diff.bin")
"""How the name of a file with weights ends; the last is composable-sft's."""


class LocalFolder(Settings):
    """A folder on disk. The names and bytes of its files count in an address, its path does not."""

    kind: Literal["local"] = "local"
    sha256: str
    path: str = Field(exclude=True)


class HubFolder(Settings):
    """A hub model repository at a commit."""

    kind: Literal["hub"] = "hub"
    repo: str
    commit: str


Published = LocalFolder | HubFolder


def name_of(source: Published) -> str:
    """The hub id or the folder's path, for messages."""
    return source.repo if isinstance(source, HubFolder) else source.path


def resolve_folder(name: str, revision: str = "main") -> Published:
    """A folder path or a hub id as a source, resolved to what counts in an address.

    Args:
        name: an existing folder, else a hub id such as `FacebookAI/xlm-roberta-base`.
        revision: of the hub id, a branch, tag or commit.

    Raises:
        DataError: for an empty folder, or a path that does not exist and cannot be a hub id.
        HubError: see `hub_commit`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return LocalFolder(sha256=_folder_digest(folder), path=str(folder.resolve()))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise DataError(f"{name}: no such folder (and not a hub id of the form owner/name)")
    return HubFolder(repo=name, commit=hub_commit(name, revision))


def local_folder(source: Published) -> Path:
    """The folder on this machine, downloaded into the hub's cache when it is not there yet.

    Raises:
        HubError: when it has to be downloaded and the hub cannot be reached.
        DataError: when a local folder is gone.
    """
    if isinstance(source, LocalFolder):
        if not Path(source.path).is_dir():
            raise DataError(f"{source.path}: no such folder on this machine")
        return Path(source.path)
    return _downloaded(source.repo, source.commit)


@cache
def _downloaded(repo: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    # without a hub only the cache is looked at: the client would first retry for 23 s
    problem: HubError | None = None
    names: set[str] = set()
    try:
        names = {file.rfilename for file in hub_info(repo, commit, "model").siblings or []}
    except HubError as error:
        problem = error
    twice = problem or "model.safetensors" in names
    if names and not any(name.endswith(_WEIGHTS) for name in names):
        first = ", ".join(sorted(names)[:8])
        raise HubError(f"{repo} at commit {commit[:12]} holds no weights (*{', *'.join(_WEIGHTS)}); it has {first}")
    try:
        folder = snapshot_download(
            repo,
            revision=commit,
            local_files_only=problem is not None,
            allow_patterns=_WEIGHT_PATTERNS,
            ignore_patterns=["pytorch_model.bin"] if twice else None,
        )
    except GatedRepoError:
        raise gated_error(repo, commit, "model") from None
    except Exception as error:  # the hub client does not wrap the errors of its HTTP library
        if problem:
            raise HubError(f"{repo} at commit {commit[:12]} is not in the local cache, and {problem}") from None
        raise HubError(
            f"{repo} at commit {commit[:12]} could not be downloaded from the hub ({reason(error)}); "
            f"give a local folder instead, or run where there is a network"
        ) from None
    return Path(folder)


def _folder_digest(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: the folder is empty; a model or vector is expected there")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()

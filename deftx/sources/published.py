"""Models and vectors that somebody published: a folder on disk, or a hub repository at one commit.

Resolved once by the driver, so that an address counts a folder by its content and a repository by its commit; what is
opened later is compared with that. What is inside a folder is read elsewhere (models, sft). No pickle is read here.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from deftx.config import Settings
from deftx.errors import DataError, HubError, reason
from deftx.folders import Contents, contents_of, files_of
from deftx.foreign import json_object, small_file
from deftx.sources.hub import gated_error, hub_commit, hub_info
from deftx.sources.revisions import UNRESOLVED

_SETTINGS = ["*.json", "*.model", "*.txt"]
"""Files beside the weights: configuration, tokenizer, index of the shards, and what is said of a vector."""
_PICKLES = ["pytorch_model.bin", "pytorch_model-*-of-*.bin"]
_WEIGHTS = ["*.safetensors", *_PICKLES, "pytorch_diff.bin"]
"""The last is composable-sft's."""
_SAFE = {"model.safetensors", "model.safetensors.index.json"}
"""With one of them the pickles are the same weights again."""
_LEFT = ["*/*", "model.*.safetensors"]
"""Of the hub: what lies in folders of a repository, such as checkpoints, and other precisions of the same weights."""


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


def openable(source: object) -> Published | None:
    """What was given, where it is a published folder that can be opened: its commit is known, or it lies here."""
    known = isinstance(source, LocalFolder) or (isinstance(source, HubFolder) and source.commit != UNRESOLVED)
    return source if known else None  # type: ignore[return-value]


def resolve_folder(name: str, revision: str = "main") -> Published:
    """A folder path or a hub id as a source, resolved to what counts in an address.

    Args:
        name: an existing folder, else a hub id such as `FacebookAI/xlm-roberta-base`.
        revision: of the hub id, a branch, tag or commit.

    Raises:
        DataError: for an empty folder, one whose weights lie in a folder of it, or a path that does not exist and
            cannot be a hub id.
        HubError: see `hub_commit`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return LocalFolder(sha256=_digest_of(folder), path=str(folder.resolve()))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise DataError(f"{name}: no such folder (and not a hub id of the form owner/name)")
    return HubFolder(repo=name, commit=hub_commit(name, revision))


def local_folder(source: Published) -> Path:
    """The folder on this machine, downloaded into the hub's cache when it is not there yet.

    A local folder is read and compared with its digest once in a process, and again when a file of it was touched.

    Raises:
        HubError: when it has to be downloaded and the hub cannot be reached.
        DataError: when a local folder is gone, or holds something else than when it was resolved.
    """
    if isinstance(source, HubFolder):
        return _downloaded(source.repo, source.commit)
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder on this machine")
    if (digest := _digest_of(folder)) != source.sha256:
        latest = max(files_of(folder), key=lambda path: path.stat().st_mtime_ns)
        raise DataError(
            f"{folder}: changed since the sweep was planned (SHA-256 {digest[:12]}, was {source.sha256[:12]}; written "
            f"last: {latest.name}); put the old files back and run again with --retry-failed, or give a sweep of the "
            f"new ones another --name"
        )
    return folder


def settings_folder(source: Published) -> Path:
    """As `local_folder`, but of a repository only the JSON and tokenizer files are sure to be there."""
    if isinstance(source, HubFolder):
        return _downloaded(source.repo, source.commit, whole=False)
    return local_folder(source)


@cache
def _downloaded(repo: str, commit: str, *, whole: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    # without a hub only the cache is looked at: the client would first retry for 23 s
    problem: HubError | None = None
    names: set[str] = set()
    try:
        names = {file.rfilename for file in hub_info(repo, commit, "model").siblings or []}
    except HubError as error:
        problem = error
    left = [*_LEFT, *_PICKLES] if problem or names & _SAFE else _LEFT
    if names and not _has_weights(names, left):
        first = ", ".join(sorted(names)[:8])
        raise HubError(f"{repo} at commit {commit[:12]} holds no weights ({', '.join(_WEIGHTS)}); it has {first}")
    try:
        folder = snapshot_download(
            repo,
            revision=commit,
            local_files_only=problem is not None,
            allow_patterns=[*_SETTINGS, *_WEIGHTS] if whole else _SETTINGS,
            ignore_patterns=left,
        )
        if problem and whole and not _has_weights({path.name for path in files_of(Path(folder))}, _LEFT):
            raise problem
    except GatedRepoError:
        raise gated_error(repo, commit, "model") from None
    except Exception as error:  # the hub client does not wrap the errors of its HTTP library
        if problem:
            words = f"{repo} at commit {commit[:12]} is not in the local cache, and {problem}"
            raise type(problem)(words) from None
        raise HubError(
            f"{repo} at commit {commit[:12]} could not be downloaded from the hub ({reason(error)}); "
            f"give a local folder instead, or run where there is a network"
        ) from None
    return Path(folder)


def _has_weights(names: set[str], left: list[str]) -> bool:
    wanted = {name for name in names if any(fnmatch(name, pattern) for pattern in _WEIGHTS)}
    return any(not any(fnmatch(name, pattern) for pattern in left) for name in wanted)


def _digest_of(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files."""
    if not (contents := contents_of(folder)):
        raise DataError(f"{folder}: the folder is empty; a model or vector is expected there")
    return _digest(contents)


@cache
def _digest(contents: Contents) -> str:
    """Remembered, since a backbone has a gigabyte and every stage opens it."""
    total = hashlib.sha256()
    for path in (Path(name) for name, *_ in contents):
        if path.name == "config.json" or path.name.endswith(".index.json"):
            _refuse_nested_weights(path)
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _refuse_nested_weights(path: Path) -> None:
    """Raise a DataError for weights in a folder of the folder, or hidden: they would load, and no address counts them.

    What is no JSON, or not of the form that is looked at, is told by whoever loads it; what is too large, here.
    """
    content = small_file(path)
    try:
        settings = json_object(content, path)
    except DataError:
        return
    shards = settings.get("weight_map")
    names = [settings.get("transformers_weights"), *(shards.values() if isinstance(shards, dict) else ())]
    for name in names:
        if isinstance(name, str) and (len(Path(name).parts) > 1 or name.startswith(".")):
            raise DataError(
                f"{path}: names the weights {name!r}; weights must lie in the folder itself and not be hidden"
            )

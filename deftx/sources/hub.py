"""The Hugging Face hub: revisions as commits, and data sets at a commit. Models and SFTs are in `published`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from deftx.config import Settings
from deftx.errors import DataError, HubError, reason
from deftx.sources.files import FileSource, keep
from deftx.sources.revisions import UNRESOLVED, resolve_once


class HubSource(Settings):
    """A split of a hub data set at a commit (parquet, no loading script)."""

    kind: Literal["hub"] = "hub"
    repo: str
    commit: str
    config: str | None = None
    split: str

    @property
    def where(self) -> str:
        """Repository, configuration and split, for messages."""
        return "/".join(part for part in (self.repo, self.config, self.split) if part)


Source = FileSource | HubSource


def hub_commit(repo: str, revision: str = "main", kind: Literal["model", "dataset"] = "model") -> str:
    """The commit of a revision of a hub repository: as recorded, else as the hub says, else as the local cache does.

    Args:
        repo: `owner/name`.
        revision: a branch or tag; a commit is returned as it is.
        kind: of the repository.

    Raises:
        HubError: when the hub cannot be reached and the cache does not know it, or the id or revision is unknown.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return resolve_once(f"{kind} {repo}@{revision}", lambda: _ask_hub(repo, revision, kind))


def hub_info(repo: str, revision: str, kind: Literal["model", "dataset"]) -> Any:
    """The hub's description of a repository at a revision, from one request without a retry.

    Raises:
        HubError: when the hub cannot be reached, the id or revision is unknown, or the repository is gated.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=10)
    except GatedRepoError:
        raise gated_error(repo, revision, kind) from None
    except RevisionNotFoundError:
        raise HubError(f"{kind} {repo!r} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise HubError(f"there is no {kind} {repo!r} on the hub, or it is private and no token was given") from None
    except Exception as error:  # the hub client does not wrap the errors of its HTTP library
        local = "data root" if kind == "dataset" else "local folder"
        raise UnreachableError(
            f"the hub could not be reached for {kind} {repo!r} ({reason(error)}); "
            f"give a {local} instead, or run where there is a network"
        ) from None


def gated_error(repo: str, revision: str, kind: Literal["model", "dataset"]) -> HubError:
    """The error for a gated repository, whose files need access granted by its owner."""
    at = revision[:12] if re.fullmatch(r"[0-9a-f]{40}", revision) else revision
    return HubError(
        f"{kind} {repo!r} at {at} is gated: ask for access on its page on the hub, then set HF_TOKEN, "
        f"or give a local folder instead"
    )


class UnreachableError(HubError):
    """The hub cannot be reached, so that the local cache is asked."""


@cache
def hub_headers(repo: str, commit: str) -> Mapping[str, tuple[Sequence[int], str]] | None:
    """The shape and safetensors' dtype of each weight of a model, whose files are not downloaded for it.

    None where the weights are pickles, which have no header.

    Raises:
        HubError: when the hub cannot be reached, or a file lacks or is no safetensors file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    hub_info(repo, commit, "model")  # fails at once where the client retries for 23 s
    try:
        files = HfApi().get_safetensors_metadata(repo, revision=commit).files_metadata.values()
    except NotASafetensorsRepoError:
        return None
    except Exception as error:  # the hub client does not wrap the errors of its HTTP library
        raise HubError(
            f"{repo} at commit {commit[:12]}: its weights' headers cannot be read: {reason(error)}"
        ) from None
    return {name: (tensor.shape, tensor.dtype) for file in files for name, tensor in file.tensors.items()}


def _ask_hub(repo: str, revision: str, kind: Literal["model", "dataset"]) -> str:
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE, f"{kind}s--{repo.replace('/', '--')}", "refs", revision)
    try:
        commit: str | None = hub_info(repo, revision, kind).sha
    except UnreachableError:
        if cached.is_file():
            return cached.read_text(encoding="ascii").strip()
        raise
    if commit is None:
        raise HubError(f"the hub did not say which commit {repo!r} is at")
    keep(commit.encode(), cached)  # the client caches a branch's commit here, but not when it downloads by commit
    return commit


def hub_table(source: HubSource, columns: Sequence[str]) -> Any:
    """A split of a hub data set with some of its columns, as a `datasets.Dataset`.

    Raises:
        HubError: when it cannot be loaded.
        DataError: when a column is missing.
    """
    if source.commit == UNRESOLVED:
        raise HubError(f"{source.where}: its commit is not known")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # else datasets sends s3.amazonaws.com a request to count
    try:
        if (table := _prepared_table(source)) is None:
            table = _downloaded_table(source)
    except Exception as error:  # as above, and the errors of datasets have no common base class
        raise HubError(
            f"{source.where}: could not be loaded from the hub at commit {source.commit[:12]} ({reason(error)})"
        ) from error
    if missing := [column for column in columns if column not in table.column_names]:
        raise DataError(
            f"{source.where}: no column {missing[0]!r}; "
            f"found: {', '.join(table.column_names)}; expected: {', '.join(columns)}"
        )
    return table.select_columns(list(columns))


def _prepared_table(source: HubSource) -> Any:
    """The table from the cache of `datasets`, without a request to the hub; None where it has not this commit."""
    from datasets import config
    from datasets.packaged_modules.cache.cache import Cache

    name, commit = source.config or "default", source.commit
    for folder in Path(config.HF_DATASETS_CACHE).glob(f"*/{name}/*/{commit}"):
        names = {"repo_id": source.repo, "dataset_name": source.repo.rpartition("/")[2], "config_name": name}
        builder = Cache(**names, version=folder.parent.name, hash=commit)
        if Path(builder.cache_dir) == folder:
            return builder.as_dataset(split=source.split)
    return None


def _downloaded_table(source: HubSource) -> Any:
    from datasets import load_dataset

    hub_info(source.repo, source.commit, "dataset")  # fails at once where the client retries for 23 s
    table = load_dataset(
        source.repo, source.config, split=source.split, revision=source.commit, trust_remote_code=False
    )
    if any(source.commit not in file["filename"] for file in table.cache_files):
        # after a failed download `datasets` silently takes whichever commit it has cached
        raise HubError("it did not come through, and only another commit is in the local cache")
    return table

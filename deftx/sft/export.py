"""A composition as a plain Hugging Face folder, which transformers loads without deftx.

The weights are those of `composed`, bit for bit. Written beside the folder and renamed, so that nothing half-written
stays. Nothing is uploaded. The command is `deftx export`.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deftx.errors import ConfigError, StoreError
from deftx.sft.composition import Composition, Part, Stored
from deftx.sources.published import local_folder
from deftx.stages.files import MODEL, SFT
from deftx.stages.store import Store

if TYPE_CHECKING:
    from deftx.sft.vector import SparseFineTuning

_OURS = re.compile(r"`(python -m )?deftx[. ]export`")
"""In the model card of what an export wrote, now and before the command was `deftx`."""


def export(composition: Composition, folder: str | Path, store: Store | None = None, *, force: bool = False) -> Path:
    """The folder of the composed classifier, written with its tokenizer and a model card.

    Args:
        folder: is created; an empty one is filled.
        store: where the parts that are stages lie.
        force: replace what an earlier export wrote there.

    Raises:
        DeftxError: when the folder holds something, a part is missing, or the parts do not fit together.
    """
    target = Path(folder).expanduser().resolve()
    _check_free(target, force)
    with _beside(target) as unfinished:
        _write(composition, store, unfinished)
    return target


def _write(composition: Composition, store: Store | None, folder: Path) -> None:
    from deftx.models.load import quiet
    from deftx.sft.card import model_card
    from deftx.sft.classifier import load_composed

    backbone = _folder("backbone", composition.backbone, store, MODEL)
    task, language = load_sft("task", composition.task, store), load_sft("language", composition.language, store)
    assert task is not None
    model, tokenizer = load_composed(
        backbone, task, language, composition.labels, composition.weights, composition.max_length
    )
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(composition, task, language), encoding="utf-8")


def load_sft(role: str, part: Part | None, store: Store | None) -> SparseFineTuning | None:
    """The SFT of a part of a composition.

    Args:
        role: what errors call it, `task` or `language`.
        part: None for a composition without it.
        store: where it lies, if it is a stage.
    """
    from deftx.sft.vector import SparseFineTuning

    return SparseFineTuning.from_folder(_folder(f"{role} vector", part, store, SFT)) if part else None


def _folder(part_name: str, part: Part, store: Store | None, name: str) -> Path:
    """The folder of a part on this machine."""
    if not isinstance(part, Stored):
        return local_folder(part)
    if store is None:
        raise ConfigError(f"the {part_name} is a stage ({part.address}); say which store it lies in")
    try:
        return store.fetch_folder(part.address, name)
    except StoreError as error:
        advice = "run the sweep again, which makes what is missing"
        raise StoreError(f"the {part_name} is missing: {error}; {advice}") from None


def _check_free(target: Path, force: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    card = target / "README.md"
    if not card.is_file() or not _OURS.search(card.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(f"{target}: is there already and not from an earlier export; choose another folder")
    if not force:
        raise ConfigError(f"{target}: holds an export already; choose another folder, or replace it with --force")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the target's place at the end, or vanishes."""
    mark = uuid.uuid4().hex[:8]
    unfinished, old = target.with_name(f".{target.name}.{mark}"), target.with_name(f".{target.name}.{mark}.old")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be made: {error.strerror}; choose a folder that can be written") from None
    try:
        yield unfinished
        if target.exists():
            target.rename(old)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

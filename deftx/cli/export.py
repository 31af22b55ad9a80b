"""`deftx export`: what a sweep chose, or any vectors, as a folder that transformers loads."""

from __future__ import annotations

from typing import Annotated

import typer

from deftx.cli.command import console
from deftx.errors import ConfigError
from deftx.sft.composition import Composition, read_chosen
from deftx.sft.export import export, load_sft
from deftx.sources.published import resolve_folder

Places = Annotated[
    list[str],
    typer.Argument(metavar="[SWEEP LANGUAGE] OUT", help="STORAGE/sweeps/NAME and a target of it; OUT is made."),
]
Backbone = Annotated[str | None, typer.Option(metavar="MODEL", help="Folder or hub id.")]
SFTName = Annotated[str | None, typer.Option(metavar="SFT", help="Without a sweep: folder or hub id.")]
Labels = Annotated[str | None, typer.Option(metavar="A,B,...", help="Where the task vector does not name its own.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier export wrote.")]


def export_command(
    places: Places, backbone: Backbone = None, task: SFTName = None, language: SFTName = None, labels: Labels = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Write a composition as a folder that transformers loads: AutoModelForSequenceClassification, or a pipeline.

    Of a sweep it is the combination that validation chose; else the vectors that --task and --language name.
    """
    match places:
        case [sweep, target, out] if not (task or language or labels):
            composition, store = read_chosen(sweep, target, backbone)
            written = export(composition, out, store, force=force)
        case [out] if backbone and task:
            written = export(_by_name(backbone, task, language, labels), out, force=force)
        case _:
            raise ConfigError("give SWEEP LANGUAGE OUT, or OUT with --backbone and --task (and --language)")
    console().print(str(written), soft_wrap=True, markup=False)


def _by_name(backbone: str, task: str, language: str | None, labels: str | None) -> Composition:
    """The composition of what was named; the labels are the task vector's own unless given."""
    part = resolve_folder(task)
    sft = load_sft("task", part, None)
    assert sft is not None
    listed = filter(None, map(str.strip, labels.split(","))) if labels else sft.metadata.labels or ()
    names = tuple(dict.fromkeys(listed))
    if len(names) < 2:
        raise ConfigError(f"{task}: does not say what its labels are; name two or more with --labels A,B,...")
    return Composition(
        backbone=resolve_folder(backbone), task=part, language=resolve_folder(language) if language else None,
        labels=names, benchmark=sft.metadata.task,
        **({"max_length": length} if (length := sft.metadata.max_length) else {}),
    )  # fmt: skip

"""The command `python -m orchestrator.report STORAGE/sweeps/NAME`: writes a sweep's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deftx.errors import ConfigError, DeftxError
from deftx.stages.store import Store
from orchestrator.record.sweep import known_sweep
from orchestrator.report.markdown import write_report

app = typer.Typer(add_completion=False)


def _locate(directory: str) -> tuple[Store, str]:
    """The store and the sweep's name in `STORAGE/sweeps/NAME`, a folder or an fsspec URL."""
    whole = directory.rstrip("/") if "://" in directory else str(Path(directory).resolve())
    storage, _, name = whole.rpartition("/sweeps/")
    if not storage or not name or "/" in name:
        raise ConfigError(f"{directory}: not the folder of a sweep, which is STORAGE/sweeps/NAME")
    return Store(storage), name


@app.command()
def main(directory: Annotated[str, typer.Argument(metavar="DIR", help="of a sweep: STORAGE/sweeps/NAME")]) -> None:
    """Write report.md, its tables and its plots for a sweep, from what its storage holds."""
    try:
        store, name = _locate(directory)
        folder, _ = known_sweep(store, name)
        write_report(store, folder)
    except DeftxError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{store.url}/sweeps/{name}/report.md")


if __name__ == "__main__":
    app()

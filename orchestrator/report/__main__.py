"""The command `python -m orchestrator.report STORAGE/sweeps/NAME`: writes a sweep's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deftx.cli.command import HELP, Command, console, example
from deftx.errors import ConfigError
from deftx.stages.reach import reachable
from deftx.stages.store import Store
from orchestrator.record.sweep import known_sweep

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)


def _locate(directory: str) -> tuple[Store, str]:
    """The store and the sweep's name in `STORAGE/sweeps/NAME`, a folder or an fsspec URL."""
    location = directory.rstrip("/") if "://" in directory else str(Path(directory).resolve())
    storage, _, name = location.rpartition("/sweeps/")
    if not storage or not name or "/" in name:
        raise ConfigError(f"{directory}: not the folder of a sweep, which is STORAGE/sweeps/NAME")
    return reachable(Store(storage), writes=True), name


@app.command(cls=Command, epilog=example("python -m orchestrator.report results/sweeps/nusax"))
def main(directory: Annotated[str, typer.Argument(metavar="DIR", help="of a sweep: STORAGE/sweeps/NAME")]) -> None:
    """Write report.md, its tables and its plots for a sweep, from what its storage holds."""
    from orchestrator.report.markdown import write_report  # pandas and matplotlib take seconds to import

    store, name = _locate(directory)
    folder, _ = known_sweep(store, name)
    write_report(store, folder)
    console().print(folder.url("report.md"), soft_wrap=True, markup=False)


if __name__ == "__main__":
    app()

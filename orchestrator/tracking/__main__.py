"""The command `python -m orchestrator.tracking DIR`: mirrors into MLflow the sweeps that no driver runs.

Only arguments, messages and exit codes here: 0 all is there    1 MLflow did not take all    2 the user's mistake
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deftx.cli.command import HELP, Command, example
from deftx.errors import ConfigError, reason
from deftx.passwords import without_password
from deftx.stages.reach import reachable
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder, sweeps_in
from orchestrator.tracking.client import default_tracking_uri, mlflow_error
from orchestrator.tracking.mirror import MirrorError, mirror_sweep

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", pretty_exceptions_show_locals=False, context_settings=HELP
)


@app.command(cls=Command, epilog=example("python -m orchestrator.tracking results"))
def main(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A storage, or STORAGE/sweeps/NAME for one sweep.")],
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="Where to; by default mlflow.db in the storage, which must be local then.",
            envvar="MLFLOW_TRACKING_URI",
        ),
    ] = None,
) -> None:
    """Mirror finished or interrupted sweeps of a storage into MLflow. Doing so again changes nothing."""
    try:
        complete = [_mirror_and_tell(folder, tracking_uri) for folder in _sweeps(directory)]
    except mlflow_error() as error:
        typer.echo(f"error: {reason(error)}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if all(complete) else 1)


def _sweeps(directory: str) -> list[SweepFolder]:
    location = directory if "://" in directory else str(Path(directory).resolve())
    root, _, name = location.rstrip("/").rpartition("/sweeps/")
    store = reachable(Store(root or location))
    sweeps = [SweepFolder(store, name)] if root else sweeps_in(store)
    if not sweeps:
        raise ConfigError(f"{directory}: no sweeps there; give a sweep's storage, or STORAGE/sweeps/NAME")
    return sweeps


def _mirror_and_tell(folder: SweepFolder, tracking_uri: str | None) -> bool:
    """Whether a sweep could be mirrored whole; prints what was done."""
    uri = tracking_uri or default_tracking_uri(folder.store)
    try:
        runs = mirror_sweep(folder.store, folder, uri, lambda words: typer.echo(f"note: {words}", err=True))
        typer.echo(f"{folder.name}: {runs} runs in {without_password(uri)}")
        return True
    except MirrorError as error:
        typer.echo(f"error: {folder.name}: {error}", err=True)
        return False


if __name__ == "__main__":
    app()

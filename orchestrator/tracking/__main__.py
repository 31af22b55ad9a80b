"""The sweep in MLflow, as a mirror of the store: one experiment for a space, one parent run for a sweep, one child run
for each stage. With `mlflow_runs`, the only importer of mlflow.

Runs are found again by their tags (sweep, address) and what one holds is compared by digest, so mirroring twice changes
nothing. A tracker that does not answer costs the driver no time: calls go to a background thread, what fails becomes
one warning, and what was missed is mirrored at the sweep's end or by `python -m orchestrator.tracking DIR`.

Artifacts go where a server keeps its own, else into the storage, `<storage>/mlartifacts`. MLflow writes to folders,
s3:// and gs://; with any other storage they go into `mlartifacts` beside the SQLite file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deftx.errors import ConfigError, DeftxError
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder, SweepInfo, known_sweep
from orchestrator.tracking.background import BackgroundMirror
from orchestrator.tracking.client import MlflowRuns
from orchestrator.tracking.content import SweepContent, sweep_status
from orchestrator.tracking.mirror import MirrorError, SweepMirror

_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_ARTIFACT_SCHEMES = ("s3", "gs")


def default_tracking_uri(store: Store) -> str:
    """Where a local store's runs are tracked when nothing else is asked for: `<storage>/mlflow.db`.

    Raises:
        ConfigError: for a remote store, which no SQLite file can lie in.
    """
    if store.local:
        return f"sqlite:///{store.path('mlflow.db')}"
    raise ConfigError(
        f"{store.url}: a remote storage needs --tracking-uri, such as http://HOST:5000 of an `mlflow server`, "
        f"or sqlite:////absolute/path/mlflow.db on this machine"
    )


def check_tracking_uri(uri: str) -> str:
    """The same URI, if it is one that MLflow can track to.

    Raises:
        ConfigError: for a plain folder or an unknown scheme, with what would be right.
    """
    if uri.split(":")[0].split("+")[0] not in _SCHEMES or (":" not in uri and uri != "databricks"):
        raise ConfigError(
            f"tracking URI {uri!r}: MLflow keeps runs in a database or on a server; "
            f"write sqlite:////absolute/path/mlflow.db or http://HOST:5000"
        )
    return uri


class Mirror(BackgroundMirror):
    """Mirrors a living sweep into MLflow: see `BackgroundMirror` for what the driver calls."""

    def __init__(self, store: Store, folder: SweepFolder, info: SweepInfo, tracking_uri: str) -> None:
        """Bind a sweep; nothing is sent yet.

        Raises:
            ConfigError: see `check_tracking_uri` and `artifact_place`.
        """
        again = f"python -m orchestrator.tracking {folder.url()} --tracking-uri {tracking_uri}"
        super().__init__(_sweep_mirror(store, folder, info, tracking_uri), tracking_uri, again)


def mirror_sweep(store: Store, folder: SweepFolder, tracking_uri: str) -> int:
    """Mirror all that the store knows of a sweep which no driver is working on. Returns the number of its runs.

    Raises:
        StoreError: for an unknown sweep.
        ConfigError: for a tracking URI that cannot be opened.
        MirrorError: after all else is mirrored, for stages that do not match their manifests or that MLflow refused.
    """
    _, info = known_sweep(store, folder.name)
    return _sweep_mirror(store, folder, info, tracking_uri).everything(sweep_status(folder.state()))


def artifact_place(store: Store, tracking_uri: str) -> str | None:
    """Where a new experiment keeps its artifacts; none leaves it to the server.

    Raises:
        ConfigError: for a database that is no SQLite file with a storage that MLflow cannot write to.
    """
    if tracking_uri.startswith(("http", "databricks")):
        return None
    place = store.path("mlartifacts")
    if store.local:
        return Path(place).resolve().as_uri()
    url = str(store.fs.unstrip_protocol(place))
    if url.partition("://")[0] in _ARTIFACT_SCHEMES:
        return url
    if tracking_uri.startswith("sqlite"):
        database = tracking_uri.partition(":///")[2].partition("?")[0]
        return (Path(database).resolve().parent / "mlartifacts").as_uri()
    raise ConfigError(
        f"{store.url}: MLflow can keep no artifacts there; give --tracking-uri http://HOST:5000 of an `mlflow server`, "
        f"or sqlite:////absolute/path/mlflow.db on this machine"
    )


def _sweep_mirror(store: Store, folder: SweepFolder, info: SweepInfo, uri: str) -> SweepMirror:
    content = SweepContent(folder, info)
    runs = MlflowRuns(store, content.experiment, info, check_tracking_uri(uri), artifact_place(store, uri))
    return SweepMirror(folder, content, runs)


def _sweeps(directory: str) -> list[SweepFolder]:
    whole = directory if "://" in directory else str(Path(directory).resolve())
    root, _, name = whole.rstrip("/").rpartition("/sweeps/")
    store = Store(root or whole)
    names = [name] if root else store.names("sweeps")
    if not names:
        raise ConfigError(f"{directory}: no sweeps there; give a sweep's storage, or STORAGE/sweeps/NAME")
    return [SweepFolder(store, name) for name in names]


def main(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A storage, or STORAGE/sweeps/NAME for one sweep.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="Where to; by default mlflow.db in the storage, which must be local then.")
    ] = None,
) -> None:
    """Mirror finished or interrupted sweeps of a storage into MLflow. Doing so again changes nothing."""
    from mlflow.exceptions import MlflowException

    try:
        whole = [_mirror_and_tell(folder, tracking_uri) for folder in _sweeps(directory)]
    except (DeftxError, MlflowException) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, DeftxError) else 1) from None
    raise typer.Exit(0 if all(whole) else 1)


def _mirror_and_tell(folder: SweepFolder, tracking_uri: str | None) -> bool:
    """Mirror one sweep; whether all of it."""
    uri = tracking_uri or default_tracking_uri(folder.store)
    try:
        typer.echo(f"{folder.name}: {mirror_sweep(folder.store, folder, uri)} runs in {uri}")
        return True
    except MirrorError as error:
        typer.echo(f"error: {folder.name}: {error}", err=True)
        return False


if __name__ == "__main__":
    typer.run(main)

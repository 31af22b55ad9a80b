"""The sweep in MLflow, as a mirror of the store: one experiment for a space, one parent run for a sweep, one child run
for each stage. The only importer of mlflow.

Runs are found again by their tags (sweep, address) and what one holds is compared by digest, so mirroring twice changes
nothing. A tracker that does not answer costs the driver no time: calls go to a background thread, what fails becomes
one warning, and what was missed is mirrored at the sweep's end or by `python -m orchestrator.tracking DIR`.

Artifacts go where a server keeps its own, else into the storage, `<storage>/mlartifacts`. MLflow writes to folders,
s3:// and gs://; with any other storage they go into `mlartifacts` beside the SQLite file.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deftx.errors import ConfigError, DeftxError
from deftx.store import Store
from orchestrator.background import BackgroundMirror
from orchestrator.mirror import MirrorError, SweepMirror
from orchestrator.record import SweepFolder, SweepInfo, known_sweep
from orchestrator.runs import PARENT, Point, PublishedFile, RunContent, SweepContent, sweep_status

if TYPE_CHECKING:  # importing mlflow takes a second or two: it is left to the background thread
    from mlflow import MlflowClient
    from mlflow.entities import Run

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_ARTIFACT_SCHEMES = ("s3", "gs")
_OWN_TAGS = ("reason", "sft", "combinations", "baselines", "chosen")
_MIRRORED = "mirrored"
_BATCH = 1000


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
        super().__init__(_sweep_mirror(store, folder, info, tracking_uri), tracking_uri)


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
    return SweepMirror(folder, content, _MlflowRuns(store, content.experiment, info, check_tracking_uri(uri)))


class _MlflowRuns:
    """`mirror.Runs` in MLflow: found by their tags, made when they are not there, written only when they differ."""

    def __init__(self, store: Store, experiment: str, info: SweepInfo, uri: str) -> None:
        self._store, self._info, self._uri = store, info, uri
        self._artifacts = artifact_place(store, uri)
        self._experiment_name = experiment
        self.forget()

    def forget(self) -> None:
        """Look everything up anew."""
        self._found: dict[str, Run] | None = None
        self._points: dict[str, set[tuple[str, int]]] = {}

    def addresses(self) -> list[str]:
        """The addresses that have a run."""
        return list(self._runs)

    def write(self, address: str, content: RunContent) -> None:
        """Make the run hold `content`, but for its files, and end it; nothing is sent when it does already."""
        run = self._runs.get(address) or self._create(address, content)
        if _holds(run, content):
            return
        if _MIRRORED in run.data.tags:
            self._client.delete_tag(run.info.run_id, _MIRRORED)
        self._log(run, content)
        if content.status != "RUNNING":
            self._client.set_terminated(run.info.run_id, content.status, content.span[1] if content.span else None)
        elif run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._refresh(address)

    def attach(self, address: str, content: RunContent) -> None:
        """Give the run, which was written, the files of `content`; nothing is sent when it has them already."""
        run = self._runs[address]
        if _holds(run, content):
            return
        self._upload(run.info.run_id, content.files)
        if content.status != "RUNNING":
            # the mark of completion comes last: whatever is cut short before is written again
            self._client.set_tag(run.info.run_id, _MIRRORED, content.digest)
            self._refresh(address)

    def add(self, points: Mapping[str, Sequence[Point]]) -> None:
        """Let curves grow; what has no run yet comes with the whole curve when its stage is done."""
        for address in points.keys() & self._runs.keys():
            self._log_points(self._runs[address], points[address])

    def end_running(self) -> None:
        """End the stages' runs that are RUNNING as KILLED."""
        for address, run in list(self._runs.items()):
            if address != PARENT and run.info.status == "RUNNING":
                self._client.set_tag(run.info.run_id, "reason", "the sweep ended before the stage was mirrored as done")
                self._client.set_terminated(run.info.run_id, "KILLED")
                self._refresh(address)

    @cached_property
    def _client(self) -> MlflowClient:
        return _connect(self._uri)

    @property
    def _runs(self) -> dict[str, Run]:
        if self._found is None:
            self._experiment = self._open_experiment()
            self._found = {run.data.tags["address"]: run for run in self._search()}
        return self._found

    def _open_experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return self._client.create_experiment(self._experiment_name, artifact_location=self._artifacts)
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _search(self) -> Iterator[Run]:
        # A server may be shared, and two people's sweeps may have one name: when it was created tells them apart.
        ours = f"tags.sweep = '{self._info.name}' and tags.sweep_created = '{self._info.created}'"
        token = ""
        while token is not None:
            page = self._client.search_runs([self._experiment], ours, max_results=1000, page_token=token)
            yield from page
            token = page.token

    def _create(self, address: str, content: RunContent) -> Run:
        parent = {} if address == PARENT else {"mlflow.parentRunId": self._runs[PARENT].info.run_id}
        begun = content.span[0] if content.span else None
        run = self._client.create_run(self._experiment, begun, content.tags | parent, content.name)
        self._points[run.info.run_id] = set()
        self._runs[address] = run
        return run

    def _refresh(self, address: str) -> None:
        self._runs[address] = self._client.get_run(self._runs[address].info.run_id)

    def _log(self, run: Run, content: RunContent) -> None:
        from mlflow.entities import Metric, Param, RunTag

        data, now = run.data, int(time.time() * 1000)
        made = content.span[1] if content.span else now
        tags = [RunTag(key, value) for key, value in content.tags.items() if data.tags.get(key) != value]
        params = [Param(key, value) for key, value in content.params.items() if key not in data.params]
        changed = {key: value for key, value in content.metrics.items() if data.metrics.get(key) != value}
        # of two points of one step MLflow shows the later one
        metrics = [Metric(key, v, now if key in data.metrics else made, 0) for key, v in changed.items()]
        self._client.log_batch(run.info.run_id, metrics, params, tags)
        self._log_points(run, content.curve)
        for tag in data.tags.keys() - content.tags.keys():
            if tag.partition(".")[0] in _OWN_TAGS:
                self._client.delete_tag(run.info.run_id, tag)

    def _log_points(self, run: Run, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        known = self._known_points(run)
        fresh = {(point.key, point.step): point for point in points if (point.key, point.step) not in known}
        metrics = [Metric(point.key, point.value, point.time, point.step) for point in fresh.values()]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(run.info.run_id, metrics[first : first + _BATCH])
        known.update(fresh)

    def _known_points(self, run: Run) -> set[tuple[str, int]]:
        run_id = run.info.run_id
        if run_id not in self._points:
            history = (point for key in run.data.metrics for point in self._client.get_metric_history(run_id, key))
            self._points[run_id] = {(point.key, point.step) for point in history}
        return self._points[run_id]

    def _upload(self, run_id: str, files: Mapping[str, bytes | PublishedFile]) -> None:
        if not files:
            return
        with tempfile.TemporaryDirectory(prefix="deftx-mirror-") as folder:
            for name, file in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file, bytes):
                    path.write_bytes(file)
                else:  # a file of a remote store lies in the cache under another name
                    path.symlink_to(self._store.fetch(file.address, file.name).resolve())
            self._client.log_artifacts(run_id, folder)


def _connect(uri: str) -> MlflowClient:
    for key, value in _IMPATIENT.items() if uri.startswith("http") else ():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    try:
        return MlflowClient(uri)
    except Exception as error:  # a database that cannot be opened, a driver that is not installed
        raise ConfigError(f"tracking URI {uri}: cannot be opened: {error}") from None


def _holds(run: Run, content: RunContent) -> bool:
    return run.data.tags.get(_MIRRORED) == content.digest and run.info.status == content.status


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

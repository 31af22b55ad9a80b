"""The only importer of mlflow: the runs of a sweep, where they are kept, and what an experiment shows on its own.

Runs are found by their tags, made when they are not there, and written only when they differ.

Artifacts go where a server keeps its own, else into the storage, `<storage>/mlartifacts`. MLflow writes to folders,
s3:// and gs://; with any other storage they go into `mlartifacts` beside the SQLite file.

MLflow shows no scores in its list of runs by default and has no call to change that; a view saved by hand is a tag of
the experiment, and so are two here for each sweep, under Views. Versions of MLflow that have no such views ignore them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deftx.errors import ConfigError
from deftx.stages.store import Store
from orchestrator.kinds import SHOWN, View
from orchestrator.record.sweep import SweepInfo
from orchestrator.tracking.content import PARENT, MetricPoint, PublishedFile, RunContent

if TYPE_CHECKING:  # importing mlflow takes a second or two: it is left to the mirror's own thread
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
_OWN_TAGS = ("reason", "sft", "rows", "chosen")
_MIRRORED = "mirrored"
_BATCH = 1000
_NOTE = (
    "DEFT-X on {benchmark}. One run for each sweep; under it (the plus sign) one for each stage. "
    "**Views**, on top of the list of runs, has the scores and the vectors of a sweep as tables."
)
_WIDTHS = {"tags.`language`": 90, "tags.`subject`": 90, "tags.`rows`": 280, "tags.`chosen`": 80}  # pixels


class MlflowRuns:
    """The runs of one sweep, by stage address."""

    def __init__(self, store: Store, info: SweepInfo, uri: str) -> None:
        """Bind a sweep's experiment, which has the space's name, else the benchmark's; nothing is sent yet.

        Raises:
            ConfigError: see `check_tracking_uri` and `artifact_place`.
        """
        self._store, self._info, self._uri = store, info, check_tracking_uri(uri)
        self._experiment_name = str(info.space.get("name") or info.benchmark)
        self._artifacts = artifact_place(store, uri)
        self.forget()

    def forget(self) -> None:
        """Look everything up again: a call failed, and what it has done is unknown."""
        self._runs_by_address: dict[str, Run] | None = None
        self._points: dict[str, set[tuple[str, int]]] = {}

    def addresses(self) -> list[str]:
        """The addresses that have a run."""
        return list(self._runs)

    def write(self, address: str, content: RunContent) -> None:
        """Make the run hold `content` except its files, and end it; nothing is sent when it does already."""
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

    def add(self, points: Mapping[str, Sequence[MetricPoint]]) -> None:
        """Let curves grow, by address; what has no run yet comes with the whole curve when its stage is done."""
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
        if self._runs_by_address is None:
            self._experiment = self._open_experiment()
            self._runs_by_address = {run.data.tags["address"]: run for run in self._search()}
        return self._runs_by_address

    def _open_experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            experiment_id = self._client.create_experiment(self._experiment_name, artifact_location=self._artifacts)
            experiment = self._client.get_experiment(experiment_id)
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        for key, value in _experiment_tags(self._info).items():
            if key not in experiment.tags:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        return str(experiment.experiment_id)

    def _search(self) -> Iterator[Run]:
        # A server may be shared, and two people's sweeps may have one name: when it was created tells them apart.
        filter_string = f"tags.sweep = '{self._info.name}' and tags.sweep_created = '{self._info.created}'"
        token = ""
        while token is not None:
            page = self._client.search_runs([self._experiment], filter_string, max_results=1000, page_token=token)
            yield from page
            token = page.token

    def _create(self, address: str, content: RunContent) -> Run:
        parent = {} if address == PARENT else {"mlflow.parentRunId": self._runs[PARENT].info.run_id}
        start = content.span[0] if content.span else None
        run = self._client.create_run(self._experiment, start, content.tags | parent, content.name)
        self._points[run.info.run_id] = set()
        self._runs[address] = run
        return run

    def _refresh(self, address: str) -> None:
        self._runs[address] = self._client.get_run(self._runs[address].info.run_id)

    def _log(self, run: Run, content: RunContent) -> None:
        from mlflow.entities import Metric, Param, RunTag

        data, now = run.data, int(time.time() * 1000)
        ended = content.span[1] if content.span else now
        tags = [RunTag(key, value) for key, value in content.tags.items() if data.tags.get(key) != value]
        params = [Param(key, value) for key, value in content.params.items() if key not in data.params]
        changed = {key: value for key, value in content.metrics.items() if data.metrics.get(key) != value}
        # of two points of one step MLflow shows the later one
        metrics = [Metric(key, v, now if key in data.metrics else ended, 0) for key, v in changed.items()]
        self._client.log_batch(run.info.run_id, metrics, params, tags)
        self._log_points(run, content.curve)
        for tag in data.tags.keys() - content.tags.keys():
            if tag.partition(".")[0] in _OWN_TAGS:
                self._client.delete_tag(run.info.run_id, tag)

    def _log_points(self, run: Run, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        logged = self._logged_points(run)
        fresh = {(point.key, point.step): point for point in points if (point.key, point.step) not in logged}
        metrics = [Metric(point.key, point.value, point.time, point.step) for point in fresh.values()]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(run.info.run_id, metrics[first : first + _BATCH])
        logged.update(fresh)

    def _logged_points(self, run: Run) -> set[tuple[str, int]]:
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


def default_tracking_uri(store: Store) -> str:
    """The tracking URI of a local store when none is given: `<storage>/mlflow.db`.

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
        place = uri if "://" in uri else uri.rpartition("@")[2]  # `user:password@host` is not told from other words
        raise ConfigError(
            f"tracking URI {place!r}: MLflow keeps runs in a database or on a server; "
            f"write sqlite:////absolute/path/mlflow.db or http://HOST:5000"
        )
    return uri


def artifact_place(store: Store, tracking_uri: str) -> str | None:
    """The URI under which a new experiment keeps its artifacts; None leaves it to the server.

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


def mlflow_error() -> type[Exception]:
    """The exception that MLflow raises for a server that does not answer, or that refuses something."""
    from mlflow.exceptions import MlflowException

    return MlflowException


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


def _experiment_tags(info: SweepInfo) -> dict[str, str]:
    """The tags of a sweep's experiment. Only those it does not have are set, so that a user's changes stay."""
    views = sorted((kind.view.name, name, kind.view) for name, kind in SHOWN.items() if kind.view)
    return {
        "mlflow.note.content": _NOTE.format(benchmark=info.benchmark),
        "mlflow.experimentKind": "custom_model_development",
        **dict(_view(info, name, view) for _, name, view in views),
    }


def _view(info: SweepInfo, kind: str, view: View) -> tuple[str, str]:
    """The key and the value of the tag that MLflow reads a view from."""
    columns = list(view.columns)
    state = {
        "searchFilter": f"tags.sweep = '{info.name}' and tags.kind = '{kind}'",
        "orderByKey": view.order,
        "orderByAsc": view.ascending,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: _WIDTHS.get(column, 7 * len(column) - 30) for column in columns},
    }
    saved = {"name": f"{info.name}: {view.name}", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{info.name}-{view.name}", json.dumps(saved)

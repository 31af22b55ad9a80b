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
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from deftx.errors import ConfigError, reason
from deftx.passwords import to_type
from deftx.stages.store import Store
from orchestrator.kinds import SHOWN, View
from orchestrator.record.sweep import SweepInfo
from orchestrator.tracking import database
from orchestrator.tracking.content import PARENT, MetricPoint, RunContent

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
_OTHER_VERSION = ("out-of-date database schema", "Can't locate revision")
_HALF_MADE = ("already exists", "no such table", "no such column", "duplicate column")
"""What MLflow says of a database whose upgrade was cut short between two of its steps."""
_BATCH = 800
"""Points of a request: MLflow takes 1,000 things at once, of which 100 are params and 100 tags."""
_NOTE = (
    "DEFT-X on {benchmark}. One run for each sweep; under it (the plus sign) one for each stage. "
    "**Views**, on top of the list of runs, has the scores and the vectors of a sweep as tables."
)
_WIDTHS = {"tags.`language`": 90, "tags.`subject`": 90, "tags.`rows`": 280, "tags.`chosen`": 80}  # pixels


@dataclass
class _KnownRun:
    """What MLflow has of a run: as it was found or made, and with all that was written since, so that nobody asks."""

    run_id: str
    artifact_uri: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    points: set[tuple[str, int]] = field(default_factory=set)
    """Of its curves, by metric and step."""
    asked: set[str] = field(default_factory=set)
    """The metrics that it was found with and whose points are in `points`."""
    coming: dict[str, str] = field(default_factory=dict)
    """Params that go with the first points."""
    files: dict[str, str] = field(default_factory=dict)
    """The digests of the files that were sent."""

    @classmethod
    def of(cls, run: Run) -> _KnownRun:
        info, data = run.info, run.data
        return cls(info.run_id, info.artifact_uri, info.status, dict(data.tags), dict(data.params), dict(data.metrics))

    def holds(self, content: RunContent) -> bool:
        return self.tags.get(_MIRRORED) == content.digest and self.status == content.status


class MlflowRuns:
    """The runs of one sweep, by stage address."""

    def __init__(self, store: Store, info: SweepInfo, uri: str, tell: Callable[[str], None] = lambda _: None) -> None:
        """Bind a sweep's experiment, which has the space's name, else the benchmark's; nothing is sent yet.

        Args:
            store: the sweep's storage.
            info: what was asked for.
            uri: MLflow's.
            tell: called with what was done to a database that was torn or moved, a line each.

        Raises:
            ConfigError: see `check_tracking_uri` and `artifact_place`.
        """
        self._store, self._info, self._uri, self._tell = store, info, check_tracking_uri(uri), tell
        self._experiment_name = str(info.space.get("name") or info.benchmark)
        self._artifacts = artifact_place(store, uri)
        self.forget()

    def forget(self) -> None:
        """Look everything up again: a call failed, and what it has done is unknown."""
        self._runs_by_address: dict[str, _KnownRun] | None = None

    def addresses(self) -> list[str]:
        """The addresses that have a run."""
        return list(self._runs)

    def is_running(self, address: str) -> bool:
        """Whether a stage has a run that was not ended."""
        run = self._runs.get(address)
        return run is not None and run.status == "RUNNING"

    def complete(self, contents: Mapping[str, RunContent]) -> set[str]:
        """The addresses whose runs hold their contents, by what is known; nothing is sent."""
        known = self._runs_by_address or {}
        return {address for address, content in contents.items() if address in known and known[address].holds(content)}

    def open(self, address: str, content: RunContent) -> None:
        """Let a stage's run be RUNNING; a new one gets its params with its first points, else at its end."""
        if address in self._runs:
            self.write(address, content)
        else:
            self._create(address, content).coming = content.params

    def write(self, address: str, content: RunContent) -> None:
        """Make the run hold `content` except files that it lacks, and end it; nothing is sent when it does already."""
        run = self._runs.get(address) or self._create(address, content)
        if run.holds(content):
            return
        self._log(run, content)
        if run.status != content.status:
            self._set_status(run, content.status, content.span[1] if content.span else None)

    def send_files(self, address: str, content: RunContent) -> None:
        """Give the run the files of `content`, before it is written: it is then complete with one request less."""
        run = self._runs.get(address) or self._create(address, content)
        if not run.holds(content):
            self._upload(run, content)

    def attach(self, address: str, content: RunContent) -> None:
        """Give the run, which was written, the files of `content`; nothing is sent when it has them already."""
        run = self._runs[address]
        if run.holds(content):
            return
        self._upload(run, content)
        if content.status != "RUNNING":
            # the mark of completion comes last: whatever is cut short before is written again
            self._set_tag(run, _MIRRORED, content.digest)

    def add(self, points: Mapping[str, Sequence[MetricPoint]]) -> None:
        """Let curves grow, by address; what has no run yet comes with the whole curve when its stage is done."""
        for address in points.keys() & self._runs.keys():
            run = self._runs[address]
            self._send(run, self._fresh(run, points[address]), run.coming, {})

    def end_running(self) -> None:
        """End the stages' runs that are RUNNING as KILLED."""
        for address, run in list(self._runs.items()):
            if address != PARENT and run.status == "RUNNING":
                self._set_tag(run, "reason", "the sweep ended before the stage was mirrored as done")
                self._set_status(run, "KILLED", None)

    @cached_property
    def _client(self) -> MlflowClient:
        if is_default(self._store, self._uri):
            return _connect_own(self._store, self._uri, self._tell)
        return _connect(self._uri)

    @property
    def _runs(self) -> dict[str, _KnownRun]:
        if self._runs_by_address is None:
            self._experiment = self._open_experiment()
            self._runs_by_address = {run.data.tags["address"]: _KnownRun.of(run) for run in self._search()}
        return self._runs_by_address

    def _open_experiment(self) -> str:
        tags = _experiment_tags(self._info)
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return str(self._client.create_experiment(self._experiment_name, self._artifacts, tags))
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        for key, value in tags.items():
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

    def _create(self, address: str, content: RunContent) -> _KnownRun:
        parent = {} if address == PARENT else {"mlflow.parentRunId": self._runs[PARENT].run_id}
        start, tags = content.span[0] if content.span else None, content.tags | parent
        run = _KnownRun.of(self._client.create_run(self._experiment, start, tags, content.name))
        run.tags |= tags
        self._runs[address] = run
        return run

    def _set_tag(self, run: _KnownRun, key: str, value: str) -> None:
        self._client.set_tag(run.run_id, key, value)
        run.tags[key] = value

    def _set_status(self, run: _KnownRun, status: str, end: int | None) -> None:
        if status == "RUNNING":
            self._client.update_run(run.run_id, status)
        else:
            self._client.set_terminated(run.run_id, status, end)
        run.status = status

    def _log(self, run: _KnownRun, content: RunContent) -> None:
        """Send all but the files, and the mark of completion if no file is missing; one request if no curve is long."""
        for tag in run.tags.keys() - content.tags.keys():
            if tag.partition(".")[0] in _OWN_TAGS:
                self._client.delete_tag(run.run_id, tag)
                del run.tags[tag]
        now = int(time.time() * 1000)
        ended = content.span[1] if content.span else now
        # of two points of one step MLflow shows the later one
        results = [
            MetricPoint(key, 0, value, now if key in run.metrics else ended)
            for key, value in content.metrics.items()
            if run.metrics.get(key) != value
        ]
        whole = content.status != "RUNNING" and content.file_digests.items() <= run.files.items()
        # a run that is being written again is not to be taken for what it was
        mark = {_MIRRORED: content.digest} if whole else {_MIRRORED: "no"} if _MIRRORED in run.tags else {}
        tags = {key: value for key, value in (content.tags | mark).items() if run.tags.get(key) != value}
        self._send(run, [*results, *self._fresh(run, content.curve)], content.params, tags)

    def _fresh(self, run: _KnownRun, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        """The points that the run does not have yet, each once."""
        for key in {point.key for point in points} & run.metrics.keys() - run.asked:
            history = self._client.get_metric_history(run.run_id, key)
            run.points |= {(point.key, point.step) for point in history}
            run.asked.add(key)
        fresh = {(point.key, point.step): point for point in points if (point.key, point.step) not in run.points}
        return list(fresh.values())

    def _send(
        self, run: _KnownRun, points: Sequence[MetricPoint], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Log points, and params that the run does not have; the tags come with the last request, after all else."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.key, point.value, point.time, point.step) for point in points]
        new = {key: value for key, value in params.items() if key not in run.params}
        while len(metrics) > _BATCH:
            self._client.log_batch(run.run_id, metrics[:_BATCH])
            del metrics[:_BATCH]
        self._client.log_batch(
            run.run_id, metrics, [Param(*pair) for pair in new.items()], [RunTag(*pair) for pair in tags.items()]
        )
        run.params |= new
        run.tags |= tags
        run.coming = {}
        for point in points:
            run.points.add((point.key, point.step))
            run.asked.add(point.key)
            run.metrics[point.key] = point.value

    def _upload(self, run: _KnownRun, content: RunContent) -> None:
        names = [name for name, digest in content.file_digests.items() if run.files.get(name) != digest]
        if not names:
            return
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with tempfile.TemporaryDirectory(prefix="deftx-mirror-") as folder:
            for name in names:
                path, file = Path(folder, name), content.files[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file, bytes):
                    path.write_bytes(file)
                else:  # a file of a remote store lies in the cache under another name
                    path.symlink_to(self._store.fetch(file.address, file.name).resolve())
            # MlflowClient would ask for the run first
            place: Any = get_artifact_repository(run.artifact_uri, tracking_uri=self._uri)
            place.log_artifacts(folder)
        run.files |= content.file_digests


def default_tracking_uri(store: Store) -> str:
    """The tracking URI of a local store when none is given: `<storage>/mlflow.db`.

    Raises:
        ConfigError: for a remote store, which no SQLite file can lie in.
    """
    if store.local:
        return database.sqlite_uri(store.path("mlflow.db"))
    raise ConfigError(
        f"{store.url}: a remote storage needs --tracking-uri, such as http://HOST:5000 of an "
        f"`mlflow server`, or sqlite:////absolute/path/mlflow.db on this machine"
    )


def is_default(store: Store, uri: str) -> bool:
    """Whether a tracking URI is that of the storage's own database."""
    return store.local and uri == default_tracking_uri(store)


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
        path = unquote(tracking_uri.partition(":///")[2].partition("?")[0])
        return (Path(path).resolve().parent / "mlartifacts").as_uri()
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
        if any(words in str(error) for words in _OTHER_VERSION):
            raise _OtherVersion(uri) from None
        raise ConfigError(f"tracking URI {uri}: cannot be opened: {reason(error)}") from error


def _connect_own(store: Store, uri: str, tell: Callable[[str], None]) -> MlflowClient:
    """Open the database of a local storage, which is made first if it is not there or torn."""
    path, place = Path(store.path("mlflow.db")), Path(store.path("mlartifacts")).resolve()
    mirror = _as_command("python", "-m", "orchestrator.tracking", store.url)
    with database.alone(path.parent):
        if why := database.damage(path):
            tell(_set_aside(path, why, mirror))
        if not path.exists():
            database.make(path, _connect)
        try:
            for old in database.follow(path, place):
                tell(f"{path}: this storage was moved; artifacts that MLflow had in {old} are in {place.as_uri()} now")
            return _connect(uri)
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot be opened: {error}") from None
        except _OtherVersion:
            away = _as_command("mv", str(path), f"{path}.other")
            raise _OtherVersion(uri, f", or move it away and mirror everything anew: {away}; {mirror}") from None
        except ConfigError as error:
            if not any(words in str(error) for words in _HALF_MADE):
                raise
            tell(_set_aside(path, f"half made ({reason(error.__cause__ or error)})", mirror))
            database.make(path, _connect)
            # MLflow keeps its connections by URI, and those of the one that failed are to the file set aside
            return _connect(uri.removesuffix("mlflow.db") + "./mlflow.db")


class _OtherVersion(ConfigError):
    """A database whose tables are those of another version of MLflow than the one installed; it is not torn."""

    def __init__(self, uri: str, else_: str = "") -> None:
        from mlflow.version import VERSION

        upgrade = _as_command("mlflow", "db", "upgrade", uri)
        super().__init__(
            f"{uri}: the database was made by another version of MLflow than the one installed, {VERSION}; use that "
            f"version, or upgrade the database if it is an older one: {upgrade}{else_}"
        )


def _as_command(*words: str) -> str:
    return f"`{to_type(shlex.join(words))}`"


def _set_aside(path: Path, why: str, mirror: str) -> str:
    aside = database.set_aside(path)
    return f"{path}: {why}; it is now {aside.name}, and the sweep is mirrored into a new one (every sweep: {mirror})"


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

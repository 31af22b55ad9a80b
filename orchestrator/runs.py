"""What MLflow shows of a sweep, as plain data: one run for the sweep, one for each of its stages. No mlflow here.

Everything is read from the store, so that a mirror grown while the sweep ran and one made afterwards hold the same.
Test scores are read in one place (`_sealed_score`), and only once the search has ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from deftx.stages import Stage
from deftx.store import Manifest
from orchestrator.record import Failure, StageEntry, State, SweepFolder, SweepInfo

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
PARENT = "sweep"
"""Stands where a stage has its address."""

_PARAM_LENGTH = 1000


@dataclass(frozen=True)
class Point:
    """One point of a curve; `time` in milliseconds since 1970."""

    key: str
    step: int
    value: float
    time: int


@dataclass(frozen=True)
class PublishedFile:
    """A file that a stage published. Named and not read: a run that is complete already never fetches it."""

    address: str
    name: str
    sha256: str


@dataclass(frozen=True)
class RunContent:
    """All that one run should hold."""

    name: str
    status: RunStatus
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    files: dict[str, bytes | PublishedFile] = field(default_factory=dict)
    span: tuple[int, int] | None = None

    @property
    def digest(self) -> str:
        """What is the same for the same content, whenever it is written."""
        points = [(point.key, point.step, point.value) for point in self.curve]
        files = {name: _file_digest(file) for name, file in self.files.items()}
        content = [self.name, self.status, self.tags, self.params, self.metrics, points, files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class SweepContent:
    """Reads the runs of one sweep out of the store."""

    def __init__(self, folder: SweepFolder, info: SweepInfo) -> None:
        self.folder, self.info = folder, info

    @property
    def experiment(self) -> str:
        """The experiment's name: the space's own, else its benchmark's."""
        return str(self.info.space.get("name") or self.info.benchmark)

    def sweep(self, state: State, status: RunStatus, *, sealed: bool) -> RunContent:
        """The parent run: what was asked for and the combination chosen.

        Scores of combinations are with their grades: a tracker never forgets a point of a curve, and a widened space
        gives ask numbers to other combinations.

        Args:
            state: how far the sweep is.
            status: what the run is to show.
            sealed: whether test scores stay out.
        """
        return RunContent(
            name=self.info.name,
            status=status,
            tags=self._tags(PARENT, "sweep", self.info.git_commit) | self._description() | _chosen_tags(state),
            params={"benchmark": self.info.benchmark, "backbone": self.info.backbone, "seed": str(self.info.seed)},
            metrics=self._sweep_metrics(state, sealed=sealed),
            files=self._sweep_files(state),
        )

    def running(self, stage: Stage) -> RunContent:
        """A stage that has just begun."""
        entry = StageEntry.of(stage)
        tags = self._stage_tags(stage.address, entry) | {"reused": "false"}
        return RunContent(entry.label, "RUNNING", tags, params=_flat(stage.settings.model_dump(mode="json")))

    def done(self, address: str, entry: StageEntry, state: State, *, sealed: bool) -> RunContent | None:
        """A published stage, or none when the store does not have it.

        Args:
            address: the stage's.
            entry: the stage in the sweep's plan; one that was `reused` points to its SFT and does not carry it.
            state: tells which combinations a grade serves.
            sealed: whether test scores stay out.
        """
        manifest = self.folder.store.manifest(address)
        if manifest is None:
            return None
        # A driver that resumes finds in the store what this very sweep made: that is no reuse.
        reused = entry.status == "reused" and not self.folder.has_log(address)
        test = {} if sealed or entry.kind != "grade" else self._sealed_metrics({entry.language: address})
        return RunContent(
            name=entry.label,
            status="FINISHED",
            tags=self._done_tags(entry, manifest, reused) | _row_tags(address, state),
            params=_flat(manifest.identity["settings"]),
            metrics=_metrics(manifest) | _row_score(address, state) | test,
            curve=_curve(manifest),
            files=_details(manifest) | ({} if reused else _sft_files(manifest)),
            span=_span(manifest),
        )

    def failed(self, address: str, entry: StageEntry, failure: Failure | None) -> RunContent:
        """A stage that failed for good, with the reason."""
        reason = failure.reason if failure else "not on record"
        tags = self._stage_tags(address, entry) | {"reused": "false", "reason": reason}
        files: dict[str, bytes | PublishedFile] = {}
        if failure is not None:
            files["failure.txt"] = f"{failure.reason}\n\n{failure.trace}\n{failure.log}\n".encode()
        return RunContent(entry.label, "FAILED", tags, files=files)

    def _sealed_metrics(self, grades: Mapping[str, str]) -> dict[str, float]:
        scores = {language: self._sealed_score(address) for language, address in grades.items()}
        return {f"sealed_test/{language}": score for language, score in scores.items() if score is not None}

    def _sealed_score(self, address: str) -> float | None:
        manifest = self.folder.store.manifest(address)
        if manifest is None or "sealed_test.json" not in manifest.files:
            return None
        scores = json.loads(self.folder.store.fetch(address, "sealed_test.json").read_bytes())
        return float(scores[scores["metric"]])

    def _tags(self, address: str, kind: str, commit: str | None) -> dict[str, str]:
        tags = {
            "sweep": self.info.name,
            "sweep_created": self.info.created,
            "kind": kind,
            "address": address,
            "backbone": self.info.backbone,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": " ".join(self.info.command),
        }
        return tags | ({"git_commit": commit, "mlflow.source.git.commit": commit} if commit else {})

    def _stage_tags(self, address: str, entry: StageEntry, commit: str | None = None) -> dict[str, str]:
        about = {"language": entry.language, "subject": entry.subject}
        return self._tags(address, entry.kind, commit or self.info.git_commit) | about

    def _done_tags(self, entry: StageEntry, manifest: Manifest, reused: bool) -> dict[str, str]:
        tags = self._stage_tags(manifest.address, entry, manifest.git_commit)
        if not reused:
            return tags | {"reused": "false"}
        place = {"sft": self.folder.store.url_of(manifest.address, "sft")} if entry.kind == "sparse" else {}
        return tags | {"reused": "true"} | place

    def _description(self) -> dict[str, str]:
        info = self.info
        text = f"DEFT-X sweep of {info.benchmark} on {info.backbone}, seed {info.seed}: `{' '.join(info.command)}`"
        return {"mlflow.note.content": text}

    def _sweep_metrics(self, state: State, *, sealed: bool) -> dict[str, float]:
        statuses = [row.status for row in state.combinations]
        metrics = {
            "combinations": float(statuses.count("complete")),
            "combinations_failed": float(statuses.count("failed")),
        }
        chosen = state.chosen_row
        if chosen is None or chosen.score is None:
            return metrics
        test = {} if sealed else self._sealed_metrics(chosen.grades)
        if test:
            test["sealed_test/average"] = sum(test.values()) / len(test)
        return metrics | {"chosen_score": chosen.score} | test

    def _sweep_files(self, state: State) -> dict[str, bytes | PublishedFile]:
        plan = {address: entry.model_dump() for address, entry in state.stages.items()}
        files: dict[str, bytes | PublishedFile] = {
            "sweep.json": self.info.model_dump_json(indent=1).encode(),
            "space.json": json.dumps(self.info.space, indent=1).encode(),
            "plan.json": json.dumps(plan, indent=1).encode(),
        }
        return files | dict(self._results())

    def _results(self) -> Iterator[tuple[str, bytes]]:
        store, name = self.folder.store, self.folder.name
        plots = [("plots", plot) for plot in store.names("sweeps", name, "plots")]
        for parts in [("report.md",), ("results.csv",), *plots]:
            content = store.read("sweeps", name, *parts)
            if content is not None:
                yield "/".join(parts), content


def sweep_status(state: State) -> RunStatus:
    """How the parent run ends: killed before the end, failed when a stage or a combination did, else finished."""
    if not state.ended:
        return "KILLED"
    statuses = [entry.status for entry in state.stages.values()] + [row.status for row in state.rows]
    return "FAILED" if "failed" in statuses else "FINISHED"


def _now() -> int:
    return int(datetime.now().timestamp() * 1000)


def _file_digest(file: bytes | PublishedFile) -> str:
    return file.sha256 if isinstance(file, PublishedFile) else hashlib.sha256(file).hexdigest()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as params: `denoise.rank` -> `100`; a list becomes JSON, none becomes `none`."""
    params: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            params |= _flat(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, str):
            params[prefix + key] = (value or "none")[:_PARAM_LENGTH]
        else:
            params[prefix + key] = json.dumps(value)[:_PARAM_LENGTH]
    return params


def _metrics(manifest: Manifest) -> dict[str, float]:
    # A result such as valid_loss would else be drawn as one more point of the curve of that name.
    curves = {key for point in manifest.curve for key in point}
    results = {f"best_{key}" if key in curves else key: value for key, value in manifest.metrics.items()}
    return results | {"seconds": manifest.seconds, "peak_bytes": float(manifest.peak_bytes)}


def _curve(manifest: Manifest) -> tuple[Point, ...]:
    begin, end = _span(manifest) or (_now(), _now())
    last = max((row["step"] for row in manifest.curve), default=0) or 1
    return tuple(
        Point(key, int(row["step"]), value, int(begin + (end - begin) * row["step"] / last))
        for row in manifest.curve
        for key, value in row.items()
        if key != "step"
    )


def _span(manifest: Manifest) -> tuple[int, int] | None:
    try:
        end = datetime.fromisoformat(manifest.created).timestamp()
    except ValueError:
        return None
    return int((end - manifest.seconds) * 1000), int(end * 1000)


def _details(manifest: Manifest) -> dict[str, bytes | PublishedFile]:
    return {"details.json": json.dumps(manifest.details, indent=1).encode()} if manifest.details else {}


def _sft_files(manifest: Manifest) -> dict[str, bytes | PublishedFile]:
    return {
        name: PublishedFile(manifest.address, name, entry.sha256)
        for name, entry in manifest.files.items()
        if manifest.kind == "sparse" and name.startswith("sft/")
    }


def _row_tags(address: str, state: State) -> dict[str, str]:
    rows = [row for row in state.rows if address in row.grades.values()]
    numbers = [str(row.number) for row in rows if row.kind == "combination"]
    baselines = [row.kind for row in rows if row.kind != "combination"]
    tags = {"combinations": ", ".join(numbers), "baselines": ", ".join(baselines)}
    return {key: value for key, value in tags.items() if value}


def _row_score(address: str, state: State) -> dict[str, float]:
    """The validation score of the combination that a grade serves: the mean over all its languages."""
    scores = [row.score for row in state.combinations if address in row.grades.values() and row.score is not None]
    return {"score": max(scores)} if scores else {}


def _chosen_tags(state: State) -> dict[str, str]:
    row = state.chosen_row
    if row is None:
        return {}
    parameters = {f"chosen.{key}": str(value) for key, value in row.parameters.items()}
    return {"chosen": row.title, "chosen.number": str(row.number), **parameters}

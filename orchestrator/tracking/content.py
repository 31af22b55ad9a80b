"""What MLflow shows of a sweep, as plain data: one run for the sweep, one for each of its stages. No mlflow here.

Everything is read from the store, so that a mirror grown while the sweep ran and one made afterwards hold the same.
Test scores are those of `Grades`, which opens them only once the search has ended. Metrics are named
in words with their unit, scores in percentage points as in the report; MLflow makes a section of its charts from what
is before the slash.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from deftx.stages.files import SFT
from deftx.stages.kinds import kind_of
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage
from orchestrator.kinds import format_metric, result, score_name, shown_as
from orchestrator.record.grades import Grade, Grades
from orchestrator.record.sweep import Failure, GradeRow, StageEntry, State, SweepFolder, SweepInfo
from orchestrator.wording import by_few_labels, format_selection

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
PARENT = "sweep"
"""The address of the sweep's own run."""

_PARAM_LENGTH = 1000
_CURVES: dict[str, tuple[str, float]] = {
    "train_loss": ("curve/training loss", 1),
    "valid_loss": ("curve/validation loss", 1),
    "valid_score": ("curve/validation score points", 100),
}


@dataclass(frozen=True)
class MetricPoint:
    """One point of a curve; `time` in milliseconds since 1970."""

    key: str
    step: int
    value: float
    time: int


@dataclass(frozen=True)
class PublishedFile:
    """A file that a stage published. It is fetched only when it is uploaded."""

    address: str
    name: str
    sha256: str


Files = dict[str, bytes | PublishedFile]


@dataclass(frozen=True)
class RunContent:
    """Everything that one run should hold."""

    name: str
    status: RunStatus
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[MetricPoint, ...] = ()
    files: Files = field(default_factory=dict)
    span: tuple[int, int] | None = None

    @cached_property
    def file_digests(self) -> dict[str, str]:
        """The SHA-256 of each file."""
        return {
            name: file.sha256 if isinstance(file, PublishedFile) else hashlib.sha256(file).hexdigest()
            for name, file in self.files.items()
        }

    @cached_property
    def digest(self) -> str:
        """A hash of the content, the same whenever it is written."""
        points = [(point.key, point.step, point.value) for point in self.curve]
        content = [self.name, self.status, self.tags, self.params, self.metrics, points, self.file_digests]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class SweepContent:
    """The content of a sweep's runs, read from the store."""

    def __init__(self, folder: SweepFolder, info: SweepInfo) -> None:
        self.folder, self.info = folder, info

    def sweep(self, state: State, status: RunStatus, test: Grades | None = None) -> RunContent:
        """The parent run: what was asked for and the combination chosen, with its test scores where there are any.

        Scores of combinations are with their grades: a tracker never forgets a point of a curve, and a widened space
        gives ask numbers to other combinations.
        """
        return RunContent(
            name=self.info.name,
            status=status,
            tags=self._tags(PARENT, "sweep", self.info.git_commit) | self._description(state),
            params={"benchmark": self.info.benchmark, "backbone": self.info.backbone, "seed": str(self.info.seed)},
            # a count of a running sweep would stay as one more point of the metric
            metrics={} if status == "RUNNING" else rounded(self._sweep_metrics(state, test)),
            files=self._sweep_files(state, status),
            span=self._sweep_span(state),
        )

    def running(self, stage: Stage) -> RunContent:
        """The run of a stage that has just begun."""
        entry, settings = StageEntry.of(stage), stage.settings.identity()
        return RunContent(entry.label, "RUNNING", self._stage_tags(stage.address, entry), params(settings))

    def ended(
        self, address: str, entry: StageEntry, state: State, failure: Failure | None, test: Grades | None = None
    ) -> RunContent | None:
        """The run of a stage that is published or failed permanently; None for one that waits or is not in the store.

        Args:
            address: the stage's.
            entry: the stage in the sweep's plan; a `reused` one has the URL of its SFT instead of the files.
            state: tells which combinations a grade serves.
            failure: why it failed, where that is on record.
            test: where test scores are read.
        """
        if entry.status == "waiting":
            return None
        if entry.status == "failed":
            return self._failed(address, entry, failure)
        manifest = self.folder.store.manifest(address)
        if manifest is None:
            return None
        # A driver that resumes finds in the store what this very sweep made: that is no reuse.
        reused = entry.status == "reused" and not self.folder.has_log(address)
        rows = [row for row in state.rows if address in row.grades.values()]
        scores = _test_scores(test.read(address)) if kind_of(entry.kind).seals and test else {}
        return RunContent(
            name=entry.label,
            status="FINISHED",
            tags=self._done_tags(entry, manifest, reused) | _row_tags(rows, state),
            params=params(manifest.identity["settings"]) | _row_params(rows),
            metrics=rounded(_results(manifest) | self._best_score(rows) | scores),
            curve=_curve(manifest),
            files=_details(manifest) | ({} if reused else _published_files(manifest)),
            span=_span(manifest),
        )

    def _failed(self, address: str, entry: StageEntry, failure: Failure | None) -> RunContent:
        tags = self._stage_tags(address, entry) | {"reason": failure.reason if failure else "not on record"}
        text = f"{failure.reason}\n\n{failure.trace}\n{failure.log}\n" if failure else ""
        return RunContent(entry.label, "FAILED", tags, files={"failure.txt": text.encode()} if text else {})

    def _tags(self, address: str, kind: str, commit: str | None) -> dict[str, str]:
        tags = {
            "sweep": self.info.name,
            "sweep_created": self.info.created,
            "kind": kind,
            "address": address,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": " ".join(self.info.command),
        }
        return tags | ({"mlflow.source.git.commit": commit} if commit else {})

    def _stage_tags(self, address: str, entry: StageEntry, commit: str | None = None) -> dict[str, str]:
        return self._tags(address, entry.kind, commit or self.info.git_commit) | {
            "language": entry.language,
            "subject": entry.subject,
            "reused": "false",
            "mlflow.note.content": sentence(entry.kind, entry.language, entry.subject),
        }

    def _done_tags(self, entry: StageEntry, manifest: Manifest, reused: bool) -> dict[str, str]:
        tags = self._stage_tags(manifest.address, entry, manifest.git_commit)
        if summary := manifest.details.get("summary"):
            tags["mlflow.note.content"] += f"\n\n{summary}"
        if reused:
            tags["reused"] = "true"
            if kind_of(entry.kind).makes_sft:
                tags["sft"] = self.folder.store.url_of(manifest.address, SFT)
        return tags

    def _description(self, state: State) -> dict[str, str]:
        info, row = self.info, state.chosen_row
        asked = f"DEFT-X sweep of {info.benchmark} on {info.backbone}, seed {info.seed}: `{' '.join(info.command)}`"
        more = "One child run for each stage; `report.md` and the plots are among the artifacts."
        if row is None:
            return {"mlflow.note.content": f"{asked}\n\nNothing is chosen yet. {more}"}
        chosen = (
            f"Chosen by {format_selection(info, None)}: **{_title(row)}**; the scores here are its means over the "
            "target languages."
        )
        return {"mlflow.note.content": f"{asked}\n\n{chosen} {more}", "chosen": _title(row)}

    def _sweep_metrics(self, state: State, test: Grades | None) -> dict[str, float]:
        statuses = [row.status for row in state.combinations]
        metrics = {
            "search/combinations graded": float(statuses.count("complete")),
            "search/combinations failed": float(statuses.count("failed")),
        }
        chosen = state.chosen_row
        if chosen is None or chosen.score is None:
            return metrics
        grades = filter(None, map(self.folder.store.manifest, chosen.grades.values()))
        scores = [{k: v for k, v in _results(grade).items() if k.startswith("score/")} for grade in grades]
        sealed = _mean_test_scores({language: test.read(a) for language, a in chosen.grades.items()}) if test else {}
        return metrics | self._best_score([chosen]) | _means(scores) | sealed

    def _best_score(self, rows: list[GradeRow]) -> dict[str, float]:
        """The search's score of the best of these combinations: its mean over all languages."""
        scores = [row.score for row in rows if row.kind == "combination" and row.score is not None]
        unit, factor = ("points", 100) if by_few_labels(self.info) else ("score", 1)
        return {f"search/combination {unit}": factor * max(scores)} if scores else {}

    def _sweep_span(self, state: State) -> tuple[int, int] | None:
        """The time from the sweep's creation to the end of its last stage, in milliseconds since 1970."""
        begin = _timestamp(self.info.created)
        if begin is None:
            return None
        published = [address for address, entry in state.stages.items() if entry.status in ("done", "reused")]
        spans = map(_span, filter(None, map(self.folder.store.manifest, published)))
        return int(begin * 1000), max([int(begin * 1000), *(end for _, end in filter(None, spans))])

    def _sweep_files(self, state: State, status: RunStatus) -> Files:
        store, name = self.folder.store, self.folder.name
        plan = {address: entry.model_dump() for address, entry in state.stages.items()}
        paths = ["report.md", "results.csv", *(f"plots/{plot}" for plot in store.names("sweeps", name, "plots"))]
        contents = {path: store.read("sweeps", name, *path.split("/")) for path in paths}
        return {
            "sweep.json": self.info.model_dump_json(indent=1).encode(),
            "space.json": json.dumps(self.info.space, indent=1).encode(),
            # the plan of a running sweep is another at its end
            **({} if status == "RUNNING" else {"plan.json": json.dumps(plan, indent=1).encode()}),
            **{path: content for path, content in contents.items() if content is not None},
        }


def sweep_status(state: State) -> RunStatus:
    """The status of the parent run: killed before the end, failed when a stage or a combination did, else finished."""
    if not state.ended:
        return "KILLED"
    statuses = [entry.status for entry in state.stages.values()] + [row.status for row in state.rows]
    return "FAILED" if "failed" in statuses else "FINISHED"


def point(key: str, value: float) -> tuple[str, float]:
    """The name and value of a point of a curve."""
    name, factor = _CURVES.get(key, (f"curve/{key.replace('_', ' ')}", 1))
    return name, factor * value


def curve_points(step: float, numbers: Mapping[str, float], milliseconds: int) -> Iterator[MetricPoint]:
    """The points of a stage's curves at one step."""
    for key, value in numbers.items():
        if key != "step":
            name, converted = point(key, value)
            yield MetricPoint(name, int(step), converted, milliseconds)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Points and percentages to two decimals, as on the screen: MLflow's tables show all that there are."""
    return {name: round(value, 2) if name.endswith(("points", "percent")) else value for name, value in metrics.items()}


def params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as params, such as `denoise.rank` -> `100`.

    The language is a tag, and the files read are in `stage.json`: a digest says nothing in a column.
    """
    flat = dict(_flat({key: value for key, value in settings.items() if key != "language"}))
    return {key: value[:_PARAM_LENGTH] for key, value in flat.items()}


def sentence(kind: str, language: str, subject: str) -> str:
    """The description of a stage in MLflow."""
    return shown_as(kind).sentence.format(language=language, subject=subject)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if _is_source(value):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, str):
            yield prefix + key, value or "none"
        else:
            yield prefix + key, json.dumps(value)


def _is_source(value: Any) -> bool:
    """Whether a setting is a file or a hub data set, or a mapping or sequence of these."""
    if isinstance(value, Mapping):
        return value.get("kind") == "file" or "split" in value or (bool(value) and all(map(_is_source, value.values())))
    return isinstance(value, list | tuple) and any(map(_is_source, value))


def _results(manifest: Manifest) -> dict[str, float]:
    """All results of a published stage, with its time and memory."""
    named = dict(result(manifest.kind, key, value) for key, value in manifest.facts.metrics().items())
    memory = {"time and memory/peak GiB": manifest.peak_bytes / 2**30} if manifest.peak_bytes else {}
    return named | {"time and memory/seconds": manifest.seconds} | memory


def _test_scores(grade: Grade) -> dict[str, float]:
    return {score_name("test", metric): 100 * score for metric, score in grade.scores.items()}


def _mean_test_scores(grades: Mapping[str, Grade]) -> dict[str, float]:
    """The mean over languages, and each language's by the benchmark's own metric."""
    each = {
        f"test {format_metric(grade.metric)} by language/{language} points": 100 * grade.scores[grade.metric]
        for language, grade in grades.items()
    }
    return each | _means([_test_scores(grade) for grade in grades.values()])


def _curve(manifest: Manifest) -> tuple[MetricPoint, ...]:
    """The points of a stage's curves, evenly spaced in time between its begin and end."""
    begin, end = _span(manifest) or [int(time.time() * 1000)] * 2
    last = max((row["step"] for row in manifest.curve), default=0) or 1
    times = [int(begin + (end - begin) * row["step"] / last) for row in manifest.curve]
    return tuple(
        point for row, when in zip(manifest.curve, times, strict=True) for point in curve_points(row["step"], row, when)
    )


def _span(manifest: Manifest) -> tuple[int, int] | None:
    """When a stage began and ended, in milliseconds since 1970; None when its manifest does not say."""
    end = _timestamp(manifest.created)
    return None if end is None else (int((end - manifest.seconds) * 1000), int(end * 1000))


def _timestamp(written: str) -> float | None:
    try:
        return datetime.fromisoformat(written).timestamp()
    except ValueError:
        return None


def _details(manifest: Manifest) -> Files:
    """JSON files with the stage's identity and its details."""
    contents = {"stage.json": manifest.identity, "details.json": manifest.details}
    return {name: json.dumps(content, indent=1).encode() for name, content in contents.items() if content}


def _published_files(manifest: Manifest) -> Files:
    """The published files that MLflow gets: an SFT, or the counts of a text check."""
    begin = shown_as(manifest.kind).files
    return {
        name: PublishedFile(manifest.address, name, entry.sha256)
        for name, entry in manifest.files.items()
        if begin is not None and name.startswith(begin)
    }


def _title(row: GradeRow) -> str:
    return f"#{row.number} {row.title}" if row.kind == "combination" else row.title


def _row_tags(rows: list[GradeRow], state: State) -> dict[str, str]:
    """Tags that name the report's rows which a grade serves."""
    chosen = {"chosen": "yes"} if any(row.number == state.chosen is not None for row in rows) else {}
    return ({"rows": "; ".join(map(_title, rows))} if rows else {}) | chosen


def _row_params(rows: list[GradeRow]) -> dict[str, str]:
    """The searched settings; combinations that share a grade have the same ones."""
    combinations = [row for row in rows if row.kind == "combination"]
    return {key: str(value) for key, value in combinations[0].parameters.items()} if combinations else {}


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score that all of them have."""
    common = set.intersection(*map(set, scores)) if scores else set()
    return {name: statistics.fmean(of_run[name] for of_run in scores) for name in sorted(common)}

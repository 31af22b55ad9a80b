"""What MLflow shows of a sweep, as plain data: one run for the sweep, one for each of its stages. No mlflow here.

Everything is read from the store, so that a mirror grown while the sweep ran and one made afterwards hold the same.
Test scores are read in one place (`_sealed_scores`), and only once the search has ended.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from deftx.stages.stage import Stage
from deftx.stages.store import Manifest
from orchestrator.record.sweep import Failure, Row, StageEntry, State, SweepFolder, SweepInfo
from orchestrator.tracking import names as shown
from orchestrator.tracking.run_content import (
    PARENT,
    PublishedFile,
    RunContent,
    RunStatus,
    curve,
    details,
    published_files,
    span,
)
from orchestrator.wording import METRIC_WORDS, by_few_labels, selection_words


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
            tags=self._tags(PARENT, "sweep", self.info.git_commit) | self._description(state),
            params={"benchmark": self.info.benchmark, "backbone": self.info.backbone, "seed": str(self.info.seed)},
            # a count of a living sweep would stay as one more point of the metric
            metrics={} if status == "RUNNING" else shown.rounded(self._sweep_metrics(state, sealed=sealed)),
            files=self._sweep_files(state),
            span=self._sweep_span(state),
        )

    def running(self, stage: Stage) -> RunContent:
        """A stage that has just begun."""
        entry = StageEntry.of(stage)
        tags = self._stage_tags(stage.address, entry) | {"reused": "false"}
        return RunContent(entry.label, "RUNNING", tags, params=shown.params(stage.settings.model_dump(mode="json")))

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
        rows = [row for row in state.rows if address in row.grades.values()]
        test = self._test_scores(address) if entry.kind == "grade" and not sealed else {}
        return RunContent(
            name=entry.label,
            status="FINISHED",
            tags=self._done_tags(entry, manifest, reused) | _row_tags(rows, state),
            params=shown.params(manifest.identity["settings"]) | _row_params(rows),
            metrics=shown.rounded(shown.results(manifest) | self._best_score(rows) | test),
            curve=curve(manifest),
            files=details(manifest) | ({} if reused else published_files(manifest)),
            span=span(manifest),
        )

    def failed(self, address: str, entry: StageEntry, failure: Failure | None) -> RunContent:
        """A stage that failed for good, with the reason."""
        reason = failure.reason if failure else "not on record"
        tags = self._stage_tags(address, entry) | {"reused": "false", "reason": reason}
        files: dict[str, bytes | PublishedFile] = {}
        if failure is not None:
            files["failure.txt"] = f"{failure.reason}\n\n{failure.trace}\n{failure.log}\n".encode()
        return RunContent(entry.label, "FAILED", tags, files=files)

    def _test_scores(self, address: str) -> dict[str, float]:
        scores = self._sealed_scores(address)
        return {shown.score_name("test", metric): 100 * scores[metric] for metric in METRIC_WORDS if metric in scores}

    def _mean_test_scores(self, grades: Mapping[str, str]) -> dict[str, float]:
        """The mean over languages, and each language's by the benchmark's own metric."""
        sealed = {language: self._sealed_scores(address) for language, address in grades.items()}
        each = {
            shown.by_language(scores["metric"], language): 100 * scores[scores["metric"]]
            for language, scores in sealed.items()
            if scores
        }
        return each | _means([self._test_scores(address) for address in grades.values()])

    def _sealed_scores(self, address: str) -> dict[str, Any]:
        """The one place where test scores are read."""
        manifest = self.folder.store.manifest(address)
        if manifest is None or "sealed_test.json" not in manifest.files:
            return {}
        return dict(json.loads(self.folder.store.fetch(address, "sealed_test.json").read_bytes()))

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
        about = {
            "language": entry.language,
            "subject": entry.subject,
            "mlflow.note.content": shown.sentence(entry.kind, entry.language, entry.subject),
        }
        return self._tags(address, entry.kind, commit or self.info.git_commit) | about

    def _done_tags(self, entry: StageEntry, manifest: Manifest, reused: bool) -> dict[str, str]:
        tags = self._stage_tags(manifest.address, entry, manifest.git_commit)
        if summary := manifest.details.get("summary"):
            tags["mlflow.note.content"] += f"\n\n{summary}"
        if not reused:
            return tags | {"reused": "false"}
        place = {"sft": self.folder.store.url_of(manifest.address, "sft")} if entry.kind == "sparse" else {}
        return tags | {"reused": "true"} | place

    def _description(self, state: State) -> dict[str, str]:
        info, row = self.info, state.chosen_row
        asked = f"DEFT-X sweep of {info.benchmark} on {info.backbone}, seed {info.seed}: `{' '.join(info.command)}`"
        more = "One child run for each stage; `report.md` and the plots are among the artifacts."
        if row is None:
            return {"mlflow.note.content": f"{asked}\n\nNothing is chosen yet. {more}"}
        chosen = (
            f"Chosen by {selection_words(info, None)}: **{_title(row)}**; the scores here are its means over the "
            "target languages."
        )
        return {"mlflow.note.content": f"{asked}\n\n{chosen} {more}", "chosen": _title(row)}

    def _sweep_metrics(self, state: State, *, sealed: bool) -> dict[str, float]:
        statuses = [row.status for row in state.combinations]
        metrics = {
            "search/combinations graded": float(statuses.count("complete")),
            "search/combinations failed": float(statuses.count("failed")),
        }
        chosen = state.chosen_row
        if chosen is None or chosen.score is None:
            return metrics
        manifests = [self.folder.store.manifest(address) for address in chosen.grades.values()]
        scores = [_scores(shown.results(manifest)) for manifest in manifests if manifest]
        test = {} if sealed else self._mean_test_scores(chosen.grades)
        return metrics | self._best_score([chosen]) | _means(scores) | test

    def _best_score(self, rows: list[Row]) -> dict[str, float]:
        """What the search made of the best of these combinations: the mean over all its languages."""
        scores = [row.score for row in rows if row.kind == "combination" and row.score is not None]
        if not scores:
            return {}
        if by_few_labels(self.info):
            return {"search/combination points": 100 * max(scores)}
        return {"search/combination score": max(scores)}

    def _sweep_span(self, state: State) -> tuple[int, int] | None:
        """From the sweep's creation to the end of its last stage."""
        ended = [address for address, entry in state.stages.items() if entry.status in ("done", "reused")]
        made = [self.folder.store.manifest(address) for address in ended]
        ends = [found[1] for found in map(span, filter(None, made)) if found]
        try:
            begin = int(datetime.fromisoformat(self.info.created).timestamp() * 1000)
        except ValueError:
            return None
        return begin, max([begin, *ends])

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


def _title(row: Row) -> str:
    return f"#{row.number} {row.title}" if row.kind == "combination" else row.title


def _row_tags(rows: list[Row], state: State) -> dict[str, str]:
    """Which rows of the report a grade serves."""
    chosen = {"chosen": "yes"} if any(row.number == state.chosen is not None for row in rows) else {}
    return ({"rows": "; ".join(map(_title, rows))} if rows else {}) | chosen


def _row_params(rows: list[Row]) -> dict[str, str]:
    """The searched settings, of which all combinations that share a grade have the same."""
    combinations = [row for row in rows if row.kind == "combination"]
    return {key: str(value) for key, value in combinations[0].parameters.items()} if combinations else {}


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("score/")}


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score that all have."""
    common = set.intersection(*(set(found) for found in scores)) if scores else set()
    return {name: statistics.fmean(found[name] for found in scores) for name in sorted(common)}

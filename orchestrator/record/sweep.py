"""What belongs to one sweep in the store: `sweeps/<name>/`. The one place that knows its file names.

    sweep.json       what was asked for: the resolved space, revisions, command, packages; of the latest start
    state.json       the rows (combinations and baselines) with their stages, and which row was chosen
    failures/        why a stage failed permanently, by address
    logs/            the log of each stage, by address; driver.log has those of Tune, Optuna and MLflow
    lease.json       the running driver (see `lease`)
    chosen.json      what was chosen, for `deftx export`; once the search has ended
    report.md, results.csv, vectors.csv, plots/, optuna.log (an export)

Stages themselves are in the store; no Ray, Optuna or MLflow here, so that `sweep status` needs none of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from deftx.errors import ConfigError, StoreError
from deftx.passwords import without_password
from deftx.stages.records import BrokenRecord, M, read_record
from deftx.stages.stage import Stage
from deftx.stages.store import Store

log = logging.getLogger("deftx")

RowKind = Literal["combination", "lt-sft", "task", "task+source", "other-language", "dense-task"]


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SweepInfo(_Record):
    """What a sweep is, recorded at each start. Benchmark, backbone and seed must stay the same."""

    name: str
    benchmark: str
    backbone: str
    backbone_identity: str = ""
    seed: int
    space: dict[str, Any]
    revisions: dict[str, str] = {}
    command: list[str]
    packages: dict[str, str]
    git_commit: str | None
    created: str

    @field_validator("command")
    @classmethod
    def _without_passwords(cls, command: list[str]) -> list[str]:
        return [without_password(argument) for argument in command]


class StageEntry(_Record):
    """One stage of the sweep's plan, as the report and the tracker need it."""

    kind: str
    label: str
    subject: str
    language: str
    inputs: dict[str, str]
    status: Literal["waiting", "done", "reused", "failed"] = "waiting"

    @classmethod
    def of(cls, stage: Stage) -> StageEntry:
        """A stage as the plan records it, not yet made."""
        inputs = {role: needed.address for role, needed in stage.inputs}
        return cls(kind=stage.kind, label=stage.label, subject=stage.subject, language=stage.language, inputs=inputs)


class GradeRow(_Record):
    """One row of the report: a combination that was asked, or a baseline. Its grades are stages, by target language."""

    kind: RowKind
    number: int | None = None
    parameters: dict[str, str | float] = {}
    status: Literal["waiting", "complete", "failed"] = "waiting"
    score: float | None = None
    reason: str | None = None
    grades: dict[str, str] = {}
    language_sfts: dict[str, str] = {}
    task_sft: str | None = None

    @model_validator(mode="after")
    def _has_parameters(self) -> GradeRow:
        given = self.parameters
        ranks, shares = ([f"{name}_{of}" for of in "lt"] for name in ("rank", "retention"))
        if self.kind == "combination" and not (
            all(isinstance(given.get(name), str) for name in ranks)
            and all(isinstance(given.get(name), float) for name in shares)
        ):
            raise ValueError("a combination has two ranks and two shares")
        return self

    @property
    def title(self) -> str:
        """The name of the row in tables."""
        if self.kind != "combination":
            return BASELINE_TITLES[self.kind]
        rank_l, rank_t = self.parameters["rank_l"], self.parameters["rank_t"]
        share_l, share_t = (f"{float(self.parameters[key]) * 100:g} %" for key in ("retention_l", "retention_t"))
        retention = f"retention {share_l}" if share_l == share_t else f"retention_l {share_l}, retention_t {share_t}"
        return f"DEFT-X r_l {rank_l}, r_t {rank_t}, {retention}"


BASELINE_TITLES: dict[RowKind, str] = {
    "lt-sft": "LT-SFT",
    "task": "no language vector",
    "task+source": "no language vector, source vector",
    "other-language": "another language's vector",
    "dense-task": "full fine-tuning (source only)",
}


class State(_Record):
    """How far a sweep is. Rewritten by the driver; the report and the tracker read it."""

    stages: dict[str, StageEntry] = {}
    rows: list[GradeRow] = []
    chosen: int | None = None
    ended: bool = False

    @property
    def combinations(self) -> list[GradeRow]:
        """The rows that were asked of the search, in ask order."""
        return [row for row in self.rows if row.kind == "combination"]

    @property
    def chosen_row(self) -> GradeRow | None:
        """The combination that validation chose."""
        return next((row for row in self.combinations if row.number == self.chosen), None)


class Failure(_Record):
    """Why a stage failed: permanently when `final`, else the latest of its attempts so far.

    One that is `passing` was the machine's refusal, such as a full disk: the next start tries it again.
    """

    address: str
    label: str
    reason: str
    final: bool
    passing: bool = False
    trace: str = ""
    log: str = ""

    @field_validator("reason", "trace", "log")
    @classmethod
    def _without_passwords(cls, text: str) -> str:
        return without_password(text)


class SweepFolder:
    """Reads and writes `sweeps/<name>/` in a store."""

    def __init__(self, store: Store, name: str) -> None:
        """Bind a name; nothing is read or written yet.

        Raises:
            ConfigError: for a name that is not letters, digits, `.`, `_` and `-`.
        """
        if not re.fullmatch(_NAME, name):
            raise ConfigError(f"sweep name {name!r}: letters, digits, '.', '_' and '-', the first a letter or digit")
        self.store, self.name = store, name

    @property
    def path(self) -> str:
        """The folder's path on the store's file system."""
        return self.store.path("sweeps", self.name)

    def url(self, *parts: str) -> str:
        """The URL (a path, on a file system) of something in the folder."""
        path = self.store.path("sweeps", self.name, *parts)
        return path if self.store.local else str(self.store.fs.unstrip_protocol(path))

    def info(self) -> SweepInfo | None:
        """What the sweep is, or None when it was never started.

        Raises:
            StoreError: when that is broken, or written by a newer version.
        """
        return self._read(
            SweepInfo, "sweep.json", advice="remove it, and the sweep's command starts with the revisions that the hub "
            "has now; what is made already is kept and used as far as it is the same",
        )  # fmt: skip

    def write_info(self, info: SweepInfo) -> None:
        """Record what the sweep is."""
        self._write(info, "sweep.json")

    def state(self) -> State:
        """The state of the sweep; an empty one when it was never started.

        Raises:
            StoreError: when that is broken (never taken for empty: `gc` would remove all that the sweep has), or
                written by a newer version.
        """
        return self._read(State, "state.json", advice="the sweep's command writes it anew") or State()

    def write_state(self, state: State) -> None:
        """Replace the state."""
        self._write(state, "state.json")

    def failures(self) -> dict[str, Failure]:
        """The failures on record, by address; a broken record says only that the stage is to be tried again."""
        names = self.store.names("sweeps", self.name, "failures")
        return self.failures_of(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def failures_of(self, addresses: Iterable[str]) -> dict[str, Failure]:
        """The same of some stages, by address; the others are not looked at."""
        failures = [failure for address in addresses if (failure := self._failure(f"{address}.json"))]
        return {failure.address: failure for failure in failures}

    def _failure(self, name: str) -> Failure | None:
        try:
            return self._read(Failure, "failures", name, advice="the stage is tried again")
        except BrokenRecord as error:
            log.warning("%s", error)
            address = name.removesuffix(".json")
            return Failure(address=address, label=address, reason=str(error), final=False)

    def final_failures(self) -> dict[str, Failure]:
        """The permanent failures, by address: these stages are not tried again unless that is asked for."""
        failures = self.failures().items()
        return {address: failure for address, failure in failures if failure.final and not failure.passing}

    def write_failure(self, failure: Failure) -> None:
        """Put a failure on record."""
        self._write(failure, "failures", f"{failure.address}.json")

    def forget_failure(self, address: str) -> None:
        """Take a failure off the record: the stage was made after all, or is to be tried again."""
        self.store.remove("sweeps", self.name, "failures", f"{address}.json")

    def append_log(self, name: str, text: str) -> None:
        """Append to the log of a stage (named by its address) or of the driver."""
        before = self.store.read("sweeps", self.name, "logs", f"{name}.log") or b""
        self.store.write(before + text.encode(), "sweeps", self.name, "logs", f"{name}.log")

    def log_path(self, address: str) -> str:
        """The URL (a path, on a file system) of the log of a stage."""
        return self.url("logs", f"{address}.log")

    def has_log(self, address: str) -> bool:
        """Whether this sweep ran the stage itself, now or at an earlier start."""
        return self.store.exists("sweeps", self.name, "logs", f"{address}.log")

    def write_file(self, content: bytes, *parts: str) -> str:
        """Write a report, a table or a plot; returns its path."""
        self.store.write(content, "sweeps", self.name, *parts)
        return self.store.path("sweeps", self.name, *parts)

    def _read(self, model: type[M], *parts: str, advice: str) -> M | None:
        content = self.store.read("sweeps", self.name, *parts)
        if content is None:
            return None
        return read_record(model, content, self.url(*parts), name="what a sweep writes", advice=advice)

    def _write(self, record: BaseModel, *parts: str) -> None:
        self.store.write(record.model_dump_json(indent=1).encode(), "sweeps", self.name, *parts)


def sweeps_in(store: Store) -> list[SweepFolder]:
    """The folders of all sweeps in a store; what else lies among them is passed over, such as a `.DS_Store`."""
    return [SweepFolder(store, name) for name in store.names("sweeps") if re.fullmatch(_NAME, name)]


def known_sweep(store: Store, name: str) -> tuple[SweepFolder, SweepInfo]:
    """The folder of a sweep that was started before, and what the sweep is.

    Raises:
        StoreError: for an unknown name, listing the known ones.
    """
    folder = SweepFolder(store, name)
    info = folder.info()
    if info is None:
        names = ", ".join(store.names("sweeps")) or "none yet"
        raise StoreError(f"{store.url}: no sweep {name!r} there (sweeps: {names})")
    return folder, info

"""Which run gets what, and in which order: one sweep's store written into its runs, call by call or all at once.

The tracker itself is behind `Runs`; a stage's run never appears before the sweep's own, which is its parent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from deftx.errors import DeftxError, reason
from deftx.stages.stage import Stage
from orchestrator.record.sweep import Failure, StageEntry, State, SweepFolder
from orchestrator.tracking.content import SweepContent
from orchestrator.tracking.run_content import PARENT, Point, RunContent, RunStatus

_NAMED = 3


class MirrorError(DeftxError):
    """Some runs are incomplete in the tracker; all others are as they should be."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Name what is incomplete, each with why; of many, a few."""
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        super().__init__(f"{len(problems)} incomplete: {'; '.join([*problems[:_NAMED], *more])}")


class Runs(Protocol):
    """The runs of one sweep in a tracker, by stage address."""

    def addresses(self) -> list[str]:
        """The addresses that have a run."""

    def write(self, address: str, content: RunContent) -> None:
        """Make the run hold `content`, but for its files, and end it; nothing is sent when it does already."""

    def attach(self, address: str, content: RunContent) -> None:
        """Give the run, which was written, the files of `content`; nothing is sent when it has them already."""

    def add(self, points: Mapping[str, Sequence[Point]]) -> None:
        """Let curves grow, by address. What has no run yet is left out."""

    def end_running(self) -> None:
        """End the stages' runs that are RUNNING as KILLED."""

    def forget(self) -> None:
        """Look everything up anew: a call failed, and what it has done is unknown."""


class SweepMirror:
    """Writes one sweep into its runs. Every call may be repeated; what is there already is left as it is."""

    def __init__(self, folder: SweepFolder, content: SweepContent, runs: Runs) -> None:
        self._folder, self._content, self.runs = folder, content, runs

    def begin(self) -> None:
        """Open the parent run; stages that a dead driver left RUNNING are ended."""
        parent = self._open_parent()
        self.runs.end_running()
        self.runs.attach(PARENT, parent)

    def stage_started(self, stage: Stage) -> None:
        """Open a stage's run, or open it again."""
        self._write_stage(stage.address, self._content.running(stage))

    def stage_done(self, address: str, entry: StageEntry) -> None:
        """Mirror a published stage; its test scores stay sealed.

        A grade that has its run from an earlier start is left as it is until the end: it may show its test score.
        """
        if entry.kind == "grade" and entry.status == "reused" and address in self.runs.addresses():
            return
        content = self._content.done(address, entry, self._folder.state(), sealed=True)
        if content is not None:
            self._write_stage(address, content)
            self.runs.attach(address, content)

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """End a stage's run as FAILED."""
        content = self._content.failed(stage.address, StageEntry.of(stage), failure)
        self._write_stage(stage.address, content)
        self.runs.attach(stage.address, content)

    def everything(self, status: RunStatus) -> int:
        """Mirror all that the store knows of the sweep, and end its runs. Returns how many it has.

        Every run is written and ended before the first file is sent: files are what goes wrong most easily.

        Raises:
            MirrorError: when all else is mirrored, naming the stages that could not be.
            Exception: whatever a tracker raises that does not answer at all.
        """
        self.runs.addresses()
        state, problems = self._folder.state(), list[str]()
        contents = self._write_stages(state, problems)
        with self._noting("runs that were open", problems):
            self.runs.end_running()
        contents[PARENT] = self._write_parent(state, status, problems)
        for address, content in contents.items():
            with self._noting(content.name, problems):
                self.runs.attach(address, content)
        if problems:
            raise MirrorError(problems)
        return len(self.runs.addresses())

    def _write_stages(self, state: State, problems: list[str]) -> dict[str, RunContent]:
        """Write every stage that is done or failed; what was written, by address."""
        failures = self._folder.failures()
        written: dict[str, RunContent] = {}
        for address, entry in state.stages.items():
            with self._noting(entry.label, problems):
                content = self._ended(address, entry, state, failures)
                if content is not None:
                    self._write_stage(address, content)
                    written[address] = content
        return written

    def _write_parent(self, state: State, status: RunStatus, problems: list[str]) -> RunContent:
        """End the sweep's own run, without test scores when a grade cannot be read."""
        content = self._content.sweep(state, status, sealed=True)
        if state.ended:
            with self._noting("test scores of the sweep", problems):
                content = self._content.sweep(state, status, sealed=False)
        with self._noting(content.name, problems):
            self.runs.write(PARENT, content)
        return content

    @contextmanager
    def _noting(self, what: str, problems: list[str]) -> Iterator[None]:
        """Note an error and go on; but when the tracker does not answer any more, that is raised."""
        try:
            yield
        except Exception as error:  # of the store, the tracker or wherever it keeps files: the next may go well
            problems.append(f"{what}: {first_line(error)}")
            self.runs.forget()
            self.runs.addresses()

    def _open_parent(self) -> RunContent:
        content = self._content.sweep(self._folder.state(), "RUNNING", sealed=True)
        self.runs.write(PARENT, content)
        return content

    def _write_stage(self, address: str, content: RunContent) -> None:
        if PARENT not in self.runs.addresses():
            self._open_parent()
        self.runs.write(address, content)

    def _ended(
        self, address: str, entry: StageEntry, state: State, failures: Mapping[str, Failure]
    ) -> RunContent | None:
        if entry.status == "waiting":
            return None
        if entry.status == "failed":
            return self._content.failed(address, entry, failures.get(address))
        return self._content.done(address, entry, state, sealed=not state.ended)


def first_line(error: Exception) -> str:
    """What an error says, short enough for a warning."""
    return textwrap.shorten(reason(error), 160, placeholder=" ...")

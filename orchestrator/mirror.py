"""Which run gets what, and in which order: one sweep's store written into its runs, call by call or all at once.

The tracker itself is behind `Runs`; a stage's run never appears before the sweep's own, which is its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from deftx.errors import StoreError
from deftx.stages import Stage
from orchestrator.record import Failure, StageEntry, State, SweepFolder
from orchestrator.runs import PARENT, Point, RunContent, RunStatus, SweepContent


class Runs(Protocol):
    """The runs of one sweep in a tracker, by stage address."""

    def addresses(self) -> list[str]:
        """The addresses that have a run."""

    def write(self, address: str, content: RunContent) -> None:
        """Make the run hold `content`; nothing is sent when it does already."""

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
        self._open_parent()
        self.runs.end_running()

    def stage_started(self, stage: Stage) -> None:
        """Open a stage's run, or open it again."""
        self._write_stage(stage.address, self._content.running(stage))

    def stage_done(self, address: str, entry: StageEntry) -> None:
        """Mirror a published stage; its test scores stay sealed."""
        self._write_stage(address, self._content.done(address, entry, self._folder.state(), sealed=True))

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """End a stage's run as FAILED."""
        self._write_stage(stage.address, self._content.failed(stage.address, StageEntry.of(stage), failure))

    def everything(self, status: RunStatus) -> int:
        """Mirror all that the store knows of the sweep, and end its runs. Returns how many it has.

        Raises:
            StoreError: when all else is mirrored, for the stages that do not match their manifests.
        """
        state, failures = self._folder.state(), self._folder.failures()
        problems: list[str] = []
        for address, entry in state.stages.items():
            try:
                self._write_stage(address, self._ended(address, entry, state, failures))
            except StoreError as error:
                problems.append(str(error))
        self.runs.end_running()
        self.runs.write(PARENT, self._content.sweep(state, status))
        if problems:
            raise StoreError("\n".join(problems))
        return len(self.runs.addresses())

    def _open_parent(self) -> None:
        self.runs.write(PARENT, self._content.sweep(self._folder.state(), "RUNNING"))

    def _write_stage(self, address: str, content: RunContent | None) -> None:
        if content is None:
            return
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

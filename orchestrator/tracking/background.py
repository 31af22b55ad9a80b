"""The mirror of a living sweep: a thread makes its calls one after another, so that no tracker holds up the driver."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from deftx.stages.stage import Stage
from orchestrator.record.sweep import Failure, StageEntry
from orchestrator.tracking import names as shown
from orchestrator.tracking.mirror import SweepMirror, first_line
from orchestrator.tracking.run_content import Point, RunStatus

FLUSH_SECONDS = 5.0
PAUSE_SECONDS = 10.0
"""After a failure calls are dropped for so long: a dead tracker costs one timeout, and not one for each call."""

Call = Callable[[], object]


class BackgroundMirror:
    """Mirrors a living sweep. No call waits for the tracker but `finish`, and none raises what the tracker raises."""

    def __init__(self, sweep: SweepMirror, tracker: str, again: str) -> None:
        """Bind a sweep and start the thread; nothing is sent yet.

        Args:
            tracker: what warnings call it.
            again: the command that mirrors the sweep once it has ended.
        """
        self.warning: str | None = None
        self._sweep, self._tracker, self._again = sweep, tracker, again
        self._points: queue.SimpleQueue[tuple[str, Point]] = queue.SimpleQueue()
        self._flush_at = self._quiet_until = 0.0
        self._ending = False
        self._calls: queue.SimpleQueue[tuple[Call, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Open the parent run; runs that a dead driver left RUNNING are ended."""
        self._submit(self._sweep.begin)

    def stage_started(self, stage: Stage) -> None:
        """Open the stage's run, or open it again when it failed before."""
        self._submit(lambda: self._sweep.stage_started(stage))

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        """Let a running stage's curve grow; points are sent together every few seconds."""
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            name, shown_value = shown.point(key, value)
            self._points.put((address, Point(name, step, shown_value, now)))
        if time.monotonic() >= self._flush_at:
            self._flush_at = time.monotonic() + FLUSH_SECONDS
            self._submit(self._flush)

    def stage_done(self, stage: Stage, reused: bool) -> None:
        """Mirror a published stage; one that was `reused` points to its SFT in the store."""
        entry = StageEntry.of(stage).model_copy(update={"status": "reused" if reused else "done"})
        self._submit(lambda: self._sweep.stage_done(stage.address, entry))

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """End the stage's run as FAILED, with the reason."""
        self._submit(lambda: self._sweep.stage_failed(stage, failure))

    def finish(self, status: RunStatus) -> None:
        """Mirror whatever was missed, end all runs and wait for it.

        One that does not answer is given up at the first error; what it refuses for one run costs only that run.

        Args:
            status: how the sweep ended; `sweep_status` tells it from the state.
        """
        self._submit(lambda: self._catch_up(status), urgent=True)
        self._calls.put(None)
        self._thread.join()

    def _submit(self, call: Call, *, urgent: bool = False) -> None:
        self._calls.put((call, urgent))

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, urgent = item
            if urgent or time.monotonic() >= self._quiet_until:
                self._make(call)

    def _make(self, call: Call) -> None:
        try:
            call()
        except Exception as error:  # whatever a tracker raises must not reach the sweep
            self._quiet_until = time.monotonic() + PAUSE_SECONDS
            self._sweep.runs.forget()
            when = f"once it answers, by `{self._again}`" if self._ending else "at the sweep's end"
            self.warning = (
                f"MLflow at {self._tracker} did not take an update ({first_line(error)}); the sweep is not affected, "
                f"and what is missing there is mirrored {when}"
            )

    def _flush(self) -> None:
        points: dict[str, list[Point]] = {}
        while not self._points.empty():
            address, point = self._points.get()
            points.setdefault(address, []).append(point)
        self._sweep.runs.add(points)

    def _catch_up(self, status: RunStatus) -> None:
        self._ending = True
        self._sweep.everything(status)
        self.warning = None

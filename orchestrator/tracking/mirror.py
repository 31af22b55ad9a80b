"""The sweep in MLflow, as a mirror of the store: one experiment for a space, one parent run for a sweep, one child run
for each stage. What a run holds is in `content`, how MLflow takes it in `client`; which run gets what and when is here.

Runs are found again by their tags (sweep, address) and what one holds is compared by digest, so mirroring twice changes
nothing. A tracker that does not answer costs the driver no time: calls go to a thread of their own, what fails becomes
one warning, and what was missed is mirrored at the sweep's end, for a minute unless told otherwise, or by
`python -m orchestrator.tracking DIR`.
"""

from __future__ import annotations

import math
import shlex
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool

from deftx.errors import DeftxError, reason
from deftx.passwords import to_type, without_password
from deftx.stages.kinds import kind_of
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record.grades import Grades
from orchestrator.record.sweep import (
    Failure,
    GradeRow,
    StageEntry,
    State,
    SweepFolder,
    SweepInfo,
    known_sweep,
)
from orchestrator.tracking.client import MlflowRuns, is_default
from orchestrator.tracking.content import (
    PARENT,
    MetricPoint,
    RunContent,
    RunStatus,
    SweepContent,
    curve_points,
    sweep_status,
)

FLUSH_SECONDS = 5.0
PAUSE_SECONDS = 10.0
"""How long calls are dropped after a failure: a dead tracker costs one timeout, and not one for each call."""

FINISH_SECONDS = 60.0
"""How long `finish` waits unless told otherwise."""

_TELL_SECONDS = 5.0
_NAMED = 3

Call = Callable[[], object]
Rows = Callable[[str], list[GradeRow]]


class MirrorError(DeftxError):
    """Some runs are incomplete in the tracker; all others are as they should be."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Name what is incomplete, each with why; of many, a few."""
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        super().__init__(f"{len(problems)} incomplete: {'; '.join([*problems[:_NAMED], *more])}")


class Mirror:
    """Mirrors a running sweep. Only `finish` waits for the tracker, and no call raises what the tracker raises."""

    def __init__(
        self, store: Store, folder: SweepFolder, info: SweepInfo, tracking_uri: str, rows: Rows | None = None
    ) -> None:
        """Bind a sweep; nothing is sent yet.

        Args:
            rows: the rows that have a grade, by its address; None: read from the sweep's state.

        Raises:
            ConfigError: for a tracking URI that cannot work, or that leaves no place for artifacts.
        """
        self._rows = rows or (lambda address: _rows_of(address, folder.state()))
        self.warning: str | None = None
        self.notes: list[str] = []
        """What was done to a database that was torn or moved, a line each."""
        self._sweep = SweepWriter(store, folder, info, tracking_uri, self.notes.append)
        self._tracker = without_password(tracking_uri)
        uri = [] if is_default(store, tracking_uri) else ["--tracking-uri", tracking_uri]
        again = shlex.join(["python", "-m", "orchestrator.tracking", folder.url(), *uri])
        self._again = to_type(f"`{again}`")
        self._points: deque[tuple[str, MetricPoint]] = deque()
        self._flush_at = self._quiet_until = 0.0
        self._drop_at = math.inf
        # At its exit Python would wait for a ThreadPoolExecutor's thread: a minute for a tracker that does not answer
        self._calls = ThreadPool(1)

    def start(self) -> None:
        """Open the parent run; runs that a dead driver left RUNNING are ended."""
        self._submit(self._sweep.begin)

    def stage_started(self, stage: Stage) -> None:
        """Open the stage's run, or open it again when it failed before."""
        self._submit(lambda: self._sweep.open(stage))

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        """Let a running stage's curve grow; points are sent together every few seconds."""
        self._points.extend((address, point) for point in curve_points(step, metrics, int(time.time() * 1000)))
        if time.monotonic() >= self._flush_at:
            self._flush_at = time.monotonic() + FLUSH_SECONDS
            self._submit(self._flush)

    def stage_done(self, stage: Stage, reused: bool) -> None:
        """Mirror a published stage; one that was `reused` points to its SFT in the store."""
        rows = self._rows(stage.address)
        self._submit(lambda: self._sweep.end(stage, "reused" if reused else "done", rows))

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """End the stage's run as FAILED, with the reason."""
        self._submit(lambda: self._sweep.end(stage, "failed", [], failure))

    def finish(
        self, status: RunStatus, seconds: float = FINISH_SECONDS, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Mirror whatever was missed, end all runs and wait for it; nothing may be called afterwards.

        A tracker that does not answer is given up at the first error; an update that it refuses costs only that run.

        Args:
            status: how the sweep ended; `sweep_status` tells it from the state.
            seconds: how long at most; what is missing then is said in `warning`.
            tell: called every few seconds with how far it is.
        """
        end = time.monotonic() + seconds
        self._drop_at = end - 0.75 * seconds  # calls that wait are as good as the catching up, which ends runs besides
        try:
            done = self._calls.apply_async(self._catch_up, (status,))
            done.wait(min(seconds, _TELL_SECONDS))
            while not done.ready() and (left := end - time.monotonic()) > 0:
                tell(f"mirroring to MLflow: {self._sweep.progress()}")
                done.wait(min(left, _TELL_SECONDS))
            self.warning = done.get() if done.ready() else self._unfinished(seconds)
        finally:  # of Ctrl-C too: what is left is dropped then, and an answer that has not come is not waited for
            self._calls.terminate()

    def _submit(self, call: Call) -> None:
        self._calls.apply_async(self._unless_quiet, (call,))

    def _unless_quiet(self, call: Call) -> None:
        if self._quiet_until <= time.monotonic() < self._drop_at:
            self.warning = self._make(call, "at the sweep's end") or self.warning

    def _catch_up(self, status: RunStatus) -> str | None:
        return self._make(lambda: self._sweep.everything(status), f"once it answers, by {self._again}")

    def _make(self, call: Call, again: str) -> str | None:
        """Make a call; returns the warning where it fails."""
        try:
            call()
        except BaseException as error:  # whatever a tracker raises must not reach the sweep, which waits at its end
            self._quiet_until = time.monotonic() + PAUSE_SECONDS
            self._sweep.runs.forget()
            return (
                f"MLflow at {self._tracker} did not take an update ({_first_line(error)}); the sweep is not affected, "
                f"and what is missing there is mirrored {again}"
            )
        return None

    def _unfinished(self, seconds: float) -> str:
        return (
            f"MLflow at {self._tracker} was waited for {seconds:g} s after all else was done (--tracking-seconds), and "
            f"has {self._sweep.progress()}; the sweep is not affected, and the rest is mirrored by {self._again}"
        )

    def _flush(self) -> None:
        grown: dict[str, list[MetricPoint]] = {}
        while self._points:
            address, point = self._points.popleft()
            grown.setdefault(address, []).append(point)
        self._sweep.runs.add(grown)


class SweepWriter:
    """Writes one sweep into its runs. Every call may be repeated; what is there already is left as it is.

    A stage's run never appears before the sweep's own, which is its parent.
    """

    def __init__(
        self, store: Store, folder: SweepFolder, info: SweepInfo, tracking_uri: str, tell: Callable[[str], None]
    ) -> None:
        self.runs = MlflowRuns(store, info, tracking_uri, tell)
        self._folder, self._content = folder, SweepContent(folder, info)
        self._contents: dict[str, RunContent] = {}
        """All that `everything` mirrors."""
        self._written: list[str] = []
        """Of that, what it has written and ended: the addresses."""

    def begin(self) -> None:
        """Open the parent run; stages that a dead driver left RUNNING are ended."""
        parent = self._open_parent()
        self.runs.end_running()
        self.runs.attach(PARENT, parent)

    def open(self, stage: Stage) -> None:
        """Open a stage's run, or open it again."""
        self._need_parent()
        self.runs.open(stage.address, self._content.running(stage))

    def end(self, stage: Stage, status: str, rows: list[GradeRow], failure: Failure | None = None) -> None:
        """Write a stage that is done, reused or failed; its test scores stay sealed.

        A grade that has its run from an earlier start is left as it is until the end: it may show its test score.

        Args:
            rows: those that have it as a grade.
        """
        entry = StageEntry.of(stage).model_copy(update={"status": status})
        if kind_of(entry.kind).seals and status == "reused" and stage.address in self.runs.addresses():
            return
        content = self._content.ended(stage.address, entry, State(rows=rows), failure)
        if content is not None:
            self._need_parent()
            self.runs.send_files(stage.address, content)
            self.runs.write(stage.address, content)

    def everything(self, status: RunStatus) -> int:
        """Mirror all that the store knows of the sweep, and end its runs; returns the number of runs.

        Every run is written and ended before the first file is sent: files are what goes wrong most easily. What is
        RUNNING comes first, so that nothing is left so by a tracker that is too slow for the rest.

        Raises:
            MirrorError: when all else is mirrored, naming the stages that could not be.
            Exception: whatever a tracker raises that does not answer at all.
        """
        problems = list[str]()
        contents = self._contents = self._read(status, problems)
        self.runs.addresses()
        for address in sorted(contents, key=lambda a: a != PARENT and not self.runs.is_running(a)):
            with self._noting(contents[address].name, problems):
                self.runs.write(address, contents[address])
                self._written.append(address)
        with self._noting("runs that were open", problems):
            self.runs.end_running()
        for address in self._written:
            with self._noting(contents[address].name, problems):
                self.runs.attach(address, contents[address])
        if problems:
            raise MirrorError(problems)
        return len(self.runs.addresses())

    def progress(self) -> str:
        """How many runs are mirrored, in words."""
        contents = self._contents
        if not contents:
            return "none of its runs yet"
        whole = self.runs.complete(contents)
        lacking = [address for address in self._written if address not in whole]
        files = f", and {len(lacking)} without their files" if lacking else ""
        return f"{len(whole)} of {len(contents)} runs{files}"

    def _read(self, status: RunStatus, problems: list[str]) -> dict[str, RunContent]:
        """What every run should hold, the sweep's own first."""
        state, failures = self._folder.state(), self._folder.failures()
        test = Grades(self._folder, "test") if state.ended else None
        parent = self._content.sweep(state, status)
        if test is not None:
            with self._noting("test scores of the sweep", problems):
                parent = self._content.sweep(state, status, test)
        contents = {PARENT: parent}
        for address, entry in state.stages.items():
            with self._noting(entry.label, problems):
                if content := self._content.ended(address, entry, state, failures.get(address), test):
                    contents[address] = content
        return contents

    @contextmanager
    def _noting(self, name: str, problems: list[str]) -> Iterator[None]:
        """Note an error and go on; but when the tracker does not answer any more, that is raised."""
        try:
            yield
        except Exception as error:  # of the store, the tracker or wherever it keeps files: the next may go well
            problems.append(f"{name}: {_first_line(error)}")
            self.runs.forget()
            self.runs.addresses()

    def _open_parent(self) -> RunContent:
        content = self._content.sweep(self._folder.state(), "RUNNING")
        self.runs.write(PARENT, content)
        return content

    def _need_parent(self) -> None:
        if PARENT not in self.runs.addresses():
            self._open_parent()


def mirror_sweep(
    store: Store, folder: SweepFolder, tracking_uri: str, tell: Callable[[str], None] = lambda _: None
) -> int:
    """Mirror all that the store knows of a sweep that no driver runs; returns the number of its runs.

    Args:
        store: the sweep's storage.
        folder: the sweep's.
        tracking_uri: MLflow's.
        tell: called with what was done to a database that was torn or moved, a line each.

    Raises:
        StoreError: for an unknown sweep.
        ConfigError: for a tracking URI that cannot be opened.
        MirrorError: after all else is mirrored, for stages that do not match their manifests or that MLflow refused.
    """
    _, info = known_sweep(store, folder.name)
    return SweepWriter(store, folder, info, tracking_uri, tell).everything(sweep_status(folder.state()))


def _rows_of(address: str, state: State) -> list[GradeRow]:
    return [row for row in state.rows if address in row.grades.values()]


def _first_line(error: BaseException) -> str:
    """The message of an error, short enough for a warning; what is our own is advice, and stays whole."""
    return reason(error) if isinstance(error, DeftxError) else textwrap.shorten(reason(error), 160, placeholder=" ...")

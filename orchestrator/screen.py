"""What a running sweep shows: one live table on a terminal, plain lines elsewhere. All else goes to log files."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from deftx.stages import KINDS, Stage
from orchestrator.record import Failure

if TYPE_CHECKING:
    from orchestrator.driver import Driver


class Screen:
    """An observer of the driver that shows how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._driver: Driver | None = None
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._steps: dict[str, int] = {}
        self._reused = 0

    def start(self, driver: Driver) -> None:
        """Begin to show a driver."""
        self._driver = driver
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def stop(self) -> None:
        """Take the live table off the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage_started(self, stage: Stage) -> None:
        """A trial was handed the stage."""
        self._refresh()

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        """A point of a running stage's curve."""
        self._steps[address] = step
        self._refresh()

    def stage_done(self, stage: Stage, reused: bool) -> None:
        """The stage is in the store."""
        if reused:
            self._reused += 1
            return
        assert self._driver is not None
        seconds = self._driver.seconds(stage)
        self._seconds[stage.kind].append(seconds)
        self._say(f"done    {escape(stage.label)}  [dim]{seconds:.0f} s[/dim]")

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """The stage failed for good: which, why, and where its log lies."""
        words = escape(f"{stage.label}: {failure.reason}\n        log: {failure.log}")
        self._say(f"[red]FAILED[/red]  {words}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
        self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            if self._live is not None:
                self._live.update(self._table())

    def _table(self) -> Table:
        assert self._driver is not None
        schedule = self._driver.schedule
        counts = {kind: Counter[str]() for kind in KINDS}
        for address, stage in schedule.stages.items():
            counts[stage.kind][self._status(address)] += 1
        table = Table(title=f"sweep {self._driver.folder.name}", title_justify="left", caption=self._caption())
        table.caption_justify = "left"
        table.add_column("stage")
        for status in ("done", "running", "waiting", "failed"):
            table.add_column(status, justify="right")
        for kind, by_status in counts.items():
            if by_status:
                table.add_row(kind, *(str(by_status[s] or "") for s in ("done", "running", "waiting", "failed")))
        return table

    def _status(self, address: str) -> str:
        assert self._driver is not None
        schedule = self._driver.schedule
        if schedule.is_done(address):
            return "done"
        if address in schedule.failures:
            return "failed"
        return "running" if schedule.is_running(address) else "waiting"

    def _caption(self) -> str:
        assert self._driver is not None
        best, words = self._driver.best(), []
        if best is not None:
            words.append(f"best so far: combination {best[0]} with {best[1] * 100:.1f} on validation")
        if left := self._time_left():
            words.append(f"about {left} left")
        return "; ".join(words)

    def _time_left(self) -> str:
        """From the mean time of each kind so far; nothing while a kind that is left has not been measured."""
        assert self._driver is not None
        kinds = Counter(stage.kind for stage in self._driver.schedule.missing())
        if not kinds or any(not self._seconds[kind] for kind in kinds):
            return ""
        total = sum(number * sum(self._seconds[kind]) / len(self._seconds[kind]) for kind, number in kinds.items())
        seconds = total / self._driver.space.parallel
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

"""What a running sweep shows: a live table on a terminal, plain lines elsewhere; only failures with `--quiet`.

The live table is drawn by another thread, so that its clock goes on, from the snapshot of the latest event; how
it looks is in `table`. Lines of finished stages stay above it.
"""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from deftx.stages.stage import Stage
from orchestrator.record.sweep import Failure
from orchestrator.terminal.progress import Progress, Snapshot, duration
from orchestrator.terminal.table import board, format_counts, format_left, format_step
from orchestrator.wording import stage_warnings

PROGRESS_SECONDS = 30.0
"""The least time between two progress lines where there is no terminal."""


_ENDING = "told to end: trainings keep a checkpoint after their step; Ctrl-C again ends at once"


class Screen:
    """A callback of the driver that shows the progress of a sweep."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._progress_or_none: Progress | None = None
        self._live: Live | None = None
        self._snapshot: Snapshot | None = None
        self._warnings: list[str] = []
        self._last_line_at = 0.0

    def start(self, progress: Progress) -> None:
        """Begin to show a sweep; called before all other methods."""
        self._progress_or_none, self._last_line_at = progress, progress.clock()
        if self._quiet or not self._console.is_interactive:
            return
        self._snapshot = progress.snapshot()
        self._live = Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=2, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._live.start()

    def stop(self) -> None:
        """Take the live table off the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage_started(self, stage: Stage) -> None:
        """Show that a trial has begun the stage."""
        self._progress.started(stage)
        self._refresh()

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        """Show how far a running stage is."""
        self._progress.stepped(address, step)
        self._refresh()

    def stage_done(self, stage: Stage, reused: bool) -> None:
        """Show that the stage is in the store, with its warnings."""
        seconds = self._progress.done(stage)
        manifest = self._progress.driver.manifest(stage)
        subject = f"{stage.subject}: "  # a text's check begins every line with it
        warnings = [text if text.startswith(subject) else f"{stage.label}: {text}" for text in stage_warnings(manifest)]
        self._warnings += warnings
        if not reused:
            self._say(f"done    {escape(stage.label)}  [dim]{seconds:.0f} s[/dim]")
            if summary := manifest.details.get("summary"):
                self._say(f"        {escape(summary)}")
            for warning in warnings:
                self._say(f"[yellow]warning {escape(warning)}[/yellow]")
        self._refresh()

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """Show that the stage failed permanently, why, and where its log is."""
        message = escape(f"{stage.label}: {failure.reason}\n        log: {failure.log}")
        self._print(f"[red]FAILED[/red]  {message}")
        self._refresh()

    @property
    def _progress(self) -> Progress:
        assert self._progress_or_none is not None, "the screen was started"
        return self._progress_or_none

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        # rich would draw the live table unwrapped too, with the line above it
        self._console.print(text, soft_wrap=self._live is None)

    def _refresh(self) -> None:
        if self._live is not None:
            self._snapshot = self._progress.snapshot()
        elif not self._quiet and self._progress.clock() - self._last_line_at >= PROGRESS_SECONDS:
            self._last_line_at = self._progress.clock()
            self._say(escape(_progress_line(self._progress.snapshot())))

    def _draw(self) -> RenderableType:
        assert self._snapshot is not None
        drawn = board(self._snapshot, self._warnings, *self._console.size, now=self._progress.clock())
        return Group(drawn, Text(_ENDING, "yellow")) if self._progress.driver.interrupted else drawn


def _progress_line(snapshot: Snapshot) -> str:
    """`...     12/41 stages, 2 running, 3 min so far, about 4 min left; now: ila · dense, step 100/300`."""
    counts = [format_counts(snapshot), f"{duration(snapshot.at - snapshot.began)} so far", format_left(snapshot.left)]
    running = [", ".join(filter(None, (run.stage.label, format_step(run)))) for run in snapshot.running[:1]]
    parts = [", ".join(filter(None, counts)), *(f"now: {run}" for run in running)]
    parts.append(f"best so far: {snapshot.best}" if snapshot.best else "")
    return "...     " + "; ".join(filter(None, parts))

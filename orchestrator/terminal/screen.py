"""What a running sweep shows: a live table on a terminal, plain lines elsewhere, with `--quiet` failures alone.

The live table is drawn by another thread, so that its clock goes on, from what `progress` saw at the latest event; what
is drawn is in `table`. Lines of finished stages stay above it.
"""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from deftx.stages.stage import Stage
from orchestrator.record.sweep import Failure
from orchestrator.terminal.progress import Outlook, View, duration
from orchestrator.terminal.table import board, counts_words, left_words, step_words
from orchestrator.wording import cautions

PROGRESS_SECONDS = 30.0
"""Between two progress lines where there is no terminal, at the least."""


class Screen:
    """An observer of the driver that shows how far it is."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._outlook: Outlook | None = None
        self._live: Live | None = None
        self._view: View | None = None
        self._cautions: list[str] = []
        self._spoken = 0.0

    def start(self, outlook: Outlook) -> None:
        """Begin to show a sweep; nothing was told before."""
        self._outlook, self._spoken = outlook, outlook.clock()
        if self._quiet or not self._console.is_interactive:
            return
        self._view = outlook.view()
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
        """A trial was handed the stage."""
        self._of.started(stage)
        self._refresh()

    def progress(self, address: str, step: int, metrics: dict[str, float]) -> None:
        """A point of a running stage's curve."""
        self._of.progress(address, step)
        self._refresh()

    def stage_done(self, stage: Stage, reused: bool) -> None:
        """The stage is in the store."""
        seconds = self._of.done(stage)
        manifest = self._of.driver.manifest(stage)
        named = f"{stage.subject}: "  # as a text's check begins every line
        found = [words if words.startswith(named) else f"{stage.label}: {words}" for words in cautions(manifest)]
        self._cautions += found
        if not reused:
            self._say(f"done    {escape(stage.label)}  [dim]{seconds:.0f} s[/dim]")
            if summary := manifest.details.get("summary"):
                self._say(f"        {escape(summary)}")
            for words in found:
                self._say(f"[yellow]warning {escape(words)}[/yellow]")
        self._refresh()

    def stage_failed(self, stage: Stage, failure: Failure) -> None:
        """The stage failed for good: which, why, and where its log lies."""
        words = escape(f"{stage.label}: {failure.reason}\n        log: {failure.log}")
        self._print(f"[red]FAILED[/red]  {words}")
        self._refresh()

    @property
    def _of(self) -> Outlook:
        assert self._outlook is not None, "the screen was started"
        return self._outlook

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        # rich would draw the live table unwrapped too, with the line above it
        self._console.print(text, soft_wrap=self._live is None)

    def _refresh(self) -> None:
        if self._live is not None:
            self._view = self._of.view()
        elif not self._quiet and self._of.clock() - self._spoken >= PROGRESS_SECONDS:
            self._spoken = self._of.clock()
            self._say(escape(_progress_line(self._of.view())))

    def _draw(self) -> RenderableType:
        assert self._view is not None
        return board(self._view, self._cautions, *self._console.size, now=self._of.clock())


def _progress_line(view: View) -> str:
    """`...     12/41 stages, 2 running, 3 min so far, about 4 min left; now: ila · dense, step 100/300`."""
    words = [counts_words(view), f"{duration(view.at - view.began)} so far", left_words(view.left)]
    now = [", ".join(word for word in (one.stage.label, step_words(one)) if word) for one in view.running]
    parts = [", ".join(word for word in words if word), *(f"now: {word}" for word in now[:1])]
    parts.append(f"best so far: {view.best}" if view.best else "")
    return "...     " + "; ".join(part for part in parts if part)

"""Progress bars for the trainings that a call runs: on a terminal and in a notebook, and nowhere else.

On a terminal rich redraws them by itself. A notebook's cell is redrawn at each reported step, which needs no widgets.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from deftx.stages.stage import Stage
from deftx.train.loop import CurvePoint, Report

_SCORES = {"valid_loss": "validation loss", "valid_score": "validation score"}


class _Steps(ProgressColumn):
    """`1,000/30,000`, once training has begun."""

    def render(self, task: Task) -> Text:
        """Steps done and in all, of a stage that trains; else nothing."""
        done, steps = int(task.completed), task.fields["steps"]
        return Text(f"{done:,}/{steps:,}" if steps else "", style="progress.download")


class _Left(ProgressColumn):
    """The time left, by the pace of the steps made since training began or went on."""

    def render(self, task: Task) -> Text:
        """Such as `12 min left`, else nothing."""
        seconds = None if task.finished else task.time_remaining
        return Text(f"about {_duration(seconds)} left" if seconds else "", style="progress.remaining")


class Bars:
    """A row for each stage that is run, with a bar once its training says how many steps it takes."""

    def __init__(self, wanted: bool) -> None:
        """Prepare to show what is made.

        Args:
            wanted: False shows no bars, whatever the output is.
        """
        self._console = Console(stderr=True)
        self._notebook = self._console.is_jupyter
        self._shown = wanted and (self._notebook or sys.stderr.isatty())
        self._cell: Any = None
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), _Steps(),
            TextColumn("{task.fields[score]}", markup=False), TimeElapsedColumn(), _Left(),
            console=self._console, auto_refresh=not self._notebook,
        )  # fmt: skip
        self._row: TaskID | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._row is not None:
            self._end(whole=kind is None)
            self._draw()
            self._bars.stop()

    def watch(self, stage: Stage) -> Report | None:
        """What draws each point of a stage's curve in a row of its own; None where nothing is shown."""
        if not self._shown:
            return None
        if self._row is not None:
            self._end(whole=True)
        elif not self._notebook:
            self._bars.start()
        row = self._row = self._bars.add_task(stage.label, total=None, steps=0, score="")
        self._draw()
        return lambda point: self._point(row, point)

    def _point(self, row: TaskID, point: CurvePoint) -> None:
        scores = [f"{words} {point[name]:.3f}" for name, words in _SCORES.items() if name in point]
        score: dict[str, Any] = {"score": scores[0]} if scores else {}
        if "steps" in point:  # measure the pace from here: the steps of a checkpoint took no time
            steps = int(point["steps"])
            self._bars.reset(row, total=steps, completed=int(point["step"]), steps=steps, score="")
        self._bars.update(row, completed=int(point["step"]), **score)
        self._draw()

    def _end(self, whole: bool) -> None:
        """Stop a row's clock; of a stage that is done the bar is full."""
        assert self._row is not None
        task = next(task for task in self._bars.tasks if task.id == self._row)
        if whole:
            self._bars.update(self._row, total=task.total or 1, completed=task.total or 1)
        self._bars.stop_task(self._row)

    def _draw(self) -> None:
        """Draw a notebook's cell again; a terminal is drawn by rich's own thread."""
        if not self._notebook:
            return
        from IPython.display import display

        if self._cell is None:
            self._cell = display(self._bars, display_id=True)
        else:
            self._cell.update(self._bars)


def _duration(seconds: float) -> str:
    """Such as `40 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"

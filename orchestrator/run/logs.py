"""Everything that is logged, warned of or printed goes to a log file while a sweep runs: the screen is its own.

Of this process, whatever libraries do with loggers and handlers of their own; not what C code writes to descriptor 2.
Passwords in URLs do not get into a log.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TextIO, cast

from deftx.passwords import without_password
from orchestrator.record.sweep import SweepFolder

FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DRIVER = "driver"
"""The log of what is no stage's: Tune, Optuna, MLflow. Beside the stages' logs."""


class _Diversion(io.TextIOBase):
    """Stands in for the standard streams. Handlers made meanwhile keep it, so it outlives the log it writes to."""

    def __init__(self, target: TextIO) -> None:
        self.target = target

    def write(self, text: str) -> int:
        self.target.write(without_password(text))
        return len(text)

    def flush(self) -> None:
        self.target.flush()

    def fileno(self) -> int:
        return self.target.fileno()

    def writable(self) -> bool:
        return True


@contextmanager
def kept(folder: SweepFolder, name: str) -> Iterator[None]:
    """Divert into the log `name` of a sweep (a stage's address, or `DRIVER`), after what it holds already."""
    path = Path(folder.log_path(name))
    if folder.store.local:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace", buffering=1) as log, diverted(log):
            yield
        return
    # on a file system the log can be read while the stage runs; on an object store it is written at its end
    buffer = StringIO()
    try:
        with diverted(buffer):
            yield
    finally:
        folder.append_log(name, buffer.getvalue())


@contextmanager
def diverted(log: TextIO) -> Iterator[None]:
    """Divert loggers, warnings and the standard streams into a file; they are as before afterwards."""
    stream, ours, outer = _Diversion(log), logging.getLogger("deftx"), sys.stderr
    root, level = logging.getLogger(), ours.level
    handlers, handler = root.handlers, logging.StreamHandler(cast(TextIO, stream))
    handler.setFormatter(logging.Formatter(FORM))
    moved = [(found, found.stream) for found in _handlers()]
    for found, _ in moved:
        found.setStream(cast(TextIO, stream))
    root.handlers = [handler]
    ours.setLevel(logging.INFO)
    try:
        # warnings are written to sys.stderr, whichever it is at the time
        with redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        stream.target = outer
        root.handlers = handlers
        ours.setLevel(level)
        for found, before in moved:
            found.setStream(before)


def _handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    """The handlers that libraries gave their loggers, of those that write to a standard stream."""
    for logger in logging.Logger.manager.loggerDict.values():
        for handler in logger.handlers if isinstance(logger, logging.Logger) else []:
            stream = vars(handler).get("stream")  # of some it is a property: whatever sys.stderr is at the time
            if isinstance(handler, logging.StreamHandler) and (stream is sys.stdout or stream is sys.stderr):
                yield handler

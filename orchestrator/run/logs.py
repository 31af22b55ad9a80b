"""The log files of a sweep: what is logged, warned or printed while it runs goes there, and not over the screen.

This covers loggers, warnings and standard streams of this process, also where a library has handlers of its own; not
what C code writes to file descriptor 2. Passwords in URLs are left out of a log.
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
"""The log, beside those of the stages, for everything else: Tune, Optuna, MLflow."""


class _Diversion(io.TextIOBase):
    """A stream in place of stdout and stderr. Handlers made meanwhile keep it: its target changes when the log ends."""

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
def logging_to(folder: SweepFolder, name: str) -> Iterator[None]:
    """A context in which output is appended to a log of a sweep.

    Args:
        name: of the log: a stage's address, or `DRIVER`.
    """
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
    """A context in which loggers, warnings and the standard streams write to a file; afterwards they are as before."""
    stream, outer = _Diversion(log), sys.stderr
    root, package = logging.getLogger(), logging.getLogger("deftx")
    root_handlers, level = root.handlers, package.level
    log_handler = logging.StreamHandler(cast(TextIO, stream))
    log_handler.setFormatter(logging.Formatter(FORM))
    original_streams = [(handler, handler.stream) for handler in _handlers()]
    for handler, _ in original_streams:
        handler.setStream(cast(TextIO, stream))
    root.handlers = [log_handler]
    package.setLevel(logging.INFO)
    try:
        # warnings are written to sys.stderr, whichever it is at the time
        with redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        stream.target = outer
        root.handlers = root_handlers
        package.setLevel(level)
        for handler, original in original_streams:
            handler.setStream(original)


def _handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    """The handlers that libraries gave their own loggers and that write to a standard stream."""
    for logger in logging.Logger.manager.loggerDict.values():
        for handler in logger.handlers if isinstance(logger, logging.Logger) else []:
            stream = vars(handler).get("stream")  # where it is a property it follows sys.stderr by itself
            if isinstance(handler, logging.StreamHandler) and (stream is sys.stdout or stream is sys.stderr):
                yield handler

"""What every command of the project shares: its console, and how a user's mistake is reported.

    0 done    2 a mistake in what was asked    4 the machine refused    others are the command's own
    130 interrupted    143 told to end (SIGTERM)    129 the terminal was closed (SIGHUP)

A command is made with `@app.command(cls=Command)`; nothing of it has to catch an error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from typing import Any, TextIO

# before transformers or huggingface_hub is imported anywhere
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from deftx.errors import DeftxError, refusal

REFUSED = 4
"""The exit code where the machine refused: the storage is full, read-only, not to be written to or silent."""
ENDED: Mapping[int, str] = {
    signal.SIGINT: "interrupted", signal.SIGTERM: "told to end", signal.SIGHUP: "the terminal was closed"
}  # fmt: skip
"""What ended a command, by the signal; its exit code is 128 and the signal's number."""
GO_ON = "what was finished is kept, and the same command goes on once that is mended"

HELP = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""


def console(stderr: bool = False, file: TextIO | None = None) -> Console:
    """A console; in a pipe and in CI a plain one, whatever the environment forces."""
    stream = file or (sys.stderr if stderr else sys.stdout)
    watched = stream.isatty() and os.environ.get("CI", "").lower() in ("", "0", "false")
    if watched:
        return Console(file=file, stderr=stderr, highlight=False)
    return Console(file=file, stderr=stderr, highlight=False, force_terminal=False, no_color=True)


class Command(TyperCommand):
    """A command whose user's mistakes are a message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and report what the user did wrong."""
        with user_errors():
            return super().invoke(ctx)


@contextmanager
def user_errors() -> Iterator[None]:
    """A context that prints a `DeftxError` and exits with 2; characters that cannot be shown are replaced.

    A storage that is full, read-only or silent ends with 4: the same command goes on once that is mended.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    err = console(stderr=True)
    try:
        with _ending_as_ctrl_c():
            yield
    except DeftxError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if (words := refusal(error)) is None:
            raise
        err.print(f"[red]error:[/red] {escape(words)}; {GO_ON}", soft_wrap=True)
        raise typer.Exit(REFUSED) from None
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Ended) else signal.SIGINT
        err.print(f"{ENDED[number]}; what was finished is kept")
        raise typer.Exit(128 + number) from None


class _Ended(KeyboardInterrupt):
    """A signal that ends a process, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _ending_as_ctrl_c() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise as Ctrl-C does, unless the process ignores them or heeds them."""

    def end(number: int, _: object) -> None:
        raise _Ended(number)

    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:
                    stack.callback(signal.signal, number, signal.signal(number, end))
        yield


def example(*lines: str) -> str:
    """The end of a command's help: commands to type, a line each."""
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines])

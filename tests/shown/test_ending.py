"""A command that is told to end, at whatever it is: one line and the shell's code, as after Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

COMMAND = """
import signal, time, typer
from deftx.cli.command import Command
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, perhaps, where these tests were begun
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
app = typer.Typer()
@app.command(cls=Command)
def main() -> None:
    try:
        print("begun", flush=True)
        time.sleep(600)
    finally:
        print("closed", flush=True)
app()
"""


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "interrupted; what was finished is kept"),
        (signal.SIGTERM, 143, "told to end; what was finished is kept"),
        (signal.SIGHUP, 129, "the terminal was closed; what was finished is kept"),
    ],
)
def test_a_command_that_is_told_to_end_says_so_after_closing_what_it_has_open(
    number: signal.Signals, code: int, words: str
) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=root, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, "closed\n", f"{words}\n")

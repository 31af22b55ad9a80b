"""Every command of the project: an example in its help, one way to tell a mistake, and completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.patience import PATIENCE
from typer.testing import CliRunner

from deftx.cli.app import app as deftx
from deftx.cli.command import Command
from deftx.errors import ConfigError
from orchestrator.report.__main__ import app as report
from orchestrator.sweep import app as sweep
from orchestrator.tracking.__main__ import app as tracking

APPS = {"deftx": deftx, "sweep": sweep, "report": report, "tracking": tracking}
COMMANDS = [
    (name, command.name or getattr(command.callback, "__name__", ""))
    for name, app in APPS.items()
    for command in app.registered_commands
]


def told(app: typer.Typer, *arguments: str) -> str:
    """What a command says of a mistake."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and not result.stdout
    assert "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_a_help_has_an_example(name: str, command: str) -> None:
    app = APPS[name]
    words = [command] if len(app.registered_commands) > 1 and command else []
    result = CliRunner().invoke(app, [*words, "-h"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"python -m orchestrator.{name}" in result.output or f"{name} {command}" in result.output


def test_every_command_tells_mistakes_alike() -> None:
    for app in APPS.values():
        assert all(command.cls is Command for command in app.registered_commands)


def test_a_mistake_is_a_message_and_code_2(tmp_path: Path) -> None:
    assert "not the folder of a sweep" in told(report, str(tmp_path))
    assert "no sweeps there" in told(tracking, str(tmp_path))
    assert "unknown space 'demmo' (did you mean 'demo'?)" in told(sweep, "demmo", "--storage", str(tmp_path))
    assert "give SWEEP LANGUAGE OUT" in told(deftx, "export", "x", "y")
    assert "no such folder" in told(deftx, "check", str(tmp_path / "no.txt"), "--backbone", str(tmp_path / "none"))


def test_an_interrupt_is_code_130_and_a_bug_stays_a_traceback() -> None:
    app = typer.Typer()

    @app.command(cls=Command)
    def main(what: str) -> None:
        raise {"interrupt": KeyboardInterrupt(), "bug": ZeroDivisionError(), "mistake": ConfigError("[red] é")}[what]

    assert CliRunner().invoke(app, ["interrupt"]).exit_code == 130
    assert isinstance(CliRunner().invoke(app, ["bug"]).exception, ZeroDivisionError)
    assert told(app, "mistake") == "error: [red] é\n"


def test_a_character_that_cannot_be_shown_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deftx", "export", "ñ", "y"], capture_output=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_the_installed_command_completes_in_a_shell() -> None:
    script = Path(sys.executable).parent / "deftx"
    environment = {**os.environ, "_DEFTX_COMPLETE": "complete_bash", "COMP_WORDS": "deftx ", "COMP_CWORD": "1"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.split() == ["check", "export"]

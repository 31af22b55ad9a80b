"""The command `python -m orchestrator.tracking.ui STORAGE`, which `make ui` calls: MLflow on a storage, in the browser.

It starts `mlflow ui` as anybody could; what it adds is that the storage may have any name, and that Ctrl-C ends it
without a word.
"""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from deftx.cli.command import HELP, Command, example
from deftx.errors import ConfigError
from orchestrator.tracking import database

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)


@app.command(cls=Command, epilog=example("python -m orchestrator.tracking.ui results --port 5000"))
def main(
    storage: Annotated[str, typer.Argument(help="A local storage.")] = "results",
    port: Annotated[int, typer.Option(help="Of the server, on this machine alone.")] = 5000,
) -> None:
    """Open MLflow on a storage, in the browser, until Ctrl-C."""
    folder = Path(storage).expanduser().resolve()
    path, artifacts = folder / "mlflow.db", folder / "mlartifacts"
    again = f"mirror it again: {shlex.join(['python', '-m', 'orchestrator.tracking', storage])}"
    if not path.is_file():
        raise ConfigError(
            f"{storage}: no mlflow.db there; run a sweep first (make demo), name its storage (make ui STORAGE=...), "
            f"or {again}"
        )
    if why := database.damage(path):
        raise ConfigError(f"{path}: {why}; {again}")
    with suppress(sqlite3.Error):  # MLflow says what is wrong with a database that cannot be written to
        database.follow(path, artifacts)
    typer.echo(
        f"MLflow of {storage}: http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning (Ctrl-C ends it)"
    )
    raise typer.Exit(_serve(database.sqlite_uri(str(path)), artifacts.as_uri(), port))


def _serve(uri: str, artifacts: str, port: int) -> int:
    words = [
        sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--artifacts-destination", artifacts,
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # a session of its own: Ctrl-C would make each of its processes print a trace
    server = subprocess.Popen(words, env=os.environ | quiet, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    app()

"""Every part, one after the other: `python -m benchmarks`. Writes results.md, results.json and growth.png."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import HERE, Options
from benchmarks.results import PARTS, run


def main(
    small: Annotated[bool, typer.Option("--small", help="tiny shapes, seconds")] = False,
    device: str = "cpu",
    threads: int = 2,
    data_root: Annotated[Path | None, typer.Option(help="folder with nusax/")] = None,
    out: Annotated[Path | None, typer.Option(help="where the results go")] = None,
) -> None:
    """Measure every stage against its plain reference."""
    options = Options(small, device, threads, data_root, out or (None if small else HERE))
    parts = {part: importlib.import_module(f"benchmarks.{part}").rows for part in PARTS}
    raise typer.Exit(0 if run(parts, options) else 1)


if __name__ == "__main__":
    typer.run(main)

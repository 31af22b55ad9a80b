"""The GPU benchmark as a program: every part in a process of its own, or one part in this one.

    python -m benchmarks.gpu --device cuda [--part PART] [--out DIR]
    python -m benchmarks.gpu --small --device cpu          # the same code at tiny shapes, about a minute

Needs deftx's dependencies alone. Results go to results-gpu.json and results-gpu.md in DIR.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks.gpu.rows import PARTS, SECONDS, Piece, Record, cut_short
from benchmarks.measure import RESULTS, ROOT, Options
from benchmarks.results import Data, Small
from deftx.config import Execution
from deftx.method import environment

_PIECES = {
    "tests": "tests:pieces", "steps": "steps:pieces", "kernels": "steps:kernel_pieces", "stages": "stages:pieces",
    "together": "together:pieces", "compile": "steps:compile_pieces",
}  # fmt: skip

Part = Literal["tests", "steps", "kernels", "stages", "together", "compile"]
Out = Annotated[Path | None, typer.Option(help="default: docs/results/; no file with --small or on a CPU")]


def main(
    part: Annotated[Part | None, typer.Option(help="one part; default: all, one after the other")] = None,
    small: Small = False,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="cpu: to see that everything runs")] = "cuda",
    threads: Annotated[int, typer.Option(help="of the processor, as the shipped GPU spaces have it")] = 4,
    data_root: Data = None,
    out: Out = None,
    seconds: Annotated[float, typer.Option(help="a part takes no longer on a GPU")] = SECONDS,
    commit: Annotated[str | None, typer.Option(help="what is measured, where there is no git checkout")] = None,
) -> None:
    """Measure steps, kernels, stages and several phases at once on a GPU; exits with 1 when a limit is missed."""
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("cuda: there is no GPU here, or this torch is built without CUDA; cpu would be right")
    out = out or (RESULTS if device == "cuda" and not small else None)
    options = Options(small, device, threads, data_root, out)
    measured = [run(part, options, seconds, commit)] if part else []
    measured += [separately(name, options, seconds, commit) for name in PARTS if part is None]
    raise typer.Exit(0 if all(measured) else 1)


def run(part: str, options: Options, seconds: float = SECONDS, commit: str | None = None) -> bool:
    """Measure one part in this process; whether all that must be is met."""
    environment.prepare(0, Execution(device=options.device, threads=options.threads))
    module, _, name = _PIECES[part].partition(":")
    pieces: list[Piece] = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)()
    print(f"{part}", flush=True)
    return Record(part, options, commit, seconds).run(pieces)


def separately(part: str, options: Options, seconds: float, commit: str | None) -> bool:
    """Measure one part in a new process, which is ended, its children too, when a GPU is held for too long."""
    given = {
        "--part": part, "--device": options.device, "--threads": options.threads, "--data-root": options.data_root,
        "--out": options.out, "--seconds": seconds, "--commit": commit,
    }  # fmt: skip
    words = [str(word) for name, value in given.items() if value is not None for word in (name, value)]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, *(["--small"] if options.small else [])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(command, start_new_session=True, env=variables) as process:
        try:
            return process.wait(seconds if options.device == "cuda" else None) == 0
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            cut_short(part, options.out, seconds)
            return False


if __name__ == "__main__":
    typer.run(main)

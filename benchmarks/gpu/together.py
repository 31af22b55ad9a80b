"""Four sparse phases of a language on one GPU: told to begin at once, against one after the other, and under MPS.

Each is a process that makes its run, takes a few steps and then waits for a word, so that no start is measured. As in
`train` they take turns on the GPU, but under MPS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from benchmarks.gpu.rows import Piece, Row
from benchmarks.gpu.steps import SPARSE, training
from benchmarks.measure import Options, median, start, wait
from deftx.train.turn import turn

RUNS, STEPS, WARM, ROUNDS = 4, 150, 10, 2
_MPS = "nvidia-cuda-mps-control"


def pieces() -> list[Piece]:
    """Without MPS, then with it where it is installed."""
    return [("four sparse phases", rows), ("four sparse phases under MPS", mps_rows)]


def rows(options: Options) -> Iterator[Row]:
    """Seconds at once and in turn."""
    with _runs(options) as runs:
        took = [(_at_once(runs), sum(_at_once([run]) for run in runs)) for _ in range(1 if options.small else ROUNDS)]
    at_once, in_turn = (median([pair[place] for pair in took]) for place in (0, 1))
    name, note = f"{RUNS} sparse phases, {_steps(options)} steps each", "in turns; the reference is one after the other"
    yield Row(name, "seconds at once", at_once, in_turn, note=note)
    yield Row(name, "in turn over at once", in_turn / at_once, limit="at once")


def mps_rows(options: Options) -> Iterator[Row]:
    """Seconds at once where the processes share one context."""
    name = f"{RUNS} sparse phases, {_steps(options)} steps each, under MPS"
    if options.device != "cuda" or shutil.which(_MPS) is None:
        yield Row(name, "seconds at once", None, note=f"not measured: no {_MPS} here")
        return
    try:
        with _mps(), _runs(options) as runs:
            yield Row(name, "seconds at once", median([_at_once(runs) for _ in range(ROUNDS)]))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # it is never required
        yield Row(name, "seconds at once", None, note=f"not measured: {error}")


def steps_when_told(options: Options) -> None:
    """The other side: for each line read, take all steps and print when they began and ended by the machine's clock."""
    with training(options, SPARSE.scaled(options.small)) as run:
        for _ in range(2 if options.small else WARM):
            run.train_step()
        wait(options.device)
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.monotonic()
            with turn(torch.device(options.device)):
                for _ in range(_steps(options)):
                    run.train_step()
                wait(options.device)
            print(json.dumps([began, time.monotonic()]), flush=True)


def _steps(options: Options) -> int:
    return 3 if options.small else STEPS


@contextmanager
def _runs(options: Options) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ready."""
    with ExitStack() as stack:
        runs = []
        for _ in range(2 if options.small else RUNS):
            process = stack.enter_context(start("benchmarks.gpu.together:steps_when_told", options))
            stack.callback(process.kill)  # it is sooner than the wait at the end
            runs.append(process)
        for process in runs:
            _heard(process, "ready")
        yield runs
        for process in runs:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _at_once(runs: list[subprocess.Popen[str]]) -> float:
    """Seconds from the first one's begin to the last one's end."""
    for process in runs:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    spans = [json.loads(_heard(process, "[")) for process in runs]
    return float(max(end for _, end in spans) - min(begin for begin, _ in spans))


def _heard(process: subprocess.Popen[str], begins: str) -> str:
    """The next line that begins so; what else a library prints is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(begins):
            return line
    raise RuntimeError("a process of the four ended before it had answered")


@contextmanager
def _mps() -> Iterator[None]:
    """MPS's daemon for the processes begun within; none of the card's settings is changed."""
    with tempfile.TemporaryDirectory(prefix="deftx-mps-") as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for place in places.values():
            Path(place).mkdir()
        os.environ |= places
        try:
            subprocess.run([_MPS, "-d"], check=True, timeout=10)
            yield
        finally:
            subprocess.run([_MPS], input="quit\n", text=True, check=False, timeout=20)
            for name in places:
                del os.environ[name]

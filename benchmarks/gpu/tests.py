"""The project's tests that need a GPU, counted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu.rows import SECONDS, Piece, Row
from benchmarks.measure import ROOT, Options

_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
_FOLDERS = ("tests/training", "tests/method")
_TAIL = 1500


def pieces() -> list[Piece]:
    """One: the tests marked `gpu`."""
    return [("tests marked gpu", rows)]


def rows(options: Options) -> Iterator[Row]:
    """How many passed, failed and were skipped, and the end of what pytest said."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--continue-on-collection-errors", *_files()]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, timeout=SECONDS - 15,
        )  # fmt: skip
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        said = output.decode(errors="replace") if isinstance(output, bytes) else output
        said += f"\nended after {SECONDS - 15:.0f} s"
    print(said[-8000:], flush=True)
    last = said.strip().splitlines()[-1]
    counts = {what: int(number) for number, what in _COUNT.findall(last)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    yield Row("tests marked gpu", "passed", counts.get("passed", 0) if counts else None, note=last)
    note = said[-_TAIL:] if failed or not counts else ""
    yield Row("tests marked gpu", "failed", failed if counts else None, limit="failed tests", note=note)
    yield Row("tests marked gpu", "skipped", counts.get("skipped", 0) if counts else None)


def _files() -> list[str]:
    """Those with such a test: others may import what is not installed beside a GPU."""
    files = [path for folder in _FOLDERS for path in sorted((ROOT / folder).glob("test_*.py"))]
    return [str(path) for path in files if "mark.gpu" in path.read_text("utf-8")]

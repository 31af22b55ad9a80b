"""What every benchmark measures with: interleaved times, the peak memory of a fresh process, this machine's rates.

    times = interleaved({"ours": step, "reference": plain}, rounds=3)     # seconds, a list for each name; in turns
    seconds = median(times["ours"])
    found = fresh("benchmarks.select:peak", options, reference=True)      # `peak(options, reference=True)` in a
                                                                          # new process, which returns JSON
    with Peak(options.device) as peak: ...                                # there: peak.bytes, beyond those at its start
    floor = rates(options.device).seconds(flop, bytes_, "bf16")           # this machine's rates, measured once

What becomes of the figures (rows, requirements, speed.md) is in `results`. No model is built here.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from deftx import hardware
from deftx.config import Execution
from deftx.method import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
"""Where tables of results stand, for the documentation."""
GIB = 2**30


@dataclass(frozen=True)
class Options:
    """How a part is run.

    Attributes:
        small: seconds instead of minutes: tiny shapes, to see that everything runs.
        device: `cpu` or `cuda`.
        threads: of the processor.
        data_root: where real sentences lie; None: made-up ones of the same lengths.
        out: where speed.json and speed.md go; None: nothing is written.
    """

    small: bool = False
    device: str = "cpu"
    threads: int = 2
    data_root: Path | None = None
    out: Path | None = RESULTS


def interleaved(
    works: Mapping[str, Callable[[], object]], rounds: int = 3, warm: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each piece of work, taking turns, so that what else the machine does hits all equally.

    Args:
        works: what to time, by name.
        rounds: how often each is timed.
        warm: rounds before that are not timed.
        device: `cuda` waits for the device around every call.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm + rounds):
        for name, work in works.items():
            seconds = timed(work, device)
            if number >= warm:
                times[name].append(seconds)
    return times


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that one call takes."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    """The median: one disturbed round does not count."""
    return statistics.median(values)


@dataclass
class Peak:
    """Peak memory of a block: `bytes` beyond what was in use at its start, `total` with it; a GPU's for cuda."""

    device: str = "cpu"
    bytes: int = 0
    total: int = 0
    _before: int = 0

    def __enter__(self) -> Peak:
        environment.reset_peak_memory(self.device)
        self._before = self._peak()
        return self

    def __exit__(self, *_: object) -> None:
        self.total = self._peak()
        self.bytes = self.total - self._before

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else hardware.memory("VmHWM")


def fresh(function: str, options: Options, **arguments: Any) -> Any:
    """Call `module:function(options, **arguments)` in a new process: memory of earlier work is not counted.

    Returns:
        What the function returned, by way of JSON.
    """
    process = start(function, options, **arguments)
    told, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, function)
    return json.loads(told.splitlines()[-1])


def start(function: str, options: Options, **arguments: Any) -> subprocess.Popen[str]:
    """Begin the call of `fresh`, and leave it to the caller to talk to it, by lines, and to wait for it."""
    call = json.dumps([function, {**asdict(options), "data_root": None, "out": None}, arguments])
    variables = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmarks.measure", call]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=ROOT)


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: floating-point operations of matrix products, bytes read and written."""

    float32: float
    bf16: float
    float64: float
    copy: float

    def seconds(self, flop: float, bytes_: float = 0.0, precision: str = "float32") -> float:
        """The floor of a piece of work: its matrix products and the bytes it has to move."""
        return flop / float(getattr(self, precision)) + bytes_ / self.copy


@cache
def rates(device: str = "cpu", small: bool = False) -> Rates:
    """Measure the machine: the best of several products of (2048, 768) x (768, 3072) and of copies of 256 MiB."""
    rows = 256 if small else 8192 if device == "cuda" else 2048
    found = {name: _product_rate(rows, dtype, device) for name, dtype in _DTYPES.items()}
    source = torch.ones((1 << 20) if small else (1 << 26), device=device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), device) for _ in range(5))
    return Rates(**found, copy=2 * source.nbytes / seconds)


_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}


def _product_rate(rows: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, 768), (768, 3072)))
    seconds = min(timed(lambda: a @ b, device) for _ in range(8))
    return 2 * rows * 768 * 3072 / seconds


def machine(options: Options) -> dict[str, str]:
    """The machine in words, and what it was measured to do."""
    found = rates(options.device, options.small)
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0.0)
    words = {
        "processor": f"{processor}, {options.threads} threads of {os.cpu_count()}, {memory:.0f} GiB",
        "matrix products": f"{found.float32 / 1e9:.0f} GFLOP/s float32, {found.bf16 / 1e9:.0f} bf16, "
        f"{found.float64 / 1e9:.0f} float64",
        "copies": f"{found.copy / 1e9:.1f} GB/s",
        "load": f"{os.getloadavg()[0]:.1f} in the last minute",
    }
    if options.device == "cuda":
        words["device"] = torch.cuda.get_device_name()
    return words


def wait(device: str) -> None:
    """Wait for what a GPU still has to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _child(call: str) -> None:
    """The other side of `fresh`."""
    function, options, arguments = json.loads(call)
    module, _, name = function.partition(":")
    settings = Options(**options)
    environment.prepare(0, Execution(device=settings.device, threads=settings.threads))
    print(json.dumps(getattr(importlib.import_module(module), name)(settings, **arguments)))


if __name__ == "__main__":
    _child(sys.argv[1])

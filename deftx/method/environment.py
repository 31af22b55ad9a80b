"""The process a stage runs in: its threads and seeds, peak memory, and what a manifest records of it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import os
import platform
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from deftx import hardware
from deftx.config import Execution, Precision
from deftx.errors import ConfigError, reason

_LARGE = 2 << 30
"""Resident bytes from which a collection, 0.3 s with torch and transformers loaded, is worth its time."""
_NOTED = ("deftx-sweeps", "torch", "transformers", "tokenizers", "datasets", "numpy", "safetensors")


def prepare(seed: int, execution: Execution, precision: Precision = "float32") -> None:
    """Set everything that earlier stages in this process may have changed: threads, seeds, matrix precision.

    The same seed, machine and threads then give the same result bit for bit.

    Raises:
        ConfigError: when torch cannot compute on the device, or the device not in the precision.
    """
    check_device(execution.device)
    check_precision(precision, execution.device)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # must be set before the first cuBLAS call of the process to make its sums reproducible
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(execution.threads)
    if execution.device != "cpu" or hardware.memory("VmRSS") > _LARGE:
        # models are reference cycles: a reused worker would hold on to the memory of the trial before
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc's: what was freed goes back to the system
            ctypes.CDLL(None).malloc_trim(0)
        if execution.device != "cpu":
            torch.cuda.empty_cache()
    # some CUDA kernel without a deterministic form is a line in the log, not a failed trial
    torch.use_deterministic_algorithms(True, warn_only=True)
    # deterministic mode also fills fresh memory, which nothing here reads before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_device(name: str) -> None:
    """Check that torch can compute on a device, before hours of reading lead up to it.

    Raises:
        ConfigError: when it cannot.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device: {name!r} cannot be computed on here: {reason(error)}") from None


def check_precision(precision: Precision, device: str) -> None:
    """Check that a device computes in a precision, and not only by way of another one.

    Raises:
        ConfigError: for bf16 that it lacks, with what to set.
    """
    if precision != "bf16" or (lacks := _lack_of_bf16(torch.device(device))) is None:
        return
    raise ConfigError(f"precision: bf16, but {lacks}: set training.precision to float32, or run this elsewhere")


def _lack_of_bf16(device: torch.device) -> str | None:
    """What a device lacks to compute in bf16, in words; None for one that does, or of whose kind nothing is known."""
    if device.type == "cpu" and not hardware.multiplies_bf16():
        return f"the CPU here has {hardware.WITHOUT_BF16}"
    if device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                return f"the GPU here, {torch.cuda.get_device_name()}, has no bf16"
    return None


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """A context after which random states, threads and torch's switches are as before: for a process of the user's."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    exact, lenient = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.cuda.set_rng_state_all(on_gpus)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(exact, warn_only=lenient)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def reset_peak_memory(device: str) -> None:
    """Begin to measure peak memory anew, on a GPU too if it is the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        # 5 resets the high-water mark of the resident set (proc(5))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: str) -> int:
    """Most bytes since `reset_peak_memory`: of GPU memory where a GPU was used, else resident; 0 where unknown."""
    if torch.device(device).type == "cuda" and (most := torch.cuda.max_memory_allocated(device)):
        return most
    return hardware.memory("VmHWM")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results may depend on."""
    installed = {"python": platform.python_version()}
    for name in _NOTED:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this code lies in, with `+` for local changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None

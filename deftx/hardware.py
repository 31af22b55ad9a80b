"""What this machine's processor, GPUs and memory can do, told without torch: a plan is instant.

How a stage sets up the process it runs in is in `method.environment`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from contextlib import suppress
from pathlib import Path

WITHOUT_BF16 = "no bf16 instructions, without which bf16 is 23 to 60 times slower than float32 (measured)"
"""What a processor has that `multiplies_bf16` is False for."""

_CPUINFO, _VMSTAT = Path("/proc/cpuinfo"), Path("/proc/vmstat")
_CGROUP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""The flags that say so: two of x86, one of aarch64."""
_BELOW_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Instruction sets that a user may hold oneDNN to, in which there is no product in bf16."""


def multiplies_bf16() -> bool:
    """Whether this processor multiplies in bf16, as far as oneDNN may use it; True where the system does not say."""
    # the second is its older name, which oneDNN reads where the first is not set
    held_to = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    if held_to.upper() in _BELOW_BF16:
        return False
    try:
        with _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            # x86 and aarch64; the first processor's, since all have the same
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    except OSError:
        return True
    return flags is None or not _BF16.isdisjoint(flags.split())


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory: in this process's cgroup, else on this machine.

    0 where the system does not say. It only grows.
    """
    files = [*_of_cgroup("memory.events", "memory.oom_control"), _VMSTAT]
    return next((kills for file in files if (kills := _number(file, r"^oom_kill (\d+)$")) is not None), 0)


def memory_limit() -> int:
    """The memory in bytes that this process may use, of its cgroup or the machine; 0 where the system does not say."""
    limits = [_number(file, r"^(\d+)$") for file in _of_cgroup("memory.max", "memory.limit_in_bytes")]
    with suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((limit for limit in limits if limit), default=0)


def memory(field: str) -> int:
    """A field of this process's status, see proc(5), in bytes; 0 without such a field."""
    return 1024 * (_number(Path("/proc/self/status"), rf"^{field}:\s+(\d+) kB$") or 0)


def _of_cgroup(name: str, older: str) -> list[Path]:
    """A file of this process's cgroup, by its name in version 2 and in version 1, that of the innermost first."""
    try:
        lines = [line.split(":", 2) for line in _CGROUP.read_text("utf-8").splitlines()]
    except OSError:
        return []
    files = []
    for number, kinds, path in lines:
        if number == "0" and not kinds:
            files += [_CGROUPS / path.lstrip("/") / name]
        elif "memory" in kinds.split(","):  # in a container its own is the root
            files += [_CGROUPS / "memory" / inside / older for inside in (path.lstrip("/"), "")]
    return files


def _number(file: Path, pattern: str) -> int | None:
    """The number that a pattern finds in a file; None without it."""
    try:
        match = re.search(pattern, file.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) if match else None


def gpus() -> int:
    """How many GPUs CUDA's driver shows to this process; none where torch was built without CUDA."""
    torch = importlib.util.find_spec("torch")
    if torch is None or not any(Path(str(torch.origin)).parent.glob("lib/*torch_cuda*")):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    # both answer 0 where they succeed
    return 0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value

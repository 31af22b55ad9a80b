"""What this machine's processor and GPUs can do, told without torch: a plan is instant.

How a stage sets up the process it runs in is in `method.environment`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

WITHOUT_BF16 = "no bf16 instructions, without which bf16 is 23 to 60 times slower than float32 (measured)"
"""What a processor has that `multiplies_bf16` is False for."""

_CPUINFO = Path("/proc/cpuinfo")
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

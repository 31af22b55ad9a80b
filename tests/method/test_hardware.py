"""What a processor and a driver say of themselves, from files and libraries made up here."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deftx import hardware

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f {}\nbugs\t\t: spectre_v1\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU part\t: 0xd40\n\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "multiplies"),
    [
        (X86.format("avx512_bf16"), True), (X86.format("amx_bf16 amx_tile"), True), (ARM.format("i8mm bf16"), True),
        (X86.format("avx512_vnni"), False), (X86.format("avx512_bf16x"), False), (ARM.format("i8mm sve2"), False),
        ("processor : 0\nisa : rv64imafdc\n", True), ("", True),
    ],
)  # fmt: skip
def test_a_processor_multiplies_in_bf16_by_its_flags_and_where_it_has_none(
    cpuinfo: Path, text: str, multiplies: bool
) -> None:
    cpuinfo.write_text(text, encoding="utf-8")
    assert hardware.multiplies_bf16() is multiplies


def test_a_system_without_cpuinfo_is_given_the_benefit_of_the_doubt(cpuinfo: Path) -> None:
    assert hardware.multiplies_bf16()


@pytest.mark.parametrize(
    ("held_to", "multiplies"),
    [
        ("AVX2", False), ("avx512_core", False), ("AVX512_CORE_VNNI", False),
        ("AVX512_CORE_BF16", True), ("AVX512_CORE_AMX", True), ("DEFAULT", True), ("", True),
    ],
)  # fmt: skip
def test_a_processor_held_below_its_bf16_has_none(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch, held_to: str, multiplies: bool
) -> None:
    cpuinfo.write_text(X86.format("avx512_bf16"), encoding="utf-8")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held_to)
    assert hardware.multiplies_bf16() is multiplies
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert hardware.multiplies_bf16() is (multiplies and held_to != ""), "the older name is read where it is alone"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert not hardware.multiplies_bf16()


class Driver:
    """CUDA's, that shows three GPUs."""

    def __init__(self, status: int) -> None:
        self.cuInit = lambda flags: status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 3
        return 0


@pytest.mark.parametrize(
    ("library", "status", "gpus"),
    [("libtorch_cuda.so", 0, 3), ("libtorch_cuda.so", 100, 0), ("libtorch_cuda.so", None, 0), ("libtorch.so", 0, 0)],
    ids=["three", "a driver that fails", "no driver", "torch without CUDA"],
)
def test_gpus_are_counted_by_the_driver_where_torch_could_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, status: int | None, gpus: int
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / library).touch()

    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if status is None:
            raise OSError(name)
        return Driver(status)

    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert hardware.gpus() == gpus

"""The process a stage runs in."""

from __future__ import annotations

import contextlib
import ctypes

import pytest
import torch

from deftx import hardware
from deftx.config import Execution
from deftx.errors import ConfigError
from deftx.method import environment


@pytest.mark.parametrize(("held", "given_back"), [(3 << 30, [0]), (1 << 30, [])], ids=["much", "little"])
def test_a_worker_that_holds_much_gives_freed_memory_back(
    monkeypatch: pytest.MonkeyPatch, held: int, given_back: list[int]
) -> None:
    calls: list[int] = []

    class Library:
        malloc_trim = calls.append

    monkeypatch.setattr(hardware, "memory", lambda field: held)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    environment.prepare(0, Execution())
    assert calls == given_back


def test_a_system_without_malloc_trim_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory", lambda field: 3 << 30)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    environment.prepare(0, Execution())


def test_bf16_on_a_processor_without_it_is_refused_and_leaves_the_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    environment.prepare(7, Execution(), "tf32")
    state = torch.get_rng_state()
    with pytest.raises(ConfigError) as refused:
        environment.prepare(8, Execution(), "bf16")
    assert str(refused.value) == (
        "precision: bf16, but the CPU here has no bf16 instructions, without which bf16 is 23 to 60 times slower than "
        "float32 (measured): set training.precision to float32, or run this elsewhere"
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == "high"
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: True)
    environment.prepare(8, Execution(), "bf16")


def test_a_device_that_torch_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, device: str) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ConfigError, match=r"^device: 'cuda' cannot be computed on here: Torch not compiled with CUDA"):
        environment.prepare(0, Execution(device="cuda"))


def test_a_card_that_only_emulates_bf16_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ConfigError) as refused:
        environment.check_precision("bf16", "cuda")
    assert str(refused.value) == (
        "precision: bf16, but the GPU here, Tesla T4, has no bf16: "
        "set training.precision to float32, or run this elsewhere"
    )
    environment.check_precision("tf32", "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    environment.check_precision("bf16", "cuda")


def test_peak_memory_is_of_the_gpu_that_a_stage_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"cuda:0": 5, "cuda:1": 7}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({device: 0}))
    monkeypatch.setattr(hardware, "memory", lambda field: 3)
    assert [environment.peak_memory(device) for device in ("cuda:0", "cuda:1", "cpu")] == [5, 7, 3]
    environment.reset_peak_memory("cuda:1")
    environment.reset_peak_memory("cpu")
    assert peaks == {"cuda:0": 5, "cuda:1": 0}
    assert environment.peak_memory("cuda:1") == 3  # a stage that used none of it

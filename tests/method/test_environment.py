"""The process a stage runs in."""

from __future__ import annotations

import ctypes

import pytest

from deftx.config import Execution
from deftx.method import environment


@pytest.mark.parametrize(("held", "given_back"), [(3 << 30, [0]), (1 << 30, [])], ids=["much", "little"])
def test_a_worker_that_holds_much_gives_freed_memory_back(
    monkeypatch: pytest.MonkeyPatch, held: int, given_back: list[int]
) -> None:
    calls: list[int] = []

    class Library:
        malloc_trim = calls.append

    monkeypatch.setattr(environment, "memory", lambda field: held)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    environment.prepare(0, Execution())
    assert calls == given_back


def test_a_system_without_malloc_trim_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "memory", lambda field: 3 << 30)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    environment.prepare(0, Execution())

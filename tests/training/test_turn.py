"""Turns on a GPU that trainings share: made without one, since all that is asked of it is which card it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.trainings import HARD, both, run

from deftx.train import loop
from deftx.train.turn import turn

GPU = torch.device("cuda")
HOLDER = """
import pathlib, sys, time, types, torch
import deftx.train.turn as here
here._FOLDER = pathlib.Path(sys.argv[2])
torch.cuda.get_device_name = lambda device: "NVIDIA A100-SXM4-80GB"
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid=sys.argv[1])
with here.turn(torch.device("cuda")):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card that can be another one, in a machine of its own: locks and MPS's pipes lie in the test's folder."""
    card = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", uuid="5a6e")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr("deftx.train.turn._FOLDER", tmp_path)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))
    return card


def another() -> tuple[threading.Thread, threading.Event]:
    """Another training that begins now, and whether it has its turn."""
    inside = threading.Event()

    def begin() -> None:
        with turn(GPU):
            inside.set()

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    return thread, inside


def waits_here() -> bool:
    thread, inside = another()
    return not inside.wait(0.3) and thread.is_alive()


def begins_here() -> bool:
    return another()[1].wait(20)


def test_one_training_at_a_time_is_on_a_card(card: SimpleNamespace) -> None:
    with turn(GPU):
        assert waits_here()
        card.uuid = "77f0"
        assert begins_here()
    card.uuid = "5a6e"
    assert begins_here()


def test_whoever_waits_begins_when_the_turn_ends(card: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    def second() -> None:
        with turn(GPU):
            order.append("second")

    caplog.set_level("INFO", "deftx")
    other = threading.Thread(target=second)
    with turn(GPU):
        other.start()
        while "waits for its turn" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_a_turn_ends_with_its_process_however_that_ends(card: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, card.uuid, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "in\n"
            assert waits_here()
        finally:
            holder.kill()
    assert begins_here()


def test_nobody_waits_under_mps_nor_on_a_part_of_a_card(card: SimpleNamespace, tmp_path: Path) -> None:
    with turn(GPU):
        assert waits_here()
        (tmp_path / "mps").mkdir()
        (tmp_path / "mps" / "control").touch()
        assert begins_here()
        (tmp_path / "mps" / "control").unlink()
        card.name = "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
        assert begins_here()


def test_a_file_that_cannot_be_locked_keeps_nobody(
    card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deftx")
    (tmp_path / f"deftx-{os.geteuid()}-5a6e.lock").symlink_to(tmp_path / "elsewhere")
    assert begins_here()
    assert "take no turns on this GPU" in caplog.text and not (tmp_path / "elsewhere").exists()
    with turn(GPU), pytest.raises(ZeroDivisionError), turn(GPU):  # nor does it hide what happens within
        raise ZeroDivisionError
    card.uuid = "77f0"
    with turn(GPU):
        user = os.geteuid()
        file = tmp_path / f"deftx-{user}-77f0.lock"
        other = os.stat_result([*file.stat()[:4], user + 1, *file.stat()[5:10]])
        monkeypatch.setattr(os, "fstat", lambda descriptor: other)
        assert begins_here()
    assert f"{file} is another user's" in caplog.text


def test_a_cpu_has_no_turns(card: SimpleNamespace, tmp_path: Path) -> None:
    with turn(torch.device("cpu")):
        assert not list(tmp_path.iterdir())


def test_a_training_is_a_turn(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def noted(device: torch.device) -> Iterator[None]:
        events.append(device.type)
        yield
        events.append("ends")

    monkeypatch.setattr(loop, "turn", noted)
    model, objective = both("mlm", backbone)
    run(model, objective, HARD.model_copy(update={"max_steps": 2}), report=lambda point: events.append("reports"))
    assert events == ["cpu", "reports", "reports", "ends"]

"""Memory that runs out: told apart from other deaths, named, and tried once more with half the micro-batch."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deftx import hardware
from deftx.config import Execution, Training
from deftx.errors import OutOfMemory
from deftx.method import make as module
from deftx.method.context import Context, Made
from deftx.method.make import make
from deftx.stages.claim import claim_on, killed_for_memory
from deftx.stages.facts import Facts
from deftx.stages.lease import Holder
from deftx.stages.settings import DenseSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from deftx.train.memory import examples_at_once

TRAINING = Training(max_steps=10, batch_size=16)
STAGE = Stage("dense", DenseSettings(language="ila", task=None, backbone=None, training=TRAINING, seed=0))
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)
V2, V1 = {"self": "0::/job\n"}, {"self": "4:cpu,memory:/job\n0::/\n"}
KILLED = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(Stage, "reads", [])
    monkeypatch.setattr(hardware, "memory_limit", lambda: 24 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 16 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 14 * 2**30)
    return Store(str(tmp_path))


def fitting(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception = CPU) -> list[int | None]:
    """A stage whose memory does for so many examples at once; returns those it was made with, so far."""
    tried: list[int | None] = []

    def run(context: Context) -> Made:
        tried.append(examples_at_once(TRAINING, context.execution))
        (context.folder / "file").write_bytes(b"half a result")
        if (tried[-1] or 0) > most:
            raise error
        return Made(Facts())

    load: Callable[[], Callable[[Context], Made]] = lambda: run  # noqa: E731
    monkeypatch.setattr(module, "kind_of", lambda kind: SimpleNamespace(load=load))
    return tried


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CPU, "too little memory for 16 examples at once: 4.00 GiB on top of what is held was refused (there are 24.0 "
              "GiB in all); in the stage's `resources` set a smaller micro_batch"),
        (MemoryError(), "too little memory for 16 examples at once: more on top of what is held was refused"),
        (GPU, "the GPU has too little memory for 16 examples at once: this stage held 14.0 GiB and needs 2.50 GiB "),
    ],
    ids=["cpu", "python", "gpu"],
)  # fmt: skip
def test_a_stage_that_needs_too_much_is_made_with_half_at_once_and_its_manifest_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    tried = fitting(monkeypatch, 8, error)
    manifest = make(STAGE, store)
    assert tried == [16, 8]
    assert manifest.execution["micro_batch"] == 8
    assert manifest.details["out_of_memory"].startswith(words)
    assert sorted(store.names("stages", STAGE.address)) == sorted([manifest.attempt, "manifest.json"])


def test_half_of_what_was_set_is_tried_once_and_then_it_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = fitting(monkeypatch, 1)
    with pytest.raises(OutOfMemory, match="too little memory for 6 examples at once"):
        make(STAGE, store, Execution(micro_batch=12))
    assert tried == [12, 6]
    assert store.names("stages", STAGE.address) == []
    tried.clear()
    assert make(STAGE, store, Execution(micro_batch=1)).execution["micro_batch"] == 1
    assert tried == [1]


def test_another_error_is_not_taken_for_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = fitting(monkeypatch, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make(STAGE, store)
    assert tried == [16]


def dead(store: Store, **facts: object) -> Holder:
    """The claim that a process of this host left behind when it died making the stage."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    fields = {
        "token": "t",
        "by": "sweep 'one'",
        "host": socket.gethostname(),
        "pid": process.pid,
        "born": "1",
        "beat": 0,
    }
    holder = Holder.model_validate({**fields, "micro_batch": 16, "memory": 3 * 2**30, "oom_kills": 7, **facts})
    store.write(holder.model_dump_json().encode(), "stages", STAGE.address, "claim.json")
    return holder


@pytest.mark.parametrize(
    ("facts", "kills", "expected"),
    [
        ({}, 8, [8]),  # the kernel has killed one more since
        ({}, 7, [16]),  # killed, but not for that
        ({"short": True}, 7, [8]),  # by Ray
        ({"host": "elsewhere", "short": True}, 0, [8]),
    ],
)
def test_a_process_that_was_killed_for_memory_is_followed_by_half_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], kills: int, expected: list[int]
) -> None:
    monkeypatch.setattr(hardware, "oom_kills", lambda: kills)
    monkeypatch.setattr("deftx.stages.lease.DEAD_AFTER_SECONDS", 0.0)
    dead(store, **facts)
    tried = fitting(monkeypatch, 16)
    manifest = make(STAGE, store)
    assert tried == expected
    assert ("out_of_memory" in manifest.details) == (expected == [8])


def test_killed_with_half_of_it_too_is_an_error_that_says_what_was_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "oom_kills", lambda: 8)
    words = killed_for_memory(dead(store, micro_batch=8))
    assert words == (
        "killed for want of memory with 8 examples at once; it held 3.0 GiB when last looked at (there are 24.0 GiB "
        "in all); in the stage's `resources` set a smaller micro_batch or gradient_checkpointing: true, run fewer "
        "trials at once (parallel), or give it more memory"
    )
    tried = fitting(monkeypatch, 16)
    with pytest.raises(OutOfMemory) as told:
        make(STAGE, store)
    assert str(told.value) == words
    assert tried == []
    assert claim_on(store, STAGE.address).holder() is None
    make(STAGE, store)  # asked for again, it is tried again
    assert tried == [16]


@pytest.mark.parametrize(
    ("files", "limit", "kills"),
    [
        (
            {"self": "0::/job\n", "job/memory.max": "2147483648\n", "job/memory.events": "max 3\noom 2\noom_kill 2\n"},
            2**31,
            2,
        ),
        (V2 | {"job/memory.max": "2147483648\n", "job/memory.events": "oom 2\noom_kill 2\n"}, 2**31, 2),
        (V2 | {"job/memory.max": "max\n", "vmstat": "nr_free 3\noom_kill 5\n"}, None, 5),
        (V1 | {"memory/job/memory.limit_in_bytes": "2147483648\n", "vmstat": "oom_kill 6\n"}, 2**31, 6),
        (V1 | {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.oom_control": KILLED}, None, 4),
        ({"self": "1:name=systemd:/\n", "vmstat": "nr_free 3\n"}, None, 0),
        ({}, None, 0),
    ],
)
def test_limits_and_kills_are_read_from_the_cgroup_or_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: int | None, kills: int
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path / "self")
    monkeypatch.setattr(hardware, "_VMSTAT", tmp_path / "vmstat")
    assert hardware.oom_kills() == kills
    machine = int(
        next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1]
    )
    assert hardware.memory_limit() == (limit or machine * 1024)

"""Leases and claims: one holder at a time, a dead one is taken over, a living one is waited for."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.patience import PATIENCE

from deftx.stages import claim, lease
from deftx.stages.claim import claim_on, claimed
from deftx.stages.lease import Holder, Lease, Watch
from deftx.stages.objects import Objects
from deftx.stages.store import Store
from orchestrator.record import lease as driver_lease
from orchestrator.record.lease import driving, running_driver
from orchestrator.record.sweep import SweepFolder

ADDRESS = "a" * 32


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path))


def held(store: Objects, *, host: str = "elsewhere", pid: int = 1, born: str = "1", beat: float = 0.0) -> Holder:
    """A claim that lies in the store, of another host where nothing else is said."""
    holder = Holder(token="theirs", by="sweep 'two'", host=host, pid=pid, born=born, beat=beat)
    store.write(holder.model_dump_json().encode(), "stages", ADDRESS, claim.CLAIM)
    return holder


def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_of_many_gets_a_lease_and_it_leaves_nothing(store: Objects) -> None:
    leases = [Lease(store, "one.json") for _ in range(8)]
    taken = [one.take() for one in leases]
    assert taken == [True] + [False] * 7
    holder = leases[3].holder()
    assert holder is not None and (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
    leases[0].give_back()
    assert store.names() == []
    assert leases[5].take()
    leases[5].give_back()


def test_a_holder_beats_and_hears_that_it_should_leave_and_that_it_lost(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.02)
    asked, lost = threading.Event(), threading.Event()
    mine = Lease(store, "one.json", asked=asked.set, lost=lost.set)
    assert mine.take()
    first = mine.holder()
    assert first is not None
    deadline = time.monotonic() + PATIENCE
    while (now := mine.holder()) is None or now.beat <= first.beat:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not asked.is_set()
    Lease(store, "one.json").ask_to_leave()
    assert asked.wait(10)
    store.write(first.model_copy(update={"token": "another"}).model_dump_json().encode(), "one.json")
    assert lost.wait(10)
    mine.give_back()
    holder = mine.holder()
    assert holder is not None and holder.token == "another"  # not ours to remove


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_claim_is_taken_over(store: Objects, content: bytes) -> None:
    store.write(content, "stages", ADDRESS, claim.CLAIM)
    with claimed(store, ADDRESS, "a test", lambda: None):
        holder = claim_on(store, ADDRESS).holder()
        assert holder is not None and holder.by == "a test"
    assert store.names("stages", ADDRESS) == []


def test_a_dead_process_of_this_host_is_taken_over_at_once(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    held(store, host=socket.gethostname(), pid=ended(), beat=time.time())
    with claimed(store, ADDRESS, "a test", lambda: None):
        pass
    held(store, host=socket.gethostname(), pid=os.getpid(), born="0")  # its id was given to another
    with claimed(store, ADDRESS, "a test", lambda: None):
        pass


def test_a_process_does_not_wait_for_itself(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that it could not remove, as on a disk that was read-only for a while."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    left = claim_on(store, ADDRESS)
    assert left.take()
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        left.give_back()
    holder = claim_on(store, ADDRESS).holder()
    assert holder is not None and holder.gone
    with claimed(store, ADDRESS, "a test", lambda: None):
        pass


def test_one_that_beats_is_waited_for_whatever_its_clock_says_and_a_silent_one_is_not(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_SECONDS", 0.4)
    monkeypatch.setattr(claim, "_LOOK_SECONDS", 0.01)
    stop, taken = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with claimed(store, ADDRESS, "a test", lambda: None):
            taken.set()

    held(store)
    waiter = threading.Thread(target=wait_for_it)
    waiter.start()
    for beat in range(20):  # longer than a silent one is believed, with a clock of 1970
        held(store, beat=float(beat + 1))
        stop.wait(0.05)
        assert not taken.is_set()
    began = time.monotonic()
    assert taken.wait(10)
    assert time.monotonic() - began > 0.2
    waiter.join()


def test_a_claim_that_is_given_back_is_the_next_ones(store: Objects) -> None:
    order: list[str] = []
    inside = threading.Event()

    def make(name: str) -> None:
        with claimed(store, ADDRESS, name, lambda: None):
            order.append(f"{name} begins")
            inside.set()
            time.sleep(0.05)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=make, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order[::2]) == ["a begins", "b begins", "c begins"]
    assert [begun[0] for begun in order[::2]] == [ended[0] for ended in order[1::2]]


def test_silence_is_counted_from_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch, holder = Watch(), Holder(token="t", host="elsewhere", pid=1, born="1", beat=5.0)
    assert watch.silent_for(holder) == 0.0
    now[0] += 59
    assert watch.lives(holder)
    now[0] += 1
    assert not watch.lives(holder)
    assert watch.silent_for(holder.model_copy(update={"beat": -7.0})) == 0.0


@pytest.mark.parametrize("jump", [-7200.0, 0.0, 7200.0])
def test_a_driver_elsewhere_lives_while_it_beats_whatever_either_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    folder = SweepFolder(Store(str(tmp_path)), "one")
    holder = Holder(token="t", host="elsewhere", pid=1, born="1", beat=time.time() + jump)

    def write(beat: float) -> None:
        content = holder.model_copy(update={"beat": beat}).model_dump_json().encode()
        folder.store.write(content, "sweeps", "one", "lease.json")

    write(holder.beat)
    beats = iter(range(1, 1000))
    monkeypatch.setattr(driver_lease.time, "sleep", lambda _: write(holder.beat + next(beats)))
    assert running_driver(folder) is not None
    with pytest.raises(Exception, match="is being driven by process 1 on elsewhere"), driving(folder):
        pass


def test_a_silent_driver_elsewhere_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lease, "WATCHED_SECONDS", 0.3)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    folder = SweepFolder(Store(str(tmp_path)), "one")
    holder = Holder(token="t", host="elsewhere", pid=1, born="1", beat=time.time() - 3600)
    folder.store.write(holder.model_dump_json().encode(), "sweeps", "one", "lease.json")
    with driving(folder):
        assert running_driver(folder) is not None
    assert folder.store.names("sweeps", "one") == []

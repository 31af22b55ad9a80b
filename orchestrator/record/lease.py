"""One driver for a sweep: `sweeps/<name>/lease.json` names the running one; the lease of a dead one is taken over.

On the same host a driver lives as long as its process; elsewhere as long as its heartbeat is younger than a minute.
"""

from __future__ import annotations

import _thread
import os
import socket
import threading
import time
import uuid
from types import TracebackType

from pydantic import BaseModel, ValidationError

from deftx.errors import StoreError
from orchestrator.record.sweep import SweepFolder

_BEAT_SECONDS = 10.0
_DEAD_AFTER_SECONDS = 60.0


class Holder(BaseModel):
    """The driver of a sweep. `born` is the process's start in clock ticks since boot, as process ids are used again."""

    token: str
    host: str
    pid: int
    born: str
    beat: float


class Lease:
    """The right to drive a sweep, held for the duration of a `with` block."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder
        self._parts = ("sweeps", folder.name, "lease.json")
        self._me = Holder(
            token=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), born=_born(os.getpid()),
            beat=time.time(),
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            StoreError: while another driver holds it.
        """
        store = self._folder.store
        if not store.create(self._content(), *self._parts):
            if (holder := running_driver(self._folder)) is not None:
                raise StoreError(
                    f"sweep {self._folder.name!r} is being driven by process {holder.pid} on {holder.host}; "
                    f"wait for it, stop it, or give this one another --name"
                )
            store.remove(*self._parts)
            if not store.create(self._content(), *self._parts):
                raise StoreError(f"sweep {self._folder.name!r} was taken by another driver just now")
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        holder = self._holder()
        if holder is not None and holder.token == self._me.token:
            self._folder.store.remove(*self._parts)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            try:
                holder = self._holder()
                if holder is not None and holder.token != self._me.token:
                    # taken over while this machine slept: two drivers must not go on
                    _thread.interrupt_main()
                    return
                self._me.beat = time.time()
                self._folder.store.write(self._content(), *self._parts)
            except Exception:  # a storage in trouble now may answer at the next beat
                continue

    def _content(self) -> bytes:
        return self._me.model_dump_json().encode()

    def _holder(self) -> Holder | None:
        return _holder(self._folder)


def running_driver(folder: SweepFolder) -> Holder | None:
    """The running driver of a sweep, or None."""
    holder = _holder(folder)
    return holder if holder is not None and _lives(holder) else None


def _holder(folder: SweepFolder) -> Holder | None:
    content = folder.store.read("sweeps", folder.name, "lease.json")
    try:
        return Holder.model_validate_json(content) if content else None
    except ValidationError:
        return None


def _lives(holder: Holder) -> bool:
    if holder.host != socket.gethostname():
        return time.time() - holder.beat < _DEAD_AFTER_SECONDS
    return bool(holder.born) and _born(holder.pid) == holder.born


def _born(pid: int) -> str:
    """When a process started; empty when there is no such process, or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "unknown" if not os.path.isdir("/proc/self") and _exists(pid) else ""
    return "" if fields[0] == "Z" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

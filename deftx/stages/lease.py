"""Who is at work: a small object in a store that names a process and beats while it lives.

A driver holds one for its sweep, and whoever makes a stage one for the stage. One process at most gets it; on an object
store that creates nothing exclusively the last writer has it. Losing it harms nothing: what two make is the same, and
the first wins.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from deftx import hardware
from deftx.stages.objects import Objects

BEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0
_LOOK_SECONDS = 1.0
"""How often a holder looks whether it was asked to leave, where that is the reading of a small file."""
_GROWN = 2**28
"""Bytes that a holder notes at once that it holds more."""
_LEAVE = ".leave"
_held: set[str] = set()
"""The tokens of this process's leases: one whose removal was refused is in the store still."""


class Holder(BaseModel):
    """Who holds a lease, in words `by` what."""

    token: str
    by: str = ""
    host: str
    pid: int
    born: str
    """When the process began, in clock ticks since boot: process ids are used again."""
    beat: float
    """Seconds since 1970 by the holder's clock, which may be wrong elsewhere: what counts is that it changes."""
    micro_batch: int | None = None
    """Examples that its training computes at once; None where nothing is trained."""
    memory: int = 0
    """Most bytes that the process held until it last beat."""
    oom_kills: int = 0
    """How many processes the kernel of its host had killed for want of memory when it began."""
    short: bool = False
    """Whether something else than the kernel killed it for want of memory, as Ray does."""

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == socket.gethostname()

    @property
    def gone(self) -> bool:
        """Whether it was a process of this host that has ended, or this very one, which holds it no more."""
        if not self.here:
            return False
        own = self.pid == os.getpid() and self.token not in _held
        return own or not self.born or _born(self.pid) != self.born

    @property
    def killed_for_memory(self) -> bool:
        """Whether it was killed for want of memory, as far as this host can tell."""
        return self.short or (self.gone and hardware.oom_kills() > self.oom_kills)


class Lease:
    """One lease, which this process may take, and which another may ask it to give back."""

    def __init__(
        self,
        store: Objects,
        *parts: str,
        by: str = "",
        lost: Callable[[], None] | None = None,
        asked: Callable[[], object] | None = None,
    ) -> None:
        """Name a lease; nothing is written yet.

        Args:
            store: where it lies.
            parts: of its path.
            by: who takes it, in words.
            lost: called, on a thread, when another has taken it over.
            asked: called, on a thread, when another asks the holder to leave.
        """
        self._store, self._parts, self._lost, self._asked = store, parts, lost, asked
        self._leave = (*parts[:-1], parts[-1] + _LEAVE)
        self._me = Holder(
            token=uuid.uuid4().hex, by=by, host=socket.gethostname(), pid=os.getpid(), born=_born(os.getpid()),
            beat=time.time(), memory=hardware.memory("VmHWM"), oom_kills=hardware.oom_kills(),
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lease", daemon=True)

    def take_over(self, dead: Holder | None) -> bool:
        """Whether this process has the lease now, instead of a holder that is dead or, None, cannot be read."""
        holder = self.holder()
        if (holder and holder.token) == (dead and dead.token):
            self._store.remove(*self._parts)
        return self.take()

    def take(self) -> bool:
        """Whether this process has the lease now, which nobody had."""
        _held.add(self._me.token)
        if not self._store.create(self._content(), *self._parts):
            _held.discard(self._me.token)
            return False
        self._store.remove(*self._leave)
        self._thread.start()
        return True

    def give_back(self) -> None:
        """End the beats, and remove the lease unless another has it."""
        self._stop.set()
        self._thread.join()
        _held.discard(self._me.token)
        with suppress(OSError):  # a storage that is gone; without beats the lease is nobody's soon
            if (holder := self.holder()) is not None and holder.token == self._me.token:
                self._store.remove(*self._parts)
            self._store.remove(*self._leave)

    def holder(self) -> Holder | None:
        """Who holds it, dead or alive; None where nobody does."""
        content = self._store.read(*self._parts)
        try:
            return Holder.model_validate_json(content) if content else None
        except ValidationError:
            return None

    def say_short_of_memory(self) -> None:
        """Note of a dead holder that it was killed for want of memory."""
        if (holder := self.holder()) is not None:
            self._store.write(holder.model_copy(update={"short": True}).model_dump_json().encode(), *self._parts)

    def forget(self) -> None:
        """Remove a lease whose holder is dead."""
        self._store.remove(*self._parts)

    def ask_to_leave(self) -> None:
        """Ask whoever holds it to leave when it can."""
        self._store.write(b"", *self._leave)

    def note(self, **facts: Any) -> None:
        """Say more of oneself as the holder."""
        self._me = self._me.model_copy(update=facts)
        self._store.write(self._content(), *self._parts)

    def _watch(self) -> None:
        beat = time.monotonic()
        while not self._stop.wait(_LOOK_SECONDS if self._store.local else BEAT_SECONDS):
            with suppress(Exception):  # a storage in trouble now may answer at the next beat
                if self._asked and self._store.read(*self._leave) is not None:
                    self._asked()
                held = hardware.memory("VmHWM")
                # one that grows may be killed for it before its next beat
                if time.monotonic() - beat >= BEAT_SECONDS or held > self._me.memory + _GROWN:
                    beat = time.monotonic()
                    if (holder := self.holder()) is not None and holder.token != self._me.token:
                        if self._lost:
                            self._lost()
                        return
                    self.note(beat=time.time(), memory=held)

    def _content(self) -> bytes:
        return self._me.model_dump_json().encode()


class Watch:
    """Tells whether a holder lives: a process of this host by the process itself, any other by its beats."""

    def __init__(self) -> None:
        self._seen: tuple[str, float] | None = None
        self._since = 0.0

    def silent_for(self, holder: Holder) -> float:
        """Seconds for which no beat of the holder was seen, by this process's own clock."""
        if (holder.token, holder.beat) != self._seen:
            self._seen, self._since = (holder.token, holder.beat), time.monotonic()
        return time.monotonic() - self._since

    def lives(self, holder: Holder) -> bool:
        """Whether it is to be waited for: it has not ended, nor been silent for a minute."""
        return not holder.gone and self.silent_for(holder) < DEAD_AFTER_SECONDS


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

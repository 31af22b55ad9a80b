"""The claim on a running stage, so that two sweeps that share it make it once. It saves work; nothing depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deftx import hardware
from deftx.stages.lease import Holder, Lease, Watch
from deftx.stages.objects import Objects

CLAIM = "claim.json"
_LOOK_SECONDS = 0.5
log = logging.getLogger("deftx")


GIB = 2**30
MEMORY_ADVICE = (
    "in the stage's `resources` set a smaller micro_batch or gradient_checkpointing: true, run fewer trials at once "
    "(parallel), or give it more memory"
)


def claim_on(store: Objects, address: str, by: str = "", asked: Callable[[], object] | None = None) -> Lease:
    """The claim on a stage, to take or to look at; see `Lease`."""
    return Lease(store, "stages", address, CLAIM, by=by, asked=asked)


@dataclass
class Claim:
    """A claim that this process has, and the holder it was taken over from, if any."""

    lease: Lease
    dead: Holder | None = None


@contextmanager
def claimed(store: Objects, address: str, by: str, asked: Callable[[], object]) -> Iterator[Claim]:
    """A context in which the stage is this process's to make; before it, another that makes it is waited for.

    Waited for until it gives its claim back, has ended, or was silent for a minute: whether the stage is made then is
    for the caller to see.

    Args:
        by: who makes it here, in words.
        asked: called, on a thread, when the stage should be left.
    """
    mine, watch, told = claim_on(store, address, by, asked), Watch(), False
    claim = Claim(mine)
    while not mine.take():
        if (holder := mine.holder()) is None or not watch.lives(holder):
            claim.dead = holder
            if mine.take_over(holder):
                break
        elif not told:
            told = True
            log.info("waits for %s (process %d on %s), which makes it", holder.by, holder.pid, holder.host)
        time.sleep(_LOOK_SECONDS)
    try:
        yield claim
    finally:
        mine.give_back()


def killed_for_memory(holder: Holder) -> str | None:
    """How the holder's process died, in words, if it was killed for want of memory; else None."""
    if not holder.killed_for_memory:
        return None
    batch = f" with {holder.micro_batch} examples at once" if holder.micro_batch else ""
    held = f"; it held {holder.memory / GIB:.1f} GiB when last looked at" if holder.memory else ""
    return f"killed for want of memory{batch}{held}{of_what_there_is()}; {MEMORY_ADVICE}"


def of_what_there_is() -> str:
    """The memory of this process or machine, in words that follow those of what was needed."""
    limit = hardware.memory_limit()
    return f" (there are {limit / GIB:.1f} GiB in all)" if limit else ""

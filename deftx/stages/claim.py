"""The claim on a running stage, so that two sweeps that share it make it once. It saves work; nothing depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deftx.stages.lease import Lease, Watch
from deftx.stages.objects import Objects

CLAIM = "claim.json"
_LOOK_SECONDS = 0.5
log = logging.getLogger("deftx")


def claim_on(store: Objects, address: str, by: str = "", asked: Callable[[], object] | None = None) -> Lease:
    """The claim on a stage, to take or to look at; see `Lease`."""
    return Lease(store, "stages", address, CLAIM, by=by, asked=asked)


@contextmanager
def claimed(store: Objects, address: str, by: str, asked: Callable[[], object]) -> Iterator[None]:
    """A context in which the stage is this process's to make; before it, another that makes it is waited for.

    Waited for until it gives its claim back, has ended, or was silent for a minute: whether the stage is made then is
    for the caller to see.

    Args:
        by: who makes it here, in words.
        asked: called, on a thread, when the stage should be left.
    """
    mine, watch, told = claim_on(store, address, by, asked), Watch(), False
    while not mine.take():
        if (holder := mine.holder()) is None or not watch.lives(holder):
            if mine.take_over(holder):
                break
        elif not told:
            told = True
            log.info("waits for %s (process %d on %s), which makes it", holder.by, holder.pid, holder.host)
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        mine.give_back()

"""One driver for a sweep: `sweeps/<name>/lease.json` names the running one; the lease of a dead one is taken over."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deftx.errors import StoreError
from deftx.stages import lease
from deftx.stages.lease import Holder, Lease, Watch
from orchestrator.record.sweep import SweepFolder

WATCHED_SECONDS = 2.5 * lease.BEAT_SECONDS
"""How long beats are waited for of a driver of another host whose clock, or ours, is wrong."""


@contextmanager
def driving(folder: SweepFolder) -> Iterator[None]:
    """A context in which this process is the sweep's driver.

    Raises:
        StoreError: while another driver lives.
    """
    # taken over while this machine slept: two drivers must not go on
    mine = _lease(folder, lost=_thread.interrupt_main)
    if not mine.take():
        if (holder := running_driver(folder)) is not None:
            raise StoreError(
                f"sweep {folder.name!r} is being driven by process {holder.pid} on {holder.host}; "
                f"wait for it, stop it, or give this one another --name"
            )
        if not mine.take_over(mine.holder()):
            raise StoreError(f"sweep {folder.name!r} was taken by another driver just now")
    try:
        yield
    finally:
        mine.give_back()


def running_driver(folder: SweepFolder) -> Holder | None:
    """The running driver of a sweep, or None.

    A driver of this host lives as long as its process. One of another host, whose last beat is not of this minute by
    our clock, is watched for some seconds: it lives if it beats.
    """
    holder = _lease(folder).holder()
    if holder is None or holder.gone:
        return None
    if holder.here or abs(time.time() - holder.beat) < lease.DEAD_AFTER_SECONDS:
        return holder
    watch = Watch()
    while (now := _lease(folder).holder()) is not None and watch.silent_for(now) < WATCHED_SECONDS:
        if (now.token, now.beat) != (holder.token, holder.beat):
            return now
        time.sleep(lease.BEAT_SECONDS / 10)
    return None


def _lease(folder: SweepFolder, lost: Callable[[], None] | None = None) -> Lease:
    return Lease(folder.store, "sweeps", folder.name, "lease.json", lost=lost)

"""What a storage no longer needs: stages no sweep has, losing attempts, and the deltas of sweeps that have ended."""

from __future__ import annotations

from dataclasses import dataclass

from deftx.errors import StoreError
from deftx.stages.files import DELTA, SINGULAR_VECTORS
from deftx.stages.manifest import MANIFEST
from deftx.stages.store import ATTEMPT, Store
from orchestrator.record.lease import running_driver
from orchestrator.record.sweep import sweeps_in


@dataclass
class Removed:
    """How much was removed, or would be."""

    stages: int = 0
    attempts: int = 0
    deltas: int = 0
    bytes: int = 0


def collect(store: Store, *, remove: bool) -> Removed:
    """How much is not needed any more; with `remove` it is removed.

    A dense delta is not needed when every sweep that has its stage has ended; the stage is made again if a widened
    space needs it.

    Raises:
        StoreError: while a driver runs, whose running stages look like losing attempts.
    """
    sweeps = sweeps_in(store)
    for sweep in sweeps:
        if running_driver(sweep):
            raise StoreError(f"sweep {sweep.name!r} is running; collect when it has ended")
    states = [sweep.state() for sweep in sweeps]
    used = {address for state in states for address in state.stages}
    needed = {address for state in states if not state.ended for address in state.stages}
    removed = Removed()
    for address in store.names("stages"):
        if address not in used:
            removed.stages += 1
            _drop(store, removed, remove, address)
        else:
            _drop_within(store, removed, remove, address, keep_delta=address in needed)
    return removed


def _drop_within(store: Store, removed: Removed, remove: bool, address: str, *, keep_delta: bool) -> None:
    manifest = store.manifest(address)
    kept = {MANIFEST, manifest.attempt} if manifest else set()
    for name in store.names("stages", address):
        if name not in kept and (manifest or name != "checkpoint"):  # one of a stage that is still to be made is kept
            # a manifest that is not believed goes with its attempts, as does the claim of a process that died
            removed.attempts += name.startswith(ATTEMPT)
            _drop(store, removed, remove, address, name)
    if manifest and not keep_delta and (published := {DELTA, SINGULAR_VECTORS} & manifest.files.keys()):
        deltas = published & set(store.names("stages", address, manifest.attempt))
        removed.deltas += DELTA in deltas
        for name in deltas:
            _drop(store, removed, remove, address, manifest.attempt, name)


def _drop(store: Store, removed: Removed, remove: bool, *parts: str) -> None:
    removed.bytes += store.total_size("stages", *parts)
    if remove:
        store.remove("stages", *parts)

"""`make` runs one stage in this process and publishes it, first making whatever it needs.

A notebook needs nothing else. What each kind of stage runs is named in `stages.kinds`: Algorithm 1 of the paper is in
`phases`, composition is graded in `grading`, plain text is in `texts`; nothing is scheduled here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from deftx.config import Execution
from deftx.errors import OutOfMemory
from deftx.method import environment
from deftx.method.context import Context, Made
from deftx.stages.claim import Claim, claimed, killed_for_memory
from deftx.stages.kinds import kind_of
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage
from deftx.stages.store import Attempt, Store
from deftx.train.leave import ask
from deftx.train.loop import Report
from deftx.train.memory import examples_at_once, memory_errors

log = logging.getLogger("deftx")

Watch = Callable[[Stage], Report | None]
"""Called with a stage as it begins; what it returns is called with each point of the stage's curve."""


def make(
    stage: Stage,
    store: Store,
    execution: Execution | None = None,
    watch: Watch | None = None,
    by: str = "another process",
) -> Manifest:
    """The manifest of a stage, which is made with what it needs unless the store has it whole.

    Where another process is making it, that one is waited for as long as it lives.

    Args:
        execution: device, threads and the like; none of it is meant to change the result.
        watch: called with each stage that is run, also with inputs that have to be made again.
        by: who makes it, in words, for those who wait.

    Raises:
        DeftxError: for what a user did; nothing is published then.
        OutOfMemory: when there was too little for half the micro-batch too.
        Left: when this process was asked to leave.
    """
    if (manifest := _whole(stage, store)) is not None:
        return manifest
    execution = execution or Execution()
    for needed in stage.reads:
        make(needed, store, execution, watch, by)
    with claimed(store, stage.address, by, ask) as claim:
        return _whole(stage, store) or _run_in_memory(stage, store, execution, watch, claim)


def _whole(stage: Stage, store: Store) -> Manifest | None:
    """The manifest of a stage that the store has whole; else None, and a damaged one is forgotten."""
    if (manifest := store.manifest(stage.address)) is not None and not store.intact(stage.address):
        store.discard(stage.address)
        return None
    return manifest


def _run_in_memory(stage: Stage, store: Store, execution: Execution, watch: Watch | None, claim: Claim) -> Manifest:
    """Make a stage; where memory runs out, or ran out for a process that was killed, once more with half of it at once.

    Raises:
        OutOfMemory: when half was too much too.
    """
    examples = examples_at_once(stage.training, execution)
    shortage = killed_for_memory(claim.dead) if claim.dead else None
    if shortage and claim.dead and examples and (claim.dead.micro_batch or examples) < examples:
        raise OutOfMemory(shortage)
    if not (shortage and examples):
        claim.lease.note(micro_batch=examples)
        try:
            return _run(stage, store, execution, watch)
        except OutOfMemory as error:
            if examples is None or examples == 1:
                raise
            shortage = str(error)
    half = max(examples // 2, 1)
    log.warning("%s: again with %d examples at once: %s", stage.label, half, shortage)
    claim.lease.note(micro_batch=half)
    return _run(stage, store, execution.model_copy(update={"micro_batch": half}), watch, out_of_memory=shortage)


def _run(stage: Stage, store: Store, execution: Execution, watch: Watch | None, **details: str) -> Manifest:
    started, report = time.monotonic(), watch(stage) if watch else None
    log.info("%s: starts (%s)", stage.label, stage.address)
    environment.prepare(stage.seed, execution, stage.precision)
    environment.reset_peak_memory(execution.device)
    attempt: Attempt = store.attempt(stage.address)
    try:
        with memory_errors(stage.training, execution):
            made: Made = kind_of(stage.kind).load()(Context(stage, store, attempt.folder, execution, report))
    except BaseException:
        attempt.abandon()
        raise
    seconds = time.monotonic() - started
    manifest = attempt.publish(
        stage, metrics=made.facts.metrics(), curve=made.curve, details={**made.details, **details}, seconds=seconds,
        peak_bytes=environment.peak_memory(execution.device), execution=execution.model_dump(mode="json"),
        versions=environment.versions(), git_commit=environment.git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    log.info("%s: done in %.1f s: %s", stage.label, seconds, manifest.metrics)
    return manifest

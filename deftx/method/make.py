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
from deftx.method import environment
from deftx.method.context import Context, Made
from deftx.stages.kinds import kind_of
from deftx.stages.manifest import Manifest
from deftx.stages.stage import Stage
from deftx.stages.store import Attempt, Store
from deftx.train.loop import Report

log = logging.getLogger("deftx")

Watch = Callable[[Stage], Report | None]
"""Called with a stage as it begins; what it returns is called with each point of the stage's curve."""


def make(stage: Stage, store: Store, execution: Execution | None = None, watch: Watch | None = None) -> Manifest:
    """The manifest of a stage, which is made with what it needs unless the store has it whole.

    Args:
        execution: device, threads and the like; none of it is meant to change the result.
        watch: called with each stage that is run, also with inputs that have to be made again.

    Raises:
        DeftxError: for what a user did; nothing is published then.
    """
    if (manifest := store.manifest(stage.address)) is not None:
        if store.intact(stage.address):
            return manifest
        store.discard(stage.address)
    execution = execution or Execution()
    for needed in stage.reads:
        make(needed, store, execution, watch)
    return _run(stage, store, execution, watch)


def _run(stage: Stage, store: Store, execution: Execution, watch: Watch | None) -> Manifest:
    started, report = time.monotonic(), watch(stage) if watch else None
    log.info("%s: starts (%s)", stage.label, stage.address)
    environment.prepare(stage.seed, execution, stage.precision)
    environment.reset_peak_memory()
    attempt: Attempt = store.attempt(stage.address)
    try:
        made: Made = kind_of(stage.kind).load()(Context(stage, store, attempt.folder, execution, report))
    except BaseException:
        attempt.abandon()
        raise
    seconds = time.monotonic() - started
    manifest = attempt.publish(
        stage, metrics=made.facts.metrics(), curve=made.curve, details=made.details, seconds=seconds,
        peak_bytes=environment.peak_memory(), execution=execution.model_dump(mode="json"),
        versions=environment.versions(), git_commit=environment.git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    log.info("%s: done in %.1f s: %s", stage.label, seconds, manifest.metrics)
    return manifest

"""A job as a trial, wherever it runs: stages are made in order, each with its own log; failures are recorded.

A `DeftxError` ends a stage permanently and the trial as completed; any other error is recorded and raised, so that the
trial is tried again. Nothing of Ray here: the same function is called in one process (`serial`) and on a worker.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal

from deftx.errors import DeftxError, HubError, refusal
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from deftx.train.leave import Left
from orchestrator.record.sweep import Failure, SweepFolder
from orchestrator.run.logs import logging_to
from orchestrator.run.machine import Workplace
from orchestrator.search.schedule import Job

Status = Literal["done", "failed"]
ReportPoint = Callable[[str, dict[str, float]], None]
"""Called with a stage's address and a point of its curve."""


class _Unfit(DeftxError):
    """The node cannot make the stage; another can, or this one once it is mended."""


def carry_out(job: Job, workplace: Workplace, progress: ReportPoint) -> Status:
    """How a job ended whose stages are made here.

    Returns:
        `failed` when a stage raised a DeftxError; the others were made nevertheless.

    Raises:
        Left: when the sweep was told to end and a training has kept a checkpoint.
        Exception: whatever else a stage raised that is not a DeftxError, after recording it.
    """
    store = Store(workplace.storage)
    folder = SweepFolder(store, workplace.sweep)
    if folder.info() is None:
        raise RuntimeError(f"this node does not see the storage {store.url}: it must be one that all nodes share")
    unfit = workplace.unfit(job.kind)
    outcomes = []
    for stage in job.stages:
        with logging_to(folder, stage.address):
            if unfit:
                _record(stage, folder, _Unfit(unfit), final=False)
            outcomes.append("failed" if unfit else _make(stage, folder, workplace, progress))
    # an error in one language must not keep the others of its row from being graded
    for error in (outcome for outcome in outcomes if isinstance(outcome, Exception)):
        raise error
    return "failed" if "failed" in outcomes else "done"


def _make(stage: Stage, folder: SweepFolder, workplace: Workplace, progress: ReportPoint) -> Status | Exception:
    """`done` or `failed`; an error worth another try is returned, to be raised once the job's other stages are made."""
    # torch and transformers take seconds to import; a driver that only plans needs neither
    from deftx.method.make import make

    try:
        make(
            stage, folder.store, workplace.execution(stage.kind),
            lambda made: partial(progress, made.address) if made == stage else None, workplace.maker,
        )  # fmt: skip
        return "done"
    except Left:
        raise
    except HubError as error:
        # the driver resolved what this needs, so the hub is in trouble and not the user
        _record(stage, folder, error, final=False)
        return error
    except DeftxError as error:
        _record(stage, folder, error, final=True)
        return "failed"
    except Exception as error:
        _record(stage, folder, error, final=False)
        return error


def _record(stage: Stage, folder: SweepFolder, error: Exception, *, final: bool) -> None:
    expected = isinstance(error, DeftxError)
    with suppress(OSError):  # a full disk refuses this too
        _write_record(stage, folder, error, final=final, expected=expected)


def _write_record(stage: Stage, folder: SweepFolder, error: Exception, *, final: bool, expected: bool) -> None:
    logging.getLogger("deftx").error("%s", error if expected else traceback.format_exc())
    refused = refusal(error)
    reason = refused or (str(error) if expected else f"{type(error).__name__}: {error}")
    passing = refused is not None or isinstance(error, _Unfit)
    failure = Failure(
        address=stage.address, label=stage.label, reason=reason, final=final, passing=passing,
        trace="".join(traceback.format_exception(error)), log=folder.log_path(stage.address),
    )  # fmt: skip
    folder.write_failure(failure)

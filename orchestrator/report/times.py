"""The time that the stages of a sweep took, from their manifests."""

from __future__ import annotations

from typing import Any

import pandas as pd

from deftx.stages.manifest import Manifest
from deftx.stages.store import Store
from orchestrator.record.sweep import StageEntry, State
from orchestrator.wording import counted

TIME_COLUMNS = ["kind", "subject", "seconds", "cpu_seconds", "gpu_seconds"]


def read_times(store: Store, state: State) -> pd.DataFrame:
    """A table with a line for each published stage of a sweep; its columns are `TIME_COLUMNS`.

    `seconds` is the wall time of the published attempt, whichever sweep made it; `cpu_seconds` is that times the number
    of its threads; `gpu_seconds` is the wall time on a GPU, however many trials shared it, and 0 elsewhere.
    """
    manifests = [(entry, store.manifest(address)) for address, entry in state.stages.items()]
    lines = [_line(entry, manifest) for entry, manifest in manifests if manifest]
    return pd.DataFrame(lines, columns=TIME_COLUMNS)


def _line(entry: StageEntry, manifest: Manifest) -> dict[str, Any]:
    seconds, execution = manifest.seconds, manifest.execution
    on_gpu = execution.get("device", "cpu") != "cpu"
    return {
        "kind": entry.kind, "subject": entry.subject, "seconds": seconds,
        "cpu_seconds": seconds * execution.get("threads", 1), "gpu_seconds": seconds if on_gpu else 0.0,
    }  # fmt: skip


def format_time(times: pd.DataFrame) -> str:
    """The total in one sentence, such as `48 stages, 0.12 CPU hours (...); ...`"""
    spent = [f"{_hours(times['cpu_seconds'].sum())} CPU hours (seconds times threads)"]
    if times["gpu_seconds"].any():
        spent.append(f"{_hours(times['gpu_seconds'].sum())} GPU hours (stages on a GPU, each counted whole)")
    return f"{counted(len(times), 'stage')}, {' and '.join(spent)}; reused stages are in it, lost attempts are not."


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit that suits an amount of time: how many seconds it has, and its name."""
    if seconds < 600:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")


def _hours(seconds: float) -> str:
    hours = float(seconds) / 3600
    return f"{hours:.2g}" if hours < 1 else amount(hours)


def amount(number: float) -> str:
    """A number with one decimal, or without where it has three digits."""
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"

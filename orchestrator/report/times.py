"""Where the time of a sweep went, from the manifests of its stages; and as a picture."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from deftx.stages.stage import KINDS
from deftx.stages.store import Store
from orchestrator.record.sweep import State
from orchestrator.report.plots.page import EDGE, RAMP, SMALL, TEXT, heading, heading_inches, page
from orchestrator.wording import counted

TIME_COLUMNS = ["kind", "subject", "seconds", "cpu_seconds", "gpu_seconds"]
_STYLES = {
    "backbone": RAMP[0], "dense": RAMP[1], "sparse": RAMP[2], "grade": RAMP[4], "text": RAMP[5], "check": RAMP[6],
}  # fmt: skip


def read_times(store: Store, state: State) -> pd.DataFrame:
    """One line for each published stage of a sweep; columns `TIME_COLUMNS`.

    `seconds` passed while the published attempt ran, whichever sweep made it; `cpu_seconds` are these times its
    threads, and `gpu_seconds` these when it ran on a GPU, which counts whole however many trials shared it.
    """
    manifests = [(entry, store.manifest(address)) for address, entry in state.stages.items()]
    lines = [_line(entry.kind, entry.subject, found.seconds, found.execution) for entry, found in manifests if found]
    return pd.DataFrame(lines, columns=TIME_COLUMNS)


def _line(kind: str, subject: str, seconds: float, execution: dict[str, Any]) -> dict[str, Any]:
    on_gpu = execution.get("device", "cpu") != "cpu"
    return {
        "kind": kind, "subject": subject, "seconds": seconds, "cpu_seconds": seconds * execution.get("threads", 1),
        "gpu_seconds": seconds if on_gpu else 0.0,
    }  # fmt: skip


def time_words(times: pd.DataFrame) -> str:
    """All of it in one sentence, such as `48 stages, 0.12 CPU hours (...); ...`"""
    spent = [f"{_hours(times['cpu_seconds'].sum())} CPU hours (seconds times threads)"]
    if times["gpu_seconds"].any():
        spent.append(f"{_hours(times['gpu_seconds'].sum())} GPU hours (stages on a GPU, each counted whole)")
    return f"{counted(len(times), 'stage')}, {' and '.join(spent)}; reused stages are in it, lost attempts are not."


def time_plot(times: pd.DataFrame) -> Figure | None:
    """Stacked bars: the time of each subject by stage kind; none when no stage was published."""
    if times.empty:
        return None
    subjects = list(dict.fromkeys(times["subject"]))
    per_unit, unit = _unit(float(times.groupby("subject")["seconds"].sum().max()))
    spent = times.pivot_table(index="subject", columns="kind", values="seconds", aggfunc="sum", fill_value=0.0)
    spent = spent.loc[subjects] / per_unit
    words = time_words(times)
    legend = 0.22 * -(-spent.shape[1] // 3) + 0.25
    figure, (axis,) = page(heading_inches(words) + 0.28 * len(subjects) + 0.6 + legend)
    left = pd.Series(0.0, index=subjects)
    for kind in (kind for kind in KINDS if kind in spent):
        style: dict[str, Any] = {"edgecolor": EDGE, "linewidth": 0.6, **_STYLES.get(kind, RAMP[5])}
        axis.barh(subjects, spent[kind], 0.72, left=left, label=_kind_words(times, kind), **style)
        left = left + spent[kind]
    axis.set_ylim(len(subjects) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * left.max() or 1.0)
    for place, total in enumerate(left):
        axis.text(total, place, f" {_amount(total)}", va="center", fontsize=SMALL)
    axis.set_xlabel(f"{unit}, one stage after another", fontsize=TEXT)
    figure.legend(loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    heading(figure, "Time by language and stage", words)
    return figure


def _kind_words(times: pd.DataFrame, kind: str) -> str:
    seconds = times.loc[times["kind"] == kind, "seconds"]
    per_unit, unit = _unit(float(seconds.sum()))
    return f"{kind}: {_amount(seconds.sum() / per_unit)} {unit} in {counted(len(seconds), 'stage')}"


def _unit(seconds: float) -> tuple[float, str]:
    """Seconds in the unit that suits an amount of time, and that unit."""
    if seconds < 600:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")


def _hours(seconds: float) -> str:
    hours = float(seconds) / 3600
    return f"{hours:.2g}" if hours < 1 else _amount(hours)


def _amount(number: float) -> str:
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"

"""The time that the stages of a sweep took, as a picture; the numbers are read in `times`."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from deftx.stages.kinds import KINDS
from orchestrator.kinds import shown_as
from orchestrator.report.plots.page import EDGE, RAMP, SMALL, TEXT, heading, heading_inches, page
from orchestrator.report.times import amount, format_time, unit_of
from orchestrator.wording import counted


def time_plot(times: pd.DataFrame) -> Figure | None:
    """Stacked bars of the time of each subject by stage kind; None when no stage was published."""
    if times.empty:
        return None
    subjects = list(dict.fromkeys(times["subject"]))
    per_unit, unit = unit_of(float(times.groupby("subject")["seconds"].sum().max()))
    spent = times.pivot_table(index="subject", columns="kind", values="seconds", aggfunc="sum", fill_value=0.0)
    spent = spent.loc[subjects] / per_unit
    subtitle = format_time(times)
    legend = 0.22 * -(-spent.shape[1] // 3) + 0.25
    figure, (axis,) = page(heading_inches(subtitle) + 0.28 * len(subjects) + 0.6 + legend)
    left = pd.Series(0.0, index=subjects)
    for kind in (kind for kind in KINDS if kind in spent):
        style: dict[str, Any] = {"edgecolor": EDGE, "linewidth": 0.6, **RAMP[shown_as(kind).fill]}
        axis.barh(subjects, spent[kind], 0.72, left=left, label=_format_kind(times, kind), **style)
        left = left + spent[kind]
    axis.set_ylim(len(subjects) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * left.max() or 1.0)
    for place, total in enumerate(left):
        axis.text(total, place, f" {amount(total)}", va="center", fontsize=SMALL)
    axis.set_xlabel(f"{unit}, one stage after another", fontsize=TEXT)
    figure.legend(loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    heading(figure, "Time by language and stage", subtitle)
    return figure


def _format_kind(times: pd.DataFrame, kind: str) -> str:
    seconds = times.loc[times["kind"] == kind, "seconds"]
    per_unit, unit = unit_of(float(seconds.sum()))
    return f"{kind}: {amount(seconds.sum() / per_unit)} {unit} in {counted(len(seconds), 'stage')}"

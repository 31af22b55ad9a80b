"""The live table of a sweep, drawn from a `View`: stages by subject and kind, what runs, time left, warnings.

Wide, a column for each kind; narrow, one column and the kinds in a line. Rows that say the same are drawn as one where
the terminal is too low. What a sweep is doing is told by `progress`; nothing is counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deftx.stages.kinds import KINDS
from orchestrator.terminal.progress import Left, Running, Tallies, View, duration
from orchestrator.wording import counted

NARROW = 60
"""Columns below which the kinds have no columns of their own."""
_FIRST = ("backbone", "task")
_AROUND = 10
"""Lines kept free of rows: title, header, total, running stages, best combination, warnings."""
_AROUND_NARROW = 12
_SHOWN = 2


def board(view: View, cautions: Sequence[str], width: int, height: int, now: float) -> RenderableType:
    """The table and what stands around it.

    Args:
        cautions: the warnings so far, in order.
        width: of the terminal, in columns.
        height: of the terminal, in lines.
        now: by the clock of the view.
    """
    wide = width >= NARROW
    room = max(height - (_AROUND if wide else _AROUND_NARROW), 3)
    rows = _folded(_by_subject(view.tallies), room)
    below = [_running(view, now, width), _best(view), _cautions(cautions)]
    table = _wide(view, rows, means=len(rows) < room) if wide else _narrow(rows)
    kinds = [] if wide else [_kinds(view, width)]
    return Group(_title(view, now, width), *kinds, table, *(lines for lines in below if lines))


def left_words(left: Left | None, passed: float = 0.0) -> str:
    """The time left after `passed` seconds more; an estimate that has run out says nothing."""
    if left is None or (seconds := left.seconds - passed) < 0:
        return ""
    return f"{'about' if left.exact else 'at least'} {duration(max(seconds, 1))} left"


def counts_words(view: View) -> str:
    """How many stages are done, failed and running, in all."""
    all_ = _total(view.tallies.values())
    words = f"{all_['done']}/{all_.total()} stages"
    words += f" ({view.reused} reused)" if view.reused else ""
    return words + "".join(f", {all_[status]} {status}" for status in ("failed", "running") if all_[status])


def step_words(one: Running) -> str:
    """How far a running stage is: `step 250/2,000`; nothing before its first report."""
    if one.step:
        return f"step {one.step:,}" + (f"/{one.steps:,}" if one.steps else "")
    return f"{one.steps:,} steps" if one.steps else ""


def _title(view: View, now: float, width: int) -> Text:
    words = [f"sweep {view.name}", counts_words(view), f"{duration(now - view.began)} so far"]
    words.append(left_words(view.left, now - view.at))
    words.append(f"{counted(view.unasked, 'combination')} not asked yet" if view.unasked else "")
    return _flowing([word for word in words if word], width, "bold")


def _kinds(view: View, width: int) -> Text:
    """The kinds in a line, for want of columns."""
    return _flowing([f"{kind} {_fraction(tally)}" for kind, tally in _by_kind(view.tallies).items()], width)


def _flowing(words: Sequence[str], width: int, style: str = "") -> Text:
    """Parts divided by commas, broken between and not within where they fit."""
    lines = [""]
    for number, word in enumerate(words):
        part = word + ("," if number + 1 < len(words) else "")
        if lines[-1] and len(f"{lines[-1]} {part}") > width:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip()
    return Text("\n".join(lines), style)


def _wide(view: View, rows: dict[str, dict[str, Counter[str]]], means: bool) -> Table:
    kinds = _by_kind(view.tallies)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("done/all", no_wrap=True)
    for kind in [*kinds, "all"]:
        table.add_column(kind, justify="right", no_wrap=True)
    for subject, by_kind in rows.items():
        cells = [_cell(by_kind.get(kind)) for kind in kinds]
        table.add_row(Text(subject, no_wrap=True), *cells, _cell(_total(by_kind.values())))
    table.add_row("all", *(_cell(tally) for tally in kinds.values()), _cell(_total(kinds.values())), style="bold")
    if view.mean_seconds and means:
        each = [duration(view.mean_seconds[kind]) if kind in view.mean_seconds else "" for kind in kinds]
        table.add_row("each", *each, "", style="dim")
    return table


def _narrow(rows: dict[str, dict[str, Counter[str]]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, show_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for subject, by_kind in rows.items():
        running = [kind for kind, tally in by_kind.items() if tally["running"]]
        table.add_row(Text(subject), _cell(_total(by_kind.values())), Text(", ".join(running), "cyan"))
    return table


def _cell(tally: Counter[str] | None) -> Text:
    """`3/5`; `>3/5` while one of them runs, `2>3/5` while two do; `1 failed 3/5`."""
    if not tally:
        return Text("")
    running = tally["running"]
    style = "green" if tally["done"] == tally.total() else "cyan" if running else ""
    text = Text(("" if running < 2 else str(running)) + (">" if running else "") + _fraction(tally), style)
    return Text(f"{tally['failed']} failed ", "red") + text if tally["failed"] else text


def _fraction(tally: Counter[str]) -> str:
    return f"{tally['done']}/{tally.total()}"


def _running(view: View, now: float, width: int) -> Text:
    """What runs, its step and for how long; in short where the whole label leaves no room for these."""
    lines: list[str] = []
    for one in view.running:
        after = "".join(f", {word}" for word in (step_words(one), duration(now - one.began)) if word)
        label = one.stage.label
        fits = len(f"> {label}{after}") <= width
        lines.append((label if fits else f"{one.stage.subject} · {one.stage.kind}") + after)
    if not lines and not view.reused and not any(tally["done"] for tally in view.tallies.values()):
        lines = ["workers start"]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return _lines([f"> {line}" for line in lines[:_SHOWN]] + more, "cyan")


def _best(view: View) -> Text:
    return Text(f"best so far: {view.best}") if view.best else Text()


def _cautions(cautions: Sequence[str]) -> Text:
    lead = "warning" if len(cautions) == 1 else f"{len(cautions)} warnings, the latest"
    return _lines([f"{lead}: {cautions[-1]}"] if cautions else [], "yellow")


def _lines(lines: Sequence[str], style: str) -> Text:
    """Lines that are cut rather than wrapped."""
    return Text("\n".join(lines), style, no_wrap=True, overflow="ellipsis")


def _by_kind(tallies: Tallies) -> dict[str, Counter[str]]:
    found = {kind: _total(t for (_, of), t in tallies.items() if of == kind) for kind in KINDS}
    return {kind: tally for kind, tally in found.items() if tally}


def _by_subject(tallies: Tallies) -> dict[str, dict[str, Counter[str]]]:
    subjects = list(dict.fromkeys(subject for subject, _ in tallies))
    subjects.sort(key=lambda subject: _FIRST.index(subject) if subject in _FIRST else len(_FIRST))
    return {s: {kind: tallies[s, kind] for kind in KINDS if (s, kind) in tallies} for s in subjects}


def _folded(rows: dict[str, dict[str, Counter[str]]], most: int) -> dict[str, dict[str, Counter[str]]]:
    """The rows, those that are all done or all waiting as one each when there are more than `most`."""
    if len(rows) <= most:
        return rows
    alike: dict[str, list[str]] = {}
    for subject, by_kind in rows.items():
        statuses = set(_total(by_kind.values()))
        same = len(statuses) == 1 and statuses <= {"done", "waiting"}
        alike.setdefault(statuses.pop() if same else subject, []).append(subject)
    return {
        name if len(group) > 1 else group[0]: {
            kind: tally for kind in KINDS if (tally := _total(rows[s].get(kind, Counter()) for s in group))
        }
        for name, group in ((f"{len(group)} {key}", group) for key, group in alike.items())
    }


def _total(tallies: Iterable[Counter[str]]) -> Counter[str]:
    """The sum; of nothing an empty one."""
    return sum(tallies, Counter[str]())

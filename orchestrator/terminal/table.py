"""The live table of a sweep, drawn from a `Snapshot`: stages by subject and kind, what runs, time left, warnings.

Wide, a column for each kind; narrow, one column and the kinds in a line. Rows that are all done or all waiting are
merged where the terminal has too few lines. What a sweep is doing is counted in `progress`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deftx.stages.kinds import KINDS
from orchestrator.terminal.progress import Left, Running, Snapshot, Tallies, duration
from orchestrator.wording import counted

NARROW = 60
"""Columns below which the kinds have no columns of their own."""
_FIRST = ("backbone", "task")
_AROUND = 10
"""Lines kept free of rows: title, header, total, running stages, best combination, warnings."""
_AROUND_NARROW = 12
_SHOWN = 2


def board(snapshot: Snapshot, warnings: Sequence[str], width: int, height: int, now: float) -> RenderableType:
    """The live display: the table, its title, and below it running stages, the best combination and warnings.

    Args:
        warnings: the warnings so far, in order.
        width: of the terminal, in columns.
        height: of the terminal, in lines.
        now: by the clock of the snapshot.
    """
    wide = width >= NARROW
    room = max(height - (_AROUND if wide else _AROUND_NARROW), 3)
    rows = _folded(_by_subject(snapshot.tallies), room)
    below = [_running(snapshot, now, width), _best(snapshot), _warnings(warnings)]
    table = _wide(snapshot, rows, means=len(rows) < room) if wide else _narrow(rows)
    kinds = [] if wide else [_kinds(snapshot, width)]
    return Group(_title(snapshot, now, width), *kinds, table, *(lines for lines in below if lines))


def format_left(left: Left | None, passed: float = 0.0) -> str:
    """The time left, `passed` seconds after it was estimated; empty once the estimate has run out."""
    if left is None or (seconds := left.seconds - passed) < 0:
        return ""
    return f"{'about' if left.exact else 'at least'} {duration(max(seconds, 1))} left"


def format_counts(snapshot: Snapshot) -> str:
    """The number of stages that are done, of all, reused, failed and running."""
    total = _total(snapshot.tallies.values())
    done = f"{total['done']}/{total.total()} stages" + (f" ({snapshot.reused} reused)" if snapshot.reused else "")
    return done + "".join(f", {total[status]} {status}" for status in ("failed", "running") if total[status])


def format_step(running: Running) -> str:
    """The step of a running stage: `step 250/2,000`; before its first report `2,000 steps`, or empty."""
    if running.step:
        return f"step {running.step:,}" + (f"/{running.steps:,}" if running.steps else "")
    return f"{running.steps:,} steps" if running.steps else ""


def _title(snapshot: Snapshot, now: float, width: int) -> Text:
    parts = [f"sweep {snapshot.name}", format_counts(snapshot), f"{duration(now - snapshot.began)} so far"]
    parts.append(format_left(snapshot.left, now - snapshot.at))
    parts.append(f"{counted(snapshot.unasked, 'combination')} not asked yet" if snapshot.unasked else "")
    return _flowing([*filter(None, parts)], width, "bold")


def _kinds(snapshot: Snapshot, width: int) -> Text:
    """The counts of all kinds in a line, where there is no room for columns."""
    return _flowing([f"{kind} {_fraction(tally)}" for kind, tally in _by_kind(snapshot.tallies).items()], width)


def _flowing(parts: Sequence[str], width: int, style: str = "") -> Text:
    """Parts separated by commas; lines are broken between parts, not within one that fits."""
    lines = [""]
    for part in [*(f"{part}," for part in parts[:-1]), *parts[-1:]]:
        if lines[-1] and len(f"{lines[-1]} {part}") > width:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip()
    return Text("\n".join(lines), style)


def _wide(snapshot: Snapshot, rows: dict[str, dict[str, Counter[str]]], means: bool) -> Table:
    kinds = _by_kind(snapshot.tallies)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("done/all", no_wrap=True)
    for kind in [*kinds, "all"]:
        table.add_column(kind, justify="right", no_wrap=True)
    for subject, by_kind in rows.items():
        cells = [_cell(by_kind.get(kind)) for kind in kinds]
        table.add_row(Text(subject, no_wrap=True), *cells, _cell(_total(by_kind.values())))
    table.add_row("all", *(_cell(tally) for tally in kinds.values()), _cell(_total(kinds.values())), style="bold")
    if snapshot.mean_seconds and means:
        each = [duration(snapshot.mean_seconds[kind]) if kind in snapshot.mean_seconds else "" for kind in kinds]
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
    """A count such as `3/5`; `>3/5` while one of them runs, `2>3/5` while two do; `1 failed 3/5`."""
    if not tally:
        return Text("")
    running = tally["running"]
    style = "green" if tally["done"] == tally.total() else "cyan" if running else ""
    text = Text(("" if running < 2 else str(running)) + (">" if running else "") + _fraction(tally), style)
    return Text(f"{tally['failed']} failed ", "red") + text if tally["failed"] else text


def _fraction(tally: Counter[str]) -> str:
    return f"{tally['done']}/{tally.total()}"


def _running(snapshot: Snapshot, now: float, width: int) -> Text:
    """The running stages with their steps and times; a short label where the whole one leaves no room."""
    lines: list[str] = []
    for running in snapshot.running:
        stage = running.stage
        after = "".join(f", {part}" for part in (format_step(running), duration(now - running.began)) if part)
        fits = len(f"> {stage.label}{after}") <= width
        lines.append((stage.label if fits else f"{stage.subject} · {stage.kind}") + after)
    if not lines and not snapshot.reused and not any(tally["done"] for tally in snapshot.tallies.values()):
        lines = ["workers start"]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return _lines([f"> {line}" for line in lines[:_SHOWN]] + more, "cyan")


def _best(snapshot: Snapshot) -> Text:
    return Text(f"best so far: {snapshot.best}") if snapshot.best else Text()


def _warnings(warnings: Sequence[str]) -> Text:
    lead = "warning" if len(warnings) == 1 else f"{len(warnings)} warnings, the latest"
    return _lines([f"{lead}: {warnings[-1]}"] if warnings else [], "yellow")


def _lines(lines: Sequence[str], style: str) -> Text:
    """Lines that are cut rather than wrapped."""
    return Text("\n".join(lines), style, no_wrap=True, overflow="ellipsis")


def _by_kind(tallies: Tallies) -> dict[str, Counter[str]]:
    totals = {kind: _total(tallies[key] for key in tallies if key[1] == kind) for kind in KINDS}
    return {kind: total for kind, total in totals.items() if total}


def _by_subject(tallies: Tallies) -> dict[str, dict[str, Counter[str]]]:
    subjects = list(dict.fromkeys(subject for subject, _ in tallies))
    subjects.sort(key=lambda subject: _FIRST.index(subject) if subject in _FIRST else len(_FIRST))
    return {s: {kind: tallies[s, kind] for kind in KINDS if (s, kind) in tallies} for s in subjects}


def _folded(rows: dict[str, dict[str, Counter[str]]], most: int) -> dict[str, dict[str, Counter[str]]]:
    """The rows; if there are more than `most`, those all done are merged into one, and those all waiting into one."""
    if len(rows) <= most:
        return rows
    groups: dict[str, list[str]] = {}
    for subject, by_kind in rows.items():
        statuses = set(_total(by_kind.values()))
        same = len(statuses) == 1 and statuses <= {"done", "waiting"}
        groups.setdefault(statuses.pop() if same else subject, []).append(subject)
    return {
        name if len(group) > 1 else group[0]: {
            kind: tally for kind in KINDS if (tally := _total(rows[s].get(kind, Counter()) for s in group))
        }
        for name, group in ((f"{len(group)} {key}", group) for key, group in groups.items())
    }


def _total(tallies: Iterable[Counter[str]]) -> Counter[str]:
    """The sum of tallies; an empty one for no tallies."""
    return sum(tallies, Counter[str]())

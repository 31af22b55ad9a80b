"""Measured rows, what they must reach, and the table of them: speed.json and speed.md.

A part is a module with `rows(options) -> list[Row]`, and `if __name__ == "__main__": command({"PART": rows}, __doc__)`
makes it a program: `python -m benchmarks.PART [--small] [--device cuda] [--threads 2] [--data-root DIR] [--out DIR]`.

    at_least(Row("dense MLM step", "seconds", ours, reference=theirs, floor=floor), 2.2)   # theirs / ours
    at_most(Row("dense MLM step", "GiB", ours, reference=theirs), 0.7)                     # ours / theirs
    below(Row("select", "seconds", ours), 6)

Every run of a part replaces its own rows in speed.json and writes speed.md anew; `--small` only prints, unless
`--out` names a folder. How to measure is in `measure`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.measure import RESULTS, Options, machine
from deftx.config import Execution
from deftx.errors import DeftxError
from deftx.method import environment

PARTS = ("train", "memory", "select", "denoise", "vectors", "evaluate", "growth", "sweep", "makespan")
"""The order of the table. A part that is missing here cannot be published."""
ON_CPU = ("select", "denoise", "growth", "sweep", "makespan")
"""These run on a CPU whatever the device."""


Small = Annotated[bool, typer.Option("--small", help="tiny shapes, under a minute a part")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="what models are trained on")]
Data = Annotated[Path | None, typer.Option(help="folder with nusax/, for the lengths of sentences; else drawn")]
Out = Annotated[Path | None, typer.Option(help="default: docs/results/, whose rows are replaced; no file with --small")]

NO_GPU = """None of this was measured on a GPU. Steps, stages and several phases at once there, and the tests marked
`gpu`, are in [results-gpu.md](results-gpu.md) beside this file, which this writes:

```
python -m benchmarks.gpu --device cuda
```
"""


@dataclass(frozen=True)
class BenchmarkRow:
    """One measured quantity of one piece of work.

    Attributes:
        work: such as `dense MLM step, float32`.
        measure: `seconds`, `GiB`, or another unit.
        ours: what this code needs.
        reference: what the plain reference needs; None where the target is absolute.
        floor: what the machine could not do it below, in the same unit.
        must: the requirement in words; empty for a figure that is only reported.
        met: whether it holds; None where nothing is required (or `--small`).
        note: what a reader has to know about the figure.
    """

    work: str
    measure: str
    ours: float
    reference: float | None = None
    floor: float | None = None
    must: str = ""
    met: bool | None = None
    note: str = ""


def at_least(row: BenchmarkRow, factor: float) -> BenchmarkRow:
    """Require that the reference takes at least `factor` times what ours does."""
    assert row.reference is not None
    return replace(row, must=f"reference at least {factor:g}x", met=row.reference / row.ours >= factor)


def at_most(row: BenchmarkRow, factor: float) -> BenchmarkRow:
    """Require that ours takes at most `factor` of the reference."""
    assert row.reference is not None
    return replace(row, must=f"at most {factor:g}x the reference", met=row.ours <= factor * row.reference)


def below(row: BenchmarkRow, limit: float) -> BenchmarkRow:
    """Require at most `limit` in the row's own unit."""
    return replace(row, must=f"at most {limit:g} {row.measure}", met=row.ours <= limit)


def above(row: BenchmarkRow, limit: float) -> BenchmarkRow:
    """Require at least `limit` in the row's own unit."""
    return replace(row, must=f"at least {limit:g} {row.measure}", met=row.ours >= limit)


def command(parts: Mapping[str, Callable[[Options], list[BenchmarkRow]]], doc: str | None = None) -> None:
    """Run parts as a program; exits with 1 when a requirement is missed."""

    def main(
        small: Small = False, device: Device = "cpu", threads: int = 2, data_root: Data = None, out: Out = None
    ) -> None:
        options = Options(small, device, threads, data_root, out or (None if small else RESULTS))
        try:
            raise typer.Exit(0 if run(parts, options) else 1)
        except DeftxError as error:
            typer.echo(error, err=True)
            raise typer.Exit(2) from None

    main.__doc__ = doc
    typer.run(main)


def run(parts: Mapping[str, Callable[[Options], list[BenchmarkRow]]], options: Options) -> bool:
    """Measure parts, print them, and publish them where `options.out` says; whether all requirements hold."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("cuda: there is no GPU here, or this torch is built without CUDA; cpu would be right")
    environment.prepare(0, Execution(device=options.device, threads=options.threads))  # as a stage is
    held = True
    for part, rows in parts.items():
        # at tiny shapes nothing is required
        found = [replace(row, met=None) for row in rows(options)] if options.small else rows(options)
        held &= all(row.met is not False for row in found)
        print(f"{part}\n{table(found)}\n", flush=True)
        if options.out is not None:
            publish(part, found, options)
    return held


def publish(part: str, rows: list[BenchmarkRow], options: Options) -> None:
    """Replace the rows of a part (on a device) in speed.json, then write speed.md anew from it."""
    assert options.out is not None
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "speed.json"
    parts = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    device = "cpu" if part in ON_CPU else options.device
    parts[part if device == "cpu" else f"{part} on {device}"] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(replace(options, device=device)),
        "versions": environment.versions(),
        "commit": environment.git_commit(),
        "small": options.small,
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    (options.out / "speed.md").write_text(markdown(parts), encoding="utf-8")


def markdown(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """speed.md: a table for each part, with its machine, versions and date."""
    ordered = sorted(parts, key=lambda name: (PARTS.index(name.partition(" on ")[0]), name))
    text = [
        "# What every stage takes\n\nMeasured by `python -m benchmarks`, each part by `python -m benchmarks.PART`; "
        "ours and the reference take turns in one run. A ratio is the reference over ours. The floor is the "
        "arithmetic over the machine's measured rate plus the bytes over its measured copy rate. Floor and model FLOP "
        "utilisation count every product of a plain step with losses where there are labels; the reference's own floor "
        "counts its logits at all positions. Steps: medians of three rounds after one, of small models five rounds of "
        "50 steps; denoising and evaluating: one round.\n"
    ]
    if not any(name.endswith(" on cuda") for name in ordered):
        text.append(NO_GPU)
    for name in ordered:
        part = parts[name]
        where = "; ".join(part["machine"].values())
        versions = ", ".join(f"{key} {value}" for key, value in part["versions"].items())
        small = " Tiny shapes (`--small`): the figures mean nothing." if part["small"] else ""
        drawn = "![Seconds over the number of parameters](growth.png)\n\n" if name == "growth" else ""
        text.append(
            f"## {name}\n\n{drawn}{table([BenchmarkRow(**row) for row in part['rows']])}\n\n"
            f"{part['date']}, {where}; {versions}; commit {part['commit']}.{small}\n"
        )
    return "\n".join(text)


def table(rows: list[BenchmarkRow]) -> str:
    """Rows as a Markdown table."""
    head = ["work", "measure", "ours", "reference", "ratio", "floor", "over the floor", "must", "met", "note"]
    lines = [head, ["---", "---", "---:", "---:", "---:", "---:", "---:", "---", "---", "---"]]
    for row in rows:
        ratio = figure(row.reference / row.ours) + "x" if row.reference is not None and row.ours else ""
        over = figure(row.ours / row.floor) + "x" if row.floor else ""
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        figures = [figure(row.ours), figure(row.reference), ratio, figure(row.floor), over]
        lines.append([row.work, row.measure, *figures, row.must, met, row.note])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def figure(value: float | None) -> str:
    """Three digits, no exponent above a millionth."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

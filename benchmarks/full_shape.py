"""Seconds and memory of every stage at the full shape of XLM-R base or large (random weights), five steps a training.

    python -m benchmarks.full_shape --shape large --data-root data

One language and the task of NusaX: that the real size fits and what it takes, not how good anything is. Each stage is
made in a process of its own. A run replaces its shape's table in full-shape.json and writes full-shape.md anew.
The bytes that a training is compared with are counted in `memory`.
"""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

from benchmarks.measure import GIB, RESULTS, Options, machine
from benchmarks.memory import parts
from benchmarks.models import BASE, LARGE, Shape
from benchmarks.random_backbone import write
from deftx.config import Execution
from deftx.errors import DeftxError
from deftx.method import environment
from deftx.method.make import make
from deftx.stages.settings import SparseSettings
from deftx.stages.stage import Stage, settings_of, walk
from deftx.stages.store import Store
from orchestrator.kinds import shown_as
from orchestrator.plan.inputs import resolve
from orchestrator.plan.rows import Planner
from orchestrator.space.combination import Combination
from orchestrator.space.load import load_space

SHAPES = {"base": BASE, "large": LARGE}
SETTINGS = (
    "targets=[ace]", "source=null", "language.training.max_steps=5", "language.training.validate_every=5",
    "task.training.max_steps=5", "task.training.validate_every=5", "language.text.max_lines=3000", "task.max_rows=500",
)  # fmt: skip
COMBINATION = {"rank_l": "100", "rank_t": "90%", "retention": 0.05}
PYTHON = GIB // 4
"""What a process holds with torch and transformers imported, before it has a model."""


@dataclass(frozen=True)
class Measured:
    """What a stage took.

    Attributes:
        processor: seconds of all its threads, the start of its process included: what else runs here adds little.
        peak: most bytes of its process, files that are mapped into memory included.
        held: most bytes without these.
        least, most: what `held` should lie between by arithmetic (see `computed`); 0 where nothing trains.
        published: bytes of its files.
    """

    stage: str
    seconds: float
    processor: float
    peak: int
    held: int
    least: int
    most: int
    published: int


def main(
    shape: Annotated[Literal["base", "large"], typer.Option(help="XLM-R's; large wants 20 GiB free")] = "base",
    data_root: Annotated[Path, typer.Option(help="NusaX's files, and corpora/{ace,id}.txt")] = Path("data"),
    threads: Annotated[int, typer.Option(help="of the processor")] = 2,
    out: Annotated[Path, typer.Option(help="where full-shape.json and full-shape.md lie")] = RESULTS,
) -> None:
    """Run five steps of every stage, and write what they took."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that only waits for others is not to count
    try:
        with TemporaryDirectory(prefix="deftx-full-shape-") as folder:
            found = list(measured(SHAPES[shape], Path(folder), data_root, threads))
    except DeftxError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    print(publish(shape, found, threads, out))


def measured(shape: Shape, folder: Path, data_root: Path, threads: int) -> Iterator[Measured]:
    """Make every stage on a random backbone, one after the other, and tell of each as it is done."""
    corpora = [data_root / "corpora" / f"{language}.txt" for language in ("ace", "id")]
    alone(
        write, folder / "backbone", corpora, layers=shape.layers, hidden=shape.hidden, heads=shape.heads,
        feed_forward=shape.feed_forward, vocabulary=shape.vocabulary,
    )  # fmt: skip
    _, space = load_space("nusax", SETTINGS, backbone=str(folder / "backbone"))
    planner, store = Planner(space, resolve(space, str(data_root))), Store(str(folder / "results"))
    graded = planner.combination(0, Combination.read(COMBINATION)).grades.values()
    for stage in walk([*planner.checks(), *graded]):
        held, processor = alone(_make, stage, store.url, threads)
        manifest = store.manifest(stage.address)
        assert manifest is not None, "its process ended well"
        size = sum(file.size for file in manifest.files.values())
        least, most = computed(shape, stage)
        row = Measured(stage.label, manifest.seconds, processor, manifest.peak_bytes, held, least, most, size)
        print(_line(row), flush=True)
        yield row


def alone(function: Callable[..., object], *arguments: Any, **options: Any) -> tuple[int, float]:
    """What a function's own process takes.

    Returns:
        (most bytes that it holds, mapped files left out, looked at 20 times a second; seconds of its threads).

    Raises:
        ChildProcessError: when the process fails or is killed.
    """
    process, held = get_context("spawn").Process(target=function, args=arguments, kwargs=options), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.start()
    try:
        while process.is_alive():
            held = max(held, _held(process.pid))
            process.join(0.05)
    finally:
        process.kill()  # Ctrl-C, above all
    if process.exitcode:
        killed = " (killed: for memory?)" if process.exitcode < 0 else ""
        raise ChildProcessError(f"{function.__name__}: ended with {process.exitcode}{killed}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return held, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _make(stage: Stage, storage: str, threads: int) -> None:
    make(stage, Store(storage), Execution(threads=threads))


def _held(pid: int | None) -> int:
    try:
        match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:  # it has just ended
        return 0
    return int(match.group(1)) * 1024 if match else 0


def computed(shape: Shape, stage: Stage) -> tuple[int, int]:
    """The most bytes of a stage that trains, Python's included, with all freed memory given back, and with none.

    (0, 0) for another stage.
    """
    if (trained := stage.trained) is None or (training := stage.training) is None:
        return 0, 0
    read = shown_as(trained.kind).reading
    assert read is not None, "what trains reads"
    k = settings_of(stage, SparseSettings).k if trained != stage else None
    counted = parts(
        shape, None if k is None else int(k), examples=training.batch_size, length=read(trained).length,
        task=stage.subject == "task",
    )  # fmt: skip
    return counted.total + PYTHON, counted.kept + PYTHON


def publish(shape: str, found: list[Measured], threads: int, out: Path) -> str:
    """The table of a shape, put in place of its earlier one in full-shape.json and full-shape.md."""
    load = f"a load of {os.getloadavg()[1]:.1f} in the last five minutes, of which ours is at most {threads}"
    path = out / "full-shape.json"
    tables = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    tables[shape] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {**machine(Options(threads=threads)), "load": load},
        "versions": environment.versions(),
        "commit": environment.git_commit(),
        "rows": [asdict(row) for row in found],
    }
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    (out / "full-shape.md").write_text(markdown(tables), encoding="utf-8")
    return table(found)


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """full-shape.md: what the figures are, then a table for each shape."""
    text = [TEXT]
    for shape in (name for name in SHAPES if name in tables):
        entry = tables[shape]
        where, packages = "; ".join(entry["machine"].values()), ("python", "torch", "transformers")
        versions = ", ".join(f"{name} {entry['versions'][name]}" for name in packages)
        text.append(
            f"## XLM-R {shape}\n\n{table([Measured(**row) for row in entry['rows']])}\n\n{entry['date']}, {where}; "
            f"{versions}; commit {entry['commit']}.\n"
        )
    return "\n".join(text)


def table(rows: list[Measured]) -> str:
    """Rows as a Markdown table."""
    head = ["stage", "seconds", "of its threads", "peak, GiB", "held, GiB", "held by arithmetic, GiB", "published, MiB"]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|", *map(_line, rows)])


def _line(row: Measured) -> str:
    arithmetic = f"{row.least / GIB:.1f} to {row.most / GIB:.1f}" if row.most else ""
    figures = [
        f"{row.seconds:.0f}",
        f"{row.processor:.0f}",
        f"{row.peak / GIB:.1f}",
        f"{row.held / GIB:.1f}",
        arithmetic,
    ]
    return "| " + " | ".join([row.stage, *figures, f"{row.published / 2**20:,.0f}"]) + " |"


TEXT = """# XLM-R at full size

One language (Acehnese) and the task of NusaX at the shapes of XLM-R base and large: random weights, 5 steps a training
at the paper's batches (8 x 256 tokens, and 16 sentences of at most 128), float32 on a CPU. `make full-shape` writes the
table of base, `make full-shape SHAPE=large` that of large, and either keeps the other. They need
`data/corpora/{ace,id}.txt` besides the NusaX files. Real trainings take 30,000 to 100,000 steps and want a GPU: 30,000
dense steps of base are 6 minutes on an H200 ([On a GPU](results-gpu.md)).

Each stage is made in a process of its own. Its seconds have loading, validation, factorising every matrix and writing
in them; those of its threads are what it takes of the processor (`OMP_WAIT_POLICY=passive`): two cores that do nothing
else need between half of it and all of it. Its peak counts the files that it maps into memory, which the system drops
where it needs the room: the model, and in a sparse phase the change with its singular vectors. What it *holds* is the
rest, and has to fit. By arithmetic ([its parts](../performance.md#xlm-r-large)) a training holds the first number if
all that it frees goes back to the system, the second if nothing does: malloc may keep pieces below 32 MiB. A worker of
a sweep held 0.7 GiB more (Ray, and what earlier stages left).
"""

if __name__ == "__main__":
    typer.run(main)

"""A measured row of the GPU benchmark, what it must be by the card, and the files that hold all of them.

A part is a list of pieces, each of which yields rows. The files are written after every row, so that a part that is cut
short loses nothing; a piece that fails is a row that says so, and the next one is tried. Nothing is measured here.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Options
from benchmarks.results import figure
from deftx.method import environment

PARTS = ("tests", "steps", "kernels", "stages", "together", "compile")
"""The order in which parts run and stand in the tables."""
SECONDS = 120.0
"""A part takes no longer on a GPU, which is lent for minutes."""


@dataclass(frozen=True)
class Limit:
    """What a figure must be and what it should be: at most, or at least. None: nothing is asked."""

    must: float | None = None
    aim: float | None = None
    least: bool = False

    def met(self, value: float | None, limit: float | None) -> bool | None:
        """Whether a value keeps one of the two limits; None where there is none, or no value."""
        if value is None or limit is None:
            return None
        return value >= limit if self.least else value <= limit

    def words(self, limit: float | None) -> str:
        """A limit as a cell of the table."""
        return "" if limit is None else f"at {'least' if self.least else 'most'} {limit:g}"


LIMITS = {
    "dense": Limit(15, 9.5),
    "sparse": Limit(13, 8),
    "task": Limit(12, 7.5),
    "over replay": Limit(1.05),
    "utilisation": Limit(0.3, 0.4, least=True),
    "dense memory": Limit(9),
    "sparse memory": Limit(5),
    "validating": Limit(0.05),
    "at once": Limit(1.0, 1.2, least=True),
    "dense stage": Limit(25),
    "sparse stage": Limit(15),
    "grade stage": Limit(5),
    "warm compile": Limit(aim=20),
    "saved by compiling": Limit(aim=0.15, least=True),
    "failed tests": Limit(0),
}
"""Of an H200, in the row's own unit. The aims of steps are those of a compiled step."""
H100 = {"dense": Limit(16.5, 11)}
"""Where an H100's differ: its memory is slower."""


def limit_of(name: str, card: str) -> Limit:
    """What a row is held to on a card; nothing on a card that no limits were set for."""
    if "H100" in card:
        return H100.get(name, LIMITS.get(name, Limit()))
    return LIMITS.get(name, Limit()) if "H200" in card else Limit()


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        value: None where it could not be measured; `note` says why.
        reference: what the plain reference took, in the same unit.
        limit: the name in `LIMITS` of what it is held to.
        note: what a reader has to know about the figure.
    """

    work: str
    measure: str
    value: float | None
    reference: float | None = None
    limit: str = ""
    note: str = ""


Piece = tuple[str, Callable[[Options], Iterator[Row]]]
"""A name, and what yields its rows."""


class Record:
    """The results of one part, in the JSON and the Markdown file of a folder, if there is one."""

    def __init__(self, part: str, options: Options, commit: str | None = None, most: float = SECONDS) -> None:
        """Begin a part: its earlier rows are dropped. After `most` seconds on a GPU no further piece begins."""
        self._part, self._options, self._began, self._most = part, options, time.monotonic(), most
        self.card = card_of(options)
        self.entry: dict[str, Any] = {
            "card": self.card,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "versions": environment.versions(),
            "commit": commit or environment.git_commit(),
            "small": options.small,
            "state": "cut short",  # until it ends
            "rows": [],
        }
        self._write()

    def run(self, pieces: list[Piece]) -> bool:
        """Measure all pieces; whether none failed and all that must be is met."""
        whole = True
        for name, piece in pieces:
            if self._options.device == "cuda" and self.seconds > self._most:
                self.add(Row(name, "", None, note=f"not measured: the part's {self._most:.0f} s were over"))
                whole = False
                continue
            try:
                for row in piece(self._options):
                    self.add(row)
            except Exception as error:  # whatever it is, what was measured before and after counts
                traceback.print_exc()
                self.add(Row(name, "", None, note=f"failed: {type(error).__name__}: {str(error)[:300]}"))
                whole = False
        self.entry["state"] = "done"
        self._write()
        return whole and all(row["met"] is not False for row in self.entry["rows"])

    @property
    def seconds(self) -> float:
        """Since the part began."""
        return time.monotonic() - self._began

    def add(self, row: Row) -> None:
        """Judge a row, print it and write it."""
        # at tiny shapes nothing is required
        limit = Limit() if self._options.small else limit_of(row.limit, self.card)
        judged = {
            **asdict(row), "must": limit.words(limit.must), "met": limit.met(row.value, limit.must),
            "aim": limit.words(limit.aim), "reached": limit.met(row.value, limit.aim),
        }  # fmt: skip
        self.entry["rows"].append(judged)
        print(f"{self.seconds:6.1f} s  {_line(judged)}", flush=True)
        self._write()

    def _write(self) -> None:
        self.entry["seconds"] = round(self.seconds, 1)
        if self._options.out is not None:
            self._options.out.mkdir(parents=True, exist_ok=True)
            path = self._options.out / "results-gpu.json"
            parts = json.loads(path.read_text("utf-8")) if path.is_file() else {}
            parts[self._part] = self.entry
            path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
            (self._options.out / "results-gpu.md").write_text(markdown(parts), encoding="utf-8")


def card_of(options: Options) -> str:
    """The card's name, or that there is none."""
    return torch.cuda.get_device_name() if options.device == "cuda" else "no GPU: a CPU ran the same code"


def markdown(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """results-gpu.md: a table for each part with its card, versions, commit and date, or that it was not run."""
    text = [
        "# What a GPU takes\n\nWritten by `python -m benchmarks.gpu --device cuda`, each part by `--part PART`. XLM-R "
        "base's shape, random weights. A step is on fresh batches, a replay the same work on a batch that is there; "
        "both and the plain reference (the Hugging Face model, logits everywhere, torch's AdamW, under the same "
        "autocast, not deterministic) take turns, medians of three samples of at least 50 steps, of the "
        "reference 25. The aims are those of a compiled step.\n"
    ]
    for name in PARTS:
        if name not in parts:
            text.append(f"## {name}\n\nNot run.\n")
            continue
        part = parts[name]
        versions = ", ".join(f"{key} {value}" for key, value in part["versions"].items())
        small = " Tiny shapes (`--small`): the figures mean nothing." if part["small"] else ""
        cut = "" if part["state"] == "done" else f" **{part['state'].capitalize()}.**"
        text.append(
            f"## {name}\n\n{table(part['rows'])}\n\n{part['card']}, {part['date']}; {versions}; commit "
            f"{part['commit'] or 'unknown'}; {part['seconds']:.0f} s.{cut}{small}\n"
        )
    return "\n".join(text)


def table(rows: list[Mapping[str, Any]]) -> str:
    """Judged rows as a Markdown table."""
    head = "| work | measure | ours | reference | ratio | must | met | aim | met | note |"
    return "\n".join([head, "| --- | --- | ---: | ---: | ---: | --- | --- | --- | --- | --- |", *map(_line, rows)])


def _line(row: Mapping[str, Any]) -> str:
    met = {None: "", True: "yes", False: "**no**"}
    value, reference = row["value"], row["reference"]
    ratio = f"{figure(reference / value)}x" if reference is not None and value else ""
    cells = [
        row["work"], row["measure"], figure(value), figure(reference), ratio, row["must"], met[row["met"]], row["aim"],
        met[row["reached"]], row["note"],
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def cut_short(part: str, out: Path | None, seconds: float) -> None:
    """Note that a part was ended from outside."""
    if out is None or not (path := out / "results-gpu.json").is_file():
        return
    parts = json.loads(path.read_text("utf-8"))
    if part in parts:
        parts[part] |= {"state": f"cut short after {seconds:.0f} s", "seconds": seconds}
        path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
        (out / "results-gpu.md").write_text(markdown(parts), encoding="utf-8")

"""`deftx check FILE --backbone FOLDER`: the check of a text without a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deftx.cli.command import console
from deftx.config import TextSettings, Training
from deftx.data.corpora import every_line
from deftx.data.tables import Layout, read_rows
from deftx.data.text_check import check_text
from deftx.data.text_report import TextReport
from deftx.recipes import preset
from deftx.sources.files import file_source
from deftx.sources.published import local_folder, resolve_folder

File = Annotated[str, typer.Argument(metavar="FILE", help="Plain text in UTF-8, one passage a line.")]
Backbone = Annotated[str, typer.Option(metavar="NAME_OR_PATH", help="Hub id or folder: its tokenizer is used.")]
Tables = Annotated[
    list[str] | None, typer.Option(metavar="FILE.csv", help="Evaluation sentences not to be in it; .tsv: tabs.")
]
Column = Annotated[str, typer.Option(help="Of the evaluation files: where the sentences stand.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps planned; else as the paper trains.")]


def check_command(
    file: File, backbone: Backbone, evaluation: Tables = None, column: Column = "text", steps: Steps = None
) -> None:
    """Look a text over as language training would read it: blocks of 256 tokens, batches of 8."""
    report, out = _check(file, backbone, evaluation, column, steps), console()
    out.print(_table(report))
    out.print(escape(report.summary), soft_wrap=True)
    for warning in report.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)


def _check(file: str, backbone: str, evaluation: list[str] | None, column: str, steps: int | None) -> TextReport:
    from deftx.models.load import load_tokenizer  # torch takes seconds to import, and --help needs none

    recipe: dict[str, Any] = preset("paper", "sentiment")["language"]["training"]
    if steps is not None:
        recipe |= {"epochs": None, "min_steps": 0, "max_steps": steps}
    tokenizer = load_tokenizer(local_folder(resolve_folder(backbone)))
    sentences = None if evaluation is None else [text for name in evaluation for text in _column(name, column)]
    lines = every_line(file_source(file))
    return check_text(Path(file).stem, lines, tokenizer, TextSettings(), Training(**recipe), evaluation=sentences)


def _column(file: str, column: str) -> list[str]:
    """One column of a table; no other is looked at, labels least of all."""
    layout = Layout(text=column, label=column, quoted=not file.endswith(".tsv"), blank_text=True)
    return [row.text for row in read_rows(file_source(file), layout)]


def _table(report: TextReport) -> Table:
    table = Table("count", "number", "lines", title=f"text {escape(report.language)}", title_justify="left")
    for name, lines in _lines(report).items():
        table.add_row(name, f"{lines.count:,}", str(lines).partition(" ")[2])
    rows = {
        "words": f"{report.words:,}",
        "tokens": f"{report.tokens:,}",
        "tokens a word": f"{report.tokens_per_word:.2f}",
        "unknown tokens": f"{report.unknown_share:.2%}",
        "words of more than 4 tokens": f"{report.long_word_share:.1%}",
        f"blocks of {report.block}: training": f"{report.train_blocks:,}",
        f"blocks of {report.block}: held out": f"{report.valid_blocks:,}",
        f"steps of {report.batch_size}: planned": f"{report.planned_steps:,}",
        f"steps of {report.batch_size}: good for": f"{report.good_for:,}",
    }
    for name, number in rows.items():
        table.add_row(name, number, "")
    return table


def _lines(report: TextReport) -> dict[str, Any]:
    compared = {} if report.sentences is None else {
        f"equal to one of {report.sentences:,} evaluation sentences": report.equal,
        "with an evaluation sentence in them": report.contained,
        "with a short one (under 30 letters)": report.phrases,
    }  # fmt: skip
    signs = {
        f"passages with {'a ' if sign == 'special token' else 'signs of wrong encoding: '}{sign}": lines
        for sign, lines in report.signs.items()
        if lines.count
    }
    return {"repeated passages": report.repeated, **compared, **signs}

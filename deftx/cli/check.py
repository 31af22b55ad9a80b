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
    found, out = _check(file, backbone, evaluation, column, steps), console()
    out.print(_table(found))
    out.print(escape(found.summary), soft_wrap=True)
    for warning in found.warnings:
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


def _table(found: TextReport) -> Table:
    table = Table("count", "number", "lines", title=f"text {escape(found.language)}", title_justify="left")
    for name, lines in _lines(found).items():
        table.add_row(name, f"{lines.count:,}", str(lines).partition(" ")[2])
    rows = {
        "words": f"{found.words:,}",
        "tokens": f"{found.tokens:,}",
        "tokens a word": f"{found.tokens_per_word:.2f}",
        "unknown tokens": f"{found.unknown_share:.2%}",
        "words of more than 4 tokens": f"{found.long_word_share:.1%}",
        f"blocks of {found.block}: training": f"{found.train_blocks:,}",
        f"blocks of {found.block}: held out": f"{found.valid_blocks:,}",
        f"steps of {found.batch_size}: planned": f"{found.planned_steps:,}",
        f"steps of {found.batch_size}: good for": f"{found.good_for:,}",
    }
    for name, number in rows.items():
        table.add_row(name, number, "")
    return table


def _lines(found: TextReport) -> dict[str, Any]:
    compared = {} if found.sentences is None else {
        f"equal to one of {found.sentences:,} evaluation sentences": found.equal,
        "with an evaluation sentence in them": found.contained,
        "with a short one (under 30 letters)": found.phrases,
    }  # fmt: skip
    signs = {
        f"passages with signs of wrong encoding: {sign}": lines for sign, lines in found.signs.items() if lines.count
    }
    return {"repeated passages": found.repeated, **compared, **signs}

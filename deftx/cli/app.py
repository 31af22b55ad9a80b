"""The command `deftx`, also `python -m deftx`: the parts of the method that are used by hand, without a search."""

from __future__ import annotations

import typer

from deftx.cli.check import check_command
from deftx.cli.command import HELP, Command, example
from deftx.cli.export import export_command

app = typer.Typer(
    name="deftx", no_args_is_help=True, rich_markup_mode="rich", context_settings=HELP,
    help="Look a text over before training on it, and export what a sweep chose. The search itself is "
    "[bold]python -m orchestrator.sweep[/bold].",
    epilog=example("deftx check --help", "deftx export results/sweeps/nusax ace model"),
)  # fmt: skip
app.command(
    "check", cls=Command, epilog=example("deftx check data/corpora/ace.txt --backbone FacebookAI/xlm-roberta-base")
)(check_command)
app.command(
    "export", cls=Command, epilog=example(
        "deftx export results/sweeps/nusax ace model",
        "deftx export model --backbone FacebookAI/xlm-roberta-base --task cambridgeltl/xlmr-task-sft-nusax_senti",
    ),
)(export_command)  # fmt: skip

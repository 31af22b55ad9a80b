"""Seconds and peak memory of every stage at XLM-R base's full shape (random weights), five steps a training.

One language and the task of NusaX: that the real size fits and what it takes, not how good anything is.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.random_backbone import write
from deftx.stages.kinds import KINDS
from deftx.stages.store import Store

SETTINGS = (
    "targets=[ace]", "rank_l=[100]", "rank_t=[90%]", "retention=0.05", "search=grid", "first=[]", "source=null",
    "baselines=[]", "parallel=1", "language.training.max_steps=5", "language.training.validate_every=5",
    "task.training.max_steps=5", "task.training.validate_every=5", "language.text.max_lines=3000", "task.max_rows=500",
)  # fmt: skip


def main(data_root: Path = Path("data"), storage: Annotated[Path, typer.Option()] = Path("results/full-shape")) -> None:
    """Run five steps of every stage and print what they took."""
    folder = storage / "xlmr-base-shape"
    if not (folder / "config.json").is_file():
        corpora = [data_root / "corpora" / f"{language}.txt" for language in ("ace", "id")]
        write(folder, corpora, layers=12, hidden=768, heads=12, feed_forward=3072, vocabulary=250_002)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    options = ["--backbone", folder, "--data-root", data_root, "--storage", storage, "--name", "full", *settings]
    subprocess.run([sys.executable, "-m", "orchestrator.sweep", "nusax", *map(str, options)], check=True)
    store = Store(str(storage.resolve()))
    table = Table("stage", "seconds", "peak memory, GiB", "published, MiB")
    manifests = [manifest for address in store.addresses() if (manifest := store.manifest(address)) is not None]
    for manifest in sorted(manifests, key=lambda m: ([*KINDS].index(m.kind), m.label)):
        size = sum(entry.size for entry in manifest.files.values()) / 2**20
        table.add_row(manifest.label, f"{manifest.seconds:.1f}", f"{manifest.peak_bytes / 2**30:.2f}", f"{size:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {platform.python_version()}", highlight=False)


if __name__ == "__main__":
    typer.run(main)

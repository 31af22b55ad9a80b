"""A shipped space run with one seed: for claims over several. What is read out of it is the caller's."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def run_sweep(space: str, seed: int, storage: Path, *options: str) -> tuple[str, float]:
    """Run a space with a seed, or find it in the storage.

    Args:
        options: more words of the command.

    Returns:
        (the sweep's name, the seconds that the command took).

    Raises:
        subprocess.CalledProcessError: when the sweep ends with another code than 0.
    """
    name = f"{space}-seed-{seed}"
    command = ["run", space, "--seed", str(seed), "--name", name, "--storage", str(storage), *options]
    began = datetime.now(UTC)
    subprocess.run([sys.executable, "-m", "orchestrator.sweep", *command], check=True)
    return name, (datetime.now(UTC) - began).total_seconds()

"""What a node of a cluster must have to make the stages it is given: this very code, GPUs that torch sees, the storage.

Asked by the driver of every node before anything is trained, and by every trial of the node that it runs on: nodes join
later, too. No Ray here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from deftx import hardware
from deftx.errors import DeftxError
from deftx.stages.reach import reachable
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder

_COUNT = "import torch; print(torch.__version__, torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_COUNT_SECONDS = 400
_RIGHT = (
    "install a torch that is built for CUDA, and an NVIDIA driver that is new enough for it (`nvidia-smi` says which)"
)


@cache
def code() -> str:
    """A digest of the project's own Python files on this node: two nodes with the same one compute the same."""
    digest = hashlib.sha256()
    for package in ("deftx", "orchestrator"):
        spec = importlib.util.find_spec(package)
        root = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def other_code(expected: str) -> str | None:
    """What is wrong, in words, where this node has other code than the driver of a sweep."""
    if code() == expected:
        return None
    return (
        f"node {socket.gethostname()} has another version of the project (deftx-sweeps {version('deftx-sweeps')}, code "
        f"{code()}) than the driver (code {expected}): install the same on every node; `ray up` does it"
    )


def lacks_gpu() -> str | None:
    """What is wrong, in words, where this process was given a GPU and CUDA's driver shows it none."""
    if hardware.gpus():
        return None
    return f"node {socket.gethostname()}: Ray gave a GPU to a trial there, and torch sees none: {_RIGHT}"


def lacks_gpus(count: int) -> str | None:
    """What is wrong, in words, where torch sees fewer GPUs on this node than it should; asked in a process of its own.

    Args:
        count: how many it should see, whatever Ray lets this process see of them.
    """
    variables = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        told = subprocess.run(
            [sys.executable, "-c", _COUNT], env=variables, text=True, capture_output=True, timeout=_COUNT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"node {socket.gethostname()}: torch did not say within {_COUNT_SECONDS} s how many GPUs it sees"
    words = told.stdout.split()
    if told.returncode or len(words) < 2:
        last = (told.stderr.strip().splitlines() or ["no message"])[-1]
        return f"node {socket.gethostname()}: torch cannot be imported ({last})"
    if int(words[-1]) >= count:
        return None
    return (
        f"node {socket.gethostname()}: torch {words[-2]} sees {words[-1]} GPUs where there should be {count}: {_RIGHT}"
    )


def lacks_storage(url: str, sweep: str) -> str | None:
    """What is wrong, in words, where this node does not see what the driver wrote of a sweep."""
    try:
        seen = SweepFolder(reachable(Store(url), writes=True), sweep).info() is not None
    except (DeftxError, OSError) as error:
        return f"node {socket.gethostname()}: storage {error}"
    if seen:
        return None
    return (
        f"node {socket.gethostname()}: storage {url}: nothing of the sweep is there: it must be one that all nodes "
        "share, such as a folder over NFS, s3://... or gs://..."
    )

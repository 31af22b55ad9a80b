"""Trainings that share a GPU (`gpu: 0.25`) take turns: one keeps it busy alone, and those that alternate lose by it.

On an H200 four at once took 1.13 times as long as one after the other. Under MPS, which lets them overlap, they took
0.90 times, and nobody waits there; nor on a part of a card that MIG divides. What does not train never waits.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

log = logging.getLogger("deftx")

_FOLDER = Path("/tmp")
"""Of the files that are locked: the same for all, whatever their TMPDIR."""
_MPS = "/tmp/nvidia-mps"
"""Where MPS's daemon listens by default; CUDA_MPS_PIPE_DIRECTORY names another place."""


@contextmanager
def turn(device: torch.device) -> Iterator[None]:
    """A context in which no other training of this user, on this machine, computes on the GPU; on a CPU, nothing.

    The turn ends with the process at the latest, however that ends. Where no file can be locked nobody waits.
    """
    with ExitStack() as stack:
        if device.type == "cuda" and not _overlaps(device):
            try:
                _take(stack, str(torch.cuda.get_device_properties(device).uuid))
            except OSError as error:
                log.info("trainings take no turns on this GPU: %s", error)
        yield


def _overlaps(device: torch.device) -> bool:
    """Whether trainings may as well run at once: under MPS, or each on a part of the card of its own."""
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _MPS)
    return os.path.exists(os.path.join(pipes, "control")) or " MIG " in torch.cuda.get_device_name(device)


def _take(stack: ExitStack, card: str) -> None:
    """Lock the file that stands for a card, until the stack is closed."""
    file = _FOLDER / f"deftx-{os.geteuid()}-{card}.lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, descriptor)
    if os.fstat(descriptor).st_uid != os.geteuid():  # it could be kept locked
        raise PermissionError(f"{file} is another user's")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waits for its turn on the GPU: another training is on it")
        torch.cuda.empty_cache()  # which that one may need
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a process forked meanwhile has the file open too
    stack.callback(torch.cuda.empty_cache)

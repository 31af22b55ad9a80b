"""Too little memory, in words: of a GPU, of this process, or of the machine, where the kernel kills for want of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deftx.config import Execution, Training
from deftx.errors import OutOfMemory
from deftx.stages.claim import GIB, MEMORY_ADVICE, of_what_there_is

_OF_A_GPU = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "CUDA driver error: out of memory")
"""What a library says for want of a GPU's memory, in errors that are no `torch.OutOfMemoryError`."""


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _OF_A_GPU)


def examples_at_once(training: Training | None, execution: Execution) -> int | None:
    """The micro-batch of a training; None where nothing is trained."""
    return None if training is None else min(execution.micro_batch or training.batch_size, training.batch_size)


@contextmanager
def memory_errors(training: Training | None, execution: Execution) -> Iterator[None]:
    """A context in which running out of memory is an `OutOfMemory` that says what was needed and what to set.

    Raises:
        OutOfMemory: see above.
    """
    examples = examples_at_once(training, execution)
    batch = f" for {examples} examples at once" if examples else ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_gpu_memory(error):
            raise OutOfMemory(_on_a_gpu(error, batch, execution.device)) from None
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        asked = re.search(r"allocate (\d+) bytes", str(error))
        needs = f"{int(asked.group(1)) / GIB:.2f} GiB" if asked else "more"
        raise OutOfMemory(
            f"too little memory{batch}: {needs} on top of what is held was refused{of_what_there_is()}; {MEMORY_ADVICE}"
        ) from None


def _on_a_gpu(error: BaseException, batch: str, device: str) -> str:
    free, whole = (bytes_ / GIB for bytes_ in torch.cuda.mem_get_info(device))
    held = torch.cuda.max_memory_allocated(device) / GIB
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    return (
        f"the GPU has too little memory{batch}: this stage held {held:.1f} GiB and needs "
        f"{asked.group(1) if asked else 'more'} on top, and {free:.1f} of {whole:.1f} GiB are free; in the stage's "
        f"`resources` set a smaller micro_batch, gradient_checkpointing: true, or a larger share of the GPU (gpu)"
    )

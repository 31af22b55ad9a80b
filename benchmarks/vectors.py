"""Vectors: a task's and a language's applied and taken off again, a language's saved and loaded.

What it must be: applying reads and writes each of 21.8 million entries at a place of its own, taking off writes it
again: three visits, each of them a cache line. Loading also checks every index and value.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.deltas import k_of, shape_of, vector_of
from benchmarks.measure import Options, interleaved, median, timed
from benchmarks.models import classifier
from benchmarks.results import BenchmarkRow, above, below, command
from deftx.config import PAPER_K_LANGUAGE, PAPER_K_TASK
from deftx.models.parameters import base_of
from deftx.sft.compose import composed
from deftx.sft.vector import TENSORS, SparseFineTuning


def rows(options: Options) -> list[BenchmarkRow]:
    """Applying, taking off, saving, loading, bytes."""
    return [*_applied(options), *_saved(options, "float32", 8.2), *_saved(options, "bf16", 6.2)]


def _applied(options: Options) -> list[BenchmarkRow]:
    shape = shape_of(options)
    model = classifier(shape).to(options.device).eval()
    task, language = (
        vector_of(shape, k_of(options, PAPER_K_TASK), 1),
        vector_of(shape, k_of(options, PAPER_K_LANGUAGE), 2),
    )
    before = {name: _bits(parameter).clone() for name, parameter in base_of(model).named_parameters()}

    def on_and_off() -> None:
        with composed(model, task, language):
            pass

    seconds = median(interleaved({"ours": on_and_off}, rounds=5, device=options.device)["ours"])
    same = all(torch.equal(_bits(p), before[name]) for name, p in base_of(model).named_parameters())
    work = f"apply vectors of {len(task):,} and {len(language):,} entries and take them off"
    return [
        below(BenchmarkRow(work, "seconds", seconds), 0.5),
        above(BenchmarkRow(work, "weights as before", float(same)), 1),
    ]


def _bits(parameter: Tensor) -> Tensor:
    """0 and -0 differ."""
    return parameter.detach().view(torch.int32)


def _saved(options: Options, values: Literal["float32", "bf16"], most: float) -> list[BenchmarkRow]:
    vector = vector_of(shape_of(options), k_of(options, PAPER_K_LANGUAGE))
    with tempfile.TemporaryDirectory() as folder:
        save: Callable[[], object] = lambda: vector.save_pretrained(folder, values)  # noqa: E731
        saving = median([timed(save) for _ in range(5)])
        loading = median([timed(lambda: SparseFineTuning.from_pretrained(folder)) for _ in range(5)])
        entry = (Path(folder) / TENSORS).stat().st_size / len(vector)
    work = f"a vector of {len(vector):,} entries, {values}"
    return [
        below(BenchmarkRow(f"load {work}", "seconds", loading), 0.5),
        below(BenchmarkRow(f"save {work}", "seconds", saving), 1),
        below(BenchmarkRow(work, "bytes an entry", entry), most),
    ]


if __name__ == "__main__":
    command({"vectors": rows}, __doc__)

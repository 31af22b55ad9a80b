"""A training step of each kind on a GPU: on fresh batches, replayed, against the plain reference; memory and kernels.

`Run.train_step` is the loop as `train` drives it: it makes the batch, copies it and steps. `Run.repeat` takes the last
step again with the inputs that are there, which is what the GPU alone needs. How stages run is in `stages`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.evaluate import random_sentences, real_lengths
from benchmarks.gpu.rows import Piece, Row, card_of
from benchmarks.measure import GIB, Options, fresh, interleaved, median, timed, wait
from benchmarks.models import LABELS, PAD, classifier, masked_lm, random_mask, sentences, text
from benchmarks.reference import Reference
from benchmarks.train import DATASHEET, WORKS, Work, needed
from deftx import hardware
from deftx.config import Execution, Precision, Training
from deftx.masks.select import Indices
from deftx.method import environment
from deftx.train.capture import deterministic
from deftx.train.loop import Run
from deftx.train.objectives import Classification, Objective
from deftx.train.trainable import phase

DENSE, SPARSE, TASK = (
    replace(work, name=f"{work.name} {work.batch} x {work.length}{f', k = {work.k:,}' if work.k else ''}")
    for work in WORKS
)
WIDE = replace(DENSE, name="dense MLM step 64 x 256", batch=64)
KINDS = {"dense": DENSE, "sparse": SPARSE, "task": TASK}
"""By the name of the limit."""
REAL = {
    "NusaX": (replace(TASK, name="sparse classification step, 16 sentences as long as NusaX's"), 35.0),
    "MultiNLI": (replace(TASK, name="sparse classification step, 32 pairs as long as MultiNLI's", batch=32), 40.0),
}
"""With the median number of tokens, special ones included, from which lengths are drawn."""
STEPS, STEPS_OF_THE_LOOP, STEPS_OF_THE_REFERENCE, WARM, ROUNDS = 50, 200, 25, 10, 3
BLOCKS, VALID = 2400, 128
"""Of a text that 30,000 steps of 8 read a hundred times, 5 % of it held out."""
VALIDATE_EVERY = 1000


def pieces() -> list[Piece]:
    """Steps, and the memory of a process that takes them."""
    return [
        *((work.name, partial(step_rows, work=work, limit=limit)) for limit, work in KINDS.items()),
        ("NusaX's lengths", partial(real_rows, benchmark="NusaX")),
        *((f"{limit} memory", partial(memory_rows, limit=limit)) for limit in ("dense", "sparse")),
        (WIDE.name, wide_rows),
        (f"{DENSE.name}, float32", partial(step_rows, work=DENSE, precision="float32")),
        ("MultiNLI's lengths", partial(real_rows, benchmark="MultiNLI")),
    ]


def kernel_pieces() -> list[Piece]:
    """What runs on the GPU in a step."""
    # the profiler's library does not come back to life beside graphs, says torch: it stays
    os.environ |= {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
    return [(work.name, partial(kernel_rows, work=work)) for work in KINDS.values()]


def compile_pieces() -> list[Piece]:
    """What torch.compile would bring."""
    return [(work.name, partial(compile_rows, limit=limit)) for limit, work in KINDS.items()]


# -- time --------------------------------------------------------------------------------------------------------------


def step_rows(options: Options, work: Work, limit: str = "", precision: Precision = "bf16") -> Iterator[Row]:
    """A step on fresh batches, its replay, the one over the other; of a dense step in bf16 a validation too."""
    name, loop = f"{work.name}, {precision}", STEPS_OF_THE_LOOP if limit == "dense" else STEPS
    work = work.scaled(options.small)
    with training(options, work, precision) as run:
        plain = reference(options, work, precision)
        took = milliseconds(options, {"fresh": (run.train_step, loop), "replay": (run.repeat, STEPS), "plain": plain})
        yield Row(name, "ms a step", took["fresh"], took["plain"], limit, way(run))
        yield Row(name, "ms a replay", took["replay"])
        note = f"{_few(options, loop)} steps a sample"
        yield Row(name, "step over replay", took["fresh"] / took["replay"], limit="over replay", note=note)
        if limit == "dense":
            run.validate()
            run.train_step()
            seconds = timed(run.validate, options.device)
            share = seconds / (seconds + VALIDATE_EVERY * took["fresh"] / 1000)
            note = f"of {VALID} blocks every {VALIDATE_EVERY} steps, the best kept; {seconds:.2f} s"
            yield Row(name, "share spent validating", share, limit="validating", note=note)


def real_rows(options: Options, benchmark: str) -> Iterator[Row]:
    """A step on fresh batches of sentences of real lengths, so that every batch is padded to another one."""
    work, tokens = REAL[benchmark]
    if benchmark == "NusaX" and options.data_root is not None:
        lengths, note = [length for language in real_lengths(options.data_root) for length in language], "real lengths"
    else:
        drawn = np.exp(np.random.default_rng(0).normal(np.log(tokens), 0.55, 1000))
        lengths, note = np.clip(drawn, 5, work.length).astype(int).tolist(), f"log-normal around {tokens:.0f} tokens"
    name, work = f"{work.name}, bf16", work.scaled(options.small)
    lengths = [min(length, work.length) for length in lengths]
    with training(options, work, lengths=lengths) as run:
        for _ in range(_few(options, STEPS)):  # every length has been seen then
            run.train_step()
        works = {"fresh": (run.train_step, STEPS), "plain": reference(options, work, lengths=lengths)}
        took = milliseconds(options, works)
        note = f"{note}; the limit is that of 16 x 128; {way(run)}"
        yield Row(name, "ms a step", took["fresh"], took["plain"], "task", note)


def wide_rows(options: Options) -> Iterator[Row]:
    """The share of what the card's datasheet promises, at a batch that fills it."""
    work = WIDE.scaled(options.small)
    with training(options, work) as run:
        took = milliseconds(options, {"fresh": (run.train_step, STEPS)})["fresh"]
        yield Row(f"{WIDE.name}, bf16", "ms a step", took, note=way(run))
    sheet = next((flop for card, flop in DATASHEET.items() if card in card_of(options)), None)
    share, note = (None, "no datasheet is known") if sheet is None else (needed(work)[0] / took * 1000 / sheet, "")
    yield Row(f"{WIDE.name}, bf16", "share of the datasheet's FLOP/s", share, limit="utilisation", note=note)


def milliseconds(options: Options, works: Mapping[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Milliseconds of each piece of work, the median of samples of so many calls, in turns."""
    loops = {name: partial(_repeat, work, _few(options, calls)) for name, (work, calls) in works.items()}
    for work, _ in works.values():
        _repeat(work, _few(options, WARM))
    found = interleaved(loops, 1 if options.small else ROUNDS, 0, options.device)
    return {name: 1000 * median(times) / _few(options, works[name][1]) for name, times in found.items()}


def _repeat(work: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        work()


def _few(options: Options, calls: int) -> int:
    return 2 if options.small else calls


# -- memory ------------------------------------------------------------------------------------------------------------


def memory_rows(options: Options, limit: str) -> Iterator[Row]:
    """What a process that trains takes of the card, its context too."""
    environment.prepare(0, Execution(device=options.device, threads=options.threads))  # gives back what is kept
    before = _free(options)
    bytes_ = fresh("benchmarks.gpu.steps:taken", options, limit=limit, before=before)
    work, device = KINDS[limit], "of the card, context included" if options.device == "cuda" else "of the process"
    yield Row(f"{work.name}, bf16", f"GiB {device}", bytes_ / GIB, limit=f"{limit} memory")


def taken(options: Options, limit: str, before: int) -> int:
    """Bytes that this process has taken after some steps and a validation.

    Args:
        before: bytes that were free on the card before this process began.
    """
    with training(options, KINDS[limit].scaled(options.small)) as run:
        for _ in range(_few(options, WARM)):
            run.train_step()
        run.validate()
        run.train_step()
        wait(options.device)
        return before - _free(options) if options.device == "cuda" else hardware.memory("VmHWM")


def _free(options: Options) -> int:
    """Bytes that are free on the card; 0 without one."""
    if options.device != "cuda":
        return 0
    return int(torch.cuda.mem_get_info()[0])


# -- kernels -----------------------------------------------------------------------------------------------------------


def kernel_rows(options: Options, work: Work) -> Iterator[Row]:
    """Kernels a step, the share of a step in which one runs, and the ten that take longest; on a CPU, operations."""
    name, work = f"{work.name}, bf16", work.scaled(options.small)
    on_gpu, steps = options.device == "cuda", 3
    with training(options, work) as run:
        run.train_step()
        took = milliseconds(options, {"replay": (run.repeat, STEPS)})["replay"]
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
            _repeat(run.repeat, steps)
            wait(options.device)
    where = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [e for e in profiled.events() or [] if e.device_type == where and e.cpu_parent is None]
    events = [event for event in events if not event.is_user_annotation]
    launched = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    note = f"{(len(events) - len(launched)) / steps:.0f} copies and fills besides"
    yield Row(name, "kernels a step" if on_gpu else "operations a step", len(launched) / steps, note=note)
    busy = _covered([(event.time_range.start, event.time_range.end) for event in events]) / 1000 / steps
    yield Row(name, "busy share of a replay", busy / took, note=f"{busy:.2f} of {took:.2f} ms")
    longest: dict[str, list[float]] = {}
    for event in events:
        longest.setdefault(event.name, []).append(event.time_range.end - event.time_range.start)
    for kernel, spans in sorted(longest.items(), key=lambda item: -sum(item[1]))[:10]:
        note = f"{len(spans) / steps:.3g} of them"
        yield Row(name, f"ms a step in `{kernel[:100]}`", sum(spans) / 1000 / steps, note=note)


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length that some spans cover together."""
    total, until = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


# -- torch.compile -----------------------------------------------------------------------------------------------------


def compile_rows(options: Options, limit: str) -> Iterator[Row]:
    """A compiled step, what it saves, and how long the first one takes with a cold and with a warm cache on disk."""
    name = f"{KINDS[limit].name}, bf16, compiled"
    if options.device == "cpu":  # there it would measure a C++ compiler
        yield Row(name, "ms a step", None, note="not measured on a CPU")
        return
    with tempfile.TemporaryDirectory(prefix="deftx-compiled-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        cold, warm = (fresh("benchmarks.gpu.steps:compiled", options, limit=limit) for _ in range(2))
    plain = compiled(options, limit, on=False)
    yield Row(name, "ms a step", cold["step"], plain["step"], limit)
    saved = 1 - cold["step"] / plain["step"]
    yield Row(name, "share of a step saved", saved, limit="saved by compiling", note="the reference above is ours")
    yield Row(name, "seconds to the first step, nothing cached", cold["first"], plain["first"])
    yield Row(name, "seconds to the first step in a second process", warm["first"], limit="warm compile")


def compiled(options: Options, limit: str, on: bool = True) -> dict[str, float]:
    """`first`, seconds until a first step is done, the model's making included, and `step`, milliseconds."""
    began = time.perf_counter()
    ways: dict[str, Any] = {"compiled": True} if on else {}
    with training(options, KINDS[limit].scaled(options.small), **ways) as run:
        run.train_step()
        wait(options.device)
        first = time.perf_counter() - began
        return {"first": first, "step": milliseconds(options, {"fresh": (run.train_step, STEPS)})["fresh"]}


# -- what is trained ---------------------------------------------------------------------------------------------------


@contextmanager
def training(
    options: Options, work: Work, precision: Precision = "bf16", lengths: list[int] | None = None, **ways: Any
) -> Iterator[Run]:
    """A run of ours at its first step, closed at the end.

    Args:
        lengths: of the sentences; None: all as long as the work says.
        ways: more arguments of `Run`.
    """
    model, mask = _model(options, work)
    model.cpu()  # as a stage loads it: what the GPU does not need stays there
    settings = Training(max_steps=100_000, batch_size=work.batch, precision=precision)
    execution = Execution(device=options.device, threads=options.threads)
    environment.prepare(0, execution, precision)  # gives back what the drawing took
    trainable = phase(model, settings, mask)
    with closing(Run(model, _objective(options, work, lengths), settings, 0, trainable, execution, **ways)) as run:
        yield run


def reference(
    options: Options, work: Work, precision: Precision = "bf16", lengths: list[int] | None = None
) -> tuple[Callable[[], object], int]:
    """A step of the plain reference, the whole batch at once, and how often it is taken in a sample.

    It need not give the same bits twice, which costs ours time.
    """
    objective, rng = _objective(options, work, lengths), np.random.default_rng(0)
    batches = cycle([objective.batch(np.arange(n * work.batch, (n + 1) * work.batch), rng) for n in range(4)])
    plain = Reference(*_model(options, work), micro=work.batch)

    def step() -> None:
        bf16 = torch.autocast(options.device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
        with deterministic(False), bf16:
            plain.step(next(batches))

    return step, STEPS_OF_THE_REFERENCE


def way(run: Run) -> str:
    """How a run says that it runs, as a note."""
    return f"{run.way['steps']}; attention by the first that can of {run.way['attention']}"


def _model(options: Options, work: Work) -> tuple[Any, Indices | None]:
    with torch.device(options.device):  # drawn there: a CPU takes seconds
        model = classifier(work.shape) if work.task else masked_lm(work.shape)
    return model, None if work.k is None else random_mask(model, work.k)


def _objective(options: Options, work: Work, lengths: list[int] | None) -> Objective:
    if lengths is not None:
        encoded = random_sentences(lengths, 0)
        return Classification(encoded, encoded, LABELS, "macro_f1", PAD)
    if work.task:
        return sentences(work.shape, 32 * work.batch, work.length)
    blocks, valid = (4 * work.batch + 4, 4) if options.small else (BLOCKS + VALID, VALID)
    return text(work.shape, blocks, work.length, valid=valid)

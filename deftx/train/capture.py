"""How a step's functions are carried out: as Python, or captured once as CUDA graphs and replayed.

A function given to a runner takes nothing and returns nothing: it reads and writes tensors that never move, and waits
for no value of theirs. So the operations that it dispatched once can be repeated without Python. Elsewhere training
asks what device it is on only to place tensors, to pin batches and to make them ahead. What the functions compute is in
`step`.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from deftx.errors import reason
from deftx.train.memory import is_out_of_gpu_memory

log = logging.getLogger("deftx")

Function = Callable[[], None]

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The kernels that attention may take, of which the inputs' dtype and mask decide: cuDNN's would be tried first."""
_AHEAD = 4
"""Steps that may be under way on a GPU: enough to keep it busy, few enough that an error is near its cause."""


class Runner(Protocol):
    """Carries out functions, each under a key that names its inputs' shapes.

    Attributes:
        way: `eager` or `graph`, for the record.
    """

    way: str

    def prepare(self, key: Hashable, function: Function) -> None:
        """See a function for the first time. It may be called here, so the caller keeps what must not change."""

    def run(self, key: Hashable, function: Function) -> None:
        """Carry out a function that `prepare` has seen."""

    def end_step(self) -> None:
        """Called after each step: waits where too many are under way."""

    def close(self) -> None:
        """Give back what was captured."""


def runner_for(device: torch.device, recomputes: bool) -> Runner:
    """Graphs on a GPU, else Python.

    Args:
        device: of the tensors.
        recomputes: whether the backward pass computes layers again (gradient checkpointing): that reads the state of
            the random number generator, which a capture does not allow.
    """
    return Graphs(device) if device.type == "cuda" and not recomputes else Eager()


def generator_of(device: torch.device) -> torch.Generator:
    """The generator that dropout draws from on a device, of GPUs the current one's."""
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()
    generator: torch.Generator = torch.cuda.default_generators[torch.cuda.current_device()]
    return generator


class Eager:
    """Every operation is dispatched from Python, every time."""

    way = "eager"

    def prepare(self, key: Hashable, function: Function) -> None:
        """Nothing to prepare."""

    def run(self, key: Hashable, function: Function) -> None:
        """Call the function."""
        with exact():
            function()

    def end_step(self) -> None:
        """Python itself is what takes the time."""

    def close(self) -> None:
        """Nothing was captured."""


class Graphs:
    """A CUDA graph for each key, all in one memory pool: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        """Capture nothing yet."""
        self.way = "graph"
        self._device = device
        self._generator = generator_of(device)
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._events: list[torch.cuda.Event] = []

    def prepare(self, key: Hashable, function: Function) -> None:
        """Call the function once, so that libraries are loaded and workspaces made, then capture it.

        Where it cannot be captured, it and all others are called from then on, after a warning. The device is the
        current one.
        """
        self._aside(function)
        torch.cuda.empty_cache()  # what it allocated is no part of the graphs' pool
        if self.way != "graph":
            return
        try:
            self._graphs[key] = self._capture(function)
        except RuntimeError as error:
            # a capture that fails leaves the generator waiting for its end
            self._generator.graphsafe_set_state(self._generator.clone_state())
            if is_out_of_gpu_memory(error):
                raise
            log.warning("a training step cannot be captured as a CUDA graph and runs slower, as Python: %s",
                        reason(error))  # fmt: skip
            self.way = "eager"
            self._graphs.clear()

    def run(self, key: Hashable, function: Function) -> None:
        """Replay the graph: the generator's state at this moment decides its draws."""
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            with exact():
                function()

    def end_step(self) -> None:
        """Wait for the step before the last few."""
        event = self._events.pop(0) if len(self._events) >= _AHEAD else torch.cuda.Event()
        event.synchronize()
        event.record()
        self._events.append(event)

    def close(self) -> None:
        """Free the graphs and their memory: the process may go on with another stage."""
        torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._events.clear()
        torch._C._cuda_clearCublasWorkspaces()  # one for each stream that was ever used
        torch.cuda.empty_cache()

    def _aside(self, function: Function) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream), exact():
            function()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _capture(self, function: Function) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        collects = gc.isenabled()
        gc.disable()  # what it frees may call CUDA in ways that a capture does not allow
        try:
            with torch.cuda.stream(self._stream), exact():
                # the mode: another thread pins batches meanwhile
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    function()
                except BaseException:
                    with suppress(RuntimeError):  # which would hide why
                        self._end(graph)
                    raise
                self._end(graph)
        finally:
            if collects:
                gc.enable()
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # torch 2.11 leaves the pool open where a capture has failed, and then frees no memory any more
            device = torch.cuda.current_device()
            with suppress(RuntimeError, AttributeError):  # it was closed; older ones name this otherwise
                torch._C._cuda_endAllocateToPool(device, self._pool)
                torch._C._cuda_releasePool(device, self._pool)
            raise


@contextmanager
def exact() -> Iterator[None]:
    """Within the block torch computes the same bits every time, or raises; attention takes the kernels of `ATTENTION`.

    Strict: with warnings alone, flash attention's backward pass stays free to vary.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with deterministic(True), sdpa_kernel(ATTENTION):
        yield


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within the block torch's deterministic mode is strict, or off.

    Off for a scatter to distinct places, whose order does not matter: the mode would sort them.
    """
    before, lenient = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(on)
    # nothing here reads memory before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=lenient)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]

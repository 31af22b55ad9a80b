"""A stand-in for a CUDA graph on a CPU: the operations that a function dispatched are repeated without its Python.

What Python decided while they were recorded (a rate, a step, a branch, a tensor bound to a name) is baked in, as in a
graph. An operation that would wait for a value or make a shape of one is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from deftx.train.capture import exact

WAITS = {
    "_local_scalar_dense", "nonzero", "equal", "allclose", "masked_select", "bincount", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive",
}  # fmt: skip


class Tape(TorchDispatchMode):
    """Records operations, and counts those that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.name().removeprefix("aten::").split(".")[0]
        assert name not in WAITS, f"{name} waits for a value"
        of_a_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert not of_a_mask, f"{name} waits for how many places a mask has"
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        assert not counted, "repeat_interleave waits for how many there will be"
        out = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, out))
        self.count[name] += not operation.is_view
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations on the tensors that were there before; each result takes the recorded one's place."""
        made: dict[int, Any] = {}

        def current(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        for operation, args, kwargs, out in self.operations:
            again = operation(*tree_map(current, args), **tree_map(current, kwargs))
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                made[id(old)] = new


class CopyFromTheCPU(AssertionError):
    """A tensor of the CPU would be copied to the GPU, which is waited for."""


class OnAGPU(TorchDispatchMode):
    """Stands for a GPU by the device `meta`: nothing is computed, and what would be copied from the CPU is an error.

    A number of the CPU that an operation of the GPU takes, a tensor without a dimension, goes with the operation.
    """

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.name().removeprefix("aten::").split(".")[0]
        out = operation(*args, **(kwargs or {}))
        before = [value for value in tree_flatten((args, kwargs or {}))[0] if isinstance(value, torch.Tensor)]
        after = [value for value in tree_flatten(out)[0] if isinstance(value, torch.Tensor)]
        if any(value.device.type == "meta" for value in [*before, *after]):
            for value in before:
                if value.device.type == "cpu" and (value.dim() or name in ("_to_copy", "copy_")):
                    raise CopyFromTheCPU(f"{name} copies {tuple(value.shape)} from the CPU")
        return out


class Recorder:
    """Runs every function once while it is recorded, and from then on replays it."""

    way = "recorded"

    def __init__(self) -> None:
        self.tapes: dict[Hashable, Tape] = {}
        self.replays = 0

    def prepare(self, key: Hashable, function: Callable[[], None]) -> None:
        with exact(), Tape() as tape:
            function()
        self.tapes[key] = tape

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        self.replays += 1
        with exact():
            self.tapes[key].replay()

    def end_step(self) -> None:
        pass

    def close(self) -> None:
        self.tapes.clear()

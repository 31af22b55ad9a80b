"""Where the bytes of a training step go: computed for three shapes, their sum measured for XLM-R base and large.

XGLM-564M stands for its shape alone, counted as if it were an encoder with untied embeddings: it is not loaded yet.

At batch 8 x 256 at once, of full blocks, in float32 on a CPU and in bf16 on a GPU. What else a process holds (Python,
torch, a CUDA context and what its allocator keeps) is in the measured peak only. The change and its start lie on disk:
they are never in memory as a whole, unless an L1 term pulls to the start. What an 80 GB A100 should hold leaves 8 % of
it free, and was not measured on one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.measure import GIB, Options, fresh
from benchmarks.models import BASE, LABELS, LARGE, Shape
from benchmarks.results import BenchmarkRow, command
from benchmarks.train import WORKS
from deftx.config import PAPER_K_LANGUAGE

XGLM = Shape(24, 1024, 16, 4096, vocabulary=256_008, positions=2050)
SHAPES = {"XLM-R base": BASE, "XLM-R large": LARGE, "XGLM-564M": XGLM}
LENGTH, EXAMPLES = 256, 8
A100 = 0.92 * 80e9
A_PROCESS = GIB
"""What a process takes besides; between 0.3 and 1 GiB on a CPU, by the measured peaks."""
STAYS, PASSES = ("weights", "moments", "best"), ("gradients", "activations", "logits")
"""What a phase holds throughout, and what a step makes: gradients when activations and logits are gone."""
_LARGE = 1 << 20
"""Entries from which on a gradient in float32 is not put beside others, as in `deftx.train.weights`."""


@dataclass(frozen=True)
class Parts:
    """Bytes of one process that trains a phase."""

    weights: int
    moments: int
    best: int
    gradients: int
    activations: int
    logits: int
    delta: int

    @property
    def total(self) -> int:
        """The most at once; the delta is on disk."""
        return sum(getattr(self, part) for part in STAYS) + max(self.gradients, self.activations + self.logits)

    @property
    def kept(self) -> int:
        """The same where a CPU's malloc gives nothing back that a step has freed."""
        return sum(getattr(self, part) for part in (*STAYS, *PASSES))


def parts(
    shape: Shape, k: int | None, gpu: bool = False, examples: int = EXAMPLES, length: int = LENGTH, task: bool = False
) -> Parts:
    """The bytes by part; k None: the dense phase.

    Args:
        gpu: bf16 on a GPU; else float32 on a CPU.
        examples: of a batch, all computed at once.
        task: the task's phase: a classifier, without output embedding and logits; else a language's.
    """
    width = 2 if gpu else 4  # bytes of a linear layer's weight where it is multiplied, and of its gradient
    layer = shape.layer_weights + 5 * shape.hidden + shape.feed_forward
    body = shape.words + (shape.positions + 1) * shape.hidden + shape.layers * layer
    first = shape.hidden**2 + shape.hidden  # the head's first layer; after it a LayerNorm and biases, or the labels'
    head = first + (len(LABELS) * (shape.hidden + 1) if task else 2 * shape.hidden + shape.vocabulary)
    linear = shape.layers * layer + (head if task else first)
    trained = head + (body if k is None else k)
    # a copy with padded rows, whatever the table is
    output = 0 if task else -(-shape.vocabulary // 64) * 64 * shape.hidden
    chosen = 0 if k is None else (4 + 8) * trained  # values and where they are
    waiting = linear if gpu and k is not None else 0  # what is multiplied in bf16 is on the CPU in float32
    tokens = examples * length
    return Parts(
        weights=4 * (body + head - waiting) + (width * linear if gpu else 0) + width * output + chosen,
        moments=8 * trained,
        best=4 * trained,
        gradients=4 * (body + head - linear) + width * linear + _gathered(shape, trained, linear, k, gpu),
        activations=activations(shape, examples, length, gpu),
        logits=0
        if task
        else (2 + 4) * min(1 << 26, tokens * shape.vocabulary)
        if gpu
        else 8 * min(1 << 25, tokens * shape.vocabulary),
        delta=4 * body,
    )


def _gathered(shape: Shape, trained: int, linear: int, k: int | None, gpu: bool) -> int:
    """Bytes beside all gradients while they become those of the stepped values.

    The dense phase steps float32's as they are and widens bf16's; the sparse one puts those side by side that it reads
    together (the linear layers' in bf16, the small ones in float32), and its own are there twice when they are joined.
    """
    if k is None:
        return 4 * linear if gpu else 0
    matrices = [shape.hidden**2] * 4 + [shape.hidden * shape.feed_forward] * 2
    small = shape.layers * sum(entries for entries in matrices if entries < _LARGE)
    return 2 * 4 * trained + (2 * linear if gpu else 4 * small)


def activations(shape: Shape, examples: int, length: int, gpu: bool = False, drops_attention: bool = True) -> int:
    """What the forward pass keeps for the backward pass in the layers.

    By token and layer, in float32 on a CPU: the layer's input, queries, keys, values and their result, the inputs of
    both LayerNorms and the output of one, the feed-forward layer before and after GELU, the factors of two dropouts,
    two numbers by LayerNorm. Where attention drops, a CPU keeps its probabilities, before and after, and the factors.

    In bf16 on a GPU the LayerNorms' inputs are float32, queries, keys and values have a cast input each, a dropout
    keeps a byte, and attention one number a head.
    """
    by_token = 26 * shape.hidden + 4 * shape.feed_forward + 4 * (4 + shape.heads)
    if not gpu:
        scores = shape.heads * (3 * length if drops_attention else 1)
        by_token = 4 * (10 * shape.hidden + 2 * shape.feed_forward + 4 + scores)
    return examples * length * shape.layers * by_token


def largest_batch(shape: Shape, k: int | None, bytes_: float = A100) -> int:
    """How many examples of 256 tokens fit on a GPU at once."""
    some, more = (parts(shape, k, True, examples).total for examples in (100, 101))
    return 100 + int((bytes_ - some) // (more - some))


def rows(options: Options) -> list[BenchmarkRow]:
    """Bytes by part, the largest batch, and the measured peak."""
    found = []
    for name, shape in SHAPES.items():
        for phase, k in (("dense", None), ("sparse", PAPER_K_LANGUAGE)):
            on_cpu, here, work = parts(shape, k), parts(shape, k, gpu=True), f"{name}, {phase}"
            found.append(BenchmarkRow(f"{work}, float32 on a CPU: most at once", "GiB computed", on_cpu.total / GIB))
            for part in (*STAYS, *PASSES, "delta"):
                found.append(BenchmarkRow(f"{work}, bf16 on a GPU: {part}", "GiB computed", getattr(here, part) / GIB))
            found.append(BenchmarkRow(f"{work}, bf16 on a GPU: most at once", "GiB computed", here.total / GIB))
            holds, batch = f"{work}, bf16: an 80 GB A100 holds", largest_batch(shape, k)
            found.append(BenchmarkRow(holds, "blocks of 256 at once", batch, note="computed"))
            trials = int(A100 / (here.total + A_PROCESS))
            note = "computed, with 1 GiB for CUDA and torch in each"
            found.append(BenchmarkRow(holds, "trials at once", trials, note=note))
    sizes = (False,) if options.small else (False, True)
    return found + [_measured(options, number, large) for large in sizes for number in (0, 1)]


def _measured(options: Options, number: int, large: bool) -> BenchmarkRow:
    work = replace(WORKS[number], shape=LARGE if large else BASE).scaled(options.small)
    computed = parts(work.shape, work.k, False, work.batch, work.length)
    name = "a tiny model" if options.small else "XLM-R large" if large else "XLM-R base"
    bytes_ = fresh("benchmarks.train:peak", options, number=number, reference=False, large=large)
    bytes_computed = computed.total - computed.best  # nothing is validated, so no best copy is written
    note = f"computed {bytes_computed / GIB:.3g} GiB without the best copy, and Python and torch come on top"
    return BenchmarkRow(f"{name}, {work.name}, float32: peak of the process", "GiB measured", bytes_ / GIB, note=note)


if __name__ == "__main__":
    command({"memory": rows}, __doc__)

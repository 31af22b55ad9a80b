"""Where the bytes of a training step go: computed for three shapes, their sum measured for XLM-R base and large.

XGLM-564M stands for its shape alone, counted as if it were an encoder with untied embeddings: it is not loaded yet.

In float32, at batch 8 x 256 at once with every row of the word embedding seen. What else a process holds
(Python, torch, the gradient of one tensor on its way, one block of logits) is in the measured peak only. The delta lies
on disk: it is never in memory as a whole. What an 80 GB A100 should hold leaves 8 % of it free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.measure import GIB, Options, fresh
from benchmarks.models import BASE, LARGE, Shape
from benchmarks.results import BenchmarkRow, command
from benchmarks.train import WORKS
from deftx.config import PAPER_K_LANGUAGE

XGLM = Shape(24, 1024, 16, 4096, vocabulary=256_008, positions=2050)
SHAPES = {"XLM-R base": BASE, "XLM-R large": LARGE, "XGLM-564M": XGLM}
LENGTH, EXAMPLES = 256, 8
A100 = 0.92 * 80e9
A_PROCESS = GIB
"""What a process takes besides; between 0.3 and 1 GiB on a CPU, by the measured peaks; a GPU's was not measured."""
IN_MEMORY = ("weights", "gradients", "moments", "activations", "logits")


@dataclass(frozen=True)
class Parts:
    """Bytes of one process that trains a language phase."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    delta: int

    @property
    def total(self) -> int:
        """All at once; the delta is on disk."""
        return sum(getattr(self, part) for part in IN_MEMORY)


def parts(shape: Shape, k: int | None, examples: int = EXAMPLES, length: int = LENGTH) -> Parts:
    """The bytes by part; k None: the dense phase.

    Args:
        examples: computed at once.
    """
    layer = shape.layer_weights + 9 * shape.hidden + shape.feed_forward  # biases and LayerNorms
    body = shape.words + (shape.positions + 3) * shape.hidden + shape.layers * layer
    head = shape.hidden**2 + 3 * shape.hidden + shape.vocabulary
    tokens = examples * length
    rows = min(tokens, shape.vocabulary) * shape.hidden  # of the word embedding, and at most so many
    return Parts(
        # the dense phase has an output embedding of its own, the sparse phase shares it; a chosen entry has a value, an
        # index, and in a linear layer on a CPU a place in a sparse matrix
        weights=4 * (body + head + (shape.words if k is None else 0)) + (0 if k is None else (4 + 8 + 8) * k),
        gradients=4 * (head + (body - shape.words if k is None else k) + 2 * rows),
        moments=8 * (head + (body if k is None else k)),
        activations=activations(shape, tokens),
        logits=2 * 4 * min(1 << 25, int(0.15 * tokens) * shape.vocabulary),
        delta=4 * (body - 2 * (2 * shape.layers + 1) * shape.hidden),
    )


def activations(shape: Shape, tokens: int) -> int:
    """What the forward pass keeps for the backward pass in the layers.

    By token and layer: the layer's input, queries, keys, values and their result, the inputs and outputs of the
    LayerNorms, the feed-forward layer before and after GELU; a byte for each of two dropouts; two numbers by LayerNorm.
    """
    numbers = 8 * shape.hidden + 2 * shape.feed_forward + 4
    return tokens * shape.layers * (4 * numbers + 2 * shape.hidden)


def largest_batch(shape: Shape, k: int | None, bytes_: float = A100) -> int:
    """How many examples of 256 tokens fit at once."""
    some, more = (parts(shape, k, examples).total for examples in (100, 101))
    return 100 + int((bytes_ - some) // (more - some))


def rows(options: Options) -> list[BenchmarkRow]:
    """Bytes by part, the largest batch, and the measured peak."""
    found = []
    for name, shape in SHAPES.items():
        for phase, k in (("dense", None), ("sparse", PAPER_K_LANGUAGE)):
            here = parts(shape, k)
            for part in (*IN_MEMORY, "delta"):
                found.append(BenchmarkRow(f"{name}, {phase}: {part}", "GiB computed", getattr(here, part) / GIB))
            found.append(BenchmarkRow(f"{name}, {phase}: all in memory", "GiB computed", here.total / GIB))
            batch = largest_batch(shape, k)
            found.append(
                BenchmarkRow(f"{name}, {phase}: an 80 GB A100 holds", "blocks of 256 at once", batch, note="computed")
            )
            trials = int(A100 / (here.total + A_PROCESS))
            note = "computed, with 1 GiB for CUDA and torch in each"
            found.append(BenchmarkRow(f"{name}, {phase}: an 80 GB A100 holds", "trials at once", trials, note=note))
    sizes = (False,) if options.small else (False, True)
    return found + [_measured(options, number, large) for large in sizes for number in (0, 1)]


def _measured(options: Options, number: int, large: bool) -> BenchmarkRow:
    work = replace(WORKS[number], shape=LARGE if large else BASE).scaled(options.small)
    computed = parts(work.shape, work.k, work.batch, work.length)
    name = "a tiny model" if options.small else "XLM-R large" if large else "XLM-R base"
    bytes_ = fresh("benchmarks.train:peak", options, number=number, reference=False, large=large)
    note = f"computed {computed.total / GIB:.3g} GiB were all held at once, and Python and torch come on top"
    return BenchmarkRow(f"{name}, {work.name}: peak of the process", "GiB measured", bytes_ / GIB, note=note)


if __name__ == "__main__":
    command({"memory": rows}, __doc__)

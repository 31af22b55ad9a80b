"""Choosing k entries of the whole change, against `torch.topk` over the concatenated change.

What it must be: the change is read three times (two histograms, then the indices), 1.1 GB each; everything else stays
in the cache. The floor counts one reading.
"""

from __future__ import annotations

from benchmarks.deltas import delta_of, k_of, shape_of
from benchmarks.measure import GIB, Options, Peak, fresh, interleaved, median, rates
from benchmarks.reference import plain_select
from benchmarks.results import BenchmarkRow, above, below, command
from deftx.config import PAPER_K_LANGUAGE
from deftx.masks.select import Indices, select


def rows(options: Options) -> list[BenchmarkRow]:
    """Seconds, memory beyond the change, how many, and whether two runs choose the same."""
    delta, k = delta_of(shape_of(options)), k_of(options, PAPER_K_LANGUAGE)
    total = sum(tensor.numel() for tensor in delta.values())
    chosen: list[Indices] = []
    works = {"ours": lambda: chosen.append(select(delta, k)), "reference": lambda: plain_select(delta, k)}
    times = interleaved(works, rounds=2, warm=0)
    work = f"select {k:,} of {total:,}"
    floor = rates("cpu", options.small).seconds(0, 4 * total)
    exact = float(sum(index.numel() for index in chosen[0].values()) == k and _same(*chosen))
    beyond = {who: fresh("benchmarks.select:peak", options, reference=who == "reference") / GIB for who in works}
    return [
        below(BenchmarkRow(work, "seconds", median(times["ours"]), median(times["reference"]), floor), 6),
        below(BenchmarkRow(work, "GiB beyond the change", beyond["ours"], beyond["reference"]), 1),
        above(BenchmarkRow(work, "exactly k, twice the same", exact), 1),
    ]


def peak(options: Options, reference: bool) -> int:
    """Most bytes beyond the change itself."""
    delta, k = delta_of(shape_of(options)), k_of(options, PAPER_K_LANGUAGE)
    with Peak() as found:
        kept = plain_select(delta, k) if reference else select(delta, k)
    del kept
    return found.bytes


def _same(one: Indices, other: Indices) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


if __name__ == "__main__":
    command({"select": rows}, __doc__)

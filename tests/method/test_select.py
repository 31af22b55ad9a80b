"""The exact global top-k against a plain sort of everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deftx.errors import DataError
from deftx.masks import select as module
from deftx.masks.select import jaccard, non_zero, select

Delta = dict[str, Tensor]


def top_k_by_sorting(delta: Delta, k: int) -> dict[str, list[int]]:
    """Independent reference: (larger magnitude, then lower flat index) over the concatenation by name."""
    names = sorted(delta)
    flat = np.concatenate([delta[name].float().numpy().reshape(-1) for name in names])
    best = np.lexsort((np.arange(flat.size), -np.abs(flat)))[:k]
    ends = np.cumsum([delta[name].numel() for name in names])
    found: dict[str, list[int]] = {}
    for place in sorted(best.tolist()):
        tensor = int(np.searchsorted(ends, place, side="right"))
        found.setdefault(names[tensor], []).append(place - (int(ends[tensor - 1]) if tensor else 0))
    return found


def chosen(delta: Mapping[str, Tensor], k: int) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in select(delta, k).items()}


few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -2.0, 1e-40, -1e-45, 3e38])
tensors = st.lists(few_values | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30)
deltas = st.dictionaries(st.sampled_from(["b", "a", "encoder.10.w", "encoder.9.w", "Z"]), tensors, min_size=1)


@given(deltas, st.data())
def test_it_is_the_top_k_of_a_plain_sort_ties_to_the_lowest_flat_index(
    lists: dict[str, list[float]], data: st.DataObject
) -> None:
    delta = {name: torch.tensor(values, dtype=torch.float32) for name, values in lists.items()}
    present = sum(int(tensor.count_nonzero()) for tensor in delta.values())
    k = data.draw(st.integers(1, max(present, 1)))
    if present == 0:
        with pytest.raises(DataError, match="only 0 entries"):
            select(delta, k)
    else:
        assert chosen(delta, k) == top_k_by_sorting(delta, k)


def test_ties_go_to_the_first_tensor_by_name_and_the_lowest_index_whatever_the_order_given() -> None:
    delta = {"b": torch.tensor([[1.0, -2.0], [2.0, 1.0]]), "a": torch.tensor([2.0, 0.0, -1.0, 1.0])}
    assert chosen(delta, 4) == {"a": [0, 2], "b": [1, 2]}
    assert chosen(dict(reversed(delta.items())), 4) == {"a": [0, 2], "b": [1, 2]}
    assert chosen(delta, 3) == {"a": [0], "b": [1, 2]}


def test_all_entries_equal_gives_exactly_the_first_k() -> None:
    assert chosen({"a": torch.full((3, 5), -0.25), "b": torch.full((5,), 0.25)}, 17) == {"a": [*range(15)], "b": [0, 1]}


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = {name: torch.randint(-3, 4, (13, 11), generator=generator).float() for name in ("p", "q")}
    whole = chosen(delta, 100)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert chosen(delta, 100) == whole == top_k_by_sorting(delta, 100)


def test_exactly_k_of_a_large_delta_with_many_equal_magnitudes() -> None:
    generator = torch.Generator().manual_seed(1)
    delta = {name: (torch.randn(300, 200, generator=generator) * 50).round() / 50 for name in ("x", "y")}
    for k in (1, 777, 60_000, 110_000):
        assert sum(index.numel() for index in select(delta, k).values()) == k
    assert chosen(delta, 777) == top_k_by_sorting(delta, 777)


def test_a_transposed_tensor_counts_in_row_major_order() -> None:
    matrix = torch.arange(6.0).reshape(2, 3).T
    assert chosen({"w": matrix}, 2) == {"w": [3, 5]}  # 4.0 at (1, 1) and 5.0 at (2, 1)


def test_indices_are_int64_and_ascending() -> None:
    index = select({"w": torch.randn(50, generator=torch.Generator().manual_seed(2))}, 20)["w"]
    assert index.dtype == torch.int64
    assert bool((index.diff() > 0).all())


def test_fewer_non_zero_entries_than_k_is_an_error_with_both_numbers() -> None:
    delta = {"a": torch.tensor([0.0, 1.0, -0.0]), "b": torch.tensor([1e-45])}
    assert chosen(delta, 2) == {"a": [1], "b": [0]}
    with pytest.raises(DataError, match=r"only 2 entries .* k = 3"):
        select(delta, 3)
    with pytest.raises(DataError, match=r"only 2 entries .* k = 9"):
        select(delta, 9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -float("nan")])
def test_nan_and_infinity_are_an_error_that_names_the_tensor(bad: float) -> None:
    with pytest.raises(DataError, match=r"encoder\.1\.w"):
        select({"a": torch.ones(3), "encoder.1.w": torch.tensor([1.0, bad])}, 2)


class Lazy(Mapping[str, Tensor]):
    """Counts how often tensors are read."""

    def __init__(self, delta: Delta) -> None:
        self.delta, self.reads = delta, 0

    def __getitem__(self, name: str) -> Tensor:
        self.reads += 1
        return self.delta[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.delta)

    def __len__(self) -> int:
        return len(self.delta)


def test_a_lazy_mapping_is_read_three_times() -> None:
    lazy = Lazy({name: torch.randn(9) for name in "abc"})
    assert chosen(lazy, 5) == chosen(lazy.delta, 5)
    assert lazy.reads == 3 * 3


def test_it_chooses_alike_whatever_the_number_of_threads() -> None:
    delta = {name: torch.randn(200, 300, generator=torch.Generator().manual_seed(3)).half().float() for name in "ab"}
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(chosen(delta, 1234))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2] == top_k_by_sorting(delta, 1234)


def test_non_zero_is_every_entry_that_differs_from_zero() -> None:
    found = non_zero({"a": torch.tensor([[0.0, 3.0], [-1e-45, -0.0]]), "b": torch.zeros(2)})
    assert {name: index.tolist() for name, index in found.items()} == {"a": [1, 2]}


def test_jaccard_by_hand() -> None:
    one = {"a": torch.tensor([0, 2, 5]), "b": torch.tensor([1])}
    other = {"a": torch.tensor([2, 5, 9]), "c": torch.tensor([1])}
    assert jaccard(one, other) == 2 / 6
    assert (jaccard(one, one), jaccard(one, {}), jaccard({}, {})) == (1.0, 0.0, 1.0)

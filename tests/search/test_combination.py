"""Combinations: their form by name and back, and which of them a space has, in what order."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.plans import make_space

from deftx.config import Denoise, RetentionOf
from orchestrator.space.combination import Combination

ranks = st.integers(1, 1000).map(str) | st.decimals("0.01", 100, places=2).map(lambda share: f"{share:f}%")
kept = st.floats(0, 1)


@st.composite
def combinations(draw: st.DrawFn) -> Combination:
    of = draw(st.sampled_from(["numel", "nonzero"]))
    parts = (Denoise(rank=draw(ranks), retention=draw(kept), retention_of=of) for _ in range(2))
    return Combination(*parts)


@given(combinations())
def test_a_combination_survives_its_record_and_json(combination: Combination) -> None:
    record = combination.record()
    assert list(record) == ["rank_l", "rank_t", "retention_l", "retention_t"]
    assert [type(value) for value in record.values()] == [str, str, float, float]
    again = Combination.read(json.loads(json.dumps(record)), combination.language.retention_of)
    assert again == combination and hash(again) == hash(combination)
    assert again.record() == record


@given(ranks, ranks, kept, st.sampled_from(["numel", "nonzero"]))
def test_one_retention_is_that_of_both_kinds(rank_l: str, rank_t: str, share: float, of: RetentionOf) -> None:
    both = Combination.read({"rank_l": rank_l, "rank_t": rank_t, "retention": share}, of)
    apart = {"rank_l": rank_l, "rank_t": rank_t, "retention_l": share, "retention_t": share}
    assert both == Combination.read(apart, of)
    assert both.language == Denoise(rank=rank_l, retention=share, retention_of=of)
    assert both.task == Denoise(rank=rank_t, retention=share, retention_of=of)


def test_language_and_task_are_not_mixed_up() -> None:
    record = {"rank_l": "8", "rank_t": "90%", "retention_l": 0.1, "retention_t": 0.2}
    combination = Combination.read(record)
    assert combination.language == Denoise(rank=8, retention=0.1)
    assert combination.task == Denoise(rank="90%", retention=0.2)
    assert combination.record() == record


@pytest.mark.parametrize(
    "record",
    [{"rank_t": 8, "retention": 0.1}, {"rank_l": 8, "rank_t": 8}, {"rank_l": 8, "rank_t": 0.9, "retention": 0}],
)
def test_what_is_no_combination_is_refused(record: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValidationError)):
        Combination.read(record)


@pytest.mark.parametrize("of", ["numel", "nonzero"])
def test_the_cells_are_the_first_ones_then_the_grid_in_order(of: str) -> None:
    first = {"rank_l": "90 %", "rank_t": 8, "retention_l": "0.1", "retention_t": 0}
    space = make_space(
        rank_t=[8, 4], retention_l=[0.1, 0.2], retention_t=[0.3, 0], first=[first, first], retention_of=of
    )
    grid = [
        {"rank_l": rank_l, "rank_t": rank_t, "retention_l": retention_l, "retention_t": retention_t}
        for rank_l, rank_t, retention_l, retention_t in itertools.product(
            ("8", "90%"), ("8", "4"), (0.1, 0.2), (0.3, 0.0)
        )
    ]
    given_ = {"rank_l": "90%", "rank_t": "8", "retention_l": 0.1, "retention_t": 0.0}
    cells = space.cells()
    assert [cell.record() for cell in cells] == [given_, *(cell for cell in grid if cell != given_)]
    assert {part.retention_of for cell in cells for part in (cell.language, cell.task)} == {of}

"""Ranks: one spelling each, their order, what they mean for a matrix, and their place in settings."""

from __future__ import annotations

import pickle
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from deftx.config import Denoise
from deftx.rank import Rank

uniform = st.integers(1, 10**6).map(str)
shares = st.decimals(min_value="0.00001", max_value=100, places=5).map(lambda share: f"{share:f}%")
texts = uniform | shares
ranks = texts.map(Rank.parse)


def by_hand(text: str) -> tuple[bool, Decimal]:
    """How ranks sort: uniform ones first, then shares of variance, each by size."""
    return text.endswith("%"), Decimal(text.rstrip("%"))


# -- as text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (100, "100"), ("100", "100"), (" 0100 ", "100"), ("90%", "90%"), ("90.0 %", "90%"), ("090.50%", "90.5%"),
        ("100%", "100%"), ("100.000%", "100%"), ("0.5%", "0.5%"), ("99.9999999%", "99.9999999%"),
        ("0.0000001%", "0.0000001%"), (10**30, "1" + "0" * 30),
    ],
)  # fmt: skip
def test_a_rank_has_one_spelling(given_: object, text: str) -> None:
    assert str(Rank.parse(given_)) == text
    assert Rank.parse(given_) == Rank.parse(text)
    assert hash(Rank.parse(given_)) == hash(Rank.parse(text))


@pytest.mark.parametrize(
    ("given_", "hint"),
    [
        (0.9, "write 90%"), (1.0, "write 100%"), ("0.955", "write 95.5%"), (100.0, "write 100 for a uniform rank"),
        (".5", "write 50%"), (0, "at least 1"), ("0", "at least 1"), ("0%", "above 0 %"), ("101%", "up to 100 %"),
        (-5, "whole number"), (True, "not True"), (None, "not None"), ("full", "not 'full'"),
        ("90 % of", "whole number"), ([100], "whole number"),
    ],
)  # fmt: skip
def test_a_rank_that_could_mean_two_things_or_nothing_is_refused_with_the_right_spelling(
    given_: object, hint: str
) -> None:
    with pytest.raises(ValueError, match=hint):
        Rank.parse(given_)


@given(texts)
def test_spelling_loses_nothing_and_spelling_again_changes_nothing(text: str) -> None:
    rank = Rank.parse(text)
    assert Rank.parse(str(rank)) == rank == Rank.parse(rank)
    assert str(Rank.parse(str(rank))) == str(rank)
    assert by_hand(str(rank)) == by_hand(text)


@given(texts)
def test_a_rank_is_either_uniform_or_a_share(text: str) -> None:
    rank = Rank.parse(text)
    if text.endswith("%"):
        assert (rank.uniform, rank.share) == (None, float(text[:-1]) / 100)
    else:
        assert (rank.uniform, rank.share) == (int(text), None)


# -- in order ---------------------------------------------------------------------------------------------------------


def test_uniform_ranks_come_before_shares_each_by_size() -> None:
    ordered = ["1", "9", "25", "100", "0.5%", "5%", "9.75%", "50%", "100%"]
    assert [str(rank) for rank in sorted(map(Rank.parse, ordered[::-1]))] == ordered


@given(texts, texts)
def test_the_order_is_that_of_the_spelling_and_two_ranks_are_equal_when_spelled_alike(one: str, other: str) -> None:
    a, b = Rank.parse(one), Rank.parse(other)
    assert (a < b, a <= b, a == b) == (by_hand(one) < by_hand(other), by_hand(one) <= by_hand(other), str(a) == str(b))
    assert (a < b) + (a == b) + (b < a) == 1
    assert hash(a) == hash(b) or a != b


@given(ranks, ranks, ranks)
def test_the_order_is_transitive(a: Rank, b: Rank, c: Rank) -> None:
    first, second, third = sorted((a, b, c))
    assert first <= second <= third and first <= third


# -- as a range -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "step", "expected"),
    [
        (25, 100, 25, "25 50 75 100"), ("50%", "60 %", "7%", "50% 57%"), (3, 3, 1, "3"),
        ("98%", "100%", "1%", "98% 99% 100%"),
    ],
)  # fmt: skip
def test_a_range_ends_where_its_last_step_ends(first: object, last: object, step: object, expected: str) -> None:
    assert " ".join(map(str, Rank.in_range({"from": first, "to": last, "step": step}))) == expected


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"from": 1, "to": 3}, "is written"), ({"from": 1, "to": 3, "step": 1, "by": 1}, "is written"),
        ({"from": 10, "to": "30%", "step": 10}, "all with %"), ({"from": 1.5, "to": 3, "step": 1}, "has whole"),
        ({"from": 5, "to": 3, "step": 1}, "goes up"), ({"from": 1, "to": 3, "step": 0}, "goes up"),
        ({"from": 0, "to": 3, "step": 1}, "at least 1"), ({"from": "90%", "to": "110%", "step": "10%"}, "up to 100 %"),
    ],
)  # fmt: skip
def test_a_range_that_is_none_is_refused(limits: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rank.in_range(limits)


# -- of a matrix ------------------------------------------------------------------------------------------------------


def of(text: str, values: list[float]) -> int:
    return Rank.parse(text).of(torch.tensor(values, dtype=torch.float64))


def test_rank_by_variance_by_hand() -> None:
    values = [3.0, 2.0, 2.0, 1.0, 0.0]  # squares 9 4 4 1 0, total 18
    expected = {"50%": 1, "50.01%": 2, "72%": 2, "72.3%": 3, "94%": 3, "95%": 4, "100%": 5, "0.001%": 1}
    assert {text: of(text, values) for text in expected} == expected


def test_a_uniform_rank_is_clamped() -> None:
    texts_ = ("1", "8", "9", "10", "400", "100%")
    assert [of(text, [float(9 - n) for n in range(9)]) for text in texts_] == [1, 8, 9, 9, 9, 9]


def test_of_nothing_but_zeros_any_rank_is_one_the_matrix_has() -> None:
    assert [of(text, [0.0] * 4) for text in ("3", "90%", "100%")] == [3, 1, 4]


spectra = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=30).map(lambda v: sorted(v)[::-1])


@given(texts, spectra)
def test_of_is_that_of_a_float64_numpy_reference(text: str, values: list[float]) -> None:
    if not text.endswith("%"):
        assert of(text, values) == min(int(text), len(values))
        return
    energy = np.cumsum(np.square(np.array(values, dtype=np.float64)))
    reached = np.flatnonzero(energy >= float(text[:-1]) / 100 * energy[-1])
    expected = len(values) if Decimal(text[:-1]) == 100 else int(reached[0]) + 1
    assert of(text, values) == expected


@given(texts, texts, spectra)
def test_a_larger_rank_of_one_form_never_means_less(one: str, other: str, values: list[float]) -> None:
    assume(one.endswith("%") == other.endswith("%"))
    small, large = sorted(map(Rank.parse, (one, other)))
    tensor = torch.tensor(values, dtype=torch.float64)
    assert 1 <= small.of(tensor) <= large.of(tensor) <= len(values)


# -- in settings ------------------------------------------------------------------------------------------------------


@given(texts)
def test_settings_take_text_and_are_written_as_the_spelling(text: str) -> None:
    setting = Denoise(rank=text)
    assert setting.rank == Rank.parse(text)
    assert setting.model_dump()["rank"] == setting.model_dump(mode="json")["rank"] == str(Rank.parse(text))
    assert f'"rank":"{Rank.parse(text)}"' in setting.model_dump_json()
    assert Denoise.model_validate_json(setting.model_dump_json()) == setting
    assert Denoise(rank=setting.rank) == setting and hash(Denoise(rank=setting.rank)) == hash(setting)
    assert pickle.loads(pickle.dumps(setting)) == setting


def test_a_schema_of_settings_says_text() -> None:
    for mode in ("validation", "serialization"):
        assert TypeAdapter(Rank).json_schema(mode=mode) == {"type": "string"}  # type: ignore[arg-type]


def test_a_wrong_rank_is_a_problem_of_its_field() -> None:
    with pytest.raises(ValidationError, match=r"write 90%") as caught:
        Denoise(rank=0.9)
    assert [error["loc"] for error in caught.value.errors()] == [("rank",)]


def test_a_rank_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Rank.parse(8).number = Decimal(9)  # type: ignore[misc]

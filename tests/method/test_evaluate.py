"""Metrics and intervals against scikit-learn on explicitly redrawn rows, and the properties that make them joint."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from deftx.config import Metric
from deftx.errors import DataError
from deftx.evaluate.bootstrap import AVERAGE, Bootstrap, Predictions, Score, System
from deftx.evaluate.metrics import score

LABELS = ("negative", "neutral", "positive")


def random_system(seed: int, languages: str = "abc", items: int = 30, rows: int = 1, right: float = 0.6) -> System:
    """Predictions that are right with probability `right`; gold and ids depend on the languages alone."""
    ids = [f"item-{number}" for number in range(items) for _ in range(rows)]
    gold = {name: np.random.default_rng(ord(name)).integers(0, 3, len(ids)) for name in languages}
    rng = np.random.default_rng(seed)
    wrong = {name: rng.integers(0, 3, len(ids)) for name in languages}
    hit = {name: rng.random(len(ids)) < right for name in languages}
    return {
        name: Predictions(ids, gold[name].tolist(), np.where(hit[name], gold[name], wrong[name]).tolist())
        for name in languages
    }


def sklearn_score(gold: list[int], predicted: list[int], metric: Metric) -> float:
    if metric == "accuracy":
        return float(accuracy_score(gold, predicted))
    return float(f1_score(gold, predicted, labels=[0, 1, 2], average="macro", zero_division=0.0))


def redrawn_by_hand(system: System, metric: Metric, draws: int, seed: int) -> np.ndarray:
    """Scores of each draw with loops: copy the rows of each drawn item, ask scikit-learn. (draws, languages + 1)"""
    items = sorted({item for one in system.values() for item in one.ids})
    counts = np.random.default_rng(seed).multinomial(len(items), [1 / len(items)] * len(items), size=draws)
    table = []
    for count in counts:
        times = dict(zip(items, count, strict=True))
        line = []
        for one in system.values():
            rows = [row for row, item in enumerate(one.ids) for _ in range(times[item])]
            line.append(sklearn_score([one.gold[r] for r in rows], [one.predicted[r] for r in rows], metric))
        table.append([*line, float(np.mean(line))])
    return np.array(table)


def assert_estimates(found: dict[str, Score], whole: np.ndarray, redrawn: np.ndarray) -> None:
    low, high = np.quantile(redrawn, [0.025, 0.975], axis=0)
    numbers = np.array([(one.value, one.low, one.high) for one in found.values()])
    np.testing.assert_allclose(numbers, np.column_stack([whole, low, high]), atol=1e-12)


def whole_scores(system: System, metric: Metric) -> np.ndarray:
    scores = [sklearn_score(list(one.gold), list(one.predicted), metric) for one in system.values()]
    return np.array([*scores, np.mean(scores)])


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
@pytest.mark.parametrize("rows", [1, 3])
def test_intervals_are_those_of_sklearn_on_redrawn_rows(metric: Metric, rows: int) -> None:
    system = random_system(1, rows=rows)
    found = Bootstrap(LABELS, metric, draws=60, seed=7).interval(system)
    assert list(found) == ["a", "b", "c", AVERAGE]
    assert_estimates(found, whole_scores(system, metric), redrawn_by_hand(system, metric, 60, 7))


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_differences_are_paired_over_the_same_draws(metric: Metric) -> None:
    a, b = random_system(1, right=0.8, rows=2), random_system(2, rows=2)
    found = Bootstrap(LABELS, metric, draws=60, seed=3).difference(a, b)
    redrawn = redrawn_by_hand(a, metric, 60, 3) - redrawn_by_hand(b, metric, 60, 3)
    assert_estimates(found, whole_scores(a, metric) - whole_scores(b, metric), redrawn)


def test_languages_that_lack_items_take_part_with_those_they_have() -> None:
    system = random_system(1)
    one = system["b"]
    system = {**system, "b": Predictions(one.ids[5:25], one.gold[5:25], one.predicted[5:25])}
    found = Bootstrap(LABELS, "accuracy", draws=60, seed=7).interval(system)
    assert_estimates(found, whole_scores(system, "accuracy"), redrawn_by_hand(system, "accuracy", 60, 7))


def test_a_draw_without_any_row_of_a_language_is_left_out() -> None:
    few = Predictions(["1"], [0], [0])
    many = Predictions([str(number) for number in range(6)], [0] * 6, [0] * 6)
    found = Bootstrap(LABELS, "accuracy", draws=200).interval({"a": few, "b": many})
    assert set(found.values()) == {Score(1.0, 1.0, 1.0)}


def test_a_hand_worked_paired_difference() -> None:
    """Two items; `a` is right on both, `b` on the first. Draws (2,0) (1,1) (0,2) give 0, 1/2 and 1 as differences."""
    a, b = {"x": Predictions([*"12"], [0, 1], [0, 1])}, {"x": Predictions([*"12"], [0, 1], [0, 0])}
    bootstrap = Bootstrap(LABELS[:2], "accuracy", draws=4000, seed=0)
    assert bootstrap.difference(a, b) == {"x": Score(0.5, 0.0, 1.0), AVERAGE: Score(0.5, 0.0, 1.0)}
    assert bootstrap.interval(b)["x"] == Score(0.5, 0.0, 1.0)
    assert bootstrap.difference(a, a)["x"] == Score(0.0, 0.0, 0.0)


def test_parallel_languages_give_a_wider_average_than_independent_ones() -> None:
    """Right on the same items in five languages: the average is as unsure as one language. Independent: 1/sqrt(5)."""
    rng, names, gold = np.random.default_rng(0), "abcde", [0] * 400
    ids = [str(number) for number in range(400)]
    same = rng.integers(0, 2, 400).tolist()
    parallel = {name: Predictions(ids, gold, same) for name in names}
    independent = {name: Predictions(ids, gold, rng.permutation(same).tolist()) for name in names}
    bootstrap = Bootstrap(LABELS[:2], "accuracy")
    width = {kind: _width(bootstrap.interval(system)) for kind, system in (("p", parallel), ("i", independent))}
    assert width["p"][AVERAGE] == pytest.approx(width["p"]["a"])
    assert width["i"][AVERAGE] == pytest.approx(width["p"][AVERAGE] / np.sqrt(5), rel=0.15)


def test_rows_that_share_an_item_are_drawn_together() -> None:
    """Three equal rows an item are no more evidence than one: the interval does not shrink."""
    one = random_system(1, "a", items=100)["a"]
    thrice = Predictions([*one.ids] * 3, [*one.gold] * 3, [*one.predicted] * 3)
    alone = {str(n): thrice.ids[n] for n in range(300)}
    bootstrap = Bootstrap(LABELS, "accuracy")
    assert bootstrap.interval({"a": thrice}) == bootstrap.interval({"a": one})
    spread = bootstrap.interval({"a": Predictions([*alone], thrice.gold, thrice.predicted)})
    assert _width(spread)["a"] < 0.7 * _width(bootstrap.interval({"a": one}))["a"]


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=25),
    metric=st.sampled_from(["macro_f1", "accuracy"]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_rows(rows: list[tuple[int, int, int]], metric: Metric, seed: int) -> None:
    """The value is `score`, all numbers are shares in order, and neither repeating nor reordering rows changes them."""
    items, gold, predicted = (list(column) for column in zip(*rows, strict=True))
    bootstrap = Bootstrap(LABELS, metric, draws=40, seed=seed)
    found = bootstrap.interval({"x": Predictions([str(item) for item in items], gold, predicted)})["x"]
    assert found.value == pytest.approx(score(gold, predicted, LABELS, metric))
    assert 0 <= found.low <= found.high <= 1
    turned = Predictions([str(item) for item in items[::-1]], gold[::-1], predicted[::-1])
    assert found == bootstrap.interval({"x": turned})["x"]


@given(seed=st.integers(0, 50))
@settings(max_examples=20)
def test_a_difference_turns_its_sign_with_the_systems(seed: int) -> None:
    a, b = random_system(seed), random_system(seed + 1000)
    bootstrap = Bootstrap(LABELS, "macro_f1", draws=99, seed=seed)
    there, back = bootstrap.difference(a, b), bootstrap.difference(b, a)
    for name, one in there.items():
        assert (one.value, one.low, one.high) == pytest.approx((-back[name].value, -back[name].high, -back[name].low))


def test_the_seed_decides() -> None:
    system = random_system(1)
    same = [Bootstrap(LABELS, "macro_f1", seed=4).interval(system) for _ in range(2)]
    assert same[0] == same[1] != Bootstrap(LABELS, "macro_f1", seed=5).interval(system)


def test_macro_f1_counts_every_label() -> None:
    assert score([0, 1], [0, 1], LABELS, "macro_f1") == pytest.approx(2 / 3)
    assert score([0, 1], [0, 0], LABELS, "accuracy") == 0.5


@pytest.mark.parametrize(("low", "high", "answer"), [(1, 2, True), (-2, -1, True), (0, 2, False), (-1, 1, False)])
def test_an_interval_excludes_zero_when_it_lies_on_one_side(low: float, high: float, answer: bool) -> None:
    assert Score((low + high) / 2, low, high).excludes_zero is answer


def test_what_does_not_fit_is_refused() -> None:
    good = Predictions([*"12"], [0, 1], [0, 1])
    bootstrap = Bootstrap(LABELS[:2], "accuracy", draws=10)
    with pytest.raises(DataError, match=r"columns of one length of at least 1 row, not \[2, 2, 1\]"):
        Predictions([*"12"], [0, 1], [0])
    with pytest.raises(DataError, match="at least 1 row"):
        score([], [], LABELS, "accuracy")
    with pytest.raises(DataError, match="at least one language"):
        bootstrap.interval({})
    for wrong in (2, -1):
        with pytest.raises(DataError, match="ace: a label index lies outside 0 to 1"):
            bootstrap.interval({"ace": Predictions([*"12"], [0, 1], [0, wrong])})
    with pytest.raises(DataError, match="other languages"):
        bootstrap.difference({"ace": good}, {"ban": good})
    for other in (Predictions([*"13"], [0, 1], [0, 1]), Predictions([*"12"], [1, 0], [0, 1])):
        with pytest.raises(DataError, match="ace: the two systems were not graded on the same items"):
            bootstrap.difference({"ace": good}, {"ace": other})


def test_twenty_systems_take_no_longer_than_a_thousand_draws_by_hand() -> None:
    """Of 20 intervals and 20 differences, 2,000 draws each. By hand a draw takes 10 ms or so."""
    systems = [random_system(seed, "abcde", items=400) for seed in range(20)]
    start = time.perf_counter()
    bootstrap = Bootstrap(LABELS, "macro_f1")
    for system in systems:
        bootstrap.interval(system)
        bootstrap.difference(system, systems[0])
    ours = time.perf_counter() - start
    redrawn_by_hand(systems[0], "macro_f1", 20, seed=0)
    assert ours < 1000 / 20 * (time.perf_counter() - start - ours)


def _width(estimates: dict[str, Score]) -> dict[str, float]:
    return {name: one.high - one.low for name, one in estimates.items()}

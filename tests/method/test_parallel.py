"""Whether equal ids are translations: by hand, by chance, and on the real benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftx.config import EVALUATION_SPLITS, EvaluationSplit
from deftx.data.catalogue import BENCHMARKS
from deftx.data.examples import evaluation_source, read_examples
from deftx.evaluate.bootstrap import AVERAGE, Bootstrap, Predictions
from deftx.evaluate.parallel import Disagreement, disagreements, groups, tied


def rows(gold: Sequence[int], first: int = 0) -> Predictions:
    return Predictions([str(first + number) for number in range(len(gold))], gold, gold)


def test_translations_agree_also_where_some_rows_are_lacking() -> None:
    gold = Random(0).choices(range(3), k=100)
    system = {"ace": rows(gold), "ban": rows(gold), "bjn": rows(gold[40:], 40)}
    assert disagreements(system) == ()
    assert tied(system, groups(system, ())) is system


@pytest.mark.parametrize(("corrected", "are_tied"), [(5, True), (6, False)])
def test_one_label_in_twenty_may_be_corrected(corrected: int, are_tied: bool) -> None:
    gold = [number % 2 for number in range(100)]
    other = [1 - label if number < corrected else label for number, label in enumerate(gold)]
    found = disagreements({"ace": rows(gold), "ban": rows(other)})
    assert found == (() if are_tied else (Disagreement(("ace", "ban"), 100, 6),))


def test_row_numbers_of_two_tables_are_no_items() -> None:
    """22 of 36 ids with other labels, as in the field report: drawn apart, as if the ids had been different."""
    gold = [0] * 36
    system = {"ila": rows(gold), "vek": rows([1] * 22 + [0] * 14)}
    (found,) = disagreements(system)
    assert found == Disagreement(("ila", "vek"), 36, 22)
    group = groups(system, (found,))
    assert group == {"ila": "ila", "vek": "vek"}
    apart = tied(system, group)
    assert len({*apart["ila"].ids, *apart["vek"].ids}) == 72
    assert [apart[name].gold for name in apart] == [system[name].gold for name in system]
    wrong = {name: Predictions(one.ids, one.gold, [0, 1] * 18) for name, one in apart.items()}
    by_hand = {
        name: Predictions([f"{name}: {id}" for id in system[name].ids], one.gold, one.predicted)
        for name, one in wrong.items()
    }
    assert (
        Bootstrap("ab", "accuracy").interval(wrong)[AVERAGE] == Bootstrap("ab", "accuracy").interval(by_hand)[AVERAGE]
    )


def test_an_item_with_several_rows_agrees_where_the_labels_of_one_are_among_the_others() -> None:
    premise = Predictions(["1", "1", "1", "2", "2", "2"], [0, 1, 2, 0, 1, 2], [0] * 6)
    without = Predictions(["1", "2", "2"], [2, 0, 1], [0] * 3)
    twice = Predictions(["1", "1", "2"], [2, 2, 0], [0] * 3)
    assert disagreements({"a": premise, "b": without}) == ()
    assert disagreements({"a": premise, "b": twice}) == (Disagreement(("a", "b"), 2, 1),)


def test_a_language_that_disagrees_leaves_the_others_tied() -> None:
    gold = [number % 3 for number in range(60)]
    shifted = [(label + 1) % 3 for label in gold]
    system = {"gay": rows(shifted), "ace": rows(gold), "ban": rows(gold), "own": rows(shifted), "far": rows(gold, 100)}
    found = disagreements(system)
    assert [one.languages for one in found] == [("gay", "ace"), ("gay", "ban"), ("ace", "own"), ("ban", "own")]
    assert groups(system, found) == {"gay": "gay", "ace": "ace", "ban": "ace", "own": "gay", "far": "gay"}
    apart = tied(system, groups(system, found))
    assert apart["ace"].ids == apart["ban"].ids
    assert apart["gay"].ids == apart["own"].ids
    assert not {*apart["ace"].ids} & {*apart["gay"].ids}


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 2), min_size=20, max_size=20), min_size=1))
def test_no_group_has_two_that_disagree_and_each_language_is_in_one(labels: dict[str, list[int]]) -> None:
    system = {language: rows(gold) for language, gold in labels.items()}
    found = disagreements(system)
    group = groups(system, found)
    assert group.keys() == system.keys()
    assert all(group[first] == first for first in group.values())
    assert all(group[a] != group[b] for a, b in (one.languages for one in found))


@pytest.mark.skipif(not os.environ.get("DEFTX_DATA_ROOT"), reason="DEFTX_DATA_ROOT is not set")
@pytest.mark.parametrize("split", EVALUATION_SPLITS)
@pytest.mark.parametrize("name", ["nusax", "americasnli"])
def test_the_real_benchmarks_are_parallel(name: str, split: EvaluationSplit) -> None:
    of, root = BENCHMARKS[name], os.environ["DEFTX_DATA_ROOT"]
    system = {}
    for language in of.languages or ():
        found = read_examples(of, evaluation_source(of, language, split, root), language, split)
        system[language] = Predictions(found.ids, found.labels, found.labels)
    assert len(system) == {"nusax": 12, "americasnli": 10}[name]
    assert disagreements(system) == ()
    # not vacuously: with the rows of one language turned about it is found out, where an item is one row
    turned = {**system, "id": rows(system["id"].gold[::-1])} if name == "nusax" else system
    assert len(disagreements(turned)) == (11 if name == "nusax" else 0)

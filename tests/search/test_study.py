"""The replay of asks: what an ask may depend on, and when a search ends."""

from __future__ import annotations

import zlib
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from support.plans import make_space

from orchestrator.search.replay import Replay, export_journal
from orchestrator.space.combination import Combination
from orchestrator.space.schema import Space

WIDE = {
    "search": "tpe",
    "combinations": 20,
    "rank_l": list(range(1, 9)),
    "rank_t": list(range(1, 9)),
    "search_parallelism": 3,
}


def asked_with(space: Space, score: object) -> list[Combination]:
    """Ask to the end, each combination finishing at once."""
    replay = Replay(space)
    while not replay.ended():
        scores = [score(number, cell) for number, cell in enumerate(replay.asked)]  # type: ignore[operator]
        assert replay.may_ask([True] * len(scores))
        replay.ask(scores)
    return replay.asked


def by_rank(number: int, cell: Combination) -> float:
    return float(cell.language.rank.number + cell.task.rank.number)


def test_ask_n_depends_on_results_up_to_n_minus_lag_alone() -> None:
    space = make_space(**WIDE)
    for n in (5, 14, 19):
        asks = []
        for late in (0.0, 1e6, None):
            replay = Replay(space)
            for k in range(n):
                replay.ask([by_rank(i, cell) for i, cell in enumerate(replay.asked)])
                assert len(replay.asked) == k + 1
            visible = n - space.search_parallelism + 1
            scores = [by_rank(i, cell) if i < visible else late for i, cell in enumerate(replay.asked)]
            asks.append(replay.ask(scores))
        assert asks[0] == asks[1] == asks[2]


def test_every_ask_is_that_of_a_study_built_anew_of_the_results() -> None:
    """Over a space so small that repeats are drawn, with combinations that failed and a first one that is given."""
    first = ({"rank_l": "2", "rank_t": "3", "retention": 0.05},)
    space = make_space(**{**WIDE, "rank_l": [1, 2, 3, 4], "rank_t": [1, 2, 3, 4, 5], "first": first})
    distributions = {name: CategoricalDistribution(values) for name, values in space.parameters.items()}
    replay, repeats, scores = Replay(space), list[tuple[int, Combination]](), list[float | None]()

    def told(study: optuna.Study, cell: Combination, visible: bool) -> None:
        score = scores[replay.asked.index(cell)] if visible else None
        state = TrialState.RUNNING if not visible else TrialState.FAIL if score is None else TrialState.COMPLETE
        values = {**cell.record(), "retention": cell.language.retention}
        params = {name: values[name] for name in distributions}
        study.add_trial(create_trial(params=params, distributions=distributions, value=score, state=state))

    def drawn(n: int, attempt: int) -> Combination:
        seed = zlib.crc32(f"{space.seed}/{n}/{attempt}".encode())
        study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed, constant_liar=True))
        visible = max(n - space.search_parallelism + 1, 0)
        for number in range(n + 1):
            for cell in (cell for of, cell in repeats if of == number):
                told(study, cell, replay.asked.index(cell) < visible)
            if number < n:
                told(study, replay.asked[number], number < visible)
        return Combination.read(study.ask(distributions).params, space.retention_of)

    expected = space.cells()[0]
    while replay.ask(scores) == expected and len(replay.asked) < 18:
        number, cell = len(replay.asked) - 1, replay.asked[-1]
        scores.append(None if number % 5 == 2 else by_rank(number, cell))
        for attempt in range(20):
            expected = drawn(number + 1, attempt)
            if expected not in replay.asked:
                break
            repeats.append((number + 1, expected))
    assert len(replay.asked) == 18
    assert len(repeats) > 3


def test_earlier_results_do_steer_the_search() -> None:
    space = make_space(**WIDE)
    assert asked_with(space, by_rank) != asked_with(space, lambda n, cell: -by_rank(n, cell))


def test_another_seed_asks_other_combinations() -> None:
    assert asked_with(make_space(**WIDE), by_rank) != asked_with(make_space(**WIDE, seed=1), by_rank)


def test_no_cell_is_asked_twice_and_a_small_space_is_used_up() -> None:
    space = make_space(search="tpe", combinations=50)
    asked = asked_with(space, by_rank)
    assert sorted(map(str, asked)) == sorted(map(str, space.cells()))


def test_a_grid_asks_every_cell_once_the_first_ones_first() -> None:
    space = make_space(first=[{"rank_l": "90%", "rank_t": 8, "retention": 0.05}])
    asked = asked_with(space, by_rank)
    assert asked[0].record() == {"rank_l": "90%", "rank_t": "8", "retention_l": 0.05, "retention_t": 0.05}
    assert len(asked) == 4
    assert len(set(asked)) == 4


@pytest.mark.parametrize("search", ["grid", "tpe"])
def test_what_retention_is_a_share_of_reaches_every_combination(search: str) -> None:
    space = make_space(search=search, combinations=4, retention_of="nonzero")
    parts = [part for asked in asked_with(space, by_rank) for part in (asked.language, asked.task)]
    assert {part.retention_of for part in parts} == {"nonzero"}


def test_an_ask_waits_for_the_one_lag_before_it() -> None:
    replay = Replay(make_space(**WIDE))
    for _ in range(3):
        assert replay.may_ask([False] * len(replay.asked))
        replay.ask([None] * len(replay.asked))
    assert not replay.may_ask([False, True, True])
    assert replay.may_ask([True, False, False])


def test_failed_combinations_are_told_as_failed() -> None:
    space = make_space(**WIDE)
    asked = asked_with(space, lambda n, cell: None if n % 2 else by_rank(n, cell))
    assert len(asked) == 20


def test_the_journal_export_is_read_by_optuna(tmp_path: Path) -> None:
    space = make_space()
    export_journal(tmp_path / "journal.log", space, space.cells(), [0.1, None, 0.3, 0.2])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert study.best_value == 0.3
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize(
    ("kept", "params"),
    [
        ({}, {"rank_l": "8", "rank_t": "90%", "retention": 0.05}),
        ({"retention_t": [0.1]}, {"rank_l": "8", "rank_t": "90%", "retention_l": 0.05, "retention_t": 0.1}),
    ],
)
def test_optuna_has_the_names_that_a_space_searches_and_ranks_as_text(
    tmp_path: Path, kept: dict[str, object], params: dict[str, object]
) -> None:
    space = make_space(**kept)
    export_journal(tmp_path / "journal.log", space, space.cells()[1:2], [0.5])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    (trial,) = optuna.load_study(study_name="sweep", storage=storage).trials
    assert trial.params == params
    assert list(trial.params) == list(trial.distributions) == list(params)
    assert trial.distributions["rank_l"] == CategoricalDistribution(("8", "90%"))
    assert space.cells()[1].record() == {"retention_l": 0.05, "retention_t": 0.05} | {
        name: value for name, value in params.items() if name != "retention"
    }

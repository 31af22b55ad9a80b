"""The replay of asks: what an ask may depend on, and when a search ends."""

from __future__ import annotations

from pathlib import Path

import optuna
from support.plans import make_space

from orchestrator.search.replay import Replay, export_journal
from orchestrator.space.schema import Space

WIDE = {"search": "tpe", "combinations": 20, "rank_l": list(range(1, 9)), "rank_t": list(range(1, 9)), "lag": 3}


def asked_with(space: Space, score: object) -> list[dict[str, str | float]]:
    """Ask to the end, each combination finishing at once."""
    replay = Replay(space)
    while not replay.ended():
        scores = [score(number, cell) for number, cell in enumerate(replay.asked)]  # type: ignore[operator]
        assert replay.may_ask([True] * len(scores))
        replay.ask(scores)
    return replay.asked


def by_rank(number: int, cell: dict[str, str | float]) -> float:
    return sum(float(str(cell[name]).removesuffix("%")) for name in ("rank_l", "rank_t"))


def test_ask_n_depends_on_results_up_to_n_minus_lag_alone() -> None:
    space = make_space(**WIDE)
    for n in (5, 14, 19):
        asks = []
        for late in (0.0, 1e6, None):
            replay = Replay(space)
            for k in range(n):
                replay.ask([by_rank(i, cell) for i, cell in enumerate(replay.asked)])
                assert len(replay.asked) == k + 1
            visible = n - space.lag + 1
            scores = [by_rank(i, cell) if i < visible else late for i, cell in enumerate(replay.asked)]
            asks.append(replay.ask(scores))
        assert asks[0] == asks[1] == asks[2]


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
    assert asked[0] == {"rank_l": "90%", "rank_t": "8", "retention": 0.05}
    assert len(asked) == 4
    assert len({str(cell) for cell in asked}) == 4


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

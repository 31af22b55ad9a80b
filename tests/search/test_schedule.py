"""The schedule run by simulated workers: what runs, how often, in which combinations, whatever the timing."""

from __future__ import annotations

import pytest
from support.plans import World, make_schedule, make_space, simulate

from deftx.config import Denoise
from orchestrator.search.schedule import Job
from orchestrator.space.combination import Combination

TPE = {
    "search": "tpe", "combinations": 12, "rank_l": [2, 4, 8, 16], "rank_t": [2, 4, 8, 16], "retention": [0, 0.05],
    "first": [{"rank_l": 4, "rank_t": 8, "retention": 0.05}],
}  # fmt: skip


def test_a_grid_runs_exactly_the_planned_stages_once() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, workers=3, seed=0)
    planned = {stage.address for row in schedule.rows for stage in row.stages}
    assert schedule.finished()
    assert sorted(world.runs) == sorted(planned)
    kinds = [schedule.stages[address].kind for address in world.runs]
    assert [kinds.count(kind) for kind in ("text", "dense", "sparse", "grade")] == [2, 3, 9, 14]


def test_inputs_run_before_what_needs_them() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, workers=4, seed=1)
    place = {address: number for number, address in enumerate(world.runs)}
    stages = schedule.stages.values()
    assert all(place[needed.address] < place[stage.address] for stage in stages for _, needed in stage.inputs)


def test_the_combinations_are_the_same_for_any_workers_and_timing() -> None:
    lists = []
    for workers in (1, 2, 4):
        for seed in (0, 1, 2):
            world = World()
            replay, schedule = make_schedule(make_space(**TPE), world)
            simulate(schedule, world, workers, seed)
            assert schedule.finished()
            lists.append(replay.asked)
    assert all(asked == lists[0] for asked in lists)
    assert len(lists[0]) == 12
    assert len(set(lists[0])) == 12, "TPE never repeats a cell"
    assert lists[0][0] == Combination(Denoise(rank=4, retention=0.05), Denoise(rank=8, retention=0.05))


@pytest.mark.parametrize("died_after", [0, 1, 5, 11, 17, 26, 40])
def test_after_a_drivers_death_no_finished_stage_runs_again_and_the_combinations_are_the_same(died_after: int) -> None:
    whole = World()
    replay, schedule = make_schedule(make_space(**TPE), whole)
    simulate(schedule, whole, workers=2, seed=0)

    world = World()
    _, first = make_schedule(make_space(**TPE), world)
    simulate(first, world, workers=2, seed=died_after, stop_after=died_after)
    second_replay, second = make_schedule(make_space(**TPE), world)
    simulate(second, world, workers=4, seed=3)

    assert second.finished()
    assert second_replay.asked == replay.asked
    assert len(world.runs) == len(set(world.runs)), "a finished stage ran again"
    assert set(world.runs) == set(whole.runs)


def test_at_most_lag_combinations_are_in_flight() -> None:
    for search_parallelism in (1, 3):
        world = World()
        _, schedule = make_schedule(
            make_space(**{**TPE, "search_parallelism": search_parallelism}), world, baselines=False
        )
        assert len(schedule.combinations) == search_parallelism
        while (job := schedule.ready()) is not None:
            for stage in job.stages:
                world.published.add(stage.address)
                schedule.done(stage.address)
            assert len(schedule.combinations) - len(schedule.scores) <= search_parallelism


def test_a_failed_language_fails_what_needs_it_with_the_reason_while_the_rest_goes_on() -> None:
    def ban_has_no_text(job: Job) -> str | None:
        return "too little text" if job.name == "ban · text" else None

    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, workers=2, seed=0, fails=ban_has_no_text)
    assert schedule.finished()
    done = {schedule.stages[address].label for address in world.runs}
    assert "ace · dense" in done
    assert "ban · dense" not in done
    for row in schedule.combinations:
        assert schedule.is_done(row.grades["ace"].address)
        assert schedule.reason(row) is not None
        assert "ban · text failed: too little text" in str(schedule.reason(row))
    assert set(schedule.scores.values()) == {None}, "a combination with a failed language is told FAIL"


def test_a_failure_on_record_is_not_tried_again() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0, fails=lambda job: "no" if job.name == "task · dense" else None)
    runs = len(world.runs)
    _, again = make_schedule(make_space(), world)
    simulate(again, world, 1, 0)
    assert again.finished()
    assert len(world.runs) == runs


def test_a_second_start_runs_nothing_and_a_widened_space_only_what_is_new() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 2, 0)
    before = len(world.runs)
    _, again = make_schedule(make_space(), world)
    assert again.finished()
    assert again.ready() is None
    _, wider = make_schedule(make_space(rank_l=[8, 12, "90%"]), world)
    simulate(wider, world, 2, 0)
    new = [wider.stages[address] for address in world.runs[before:]]
    assert sorted(stage.kind for stage in new) == ["grade"] * 4 + ["sparse"] * 2


def test_a_published_stage_needs_none_of_its_inputs() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0)
    world.published -= {address for address in world.published if schedule.stages[address].kind in ("dense", "text")}
    _, again = make_schedule(make_space(), world)
    assert again.finished()
    assert again.missing() == []


def test_vectors_that_are_lost_are_made_again_and_nothing_else() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0)
    runs, lost = len(world.runs), {a for a in world.published if schedule.stages[a].kind in ("sparse", "dense")}
    world.published -= lost
    _, again = make_schedule(make_space(), world)
    assert not again.finished()
    assert {stage.address for stage in again.missing()} == lost
    simulate(again, world, 2, 0)
    assert again.finished()
    assert set(world.runs[runs:]) == lost
    assert again.scores == schedule.scores
    assert all(again.reason(row) is None for row in again.rows)


def test_of_the_chosen_row_every_byte_is_looked_at_and_of_every_row_the_grades() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0)
    chosen, runs = schedule.chosen, len(world.runs)
    assert chosen is not None
    grade = next(row for row in schedule.rows if row.kind == "dense-task").grades["ban"]
    world.flipped = {a for a in world.published if schedule.stages[a].kind in ("dense", "sparse")} | {grade.address}
    _, again = make_schedule(make_space(), world)
    wrong = {stage.address for stage in chosen.parts} | {grade.address}
    assert len(wrong) == 4
    assert {stage.address for stage in again.missing()} == wrong
    assert again.done_before == world.published - wrong
    simulate(again, world, 2, 0)
    assert again.finished()
    assert set(world.runs[runs:]) == wrong
    assert again.chosen == chosen


def test_a_vector_that_cannot_be_made_again_fails_its_row() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0)
    row = schedule.combinations[0]
    vector = row.languages["ban"]
    world.published.remove(vector.address)
    _, again = make_schedule(make_space(), world)
    simulate(again, world, 1, 0, fails=lambda job: "no memory")
    assert again.finished()
    assert again.failures == {vector.address: "no memory"}
    assert (again.reason(again.combinations[0]), again.scores[0]) == ("ban: no memory", None)


def test_the_grades_of_a_row_are_one_job() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world, baselines=False)
    sizes = []
    while (job := schedule.ready()) is not None:
        sizes += [len(job.stages)] if job.kind == "grade" else []
        for stage in job.stages:
            schedule.done(stage.address)
    assert sizes == [2, 2, 2, 2]


def test_a_chosen_vector_with_a_wrong_byte_fails_where_what_it_is_made_of_failed_before() -> None:
    world = World()
    _, schedule = make_schedule(make_space(), world)
    simulate(schedule, world, 1, 0)
    assert schedule.chosen is not None
    vector, runs = schedule.chosen.languages["ban"], len(world.runs)
    dense = vector.needed("dense")
    world.flipped.add(vector.address)
    world.published.remove(dense.address)
    world.failed[dense.address] = "no memory"
    _, again = make_schedule(make_space(), world)
    simulate(again, world, 1, 0)
    assert again.finished()
    assert again.failures[vector.address] == "ban · dense failed: no memory"
    assert len(world.runs) == runs


def test_a_failure_may_take_any_number_of_stages_with_it() -> None:
    world = World()
    space = make_space(rank_l=[*range(2, 42)], rank_t=[*range(2, 12)], search_parallelism=400)
    _, schedule = make_schedule(space, world, baselines=False)
    simulate(schedule, world, 1, 0, fails=lambda job: "no" if job.name == "task · dense" else None)
    assert schedule.finished()
    assert len(schedule.failures) == 1 + 10 + 2 * 400, "the dense stage, its vectors and every grade"

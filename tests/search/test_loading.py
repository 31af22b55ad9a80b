"""Spaces from YAML: the shipped ones, and every mistake a user can make in one, all told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.plans import make_planner

from deftx.config import Execution
from deftx.errors import ConfigError
from orchestrator.run.machine import Machine, Workplace
from orchestrator.space.combination import Combination
from orchestrator.space.load import load_space, shipped_spaces
from orchestrator.space.schema import Resources, Space

BASE = """
benchmark: nusax
backbone: some/backbone
rank_l: [100, 90%]
rank_t: [100]
"""


def load(folder: Path, text: str, *overrides: str, **options: object) -> Space:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return load_space(str(path), overrides, **options)[1]


def problems(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def ranks(space: Space) -> list[str]:
    return [str(rank) for rank in space.rank_l]


@pytest.mark.parametrize("name", shipped_spaces())
def test_every_shipped_space_loads(name: str) -> None:
    title, space = load_space(name)
    assert title == name
    assert space.cells()


def test_nusax_is_the_papers_setting() -> None:
    _, space = load_space("nusax")
    assert space.targets == ("ace", "ban", "bjn", "mad", "min")
    assert (space.language.k, space.task.k) == (7_667_712, 14_155_776)
    assert set(space.retention) == {0, 0.01, 0.02, 0.05, 0.1, 0.2}
    assert ranks(space)[:3] == ["25", "50", "75"]
    assert ranks(space)[15] == "400"
    assert {"50%", "99%", "90%"} <= set(ranks(space))
    assert space.cells()[:4] == [Combination.read(dict(cell, retention=0.05)) for cell in _PAPER]
    training = space.language.training
    assert (training.l1, training.effective_l1, training.steps(100)) == (0.1, 0.0, 30_000)
    assert (training.steps(8 * 400), training.steps(10**6)) == (40_000, 100_000)
    assert space.task.training.steps(10_571) == 10 * 661


_PAPER = [{"rank_l": a, "rank_t": b} for a in ("100", "90%") for b in ("100", "90%")]


def test_all_errors_are_told_at_once_with_paths_and_nearest_names(tmp_path: Path) -> None:
    text = problems(
        tmp_path,
        """
        benchmark: nusa
        backbone: some/backbone
        rank_l: [0.9]
        rank_t: [100, 0%]
        retention: 1.5
        selektion: test
        search_parallelism: 0
        language: {k: -3, training: {learning_rat: 1, batch_size: many}}
        """,
    )
    for expected in (
        "benchmark: unknown benchmark 'nusa'", "did you mean 'nusax'", "rank_l", "90%", "rank_t", "retention",
        "selektion: unknown key (did you mean 'selection'?)", "search_parallelism", "language.k",
        "language.training.learning_rat: unknown key (did you mean 'learning_rate'?)", "language.training.batch_size",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_bare_fraction_is_refused_with_the_right_spelling(tmp_path: Path) -> None:
    assert "write 90%" in problems(tmp_path, BASE, "rank_l=[0.9]")
    assert "write 100%" in problems(tmp_path, BASE, "rank_l=[1.0]")


def test_optimising_on_test_is_refused(tmp_path: Path) -> None:
    assert "sealed" in problems(tmp_path, BASE, "selection=test")


def test_an_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    assert "unknown language 'acee' (did you mean 'ace'?)" in problems(tmp_path, BASE, "targets=[acee]")
    assert "source language" in problems(tmp_path, BASE, "targets=[id]")


def test_unknown_space_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'nusax'"):
        load_space("nusaxx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[1, 2]", "mapping"), ("a: [", "not YAML"), (BASE + "combinations: 0", "combinations"), ("", "mapping")],
)
def test_what_is_no_space_is_said_so(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_space(str(tmp_path / "gone.yaml"))


def test_a_broken_override_is_told(tmp_path: Path) -> None:
    assert "key=value" in problems(tmp_path, BASE, "search_parallelism")
    assert "not a group" in problems(tmp_path, BASE, "search_parallelism=3", "search_parallelism.x=1")


def test_a_setting_of_an_earlier_release_is_told_its_name(tmp_path: Path) -> None:
    told = problems(tmp_path, BASE, "lag=3", "seed=-1")
    assert "lag is called search_parallelism now" in told
    assert "seed" in told and "2 problem(s)" in told, "beside the others, and once"


def test_overrides_and_options_win(tmp_path: Path) -> None:
    space = load(tmp_path, BASE, "language.training.max_steps=5", "rank_l=[100,200,90%]", seed=7, combinations=None)
    assert space.language.training.steps(10**6) == 5, "a preset's floor gives way to a smaller max_steps"
    assert ranks(space) == ["100", "200", "90%"]
    assert space.seed == 7


def test_ranges_of_ranks_are_discrete(tmp_path: Path) -> None:
    space = load(tmp_path, BASE, "rank_l=[{from: 10, to: 30, step: 10}, {from: 50%, to: 60%, step: 5%}, 20]")
    assert ranks(space) == ["10", "20", "30", "50%", "55%", "60%"]
    assert "all whole numbers or all with %" in problems(tmp_path, BASE, "rank_l=[{from: 10, to: 30%, step: 10}]")


def test_a_first_combination_must_be_in_the_space(tmp_path: Path) -> None:
    text = problems(tmp_path, BASE + "first: [{rank_l: 50, rank_t: 100, retention: 0.05}]")
    assert "first[0]: rank_l 50 is not among 100, 90%" in text


def test_retention_per_kind_replaces_the_common_one(tmp_path: Path) -> None:
    space = load(tmp_path, BASE, "retention_l=[0, 0.1]")
    assert space.parameters == {
        "rank_l": ("100", "90%"), "rank_t": ("100",), "retention_l": (0.0, 0.1), "retention_t": (0.05,),
    }  # fmt: skip
    cell = space.cells()[1]
    assert (cell.language.retention, cell.task.retention) == (0.1, 0.05)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("retention=[{from: 0, to: 0.2, step: .05}]", "a list of shares"),
        ("first=[{rank_l: 100, rank_t: 100, retention: null}]", "every parameter needs a value"),
        ("resources.dense.gpu=1.5", "whole GPUs"),
        ("targets=[ace,ace]", "'ace' is named twice"),
        ("backbone={languages: [id], heads: 3}", "must be a multiple of heads"),
        ("backbone={languages: [id], layers: 0}", "backbone.layers"),
        ("backbone={languages: [id], block: 127}", "language.text.block: 256 tokens, but a backbone with `block: 127`"),
    ],
)
def test_values_that_cannot_be_meant_are_told(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in problems(tmp_path, BASE, override)


def test_a_misspelt_backbone_recipe_is_not_also_told_to_be_a_name(tmp_path: Path) -> None:
    text = problems(tmp_path, BASE, "backbone={languages: [id], hiden: 3}")
    assert "1 problem(s)" in text
    assert "backbone.hiden: unknown key (did you mean 'hidden'?)" in text


def test_selecting_without_target_labels_needs_the_sparse_phase(tmp_path: Path) -> None:
    assert "retrain" in problems(tmp_path, BASE, "selection=unlabelled", "task.retrain=false")


def test_a_first_combination_given_twice_is_one(tmp_path: Path) -> None:
    cell = "{rank_l: 100, rank_t: 100, retention: 0.05}"
    assert len(load(tmp_path, BASE, f"first=[{cell}, {cell}]").cells()) == 2


def test_how_a_trial_keeps_to_its_memory_reaches_the_stage() -> None:
    need = Machine(cpus=2, gpus=0).fit(Resources(cpu=4, gpu=1, micro_batch=4, gradient_checkpointing=True))
    assert need == Resources(cpu=2, gpu=0, micro_batch=4, gradient_checkpointing=True)
    expected = Execution(threads=2, micro_batch=4, gradient_checkpointing=True)
    assert Workplace("", "", {"dense": need}).execution("dense") == expected


def test_a_space_that_asks_for_gpus_where_there_are_none_is_told() -> None:
    _, space = load_space("nusax", ())
    planner = make_planner(space)
    row = planner.combination(0, space.cells()[0])
    stages = [*planner.checks(), *row.stages]
    assert Machine(cpus=2, gpus=0).lacks_gpu_for(space, stages) == ["dense", "sparse", "grade"]
    assert Machine(cpus=2, gpus=0).lacks_gpu_for(space, [row.task]) == ["sparse"]
    assert Machine(cpus=2, gpus=1).lacks_gpu_for(space, stages) == []


def test_a_setting_of_a_group_that_is_in_two_places_is_changed_in_the_one_named(tmp_path: Path) -> None:
    shared = BASE + "language: &both {training: {epochs: null, max_steps: 5, min_steps: 0}}\ntask: *both\n"
    space = load(tmp_path, shared, "language.training.max_steps=7", "language.k=10%")
    assert (space.language.training.max_steps, space.task.training.max_steps) == (7, 5)
    assert (space.language.k, space.task.k) == ("10%", 14_155_776)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (BASE + "seed: 1\nseed: 2\n", "'seed' stands on line {0} and again on line {1}; keep one"),
        (
            BASE + "language: {k: 5%, text: {block: 64, block: 128}}\n",
            "'block' stands on line {0} and again on line {0}",
        ),
    ],
)
def test_a_setting_that_is_written_twice_is_refused_with_both_places(tmp_path: Path, text: str, places: str) -> None:
    lines = len(BASE.splitlines())
    assert places.format(lines + 1, lines + 2) in problems(tmp_path, text)


def test_a_setting_that_is_overridden_twice_is_refused(tmp_path: Path) -> None:
    assert "--set seed: given 2 times; give it once" in problems(tmp_path, BASE, "seed=1", "seed=2")


def test_a_merged_group_may_be_written_over(tmp_path: Path) -> None:
    """YAML's `<<` is there for that."""
    text = "x-one: &one {block: 64, pack: false}\nlanguage: {text: {<<: *one, block: 32}}\n"
    assert "stands on line" not in problems(tmp_path, BASE + text)  # x-one is no setting


def test_languages_that_yaml_reads_as_something_else(tmp_path: Path) -> None:
    assert "targets: YAML reads a bare yes, no, on, off" in problems(tmp_path, BASE, "targets=[no]")
    assert "targets: a list of codes is expected, such as [ace] (given: 'ace')" in problems(
        tmp_path, BASE, "targets=ace"
    )
    told = problems(tmp_path, BASE, "backbone={languages: id}")
    assert "backbone.languages: a list of codes is expected, such as [id]" in told


def test_a_space_as_editors_write_it(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_space(str(path))[1] == load(tmp_path, BASE)
    assert "'\\t' that cannot start any token" in problems(tmp_path, BASE + "task:\n\tk: 1\n")
    assert "task.k: k is a number of entries such as" in problems(tmp_path, BASE + "task: {k: 0.05}\n")


def base(**settings: str) -> str:
    """BASE with some settings written otherwise."""
    kept = [line for line in BASE.splitlines() if line.partition(":")[0] not in settings]
    return "\n".join([*kept, *(f"{key}: {value}" for key, value in settings.items())])


MANY = "[{from: 1, to: 500, step: 1}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (base(rank_l="[{from: 1, to: 100000000000, step: 1}]"), "a range of 100,000,000,000 ranks; 1,000 at most"),
        (base(retention=str([n / 2000 for n in range(1001)])), "1,001 values; 1,000 at most"),
        (base(rank_l=MANY, rank_t=MANY), "250,000 combinations (500 of rank_l x 500 of rank_t x 1 of retention)"),
        ("[" * 5000, "nested too deep for a space"),
        (base(seed="1" * 5000), "not YAML: Exceeds the limit"),
        ("note: " + "x" * 1_000_001, "1,000,007 characters; a space has 1,000,000 at most"),
    ],
    ids=["range", "values", "grid", "nesting", "digits", "size"],
)
def test_the_size_of_a_space_is_checked_before_it_is_expanded(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


@pytest.mark.parametrize("key", Space.model_fields)
def test_a_value_of_a_thousand_million_entries_is_refused_at_once(tmp_path: Path, key: str) -> None:
    """Nine levels of lists of the same ten lists: a few bytes of YAML."""
    levels = ["x: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = "\n".join(levels) + base(**{key: "*a8"})
    assert "more than 100,000 settings and values" in problems(tmp_path, text)

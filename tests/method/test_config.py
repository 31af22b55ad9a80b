"""Settings: one spelling for every k, exact shares, and the paper's numbers of steps."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deftx.config import (
    PAPER_K_LANGUAGE,
    PAPER_K_TASK,
    Denoise,
    LanguageRecipe,
    TaskRecipe,
    Training,
    count_text,
    resolve_k,
    share_of,
)
from deftx.errors import ConfigError
from deftx.recipes import preset

percents = st.decimals(min_value="0.00001", max_value=100, places=5).map(lambda share: f"{share:f}%")


@pytest.mark.parametrize(
    ("given_", "k"),
    [(7667712, 7667712), ("7_667_712", 7667712), ("7,667,712", 7667712), ("10%", "10%"), ("2.50 %", "2.5%")],
)
def test_k_has_one_spelling(given_: object, k: int | str) -> None:
    assert count_text(given_) == k


@pytest.mark.parametrize("given_", [0, "0", "0%", "100.5%", 0.1, True, None, "many", -1, 1.5])
def test_k_out_of_range_or_ambiguous_is_refused(given_: object) -> None:
    with pytest.raises(ValueError):
        count_text(given_)


@given(percents)
def test_no_digit_of_a_percentage_is_lost_and_spelling_it_again_changes_nothing(text: str) -> None:
    spelled = count_text(text)
    assert Decimal(str(spelled)[:-1]) == Decimal(text[:-1])
    assert count_text(spelled) == spelled


def test_a_share_is_taken_as_it_is_written() -> None:
    assert int(0.29 * 100) == 28  # what floats make of it
    assert share_of(0.29, 100) == 29
    assert share_of("0.29", 100) == 29
    assert share_of(0.05, 2_359_296) == 117_964
    assert (share_of(0.0, 7), share_of(1.0, 7), share_of(1e-05, 200_000)) == (0, 7, 2)


@given(st.integers(0, 10**6).map(lambda n: n / 10**6), st.integers(0, 10**9))
def test_a_share_is_the_floor_of_the_decimal_product(share: float, total: int) -> None:
    assert share_of(share, total) == int(Decimal(str(share)) * total)


@pytest.mark.parametrize(
    ("k", "maskable", "number"),
    [
        (5, 5, 5),
        ("10%", 277_414_656, 27_741_465),
        ("29%", 100, 29),
        ("100%", 7, 7),
        ("2.8%", 1000, 28),
        ("0.1%", 1999, 1),
    ],
)
def test_k_as_a_share_is_the_floor_of_the_maskable_entries(k: int | str, maskable: int, number: int) -> None:
    assert resolve_k(k, maskable) == number


@pytest.mark.parametrize(("k", "maskable"), [(6, 5), ("10%", 9), (7_667_712, 488_000)])
def test_k_outside_the_maskable_entries_is_refused_with_both_numbers(k: int | str, maskable: int) -> None:
    with pytest.raises(ConfigError, match=f"{maskable:,} maskable"):
        resolve_k(k, maskable)


@pytest.mark.parametrize(
    ("blocks", "steps"),
    [(8, 30_000), (2_400, 30_000), (2_401, 30_100), (4_000, 50_000), (8_000, 100_000), (10**6, 100_000)],
)
def test_language_training_is_the_lesser_of_100_epochs_and_100_000_steps_but_at_least_30_000(
    blocks: int, steps: int
) -> None:
    recipe = LanguageRecipe.model_validate(preset("paper", "sentiment")["language"])
    assert recipe.training.steps(blocks) == steps
    assert recipe.k == PAPER_K_LANGUAGE == 7_667_712


@pytest.mark.parametrize(("task", "rows", "steps"), [("sentiment", 10_933, 6_840), ("nli", 392_702, 61_360)])
def test_task_training_is_whole_epochs(task: str, rows: int, steps: int) -> None:
    recipe = TaskRecipe.model_validate(preset("paper", task)["task"])  # type: ignore[arg-type]
    assert recipe.training.steps(rows) == steps
    assert recipe.k == PAPER_K_TASK == 14_155_776


def test_steps_without_epochs_are_max_steps() -> None:
    assert Training(max_steps=7).steps(1_000_000) == 7


def test_presets_differ_in_the_l1_term_and_the_task_learning_rate_only() -> None:
    effective, rates, rest = {}, {}, {}
    for name in ("paper", "paper-l1", "lt-sft"):
        recipes = preset(name, "sentiment")  # type: ignore[arg-type]
        language, task = LanguageRecipe.model_validate(recipes["language"]), TaskRecipe.model_validate(recipes["task"])
        effective[name] = (language.training.l1, language.training.effective_l1, task.training.effective_l1)
        rates[name] = (language.training.learning_rate, task.training.learning_rate)
        rest[name] = [
            recipe.model_dump(exclude={"training": {"l1", "l1_gradient", "learning_rate"}})
            for recipe in (language, task)
        ]
    assert effective == {"paper": (0.1, 0.0, 0.0), "paper-l1": (0.1, 0.1, 0.0), "lt-sft": (0.0, 0.0, 0.0)}
    assert rates == {"paper": (5e-5, 5e-5), "paper-l1": (5e-5, 5e-5), "lt-sft": (5e-5, 2e-5)}
    assert rest["paper"] == rest["paper-l1"] == rest["lt-sft"]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="lt-sft"):
        preset("paper-l2", "sentiment")  # type: ignore[arg-type]


def test_auto_is_bf16_on_a_gpu_and_what_was_asked_for_stays() -> None:
    auto = Training(precision="auto", max_steps=7)
    assert auto.decided(on_gpu=True) == Training(precision="bf16", max_steps=7)
    assert auto.decided(on_gpu=False) == Training(max_steps=7)
    for asked in ("float32", "tf32", "bf16"):
        training = Training(precision=asked)  # type: ignore[arg-type]
        assert training.decided(on_gpu=True) == training.decided(on_gpu=False) == training


def test_every_wrong_setting_is_reported_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Training(epochs=0, clip=0.0, learning_rat=1e-3, precision="float16")  # type: ignore[call-arg, arg-type]
    assert {error["loc"][0] for error in caught.value.errors()} == {"epochs", "clip", "learning_rat", "precision"}


@pytest.mark.parametrize("retention", [-0.01, 1.01, float("nan"), "5%"])
def test_a_retention_out_of_range_is_refused(retention: float) -> None:
    with pytest.raises(ValidationError):
        Denoise(rank=8, retention=retention)


def test_fewest_steps_above_most_steps_are_refused_and_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="min_steps"):
        Training(min_steps=10, max_steps=9)
    with pytest.raises(ValidationError, match="frozen"):
        Training().clip = 2.0  # type: ignore[misc]


def test_numbers_that_yaml_leaves_as_text_are_read() -> None:
    assert Training.model_validate({"learning_rate": "5e-5"}).learning_rate == 5e-5

"""What numbers are called in MLflow, and which settings become params."""

from __future__ import annotations

import re

import pytest

from deftx.stages.kinds import KINDS
from orchestrator.tracking import content as shown

FILE = {"kind": "file", "sha256": "f" * 64}
HUB = {"kind": "hub", "repo": "a/b", "commit": "c", "config": None, "split": "train"}


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        ("grade", "valid_macro_f1", ("score/validation macro F1 points", 25.0)),
        ("grade", "valid_accuracy", ("score/validation accuracy points", 25.0)),
        ("dense", "valid_score", ("result/best validation score points", 25.0)),
        ("dense", "valid_loss", ("result/best validation loss", 0.25)),
        ("sparse", "jaccard_lt_sft", ("mask/overlap with LT-SFT mask percent", 25.0)),
        ("check", "unknown_share", ("check/unknown tokens percent", 25.0)),
        ("check", "tokens_per_word", ("check/tokens per word", 0.25)),
        ("text", "train_blocks", ("text/train blocks", 0.25)),
    ],
)
def test_a_result_has_a_name_in_words_and_its_unit(kind: str, key: str, expected: tuple[str, float]) -> None:
    assert shown.result(kind, key, 0.25) == expected
    assert re.fullmatch(r"[/\w.\- :]+", expected[0]), "MLflow takes no other letters"


def test_a_curve_is_never_mixed_with_a_result() -> None:
    for key in ("train_loss", "valid_loss", "valid_score", "new_thing"):
        assert shown.point(key, 1.0)[0].startswith("curve/")
        assert not shown.result("dense", key, 1.0)[0].startswith("curve/")
    assert shown.point("valid_score", 0.5) == ("curve/validation score points", 50.0)


def test_points_and_percentages_have_two_decimals_and_the_rest_all() -> None:
    given = {"score/test accuracy points": 78.5756, "result/best validation loss": 3.41456}
    assert shown.rounded(given) == {"score/test accuracy points": 78.58, "result/best validation loss": 3.41456}


def test_params_leave_out_the_language_and_the_files() -> None:
    settings = {
        "language": "ace", "source": FILE, "texts": [["ace", FILE], ["min", HUB]], "seed": 0, "start": None,
        "backbone": {"kind": "hub", "repo": "owner/tiny", "commit": "c"},
        "task": {"training": {"train": [FILE]}, "leaks": "none"}, "training": {"betas": [0.9, 0.98]},
    }  # fmt: skip
    assert shown.params(settings) == {
        "seed": "0", "start": "none", "backbone.kind": "hub", "backbone.repo": "owner/tiny", "backbone.commit": "c",
        "task.leaks": "none", "training.betas": "[0.9, 0.98]",
    }  # fmt: skip
    assert shown.params({"long": "x" * 2000}) == {"long": "x" * 1000}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_stage_says_what_it_is(kind: str) -> None:
    sentence = shown.sentence(kind, "ace", "task")
    assert sentence.endswith(".") and "{" not in sentence

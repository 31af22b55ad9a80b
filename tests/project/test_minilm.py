"""The page of `make minilm`: what stands first in it, and when it says by itself that it shows nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import minilm
from benchmarks.minilm import Losses, Seed, frequency_loss, model_folder, page
from deftx.errors import ConfigError
from deftx.evaluate.bootstrap import Score

ROWS = {
    "DEFT-X": {"gn": Score(0.35, 0.32, 0.38), "average": Score(0.4, 0.36, 0.44)},
    "no language vector": {"gn": Score(0.34, 0.31, 0.37), "average": Score(0.34, 0.31, 0.37)},
}
SEED = Seed(
    seed=0, seconds=2900.4, english={"DEFT-X": 55.0, "LT-SFT": 60.0},
    losses={"gn": Losses(6.4, 10.9, 7.9, 6.1)}, scores=ROWS, gain=Score(0.06, 0.02, 0.1),
)  # fmt: skip


def written(*seeds: Seed) -> str:
    return page(seeds, "abc", "make minilm", "1234567", "2026-11-26")


@pytest.mark.parametrize(("lowest", "readable"), [(55.0, True), (54.9, False)])
def test_below_55_on_english_in_any_row_and_seed_the_page_says_that_it_shows_nothing(
    lowest: float, readable: bool
) -> None:
    text = written(SEED, replace(SEED, seed=1, english={"DEFT-X": 60.0, "LT-SFT": lowest}))
    assert ("show nothing" in text) is not readable
    assert ("can be read" in text) is readable
    assert text.index(f"The lowest is {lowest}") < text.index("| frequencies |") < text.index("| row |")


def test_every_row_of_every_seed_and_their_mean() -> None:
    other = {**ROWS, "DEFT-X": {"gn": Score(0.45, 0.4, 0.5), "average": Score(0.41, 0.37, 0.45)}}
    text = written(SEED, replace(SEED, seed=1, scores=other))
    assert "| 0 | DEFT-X | 35.0 [32.0, 38.0] | 40.0 [36.0, 44.0] |" in text
    assert "| mean | DEFT-X | 40.0 | 40.5 |" in text
    assert "| 0 | gn | 6.40 | 10.90 | 7.90 | 6.10 |" in text
    assert "Of 4 averages 2 have an interval that includes chance" in text
    assert "+6.0 [+2.0, +10.0] (seed 0), +6.0 [+2.0, +10.0] (seed 1)" in text
    assert "`abc`. 2026-11-26, commit 1234567" in text
    assert "2,900 and 2,900 s" in text


def test_vectors_that_do_no_better_than_their_head_or_than_frequencies_are_counted() -> None:
    losses = {
        "gn": Losses(6.4, 10.9, 7.9, 6.1),
        "nah": Losses(6.4, 10.9, 7.9, 6.41),
        "aym": Losses(9.0, 10.9, 7.9, 8.0),
    }
    text = written(replace(SEED, losses=losses, scores={"DEFT-X": dict.fromkeys([*losses, "average"], SEED.gain)}))
    assert "Of 3 language vectors 2 lower their loss against the same head alone, and 2 below" in text


def test_what_frequencies_give() -> None:
    blocks = {"train": torch.tensor([[101, 1, 1, 1, 102]]), "valid": torch.tensor([[101, 1, 2, 102, 0]])}
    # 1 counts four times and each of the ids 0 and 2 once, of six
    expected = -(torch.tensor([4 / 6, 1 / 6]).log().mean())
    assert frequency_loss(blocks, [0, 101, 102]) == pytest.approx(float(expected))


def test_the_folder_of_the_model_is_found_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_of_weights")
    with pytest.raises(ConfigError, match="`make minilm`"):
        model_folder()
    (tmp_path / "a_package_of_weights").mkdir()
    (tmp_path / "a_package_of_weights" / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert model_folder() == tmp_path / "a_package_of_weights" / "model"
    assert "a_package_of_weights" not in sys.modules

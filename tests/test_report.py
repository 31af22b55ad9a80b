"""The report of a sweep written by hand: its numbers, its choice, and that test scores stay sealed until the end."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from sweep_by_hand import ITEMS, TARGETS, HandMade, grade_json, grade_stage, sparse_stage
from typer.testing import CliRunner

from deftx.errors import DataError, StoreError
from orchestrator.record import Failure, State
from orchestrator.report import app
from orchestrator.results import read_results


@pytest.fixture
def sweep(tmp_path: Path) -> HandMade:
    return HandMade(tmp_path / "store")


def table_line(report: str, title: str, section: str = "## Sealed test sets") -> list[str]:
    """The cells of the one table row of a section whose text contains `title`."""
    part = report.split(section + "\n")[1].split("\n## ")[0]
    (line,) = [line for line in part.splitlines() if line.startswith("|") and title in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def headline_of(report: str) -> str:
    return report.split("\n\n")[1]


def test_the_csv_holds_every_row_on_every_target_and_split(sweep: HandMade) -> None:
    sweep.report()
    frame = sweep.results()
    assert len(frame) == 8 * 3 * 2
    test = frame[frame["split"] == "test"].set_index(["row", "language"])
    line = test.loc[("DEFT-X r_l 8, r_t 90%, keep 5 %", "average")]
    assert line["value"] == pytest.approx(100 * (150 + 152) / 400)
    assert line["difference"] == pytest.approx(100 * (2 + 1) / 400)
    assert (line["n"], line["examples"], line["chosen"], line["metric"]) == (200, 400, True, "accuracy")
    assert line["low"] < line["value"] < line["high"]
    assert line["difference_low"] == 0 < line["difference"] < line["difference_high"]
    assert test.loc[("LT-SFT", "ban"), "value"] == 75.5
    assert pd.isna(test.loc[("LT-SFT", "ban"), "difference"])
    assert test.loc[("no language vector", "ace"), "difference"] == pytest.approx(100 * (102 - 148) / 200)
    valid = frame[frame["split"] == "validation"].set_index(["row", "language"])
    assert valid.loc[("DEFT-X r_l 8, r_t 8, keep 5 %", "ban"), ["value", "n"]].tolist() == [64.0, 50]


def test_the_headline_is_the_row_that_validation_chose(sweep: HandMade) -> None:
    report = sweep.report()
    top = headline_of(report)
    assert "Chosen: **DEFT-X r_l 8, r_t 90%, keep 5 %**, of 3 combinations, by few-label selection" in top
    assert "On the sealed test sets it scores 75.5 [" in top
    assert 'over the better row without one ("no language vector, source vector"): +20.0 [' in top
    assert "the language vectors help beyond the noise of the items" in top
    assert "Difference to LT-SFT: +0.7 [+0.0, +1.7]: the interval includes 0, so the two are **not distinguish" in top
    assert "Control: with another language's vector that gain is -7.0 [" in top
    assert "**One run** (seed 3)" in top
    cells = table_line(report, "(chosen)")
    assert cells[:2] == ["1", "**DEFT-X r_l 8, r_t 90%, keep 5 %** (chosen)"]
    assert "best" not in report.lower()
    assert "zero-shot" not in report.lower()


def test_the_table_has_all_rows_in_order_with_intervals(sweep: HandMade) -> None:
    report = sweep.report()
    rows = report.split("## Sealed test sets")[1].split("| --- |\n")[1].split("\n\n")[0]
    assert [line.split(" | ")[1] for line in rows.splitlines()] == [
        "DEFT-X r_l 8, r_t 8, keep 5 %", "**DEFT-X r_l 8, r_t 90%, keep 5 %** (chosen)",
        "DEFT-X r_l 90%, r_t 8, keep 5 %",
        "LT-SFT", "no language vector", "no language vector, source vector", "another language's vector",
        "dense task model",
    ]  # fmt: skip
    cells = table_line(report, "r_l 90%, r_t 8")
    assert cells[2].startswith("85.0 [")
    assert cells[4].startswith("85.5 [")
    assert cells[5].startswith("+10.7 [+7")
    assert table_line(report, "| LT-SFT |")[5] == "-"


def test_test_scores_stay_sealed_until_the_search_has_ended(sweep: HandMade) -> None:
    sweep.state.ended = False
    sweep.remove_test_scores()
    report = sweep.report()
    assert headline_of(report).startswith("**The search has not ended**: the test sets are sealed")
    assert "Leading so far: **DEFT-X r_l 8, r_t 90%" in report
    assert "## Sealed test sets" not in report
    assert set(sweep.results()["split"]) == {"validation"}
    with pytest.raises(StoreError, match="sealed until the search has ended"):
        read_results(sweep.store, sweep.state, TARGETS, "test")
    sweep.state.ended = True
    with pytest.raises(StoreError, match=r"sealed_test\.json"):
        sweep.report()


def test_a_failed_combination_is_shown_with_its_other_languages_and_the_reason(sweep: HandMade) -> None:
    row = sweep.add("combination", ((31,), (140,)), "16", "16", 3)
    row.status, row.reason = "failed", "ban: too little | text"
    row.grades["ban"] = "f" * 32
    sweep.folder.write_failure(
        Failure(address="f" * 32, label="ban · dense", reason="too little text", final=True, log="x/logs/f.log")
    )
    report = sweep.report()
    cells = table_line(report.replace(r"\|", "/"), "r_l 16, r_t 16")
    assert cells[1].endswith("(failed: ban: too little / text)")
    assert cells[2].startswith("70.0 [")
    assert cells[3:] == ["-", "-", "-"]
    assert table_line(report, "ban · dense", "## Failures") == ["ban · dense", "too little text", "`x/logs/f.log`"]
    assert "1 of 4 combinations failed" in headline_of(report)
    frame = sweep.results().query("row.str.contains('r_l 16') and split == 'test'").set_index("language")
    assert frame.loc["ace", "difference"] == -4.0
    assert pd.isna(frame.loc["average", "value"])


def test_unlabelled_selection_has_its_own_name(tmp_path: Path) -> None:
    report = HandMade(tmp_path, "unlabelled").report()
    assert "by unlabelled selection" in report
    assert "few-label" not in report
    assert "Validation took no part in the choice." in report


def test_vectors_are_tabled_with_how_far_denoising_went(sweep: HandMade) -> None:
    report = sweep.report()
    section = "## Vectors of the chosen combination"
    assert table_line(report, "| ace |", section) == [
        "ace", "rank 8 · keep 5 %", "7.5", "5.0%", "31.4%", "0.42", "1,234", "12.5",
    ]  # fmt: skip
    assert table_line(report, "| task |", section)[1] == "rank 90% · keep 5 %"
    assert "Jaccard at most 0.42" in report
    vectors = pd.read_csv(Path(sweep.folder.path) / "vectors.csv").set_index(["subject", "setting"])
    assert len(vectors) == 3 * 3
    assert vectors["chosen"].sum() == 3
    assert pd.isna(vectors.loc[("task", "LT-SFT"), "mean_rank"])


def test_what_it_was_made_with_is_on_record(sweep: HandMade) -> None:
    report = sweep.report()
    assert "Effective L1: language vectors 0 (0.1 as coded upstream, where the term has no gradient), task" in report
    assert "python -m orchestrator.sweep demo --set 'rank_l=[8, 90%]'" in report
    assert table_line(report, "torch", "## How this was made") == ["torch", "2.13.0"]
    assert "zipp" not in report
    assert table_line(report, "| ban |", "## Data") == ["ban", "50", "50", "200", "200"]
    assert table_line(report, "all together", "## Data") == ["all together", "50", "100", "200", "400"]


def test_the_same_state_gives_the_same_bytes(sweep: HandMade) -> None:
    names = [("report.md",), ("results.csv",), ("vectors.csv",), ("plots", "heatmap.png"), ("plots", "languages.png")]
    sweep.report()
    first = [sweep.read(*name) for name in names]
    sweep.report()
    assert first == [sweep.read(*name) for name in names]
    for name in ("heatmap.png", "languages.png"):
        with Image.open(Path(sweep.folder.path) / "plots" / name) as image:
            assert image.width > 600
            assert len(set(image.convert("L").tobytes())) > 50


def test_a_sweep_with_little_in_it_still_reports(sweep: HandMade) -> None:
    sweep.state.rows = [row for row in sweep.state.rows if row.kind == "combination"]
    assert "LT-SFT has no complete row to compare with" in sweep.report()
    sweep.state.chosen = None
    assert "No combination was completed, so none was chosen." in headline_of(sweep.report())
    sweep.state = State()
    assert headline_of(sweep.report()).endswith("Nothing is chosen yet.")
    assert sweep.results().empty


def test_grades_on_other_items_are_refused(sweep: HandMade) -> None:
    stage = grade_stage("ace", sparse_stage("task", "77"), None)
    sweep.publish(stage, {name: grade_json("ace", items - 1, 5) for name, items in ITEMS.items()})
    sweep.state.rows[0].grades["ace"] = stage.address
    with pytest.raises(DataError, match="ace: the two systems were not graded on the same items"):
        sweep.report()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("sweeps/other", "no sweep 'other' there (sweeps: demo)"),
        ("sweeps", "not the folder of a sweep, which is STORAGE/sweeps/NAME"),
        ("x/y", "not the folder of a sweep"),
    ],
)
def test_the_command_line_says_what_is_wrong(sweep: HandMade, place: str, message: str) -> None:
    result = CliRunner().invoke(app, [f"{sweep.store.root}/{place}"])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_the_command_line_writes_the_report(sweep: HandMade) -> None:
    result = CliRunner().invoke(app, [sweep.folder.path + "/"])
    assert result.exit_code == 0
    assert result.stdout.strip() == f"{sweep.folder.path}/report.md"
    assert sweep.read("report.md")

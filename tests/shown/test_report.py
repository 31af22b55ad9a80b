"""The report of a sweep written by hand: its numbers, its choice, and that test scores stay sealed until the end."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import save
from support import sweep_by_hand
from support.facts import metrics_of
from support.plans import make_space
from support.sweep_by_hand import BACKBONE, FILE, ITEMS, TARGETS, HandMade, grade_json, grade_stage, sparse_stage
from typer.testing import CliRunner

from deftx.config import TextSettings, Training
from deftx.data.text_check import Lines, TextReport
from deftx.errors import DataError, StoreError
from deftx.evaluate.bootstrap import Score
from deftx.sft.composition import CHOSEN
from deftx.sft.vector import SFTMetadata, SparseFineTuning
from deftx.stages.settings import CheckSettings
from deftx.stages.stage import Stage
from orchestrator.record.sweep import Failure, StageEntry, State
from orchestrator.report.__main__ import app
from orchestrator.report.chosen import forget_choice
from orchestrator.report.results import read_results
from orchestrator.report.times import read_times
from orchestrator.report.vectors import Overlap, chosen_masks, chosen_spectra, overlap
from orchestrator.run import session
from orchestrator.sweep import app as sweep_app
from orchestrator.wording import signed_points


@pytest.fixture
def sweep(tmp_path: Path) -> HandMade:
    return HandMade(tmp_path / "store")


def table_line(report: str, title: str, section: str = "## Sealed test sets") -> list[str]:
    """The cells of the one table row of a section whose text contains `title`."""
    part = report.split(section + "\n")[1].split("\n## ")[0]
    (line,) = [line for line in part.splitlines() if line.startswith("|") and title in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def summary_of(report: str) -> str:
    return report.split("\n\n", 1)[1].split("\n\nEffective L1")[0]


FEW_LABEL = (
    "few-label selection (the highest mean accuracy on the target languages' validation sets, so target labels chose "
    "the settings, though they trained no vector)."
)
LEVEL = (
    "On the sealed test sets it scores 75.5 [69.5, 81.5] on average over 2 languages: accuracy in percentage points "
    "with its 95 % interval, n = 200 parallel items."
)
ONE_RUN = (
    "This is **one run** (seed 3): the intervals say what other items would change, not what another training seed "
    "would."
)


def test_the_csv_holds_every_row_on_every_target_and_split(sweep: HandMade) -> None:
    sweep.report()
    frame = sweep.results()
    assert len(frame) == 8 * 3 * 2
    test = frame[frame["split"] == "test"].set_index(["row", "language"])
    line = test.loc[("DEFT-X r_l 8, r_t 90%, retention 5 %", "average")]
    assert line["value"] == pytest.approx(100 * (150 + 152) / 400)
    assert line["difference"] == pytest.approx(100 * (2 + 1) / 400)
    assert (line["n"], line["examples"], line["chosen"], line["metric"]) == (200, 400, True, "accuracy")
    assert line["low"] < line["value"] < line["high"]
    assert line["difference_low"] == 0 < line["difference"] < line["difference_high"]
    assert test.loc[("LT-SFT", "ban"), "value"] == 75.5
    assert pd.isna(test.loc[("LT-SFT", "ban"), "difference"])
    assert test.loc[("no language vector", "ace"), "difference"] == pytest.approx(100 * (102 - 148) / 200)
    valid = frame[frame["split"] == "validation"].set_index(["row", "language"])
    assert valid.loc[("DEFT-X r_l 8, r_t 8, retention 5 %", "ban"), ["value", "n"]].tolist() == [64.0, 50]


def test_no_cell_is_a_formula_for_a_spreadsheet(sweep: HandMade) -> None:
    sweep.report()
    tables = sorted(Path(sweep.folder.path).glob("*.csv"))
    assert [path.name for path in tables] == ["results.csv", "vectors.csv"]
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=+@\t]|-(?!\d)", cell)]


def test_the_summary_says_what_was_chosen_what_is_believable_and_what_is_not(sweep: HandMade) -> None:
    report = sweep.report()
    assert summary_of(report).split("\n\n") == [
        f"**What was chosen.** DEFT-X r_l 8, r_t 90%, retention 5 %, out of 3 combinations, by {FEW_LABEL} {LEVEL}",
        "**What is believable.** In this one training the chosen combination is better than the stronger row without a "
        'language vector ("no language vector, source vector") by 20.0 [15.0, 26.0] points and better than the same '
        "with another language's vector by 27.0 [21.2, 33.2] points: paired 95 % intervals that exclude 0 "
        "(n = 200 parallel items).",
        "**What is doubtful.** The chosen combination is **not distinguishable** from LT-SFT (+0.7 [+0.0, +1.7]) on "
        "these data: the interval includes 0. The chosen combination's validation score is the highest of 3 and so an "
        "optimistic one; each of the 2 others can be told apart from it there (n = 50 parallel items). " + ONE_RUN,
    ]
    cells = table_line(report, "(chosen)")
    assert cells[:2] == ["1", "**DEFT-X r_l 8, r_t 90%, retention 5 %** (chosen)"]
    assert "best" not in report.lower()
    assert "zero-shot" not in report.lower()


def test_a_choice_worse_than_lt_sft_is_said_to_be(sweep: HandMade) -> None:
    sweep.state.rows = [row for row in sweep.state.rows if row.kind != "lt-sft"]
    sweep.add("lt-sft", ((45, 45), (180, 182)), "77", "77")
    text = summary_of(sweep.report())
    assert "the chosen combination is worse than LT-SFT by 15.0 [10.5, 20.0] points, better than the stronger" in text
    assert "not distinguishable" not in text


def test_a_gain_that_another_languages_vector_gives_as_well_is_not_the_languages(sweep: HandMade) -> None:
    doubt = "nothing shows that it is the right language that helps"
    assert doubt not in summary_of(sweep.report())
    sweep.state.rows = [row for row in sweep.state.rows if row.kind != "other-language"]
    sweep.add("other-language", ((40, 41), (150, 150)), "8", "100")
    text = summary_of(sweep.report())
    assert "another language's vector (+" in text.split("**What is doubtful.**")[1]
    assert doubt in text


def test_a_note_of_the_space_stands_first(sweep: HandMade) -> None:
    sweep.note = "The recipe was chosen on these test sets."
    assert summary_of(sweep.report()).startswith(f"**Note of the space.** {sweep.note}\n\n**What was chosen.**")


def test_rivals_that_may_be_as_good_are_counted(sweep: HandMade) -> None:
    sweep.add("combination", ((40, 41), (150, 150)), "8", "100", 3)
    assert "1 of the 3 others cannot be told apart from it there (n = 50" in summary_of(sweep.report())
    sweep.state.rows = [row for row in sweep.state.rows if row.number in (None, 1, 3)]
    assert "highest of 2 and so an optimistic one; the other one cannot be told" in summary_of(sweep.report())


def test_a_single_combination_was_not_selected_from_any(sweep: HandMade) -> None:
    sweep.state.rows = [row for row in sweep.state.rows if row.number in (None, 1)]
    report = sweep.report()
    text = summary_of(report)
    assert text.startswith(
        "**What was chosen.** DEFT-X r_l 8, r_t 90%, retention 5 %, the only combination asked, by few-"
    )
    assert "optimistic" not in text
    assert "## Warnings" not in report


def test_without_baselines_nothing_is_claimed_about_them(sweep: HandMade) -> None:
    sweep.state.rows = [row for row in sweep.state.rows if row.kind == "combination"]
    believable, doubted = summary_of(sweep.report()).split("\n\n")[1:]
    assert believable == (
        "**What is believable.** No difference can be stated: there are no two complete rows to compare."
    )
    assert doubted.startswith(
        "**What is doubtful.** Whether denoising helps is open: LT-SFT has no complete row to compare with. The chosen"
    )


def test_when_all_failed_that_is_said(sweep: HandMade) -> None:
    for row in sweep.state.combinations:
        row.status, row.grades = "failed", {}
    sweep.state.chosen = None
    assert summary_of(sweep.report()).split("\n\n") == [
        "No combination was completed, so none was chosen. 3 of 3 combinations failed; none was graded on any language "
        "(see Failures).",
        "**What is believable.** No difference can be stated: there are no two complete rows to compare.",
        f"**What is doubtful.** {ONE_RUN}",
    ]


def test_the_table_has_all_rows_in_order_with_intervals(sweep: HandMade) -> None:
    report = sweep.report()
    rows = report.split("## Sealed test sets")[1].split("| --- |\n")[1].split("\n\n")[0]
    assert [line.split(" | ")[1] for line in rows.splitlines()] == [
        "DEFT-X r_l 8, r_t 8, retention 5 %", "**DEFT-X r_l 8, r_t 90%, retention 5 %** (chosen)",
        "DEFT-X r_l 90%, r_t 8, retention 5 %",
        "LT-SFT", "no language vector", "no language vector, source vector", "another language's vector",
        "full fine-tuning (source only)",
    ]  # fmt: skip
    cells = table_line(report, "r_l 90%, r_t 8")
    assert cells[2].startswith("85.0 [")
    assert cells[4].startswith("85.5 [")
    assert cells[5].startswith("+10.7 [+7")
    assert table_line(report, "| LT-SFT |")[5] == "-"


def test_the_sizes_of_both_splits_are_tabled_under_their_names(sweep: HandMade) -> None:
    report = sweep.report()
    assert table_line(report, "| language |", "## Data") == [
        "language", "validation items", "validation rows", "test items", "test rows",
    ]  # fmt: skip
    assert table_line(report, "| ban |", "## Data") == ["ban", "50", "50", "200", "200"]


def test_test_scores_stay_sealed_until_the_search_has_ended(sweep: HandMade) -> None:
    sweep.state.ended, chosen = False, sweep.state.chosen
    sweep.state.chosen = None
    sweep.remove_test_scores()
    report = sweep.report()
    running, leading, believable, _ = summary_of(report).split("\n\n")
    assert running == "**The search has not ended**: the test sets are sealed, all below is validation."
    assert leading == "Nothing is chosen yet."
    assert believable == ("**What is believable.** Nothing yet: the test sets are sealed until the search has ended.")
    assert "## Sealed test sets" not in report
    assert set(sweep.results()["split"]) == {"validation"}
    with pytest.raises(StoreError, match="sealed until the search has ended"):
        read_results(sweep.folder, TARGETS, "test")
    sweep.state.ended, sweep.state.chosen = True, chosen
    with pytest.raises(StoreError, match=r"sealed_test\.json"):
        sweep.report()


def test_a_failed_combination_is_shown_with_its_other_languages_and_the_reason(sweep: HandMade) -> None:
    row = sweep.add("combination", ((31,), (140,)), "16", "16", 3)
    row.status, row.reason = "failed", "ban: too little | text"
    row.grades["ban"] = "f" * 32
    dead = StageEntry(kind="dense", label="ban · dense", subject="ban", language="ban", inputs={}, status="failed")
    sweep.state.stages["f" * 32] = dead
    sweep.folder.write_failure(
        Failure(address="f" * 32, label="ban · dense", reason="too little text", final=True, log="x/logs/f.log")
    )
    report = sweep.report()
    cells = table_line(report.replace(r"\|", "/"), "r_l 16, r_t 16")
    assert cells[1].endswith("(failed: ban: too little / text)")
    assert cells[2].startswith("70.0 [")
    assert cells[3:] == ["-", "-", "-"]
    assert table_line(report, "ban · dense", "## Failures") == ["ban · dense", "too little text", "`x/logs/f.log`"]
    assert "1 of 4 combinations failed (see Failures)." in summary_of(report)
    assert "- Failed: ban (see Failures)." in report
    frame = sweep.results().query("row.str.contains('r_l 16') and split == 'test'").set_index("language")
    assert frame.loc["ace", "difference"] == -4.0
    assert pd.isna(frame.loc["average", "value"])


def test_unlabelled_selection_has_its_own_name(tmp_path: Path) -> None:
    report = HandMade(tmp_path, "unlabelled").report()
    assert "by unlabelled selection" in report
    assert "few-label" not in report.lower()
    assert "optimistic" not in report
    assert "## Warnings" not in report
    assert "Validation took no part in the choice." in report


def test_the_status_of_unlabelled_selection_shows_no_percent_points(tmp_path: Path) -> None:
    hand = HandMade(tmp_path, "unlabelled")
    hand.state.combinations[0].score = -2.5
    hand.save()
    result = CliRunner().invoke(sweep_app, ["status", "demo", "--storage", str(tmp_path)])
    assert "DEFT-X r_l 8, r_t 8, retention 5 %: -2.500, source validation less held-out loss" in result.output


def test_a_search_that_goes_on_has_chosen_nothing(sweep: HandMade) -> None:
    sweep.save()
    sweep.folder.write_file(b"{}", CHOSEN)
    forget_choice(sweep.folder)
    driver = SimpleNamespace(
        folder=sweep.folder, space=make_space(), asked=[], schedule=SimpleNamespace(scores={}),
        interrupted=2, refused=None, refusals=contextlib.nullcontext,
        finished=lambda: False, write_state=lambda ended=False: State(),
    )  # fmt: skip
    assert session.run(driver, lambda _: None) == 130  # type: ignore[arg-type]
    assert sweep.store.read("sweeps", "demo", CHOSEN) is None


def test_vectors_are_tabled_with_how_far_denoising_went(sweep: HandMade) -> None:
    report = sweep.report()
    section = "## Vectors of the chosen combination"
    assert table_line(report, "| ace |", section) == [
        "ace", "rank 8 · retention 5 %", "7.5", "5.0%", "31.4%", "0.42", "1,234", "12.5",
    ]  # fmt: skip
    assert table_line(report, "| task |", section)[1] == "rank 90% · retention 5 %"
    assert "Jaccard at most 0.42" in report
    vectors = pd.read_csv(Path(sweep.folder.path) / "vectors.csv").set_index(["subject", "setting"])
    assert len(vectors) == 3 * 3
    assert vectors["chosen"].sum() == 3
    assert pd.isna(vectors.loc[("task", "LT-SFT"), "mean_rank"])


def test_what_it_was_made_with_is_on_record(sweep: HandMade) -> None:
    report = sweep.report()
    assert "Effective L1: language vectors 0 (0.1 as coded upstream, where the term has no gradient), task" in report
    assert "Precision: language vectors float32, task vectors float32." in report
    assert "python -m orchestrator.sweep demo --set 'rank_l=[8, 90%]'" in report
    assert table_line(report, "torch", "## How this was made") == ["torch", "2.13.0"]
    assert "zipp" not in report
    assert table_line(report, "| ban |", "## Data") == ["ban", "50", "50", "200", "200"]
    assert table_line(report, "all together", "## Data") == ["all together", "50", "100", "200", "400"]


def test_warnings_name_the_selection_and_each_stage_warning_once(sweep: HandMade) -> None:
    for subject in TARGETS:
        stage = sparse_stage(subject, "99")
        matrices = [{"name": "w", "rank": 64}, {"name": "v", "rank": 99}]
        sweep.publish(stage, {}, metrics=metrics_of(stage, jaccard_lt_sft=0.5), details={"matrices": matrices})
    report = sweep.report()
    assert report.split("## Warnings\n\n")[1].split("\n\n")[0].splitlines() == [
        "- Few-label selection: 50 labelled validation rows in each of 2 target languages chose the settings. Compare "
        "only with systems that had such labels too.",
        "- ace and ban (sparse · rank 99 · retention 5 %): rank 99 is more than 1 of 2 matrices can have (the "
        "smallest 64): clamped, so not denoised there",
    ]


def test_the_text_of_each_language_is_tabled_from_its_check(sweep: HandMade) -> None:
    assert "## Text" not in sweep.report()
    check = TextReport(
        language="ace", passages=1200, bytes=2_500_000, signs={}, repeated=Lines(count=3, first=(4, 5, 6)),
        sentences=250, equal=Lines(count=1, first=(9,)), contained=Lines(count=2, first=(10, 11)), words=10_000,
        tokens=15_000, unknown_tokens=30, long_words=7, cut=Lines(), block=256, train_blocks=50, valid_blocks=4,
        batch_size=8, planned_steps=70,
    )  # fmt: skip
    asked = CheckSettings(
        language="ace", source=FILE, text=TextSettings(), backbone=BACKBONE, seed=0, training=Training(max_steps=70),
        benchmark="demo", evaluation={},
    )  # fmt: skip
    details = {"warnings": list(check.warnings)}
    sweep.publish(Stage("check", asked), {"check.json": check.model_dump_json().encode()}, details=details)
    report = sweep.report()
    assert table_line(report, "| ace |", "## Text") == [
        "ace", "1,200", "2.50", "3", "3", "1.50", "0.20%", "50 of 256", "4", "70 of 8", "10.0",
    ]  # fmt: skip
    assert check.warnings
    for sentence in check.warnings:
        assert f"- ace (check): {sentence.removeprefix('ace: ')}" in report


def test_spectra_masks_and_times_are_read_from_the_store(sweep: HandMade) -> None:
    for subject in (*TARGETS, "task"):
        publish_phases(sweep, subject, "8" if subject in TARGETS else "90%")
    report = sweep.report()
    for name in ("spectra", "overlap", "time"):
        assert f"](plots/{name}.png)" in report
    spectra = {(one.subject, one.matrix): one for one in chosen_spectra(sweep.store, sweep.state)}
    assert set(spectra) == {(who, what) for who in ("task", "ace") for what in ("attention query", "FFN")}
    query = spectra["ace", "attention query"]
    assert query.values.tolist() == [10.0, 1.0]
    assert query.rank == 2
    masks = chosen_masks(sweep.store, sweep.state)
    assert [(mask.subject, mask.k, mask.sizes) for mask in masks] == [
        (subject, 3, {"b": 4, "w": 12}) for subject in (*TARGETS, "task")
    ]
    assert overlap(masks[0], masks[1]) == Overlap(2 / 4, (9 / 16) / (6 - 9 / 16))
    times = read_times(sweep.store, sweep.state)
    dense = times[times["kind"] == "dense"]
    assert dense[["seconds", "cpu_seconds", "gpu_seconds"]].sum().tolist() == [300.0, 600.0, 300.0]
    assert len(times) == len(sweep.state.stages)


def publish_phases(sweep: HandMade, subject: str, rank: str) -> None:
    """The dense and sparse stages of one chosen vector: three layers of spectra, and a mask of three entries."""
    sparse = sparse_stage(subject, rank)
    dense = dict(sparse.inputs)["dense"]
    names = [f"encoder.layer.{n}.{part}.weight" for n in (0, 1, 10) for part in ("query", "intermediate.dense")]
    values = {name: np.array([10.0 ** float(".1." in name), 1.0]) for name in names}
    sweep.publish(
        dense, {"spectra.safetensors": save(values)}, seconds=100.0, execution={"device": "cuda", "threads": 2}
    )
    sweep.store.discard(sparse.address)
    sft = SparseFineTuning(
        {"b": torch.tensor([0]), "w": torch.tensor([1, {"ace": 2, "ban": 3, "task": 4}[subject]])},
        {"b": torch.ones(1), "w": torch.ones(2)}, {"b": (4,), "w": (3, 4)}, SFTMetadata(backbone="tiny", k=3),
    )  # fmt: skip
    attempt = sweep.store.attempt(sparse.address)
    sft.save_pretrained(attempt.folder / "sft")
    matrices = [{"name": name, "rank": 2} for name in names]
    attempt.publish(
        sparse, metrics=metrics_of(sparse, k=3.0, jaccard_lt_sft=0.4), seconds=1.0, details={"matrices": matrices}
    )


def test_the_same_state_gives_the_same_bytes(sweep: HandMade) -> None:
    plots = ("heatmap.png", "languages.png", "time.png")
    names = [("report.md",), ("results.csv",), ("vectors.csv",), *(("plots", name) for name in plots)]
    sweep.report()
    first = [sweep.read(*name) for name in names]
    sweep.report()
    assert first == [sweep.read(*name) for name in names]
    for name in plots:
        with Image.open(Path(sweep.folder.path) / "plots" / name) as image:
            assert image.width > 600
            assert len(set(image.convert("L").tobytes())) > 50


def test_a_sweep_with_little_in_it_still_reports(sweep: HandMade) -> None:
    sweep.state.chosen = None
    assert summary_of(sweep.report()).startswith("No combination was completed, so none was chosen.\n\n**What is bel")
    sweep.state = State()
    assert summary_of(sweep.report()).endswith("all below is validation.\n\nNothing is chosen yet.")
    assert sweep.results().empty
    assert sweep.store.names("sweeps", "demo", "plots") == ["heatmap.png", "languages.png", "time.png"]


def test_grades_on_other_items_are_refused(sweep: HandMade) -> None:
    stage = grade_stage("ace", sparse_stage("task", "77"), None)
    sweep.publish(stage, {name: grade_json("ace", items - 1, 5) for name, items in ITEMS.items()})
    sweep.state.rows[0].grades["ace"] = stage.address
    with pytest.raises(DataError, match="ace: the two systems were not graded on the same items"):
        sweep.report()


def grades_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every grade of a sweep that is made after this."""

    def changed(language: str, items: int, right: int) -> bytes:
        grade = json.loads(grade_json(language, items, right))
        return json.dumps({**grade, **change(grade)}).encode()

    monkeypatch.setattr(sweep_by_hand, "grade_json", changed)


def turned(grade: dict[str, Any]) -> dict[str, Any]:
    """Other labels for the first 60 % of Balinese, right and wrong on the same rows."""
    if grade["language"] != "ban":
        return {}
    last = 6 * len(grade["ids"]) // 10
    columns = {name: grade[name] for name in ("gold", "predicted")}
    return {name: [1 - label for label in of[:last]] + of[last:] for name, of in columns.items()}


def test_rows_of_tables_that_are_no_translations_are_drawn_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: HandMade
) -> None:
    sweep.report()
    grades_with(monkeypatch, turned)
    other = HandMade(tmp_path / "other")
    report = other.report()
    assert report.split("## Warnings\n\n")[1].split("\n\n")[0].splitlines()[1:] == [
        f"- {title}: equal ids of ace and ban are not the same sentence: {differing} of the {shared} ids that ace and "
        "ban share have other labels. Their rows are not tied: each is drawn by itself. Leave out the column id where "
        "ids are only row numbers."
        for title, differing, shared in (("Validation", 30, 50), ("Test", 120, 200))
    ]
    assert "parallel" not in report
    assert "n = 400 items" in summary_of(report)
    assert "items are drawn once for all languages whose ids are those of translations" in report
    assert table_line(report, "all together", "## Data")[1:] == ["100", "100", "400", "400"]
    tied, apart = (frame.results().query("split == 'test'") for frame in (sweep, other))
    assert (tied["value"].to_numpy() == apart["value"].to_numpy()).all()
    width = {
        name: (frame["high"] - frame["low"]).where(frame["language"] == "average").mean()
        for name, frame in (("tied", tied), ("apart", apart))
    }
    assert width["apart"] < 0.9 * width["tied"], "independent rows tell more than parallel ones"


def test_two_corrected_labels_are_still_translations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grades_with(
        monkeypatch,
        lambda grade: (
            {"gold": [1 - label for label in grade["gold"][:2]] + grade["gold"][2:]}
            if grade["language"] == "ban"
            else {}
        ),
    )
    report = HandMade(tmp_path / "store").report()
    assert "not the same sentence" not in report
    assert "n = 200 parallel items" in report


def test_a_class_that_no_row_has_is_said_beside_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Balinese has no neutral row; the last row of Acehnese is, and every system takes it for a negative one."""

    def three(grade: dict[str, Any]) -> dict[str, Any]:
        gold, predicted = ([2 * label for label in grade[name]] for name in ("gold", "predicted"))
        if grade["language"] == "ace":
            gold[-1], predicted[-1] = 1, 0
        return {
            "labels": ["negative", "neutral", "positive"],
            "metric": "macro_f1",
            "gold": gold,
            "predicted": predicted,
        }

    grades_with(monkeypatch, three)
    sweep = HandMade(tmp_path / "store")
    sweep.state.rows = [row for row in sweep.state.rows if row.kind != "lt-sft"]
    sweep.add("lt-sft", ((50, 50), (200, 200)), "77", "77")
    report = sweep.report()
    warnings = report.split("## Warnings\n\n")[1].split("\n\n")[0].splitlines()[1:]
    assert warnings == [
        f"- {title}: ban has no row of neutral. Macro F1 counts a class without rows as 0, so that not even a perfect "
        "model scores 100; the score over the classes that occur stands beside it."
        for title in ("Validation", "Test")
    ]
    ace, ban, average = table_line(report, "| LT-SFT |")[2:5]
    assert ban == "66.7 [66.7, 66.7] (100.0 over the classes that occur)"
    assert "occur" not in ace
    value = sweep.results().set_index(["row", "split", "language"])["value"]["LT-SFT", "test", "ace"]
    assert average.startswith(f"{(value + 200 / 3) / 2:.1f} [")
    assert average.endswith(f"] ({(value + 100) / 2:.1f} over the classes that occur)")
    assert "over the classes that occur) on average over 2 languages" in summary_of(report)
    frame = sweep.results().set_index(["row", "split", "language"])["occurring"]
    assert frame["LT-SFT", "test", "ban"] == 100
    assert pd.isna(frame["LT-SFT", "test", "ace"])
    score = read_results(sweep.folder, TARGETS, "test", chosen_only=True)
    assert score is not None
    assert score.chosen is not None
    assert score.occurring(score.chosen, "ban") == pytest.approx(1.5 * score.chosen.scores["ban"].value)


def test_accuracy_knows_no_classes_to_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grades_with(monkeypatch, lambda grade: {"labels": ["negative", "positive", "neutral"]})
    assert "occur" not in HandMade(tmp_path / "store").report()


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


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (Score(0.026, 0.0003, 0.05), "+2.6 [+0.03, +5.0]"),
        (Score(-0.026, -0.05, -0.00004), "-2.6 [-5.0, -0.004]"),
        (Score(0.0069, 0.0, 0.0169), "+0.7 [+0.0, +1.7]"),
        (Score(-0.0001, -0.01, 0.01), "+0.0 [-1.0, +1.0]"),
    ],
)
def test_an_interval_that_excludes_0_does_not_look_as_if_it_held_0(score: Score, words: str) -> None:
    assert signed_points(score) == words

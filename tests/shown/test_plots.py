"""The pictures of a report: where their bars, cells and curves stand, and that any shape of sweep is legible."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from deftx.evaluate.bootstrap import AVERAGE, Bootstrap, Predictions, Score
from orchestrator.record.sweep import BASELINE_TITLES, GradeRow
from orchestrator.report.plots.page import COLOURS, PAGE
from orchestrator.report.plots.scores import heatmap, language_bars
from orchestrator.report.plots.time import time_plot
from orchestrator.report.plots.vectors import overlap_plot, spectra_plot
from orchestrator.report.results import Results, RowResult
from orchestrator.report.times import TIME_COLUMNS, format_time
from orchestrator.report.vectors import MATRICES, Mask, Spectrum, chance_overlap, overlap

CODES = ("ace", "ban", "bjn", "mad", "min", "ind", "jav", "sun", "bug", "bbc", "nij", "eng")
SHAPES = [(1, 1), (5, 4), (10, 12), (12, 30)]
Setting = tuple[str, str, float, float]


def score(value: float) -> Score:
    return Score(value, value - 0.04, value + 0.03)


def results(
    languages: Sequence[str], settings: Sequence[Setting], baselines: bool = True, scores: Sequence[float] = ()
) -> Results:
    """Row i scores 0.5 + i / 100 on average (or what is given) and as much on each language; the first is chosen."""
    said = Predictions([str(item) for item in range(10)], [0] * 10, [0] * 10)
    rows = [
        GradeRow(
            kind="combination", number=number, status="complete",
            parameters=dict(zip(("rank_l", "rank_t", "retention_l", "retention_t"), setting, strict=True)),
        )
        for number, setting in enumerate(settings)
    ]  # fmt: skip
    rows += [GradeRow(kind=kind, status="complete") for kind in BASELINE_TITLES] if baselines else []
    found = []
    for number, row in enumerate(rows):
        value = scores[number] if number < len(scores) else 0.5 + number / 100
        all_scores = {name: score(value) for name in (*languages, AVERAGE)}
        found.append(RowResult(row, dict.fromkeys(languages, said), all_scores, {}))
    bootstrap = Bootstrap(("no", "yes"), "macro_f1")
    chosen = found[0] if settings else None
    return Results("valid", tuple(languages), ("no", "yes"), "macro_f1", tuple(found), chosen, bootstrap)


def settings(count: int) -> list[Setting]:
    """As many different settings: a row of ranks with long names, in two pairs of retentions."""
    return [(str(25 * (n + 1)), f"{99.5 - n}%", 0.05, (0.05, 0.1)[n % 2]) for n in range(count)]


def cells(axis: Axes) -> dict[tuple[str, str], str]:
    """What stands in the cells of a panel, by (row label, column label)."""
    down, across = ([label.get_text() for label in ticks] for ticks in (axis.get_yticklabels(), axis.get_xticklabels()))
    return {
        (down[round(text.get_position()[1])], across[round(text.get_position()[0])]): text.get_text()
        for text in axis.texts
    }


def filled(axis: Axes) -> list[Rectangle]:
    return [patch for patch in axis.patches if isinstance(patch, Rectangle) and patch.get_fill()]


def all_texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that is drawn, and where: not the labels of ticks beyond the ends of an axis."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = {tick.label1 for axes in figure.axes for tick in beyond(axes.xaxis) | beyond(axes.yaxis)}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent(canvas.get_renderer())) for text in shown if text not in hidden]


def beyond(axis: Axis) -> set[Tick]:
    low, high = sorted(axis.get_view_interval())
    return {tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}


def assert_legible(figure: Figure | None) -> None:
    """No text runs into another or off the page, all are of a readable size, and nothing warns."""
    assert figure is not None
    assert figure.get_figwidth() == PAGE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [(text.get_text(), text.get_fontsize(), box) for text, box in all_texts(figure)]
    assert min(size for _, size, _ in found) >= 7.5
    whole = figure.bbox
    for words, _, box in found:
        assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1, words
        assert whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1, words
    for (one, _, a), (other, _, b) in itertools.combinations(found, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 1, (one, other)


# -- by rank ----------------------------------------------------------------------------------------------------------


def test_a_cell_stands_where_its_ranks_are_and_says_its_score() -> None:
    asked = [("16", "90%", 0.05, 0.05), ("100", "90%", 0.05, 0.05), ("90%", "16", 0.05, 0.05), ("16", "16", 0.0, 0.05)]
    figure = heatmap(results(["ace", "ban"], asked, scores=[0.71, 0.62, 0.653, 0.8]))
    assert figure is not None
    one, other = figure.axes[:2]
    assert one.get_title(loc="left") == "retention 0 % (language), 5 % (task)"
    assert cells(one) == {("16", "16"): "80.0"}
    assert other.get_title(loc="left") == "retention 5 %"
    assert [label.get_text() for label in other.get_yticklabels()] == ["16", "100", "90%"]
    assert cells(other) == {("16", "90%"): "★\n71.0", ("100", "90%"): "62.0", ("90%", "16"): "65.3"}
    colours = {patch.get_xy(): patch.get_facecolor() for patch in filled(other)}
    assert colours[(0.5, 0.5)] == COLOURS(0.0)
    assert colours[(-0.5, 1.5)] == COLOURS((65.3 - 62) / 18)
    assert filled(one)[0].get_facecolor() == COLOURS(1.0)


def test_the_head_of_the_heat_map_says_sizes_baselines_and_signs() -> None:
    table = results(["ace"], settings(2)[:1], scores=[0.7, 0.6, 0.55])
    figure = heatmap(table)
    assert figure is not None
    assert figure.get_suptitle().splitlines() == [
        "Mean validation score by r_l (language vectors) and r_t (task vector)",
        "macro F1: 1 language, n = 10 parallel items, one run; 95 % interval of a cell: about ±3.5",
        "For comparison: LT-SFT 60.0, no language vector 55.0",
        "★ chosen",
    ]
    sparse = heatmap(results(["ace", "ban"], [("8", "8", 0.05, 0.05), ("16", "16", 0.05, 0.05)], baselines=False))
    assert sparse is not None
    assert sparse.get_suptitle().splitlines()[-1] == "★ chosen, empty: not asked"
    assert "For comparison" not in sparse.get_suptitle()


def test_a_combination_without_a_score_is_hatched() -> None:
    table = results(["ace"], settings(2))
    table.rows[1].row.status = "failed"
    table.rows[1].scores.clear()
    figure = heatmap(table)
    assert figure is not None
    hatched = figure.axes[1]
    assert [text.get_text() for text in hatched.texts] == ["×"]
    assert filled(hatched)[0].get_hatch() == "////"
    assert "× failed" in figure.get_suptitle()
    assert_legible(figure)


def test_a_sparse_search_of_one_retention_is_legible() -> None:
    asked = [(str(25 * (n + 1)), str(25 * ((7 * n) % 24 + 1)), 0.05, 0.05) for n in range(24)]
    figure = heatmap(results(CODES[:5], asked))
    assert_legible(figure)
    assert figure is not None
    assert len(cells(figure.axes[0])) == 24


# -- by language ------------------------------------------------------------------------------------------------------


def test_bars_stand_at_their_scores_with_their_intervals_and_sample_sizes() -> None:
    table = results(["ace", "ban"], settings(1), scores=[0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    figure = language_bars(table)
    assert figure is not None
    (axis,) = figure.axes
    heights = np.array([patch.get_height() for patch in filled(axis)]).reshape(6, 3)
    assert heights == pytest.approx(np.array([[70, 60, 50, 40, 30, 20]] * 3).T)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["ace\nn = 10", "ban\nn = 10", "average\nn = 10"]
    ends = axis.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in ends] == [pytest.approx([66, 73])] * 3
    looks = {(to_rgba(bar[0].get_facecolor()), bar[0].get_hatch()) for bar in axis.containers[::2]}
    assert len(looks) == 6
    assert figure.get_suptitle().startswith("Validation scores with joint 95 % intervals\n")


def test_many_languages_go_on_several_lines_with_bars_of_one_width() -> None:
    figure = language_bars(results(CODES, settings(1)))
    assert figure is not None
    names = [[label.get_text().split("\n")[0] for label in axis.get_xticklabels()] for axis in figure.axes]
    assert [len(line) for line in names] == [5, 5, 3]
    assert [*itertools.chain(*names)] == [*CODES, AVERAGE]
    assert len({axis.get_xlim() for axis in figure.axes}) == 1


# -- spectra and masks ------------------------------------------------------------------------------------------------


def test_a_spectrum_is_cumulative_and_marked_at_the_rank_kept() -> None:
    values = np.random.default_rng(0).uniform(0, 3, 20)
    values[::-1].sort()
    figure = spectra_plot([Spectrum("ace", "FFN", values, 7)])
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert line.get_xdata().tolist() == list(range(1, 21))
    want = [float((values[:rank] ** 2).sum() / (values**2).sum()) for rank in range(1, 21)]
    assert line.get_ydata() == pytest.approx(want, abs=1e-12)
    assert line.get_xdata()[line.get_markevery()].tolist() == [7]
    assert line.get_label() == f"FFN: r = 7 of 20, {want[6]:.1%} of energy"


def test_a_matrix_that_did_not_change_has_a_flat_spectrum() -> None:
    assert Spectrum("task", "FFN", np.zeros(3), None).cumulative.tolist() == [0, 0, 0, 0]


def mask(subject: str, **parameters: tuple[int, Sequence[int]]) -> Mask:
    """A mask from `name=(number of entries, chosen indices)`."""
    bits = {}
    for name, (size, index) in parameters.items():
        flags = np.zeros(size, dtype=bool)
        flags[list(index)] = True
        bits[name] = np.packbits(flags)
    return Mask(subject, {name: size for name, (size, _) in parameters.items()}, bits)


def test_overlap_counted_by_hand() -> None:
    a = mask("ace", w=(9, [0, 1, 8]), b=(3, [2]))
    b = mask("ban", w=(9, [1, 7, 8]), b=(3, [0]))
    assert (a.k, b.k) == (4, 4)
    found = overlap(a, b)
    assert found.value == pytest.approx(2 / 6)
    assert found.chance == pytest.approx((16 / 12) / (8 - 16 / 12))


def test_chance_is_what_all_pairs_of_masks_have_on_average() -> None:
    n, k1, k2 = 6, 2, 3
    pairs = itertools.product(itertools.combinations(range(n), k1), itertools.combinations(range(n), k2))
    mean = np.mean([len({*a} & {*b}) for a, b in pairs])
    assert chance_overlap(k1, k2, n, n, n) == pytest.approx(mean / (k1 + k2 - mean))
    # the second can only choose from 4 of the 6, all of them open to the first
    pairs = itertools.product(itertools.combinations(range(n), k1), itertools.combinations(range(4), k2))
    mean = np.mean([len({*a} & {*b}) for a, b in pairs])
    assert chance_overlap(k1, k2, n, 4, 4) == pytest.approx(mean / (k1 + k2 - mean))


def test_masks_of_other_parameters_have_only_those_in_common() -> None:
    language = mask("ace", embeddings=(10, [0, 1, 2]), w=(10, [3]))
    task = mask("task", w=(10, [3, 4]))
    found = overlap(language, task)
    assert found.value == pytest.approx(1 / 5)
    expected = 4 * 2 * 10 / (20 * 10)
    assert found.chance == pytest.approx(expected / (6 - expected))
    either = mask("other", w=(10, [3]), bias=(5, [0]))
    expected = 4 * 2 * 10 / (20 * 15)
    assert overlap(language, either).chance == pytest.approx(expected / (6 - expected))


def test_the_picture_of_overlaps_shows_each_pair_and_chance() -> None:
    masks = [mask("ace", w=(20, [0, 1, 2, 3])), mask("ban", w=(20, [2, 3, 4, 5])), mask("task", w=(20, [3, 19]))]
    figure = overlap_plot(masks, {"ace": 0.5, "task": 0.9})
    assert figure is not None
    pairs, bars = figure.axes
    assert cells(pairs) == {
        ("ban", "ace"): "0.33\n(0.11)", ("task", "ace"): "0.20\n(0.07)", ("task", "ban"): "0.20\n(0.07)",
    }  # fmt: skip
    assert [patch.get_width() for patch in filled(bars)] == [0.5, 0.9]
    chances = [segment[0, 0] for segment in bars.collections[1].get_segments()]
    assert chances == pytest.approx([(16 / 20) / (8 - 16 / 20), (4 / 20) / (4 - 4 / 20)])


# -- time -------------------------------------------------------------------------------------------------------------


def times(*lines: tuple[str, str, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=TIME_COLUMNS)


def test_seconds_are_summed_by_subject_and_kind() -> None:
    spent = times(
        ("text", "ace", 5.0, 5.0, 0.0), ("dense", "ace", 100.0, 200.0, 0.0), ("sparse", "ace", 60.0, 120.0, 60.0),
        ("sparse", "ace", 40.0, 80.0, 40.0), ("dense", "task", 30.0, 60.0, 0.0), ("grade", "ace", 5.0, 5.0, 0.0),
    )  # fmt: skip
    figure = time_plot(spent)
    assert figure is not None
    (axis,) = figure.axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axis.containers}
    assert widths == {
        "text: 5.0 seconds in 1 stage": [5.0, 0.0], "dense: 130 seconds in 2 stages": [100.0, 30.0],
        "sparse: 100 seconds in 2 stages": [100.0, 0.0], "grade: 5.0 seconds in 1 stage": [5.0, 0.0],
    }  # fmt: skip
    assert [bars[0].get_x() for bars in axis.containers] == [0.0, 5.0, 105.0, 205.0]
    assert [text.get_text() for text in axis.texts] == [" 210", " 30.0"]
    assert axis.get_xlabel().startswith("seconds")
    assert format_time(spent) == (
        "6 stages, 0.13 CPU hours (seconds times threads) and 0.028 GPU hours (stages on a GPU, each counted whole); "
        "reused stages are in it, lost attempts are not."
    )


@pytest.mark.parametrize(
    ("seconds", "unit", "width"), [(599, "seconds", 599), (600, "minutes", 10), (7200, "hours", 2)]
)
def test_time_is_in_the_unit_that_suits_it(seconds: float, unit: str, width: float) -> None:
    figure = time_plot(times(("dense", "ace", seconds, seconds, 0.0)))
    assert figure is not None
    assert figure.axes[0].get_xlabel() == f"{unit}, one stage after another"
    assert filled(figure.axes[0])[0].get_width() == width


# -- any shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("languages", "rows"), SHAPES)
def test_scores_of_any_shape_are_legible(languages: int, rows: int) -> None:
    table = results(CODES[:languages], settings(rows))
    assert_legible(heatmap(table))
    assert_legible(language_bars(table))


@pytest.mark.parametrize("languages", [1, 5, 10, 12])
def test_vectors_and_times_of_any_shape_are_legible(languages: int) -> None:
    names = [*CODES[:languages], "task"]
    rng = np.random.default_rng(0)
    masks = [mask(name, w=(1000, rng.choice(1000, 300, replace=False).tolist())) for name in names]
    assert_legible(overlap_plot(masks, dict.fromkeys(names, 0.999)))
    kinds = ("check", "text", "dense", "sparse", "grade")
    lines = [(kind, name, 1e4 * (n + 1), 1e4, 5.0) for n, kind in enumerate(kinds) for name in names]
    assert_legible(time_plot(times(("backbone", "backbone", 9e5, 9e5, 0.0), *lines)))


@pytest.mark.parametrize("full", [2, 128, 4096])
def test_spectra_of_any_size_are_legible(full: int) -> None:
    values = np.linspace(9, 0, full)
    assert_legible(spectra_plot([Spectrum(who, name, values, full) for who in ("task", "ace") for name in MATRICES]))
    assert_legible(spectra_plot([Spectrum("ace", "FFN", values, None)]))


def test_nothing_to_draw_is_no_picture() -> None:
    nothing = results(["ace"], [], baselines=False)
    assert heatmap(nothing) is None
    assert language_bars(nothing) is None
    assert spectra_plot([]) is None
    assert overlap_plot([], {}) is None
    assert overlap_plot([mask("ace", w=(4, [1]))], {}) is None
    assert time_plot(times()) is None

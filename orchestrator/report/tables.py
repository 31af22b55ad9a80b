"""The sections of `report.md` below its summary: lists of Markdown blocks, empty where there is nothing to show."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
from humanize import natural_list

from deftx.config import METRIC_NAMES, SPLIT_NAMES
from deftx.data.text_report import TextReport
from deftx.evaluate.bootstrap import AVERAGE
from deftx.evaluate.parallel import Disagreement
from deftx.literal import literal
from orchestrator.record.sweep import Failure, GradeRow, State, SweepInfo
from orchestrator.report.results import Results, RowResult
from orchestrator.wording import NEAR_LT_SFT, NOTHING, by_few_labels, counted, points_with_occurring, signed_points

_PACKAGES = (
    "deftx-sweeps", "python", "torch", "transformers", "tokenizers", "datasets", "numpy", "scikit-learn", "ray",
    "optuna", "mlflow",
)  # fmt: skip
_SHOWN = 4


def warnings(
    info: SweepInfo, state: State, splits: Sequence[Results], failures: Mapping[str, Failure],
    stage_warnings: Mapping[str, Sequence[str]],
) -> list[str]:  # fmt: skip
    """The section of warnings: about the selection, about the tables, about failures, and those of each stage.

    Args:
        stage_warnings: of each published stage, by address.
    """
    validation = next((results for results in splits if results.split == "valid"), None)
    lines = [
        *_few_labels(info, state, validation), *_tables(splits), *_lost(state, failures),
        *_stage_warnings(state, stage_warnings),
    ]  # fmt: skip
    return ["## Warnings", "\n".join(f"- {_cell(line)}" for line in lines)] if lines else []


def _few_labels(info: SweepInfo, state: State, validation: Results | None) -> list[str]:
    if validation is None or not by_few_labels(info) or len(state.combinations) < 2:
        return []
    sizes = sorted({validation.examples(name) for name in validation.targets} - {0})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return [
        f"Few-label selection: {span} labelled validation rows in each of "
        f"{counted(len(validation.targets), 'target language')} chose the settings. Compare only with systems that had "
        "such labels too."
    ]


def _tables(splits: Sequence[Results]) -> Iterator[str]:
    """Warnings that follow from the labels of the graded tables."""
    for results in splits:
        title = SPLIT_NAMES[results.split].capitalize()
        if results.disagreements:
            worst = max(results.disagreements, key=lambda one: one.differing / one.shared)
            a, b = worst.languages
            yield (
                f"{title}: equal ids of {_pairs(results.disagreements)} are not the same sentence: {worst.differing:,} "
                f"of the {worst.shared:,} ids that {a} and {b} share have other labels. Their rows are not tied: each "
                "is drawn by itself. Leave out the column id where ids are only row numbers."
            )
        if results.missing:
            lacking = natural_list(
                [f"{name} has no row of {natural_list(its)}" for name, its in results.missing.items()]
            )
            yield (
                f"{title}: {lacking}. Macro F1 counts a class without rows as 0, so that not even a perfect model "
                "scores 100; the score over the classes that occur stands beside it."
            )


def _pairs(found: Sequence[Disagreement]) -> str:
    a, b = found[0].languages
    return f"{a} and {b}" + (f" (and of {counted(len(found) - 1, 'other pair')})" if len(found) > 1 else "")


def _lost(state: State, failures: Mapping[str, Failure]) -> list[str]:
    """A warning that names the subjects with failed stages."""
    subjects = dict.fromkeys(entry.subject for address, entry in state.stages.items() if address in failures)
    return [f"Failed: {natural_list(list(subjects))} (see Failures)."] if subjects else []


def _stage_warnings(state: State, stage_warnings: Mapping[str, Sequence[str]]) -> list[str]:
    """The warnings about stages; one line where several subjects have the same one with the same setting."""
    subjects_by: dict[tuple[str, str], list[str]] = {}
    for address, of_stage in stage_warnings.items():
        entry = state.stages[address]
        setting = entry.label.removeprefix(f"{entry.subject} · ")
        for warning in of_stage:
            text = warning.removeprefix(f"{entry.subject}: ")
            subjects_by.setdefault((text, setting), []).append(entry.subject)
    return [f"{_some(subjects)} ({setting}): {text}" for (text, setting), subjects in subjects_by.items()]


def _some(subjects: Sequence[str]) -> str:
    rest = len(subjects) - _SHOWN
    return natural_list(list(subjects)) if rest <= 1 else f"{', '.join(subjects[:_SHOWN])} and {rest} more"


def picture(drawn: Iterable[str], name: str, text: str) -> list[str]:
    """A picture in Markdown, empty if it was not drawn."""
    return [f"![{text}](plots/{name})"] if name in drawn else []


def scores(results: Results | None, note: str) -> list[str]:
    """The section with the table of all rows on one split; empty when nothing was graded on it."""
    if results is None:
        return []
    metric = METRIC_NAMES[results.metric]
    title = "Sealed test sets" if results.split == "test" else "Validation"
    header = ["#", "row", *results.targets, AVERAGE, f"{AVERAGE}, difference to LT-SFT"]
    return [
        f"## {title}",
        f"{metric[0].upper()}{metric[1:]} in percentage points [95 % interval]; items are drawn once for all languages "
        f"{_together(results)}, differences are paired. {note}",
        table(header, [_score_line(row_result, results) for row_result in results.rows]),
    ]


def _together(results: Results) -> str:
    return "whose ids are those of translations" if results.disagreements else "together"


def _score_line(row_result: RowResult, results: Results) -> list[str]:
    cells = [
        points_with_occurring(row_result.scores.get(name), results.occurring(row_result, name))
        for name in [*results.targets, AVERAGE]
    ]
    number = "" if row_result.row.number is None else str(row_result.row.number)
    title = _format_row(row_result.row, is_chosen=row_result is results.chosen)
    return [number, title, *cells, signed_points(row_result.to_lt_sft.get(AVERAGE))]


def _format_row(row: GradeRow, *, is_chosen: bool) -> str:
    if is_chosen:
        return f"**{row.title}** (chosen)"
    if row.status == "failed":
        return f"{row.title} (failed: {literal(row.reason or 'no reason on record')})"
    return row.title + (" (waiting)" if row.status == "waiting" else "")


def sfts(frame: pd.DataFrame) -> list[str]:
    """The section on the chosen vectors: how far denoising went."""
    chosen = frame[frame["chosen"]] if len(frame) else frame
    if chosen.empty:
        return []
    header = [
        "vector", "setting", "mean rank used", "retention of non-zero residual entries",
        "retention of residual energy",
        "overlap with LT-SFT's mask (Jaccard)", "k", "seconds",
    ]  # fmt: skip
    return [
        "## Vectors of the chosen combination",
        "How far denoising went, over all matrices of a vector; the other vectors are in `vectors.csv`. Seconds are "
        "those of the sparse phase.",
        table(header, [_sft_line(line) for line in chosen.to_dict("records")]),
        _format_overlap(chosen),
    ]


def _sft_line(line: dict[str, float | str]) -> list[str]:
    forms = {
        "mean_rank": ".1f", "nonzero_retention": ".1%", "energy_retention": ".1%", "jaccard_lt_sft": ".2f", "k": ",.0f",
        "seconds": ",.1f",
    }  # fmt: skip
    numbers = [NOTHING if pd.isna(line[key]) else f"{line[key]:{form}}" for key, form in forms.items()]
    return [str(line["subject"]), str(line["setting"]), *numbers]


def _format_overlap(chosen: pd.DataFrame) -> str:
    overlap = chosen.set_index("subject")["jaccard_lt_sft"].dropna()
    if overlap.empty:
        return "How far the masks are LT-SFT's is not on record."
    near = overlap[overlap >= NEAR_LT_SFT]
    if near.empty:
        return f"Every mask differs from LT-SFT's mask of the same dense phase: Jaccard at most {overlap.max():.2f}."
    return (
        f"**Nearly LT-SFT's own mask** (Jaccard of {NEAR_LT_SFT:g} or more), so denoising changed little there: "
        f"{', '.join(near.index)}."
    )


def texts(text_reports: Sequence[TextReport]) -> list[str]:
    """The section on the plain text of each language; empty for a sweep that has no text check."""
    if not text_reports:
        return []
    header = [
        "language", "passages", "MB", "repeated", "shared with evaluation", "tokens a word", "unknown tokens",
        "training blocks", "held-out blocks", "steps planned", "passes over the text",
    ]  # fmt: skip
    return [
        "## Text",
        "Plain text that language vectors were learnt from; what is doubtful about it stands in Warnings.",
        table(header, [_text_line(report) for report in text_reports]),
    ]


def _text_line(report: TextReport) -> list[str]:
    shared = NOTHING if report.sentences is None else f"{report.shared:,}"
    return [
        report.language, f"{report.passages:,}", f"{report.bytes / 1e6:,.2f}", f"{report.repeated.count:,}", shared,
        f"{report.tokens_per_word:.2f}", f"{report.unknown_share:.2%}", f"{report.train_blocks:,} of {report.block}",
        f"{report.valid_blocks:,}", f"{report.planned_steps:,} of {report.batch_size}", f"{report.passes:,.1f}",
    ]  # fmt: skip


def failed(failures: Mapping[str, Failure]) -> list[str]:
    """The section of failures: why stages failed, and where their logs are."""
    if not failures:
        return []
    ordered = sorted(failures.values(), key=lambda failure: (failure.label, failure.address))
    lines = [
        [failure.label, literal(failure.reason), f"`{failure.log}`" if failure.log else NOTHING] for failure in ordered
    ]
    return ["## Failures", table(["stage", "reason", "log"], lines)]


def sizes(splits: Sequence[Results]) -> list[str]:
    """The section on the data: how many items and rows each language has on each split."""
    if not splits:
        return []
    header = ["language", *(f"{SPLIT_NAMES[results.split]} {noun}" for results in splits for noun in ("items", "rows"))]
    lines = [
        [name, *(f"{size:,}" for results in splits for size in (results.items(name), results.examples(name)))]
        for name in splits[0].targets
    ]
    all_together = [
        "all together",
        *(f"{size:,}" for results in splits for size in (results.items(), results.examples())),
    ]
    return [
        "## Data",
        f"Labels: {', '.join(map(literal, splits[0].labels))}. An item is what the bootstrap draws, with all its rows "
        f"in every language; {splits[0].bootstrap.draws:,} draws.",
        table(header, [*lines, all_together]),
    ]


def provenance(info: SweepInfo) -> list[str]:
    """The section on how the sweep was made: command, seed, commit, revisions and packages."""
    facts = {
        "started": info.created,
        "seed": str(info.seed),
        "git commit": info.git_commit or "unknown",
        **{f"revision of {name}": revision for name, revision in sorted(info.revisions.items())},
        **{name: info.packages[name] for name in _PACKAGES if name in info.packages},
    }
    command = f"```\n{shlex.join(info.command)}\n```"
    return ["## How this was made", command, table(["what", "which"], facts.items()), "All packages: `sweep.json`."]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(text: str) -> str:
    """Text as a table cell: on one line, with bars escaped."""
    return " ".join(text.replace("|", r"\|").split())

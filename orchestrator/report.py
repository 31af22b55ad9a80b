"""The report of a sweep: `report.md`, `results.csv`, `vectors.csv` and plots, from what the store holds.

    python -m orchestrator.report STORAGE/sweeps/NAME

Written at the end of every sweep, and again whenever asked for; the same state gives the same bytes. Test scores are
read only once the search has ended, and the row on top is the one that validation chose, whatever the test says.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from deftx.errors import ConfigError, DeftxError
from deftx.evaluate import AVERAGE
from deftx.store import Store
from orchestrator.plots import heatmap, language_bars
from orchestrator.record import Failure, State, SweepFolder, SweepInfo, known_sweep
from orchestrator.results import RESULT_COLUMNS, Results, RowResult, read_results
from orchestrator.vectors import read_vectors
from orchestrator.words import METRIC_WORDS, NOTHING, effective_l1, headline, points, signed_points, validation_words

app = typer.Typer(add_completion=False)
NEARLY_LT_SFT = 0.95
_PACKAGES = (
    "deftx-sweeps", "python", "torch", "transformers", "tokenizers", "datasets", "numpy", "scikit-learn", "ray",
    "optuna", "mlflow",
)  # fmt: skip


@dataclass(frozen=True)
class _Findings:
    """All that the report is made of."""

    info: SweepInfo
    state: State
    failures: dict[str, Failure]
    validation: Results | None
    test: Results | None
    vectors: pd.DataFrame


def write_report(store: Store, folder: SweepFolder) -> None:
    """Write report, tables and plots of a sweep into its folder, `report.md` last.

    Raises:
        StoreError: for a sweep that was never started, or grades that are gone, altered or unreadable.
        DataError: when rows were graded on different items.
    """
    found = _find(store, folder)
    plots = _plots(found)
    for name, content in plots.items():
        folder.write_file(content, "plots", name)
    folder.write_file(_csv(_result_frame(found)), "results.csv")
    folder.write_file(_csv(found.vectors), "vectors.csv")
    folder.write_file(_markdown(found, plots).encode(), "report.md")


def _find(store: Store, folder: SweepFolder) -> _Findings:
    _, info = known_sweep(store, folder.name)
    state = folder.state()
    targets = [str(target) for target in info.space["targets"]]
    return _Findings(
        info=info,
        state=state,
        failures=folder.failures(),
        validation=read_results(store, state, targets, "validation"),
        test=read_results(store, state, targets, "test") if state.ended else None,
        vectors=read_vectors(store, state),
    )


def _plots(found: _Findings) -> dict[str, bytes]:
    bars = found.test or found.validation
    drawn = {
        "heatmap.png": heatmap(found.validation) if found.validation else None,
        "languages.png": language_bars(bars) if bars else None,
    }
    return {name: content for name, content in drawn.items() if content}


def _result_frame(found: _Findings) -> pd.DataFrame:
    frames = [results.frame for results in (found.test, found.validation) if results]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=RESULT_COLUMNS)


def _csv(frame: pd.DataFrame) -> bytes:
    return str(frame.to_csv(index=False, lineterminator="\n")).encode()


def _markdown(found: _Findings, plots: Iterable[str]) -> str:
    sections = [
        f"# DEFT-X sweep {found.info.name}: {found.info.benchmark}",
        headline(found.info, found.state, found.test or found.validation),
        f"Effective L1: {effective_l1(found.info.space)}. Backbone: {found.info.backbone}.",
        *_scores(found.test, "No row was chosen by this table, and no interval is adjusted for the number of rows."),
        *(_picture("languages.png", "Scores by language with 95 % intervals") if "languages.png" in plots else []),
        *_scores(found.validation, f"Validation {validation_words(found.info)}."),
        *(_picture("heatmap.png", "Mean validation score by rank") if "heatmap.png" in plots else []),
        *_vectors(found.vectors),
        *_failures(found),
        *_data(found),
        *_provenance(found.info),
    ]
    return "\n\n".join(sections) + "\n"


def _picture(name: str, text: str) -> list[str]:
    return [f"![{text}](plots/{name})"]


def _scores(results: Results | None, caution: str) -> list[str]:
    if results is None:
        return []
    metric = METRIC_WORDS[results.metric]
    title = "Sealed test sets" if results.split == "test" else "Validation"
    header = ["#", "row", *results.targets, AVERAGE, f"{AVERAGE}, difference to LT-SFT"]
    return [
        f"## {title}",
        f"{metric[0].upper()}{metric[1:]} in percent points [95 % interval]; items are drawn once for all languages "
        f"together, differences are paired. {caution}",
        _table(header, [_score_line(one, results) for one in results.rows]),
    ]


def _score_line(one: RowResult, results: Results) -> list[str]:
    scores = [points(one.scores.get(name)) for name in [*results.targets, AVERAGE]]
    return [_number(one), _row_words(one, results), *scores, signed_points(one.to_lt_sft.get(AVERAGE))]


def _number(one: RowResult) -> str:
    return "" if one.row.number is None else str(one.row.number)


def _row_words(one: RowResult, results: Results) -> str:
    if one is results.chosen:
        return f"**{one.row.title}** (chosen)"
    if one.row.status == "failed":
        return f"{one.row.title} (failed: {one.row.reason or 'no reason on record'})"
    return one.row.title + (" (waiting)" if one.row.status == "waiting" else "")


def _vectors(frame: pd.DataFrame) -> list[str]:
    chosen = frame[frame["chosen"]] if len(frame) else frame
    if chosen.empty:
        return []
    header = [
        "vector", "setting", "mean rank used", "residual entries kept", "residual energy kept",
        "overlap with LT-SFT's mask (Jaccard)", "k", "seconds",
    ]  # fmt: skip
    return [
        "## Vectors of the chosen combination",
        "How far denoising went, over all matrices of a vector; the other vectors are in `vectors.csv`. Seconds are "
        "those of the sparse phase.",
        _table(header, [_vector_line(line) for line in chosen.to_dict("records")]),
        _mask_words(chosen),
    ]


def _vector_line(line: dict[str, float | str]) -> list[str]:
    forms = {
        "mean_rank": ".1f", "entries_kept": ".1%", "energy_kept": ".1%", "jaccard_lt_sft": ".2f", "k": ",.0f",
        "seconds": ",.1f",
    }  # fmt: skip
    numbers = [NOTHING if pd.isna(line[key]) else f"{line[key]:{form}}" for key, form in forms.items()]
    return [str(line["subject"]), str(line["setting"]), *numbers]


def _mask_words(chosen: pd.DataFrame) -> str:
    overlap = chosen.set_index("subject")["jaccard_lt_sft"].dropna()
    if overlap.empty:
        return "How far the masks are LT-SFT's is not on record."
    near = overlap[overlap >= NEARLY_LT_SFT]
    if near.empty:
        return f"Every mask differs from LT-SFT's mask of the same dense phase: Jaccard at most {overlap.max():.2f}."
    return (
        f"**Nearly LT-SFT's own mask** (Jaccard of {NEARLY_LT_SFT:g} or more), so denoising changed little there: "
        f"{', '.join(near.index)}."
    )


def _failures(found: _Findings) -> list[str]:
    if not found.failures:
        return []
    ordered = sorted(found.failures.values(), key=lambda failure: (failure.label, failure.address))
    lines = [[failure.label, failure.reason, f"`{failure.log}`" if failure.log else NOTHING] for failure in ordered]
    return ["## Failures", _table(["stage", "reason", "log"], lines)]


def _data(found: _Findings) -> list[str]:
    splits = [results for results in (found.validation, found.test) if results]
    if not splits:
        return []
    header = ["language", *(f"{one.split} {what}" for one in splits for what in ("items", "rows"))]
    lines = [
        [name, *(str(size) for one in splits for size in (one.items(name), one.examples(name)))]
        for name in splits[0].targets
    ]
    all_together = ["all together", *(str(size) for one in splits for size in (one.items(), one.examples()))]
    return [
        "## Data",
        f"Labels: {', '.join(splits[0].labels)}. An item is what the bootstrap draws, with all its rows in every "
        f"language; {splits[0].bootstrap.draws:,} draws.",
        _table(header, [*lines, all_together]),
    ]


def _provenance(info: SweepInfo) -> list[str]:
    facts = {
        "started": info.created,
        "seed": str(info.seed),
        "git commit": info.git_commit or "unknown",
        **{f"revision of {name}": revision for name, revision in sorted(info.revisions.items())},
        **{name: info.packages[name] for name in _PACKAGES if name in info.packages},
    }
    command = f"```\n{shlex.join(info.command)}\n```"
    return ["## How this was made", command, _table(["what", "which"], facts.items()), "All packages: `sweep.json`."]


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(text: str) -> str:
    """On one line, and without a bar that would end the cell."""
    return " ".join(text.replace("|", r"\|").split())


def _locate(directory: str) -> tuple[Store, str]:
    """The store and the sweep's name in `STORAGE/sweeps/NAME`, a folder or an fsspec URL."""
    whole = directory.rstrip("/") if "://" in directory else str(Path(directory).resolve())
    storage, _, name = whole.rpartition("/sweeps/")
    if not storage or not name or "/" in name:
        raise ConfigError(f"{directory}: not the folder of a sweep, which is STORAGE/sweeps/NAME")
    return Store(storage), name


@app.command()
def main(directory: Annotated[str, typer.Argument(metavar="DIR", help="of a sweep: STORAGE/sweeps/NAME")]) -> None:
    """Write report.md, its tables and its plots for a sweep, from what its storage holds."""
    try:
        store, name = _locate(directory)
        folder, _ = known_sweep(store, name)
        write_report(store, folder)
    except DeftxError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{store.url}/sweeps/{name}/report.md")


if __name__ == "__main__":
    app()

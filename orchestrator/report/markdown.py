"""The report of a sweep: `report.md`, `results.csv`, `vectors.csv` and plots, from what the store holds.

Written at the end of every sweep, and again whenever asked for; the same state gives the same bytes. Test scores are
read only once the search has ended, and the row on top is the one that validation chose, whatever the test says. The
words on top are made in `summary`, the tables in `tables`, the pictures in `plots`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from deftx.data.text_report import TextReport
from deftx.errors import StoreError
from deftx.stages.files import CHECK
from deftx.stages.store import Store
from orchestrator.record.sweep import Failure, State, SweepFolder, SweepInfo, known_sweep
from orchestrator.report import tables
from orchestrator.report.plots.page import png
from orchestrator.report.plots.scores import heatmap, language_bars
from orchestrator.report.plots.time import time_plot
from orchestrator.report.plots.vectors import overlap_plot, spectra_plot
from orchestrator.report.results import RESULT_COLUMNS, Results, read_results
from orchestrator.report.summary import summary
from orchestrator.report.times import format_time, read_times
from orchestrator.report.vectors import Mask, Spectrum, chosen_masks, chosen_spectra, read_vectors
from orchestrator.wording import effective_l1, format_validation, stage_warnings


@dataclass(frozen=True)
class _ReportData:
    """All that the report is made of."""

    info: SweepInfo
    state: State
    failures: dict[str, Failure]
    validation: Results | None
    test: Results | None
    vectors: pd.DataFrame
    spectra: list[Spectrum]
    masks: list[Mask]
    times: pd.DataFrame
    text_reports: list[TextReport]
    stage_warnings: dict[str, list[str]]


def write_report(store: Store, folder: SweepFolder) -> None:
    """Write report, tables and plots of a sweep into its folder, `report.md` last.

    Raises:
        StoreError: for a sweep that was never started, or files of its stages that are gone, altered or unreadable.
        DataError: when rows were graded on different items.
    """
    found = _find(store, folder)
    plots = _plots(found)
    for name, content in plots.items():
        folder.write_file(content, "plots", name)
    folder.write_file(_csv(_result_frame(found)), "results.csv")
    folder.write_file(_csv(found.vectors), "vectors.csv")
    folder.write_file(_markdown(found, plots).encode(), "report.md")


def _find(store: Store, folder: SweepFolder) -> _ReportData:
    _, info = known_sweep(store, folder.name)
    state = folder.state()
    targets = [str(target) for target in info.space["targets"]]
    manifests = [found for address in state.stages if (found := store.manifest(address))]
    return _ReportData(
        info=info,
        state=state,
        failures=folder.failures(),
        validation=read_results(folder, targets, "valid"),
        test=read_results(folder, targets, "test") if state.ended else None,
        vectors=read_vectors(store, state),
        spectra=chosen_spectra(store, state),
        masks=chosen_masks(store, state),
        times=read_times(store, state),
        text_reports=[
            check
            for manifest in manifests
            if CHECK in manifest.files and (check := _text_report(store, manifest.address)) is not None
        ],
        stage_warnings={manifest.address: stage_warnings(manifest) for manifest in manifests},
    )


def _text_report(store: Store, address: str) -> TextReport | None:
    """What a check found; None where its file is damaged, for no stage would make it again for the report's sake."""
    try:
        return TextReport.model_validate_json(store.fetch(address, CHECK).read_bytes())
    except StoreError:
        return None


def _plots(found: _ReportData) -> dict[str, bytes]:
    bars = found.test or found.validation
    chosen = found.vectors[found.vectors["chosen"].astype(bool)]
    to_lt_sft = chosen.set_index("subject")["jaccard_lt_sft"].dropna().to_dict()
    drawn = {
        "heatmap.png": heatmap(found.validation) if found.validation else None,
        "languages.png": language_bars(bars) if bars else None,
        "spectra.png": spectra_plot(found.spectra),
        "overlap.png": overlap_plot(found.masks, to_lt_sft),
        "time.png": time_plot(found.times),
    }
    return {name: png(figure) for name, figure in drawn.items() if figure}


def _result_frame(found: _ReportData) -> pd.DataFrame:
    frames = [results.frame for results in (found.test, found.validation) if results]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=RESULT_COLUMNS)


def _csv(frame: pd.DataFrame) -> bytes:
    return str(frame.to_csv(index=False, lineterminator="\n")).encode()


def _markdown(found: _ReportData, drawn: Iterable[str]) -> str:
    info, splits = found.info, [results for results in (found.validation, found.test) if results]
    blocks = [
        f"# DEFT-X sweep {info.name}: {info.benchmark}",
        summary(info, found.state, found.validation, found.test),
        f"Effective L1: {effective_l1(info.space)}. Backbone: {info.backbone}.",
        *tables.warnings(info, found.state, found.validation, found.failures, found.stage_warnings),
        *tables.scores(
            found.test, "No row was chosen by this table, and no interval is adjusted for the number of rows."
        ),
        *tables.picture(drawn, "languages.png", "Scores by language with 95 % intervals"),
        *tables.scores(found.validation, f"Validation {format_validation(info)}."),
        *tables.picture(drawn, "heatmap.png", "Mean validation score by rank"),
        *tables.vectors(found.vectors),
        *tables.picture(drawn, "spectra.png", "Singular-value spectra with the chosen ranks"),
        *tables.picture(drawn, "overlap.png", "Overlap of the chosen masks beside chance"),
        *tables.texts(found.text_reports),
        *tables.failed(found.failures),
        *tables.sizes(splits),
        *_time(found.times, drawn),
        *tables.provenance(info),
    ]
    return "\n\n".join(blocks) + "\n"


def _time(times: pd.DataFrame, drawn: Iterable[str]) -> list[str]:
    if times.empty:
        return []
    return ["## Time", format_time(times), *tables.picture(drawn, "time.png", "Time by language and stage")]

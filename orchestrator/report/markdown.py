"""The report of a sweep: `report.md`, `results.csv`, `vectors.csv` and plots, from what the store holds.

Written at the end of every sweep, and again whenever asked for; the same state gives the same bytes. Test scores are
read only once the search has ended, and the row on top is the one that validation chose, whatever its test score. The
paragraphs on top are made in `summary`, the tables in `tables`, the pictures in `plots`.
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
from orchestrator.report.vectors import Mask, Spectrum, chosen_masks, chosen_spectra, read_sfts
from orchestrator.wording import effective_l1, format_precision, format_validation, stage_warnings


@dataclass(frozen=True)
class _ReportData:
    """Everything that the report is made from."""

    info: SweepInfo
    state: State
    failures: dict[str, Failure]
    validation: Results | None
    test: Results | None
    sfts: pd.DataFrame
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
    data = _read(store, folder)
    plots = _plots(data)
    for name, content in plots.items():
        folder.write_file(content, "plots", name)
    folder.write_file(_csv(_result_frame(data)), "results.csv")
    folder.write_file(_csv(data.sfts), "vectors.csv")
    folder.write_file(_markdown(data, plots).encode(), "report.md")


def _read(store: Store, folder: SweepFolder) -> _ReportData:
    _, info = known_sweep(store, folder.name)
    state = folder.state()
    targets = [str(target) for target in info.space["targets"]]
    manifests = [manifest for address in state.stages if (manifest := store.manifest(address))]
    return _ReportData(
        info=info,
        state=state,
        failures=folder.failures(),
        validation=read_results(folder, targets, "valid"),
        test=read_results(folder, targets, "test") if state.ended else None,
        sfts=read_sfts(store, state),
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
    """The result of a text check; None where its file is damaged, since a report runs no stage again."""
    try:
        return TextReport.model_validate_json(store.fetch(address, CHECK).read_bytes())
    except StoreError:
        return None


def _plots(data: _ReportData) -> dict[str, bytes]:
    bars = data.test or data.validation
    chosen = data.sfts[data.sfts["chosen"].astype(bool)]
    to_lt_sft = chosen.set_index("subject")["jaccard_lt_sft"].dropna().to_dict()
    drawn = {
        "heatmap.png": heatmap(data.validation) if data.validation else None,
        "languages.png": language_bars(bars) if bars else None,
        "spectra.png": spectra_plot(data.spectra),
        "overlap.png": overlap_plot(data.masks, to_lt_sft),
        "time.png": time_plot(data.times),
    }
    return {name: png(figure) for name, figure in drawn.items() if figure}


def _result_frame(data: _ReportData) -> pd.DataFrame:
    frames = [results.frame for results in (data.test, data.validation) if results]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=RESULT_COLUMNS)


def _csv(frame: pd.DataFrame) -> bytes:
    return str(frame.to_csv(index=False, lineterminator="\n")).encode()


def _markdown(data: _ReportData, drawn: Iterable[str]) -> str:
    info, splits = data.info, [results for results in (data.validation, data.test) if results]
    blocks = [
        f"# DEFT-X sweep {info.name}: {info.benchmark}",
        summary(info, data.state, data.validation, data.test),
        f"Effective L1: {effective_l1(info.space)}. Backbone: {info.backbone}. "
        f"Precision: {format_precision(info.space)}.",
        *tables.warnings(info, data.state, splits, data.failures, data.stage_warnings),
        *tables.scores(
            data.test, "No row was chosen by this table, and no interval is adjusted for the number of rows."
        ),
        *tables.picture(drawn, "languages.png", "Scores by language with 95 % intervals"),
        *tables.scores(data.validation, f"Validation {format_validation(info)}."),
        *tables.picture(drawn, "heatmap.png", "Mean validation score by rank"),
        *tables.sfts(data.sfts),
        *tables.picture(drawn, "spectra.png", "Singular-value spectra with the chosen ranks"),
        *tables.picture(drawn, "overlap.png", "Overlap of the chosen masks beside chance"),
        *tables.texts(data.text_reports),
        *tables.failed(data.failures),
        *tables.sizes(splits),
        *_time(data.times, drawn),
        *tables.provenance(info),
    ]
    return "\n\n".join(blocks) + "\n"


def _time(times: pd.DataFrame, drawn: Iterable[str]) -> list[str]:
    if times.empty:
        return []
    return ["## Time", format_time(times), *tables.picture(drawn, "time.png", "Time by language and stage")]

"""What a sweep chose, as compositions that `deftx export` makes into models: `sweeps/<name>/chosen.json`, by language.

Written when the search has ended, with the test scores, and removed when a widened space lets it go on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from deftx.config import EvaluationSplit
from deftx.sft.composition import CHOSEN, Composition, Part, SplitScore, Stored
from deftx.sources.published import Published
from deftx.stages.settings import GradeSettings
from deftx.stages.stage import Stage, settings_of
from orchestrator.plan.rows import PlannedRow
from orchestrator.record.sweep import SweepFolder
from orchestrator.report.results import Results, read_results
from orchestrator.space.schema import Space
from orchestrator.wording import format_selection

_SPLITS: tuple[EvaluationSplit, ...] = ("valid", "test")
"""In the order of the file."""


def forget_choice(folder: SweepFolder) -> None:
    """Remove the choice, since the search goes on."""
    folder.store.remove("sweeps", folder.name, CHOSEN)


def write_choice(folder: SweepFolder, space: Space, backbone: Published | Stage, row: PlannedRow | None) -> None:
    """Write the choice of an ended search: a composition for each target language, if a row was completed.

    Raises:
        StoreError: when a grade is gone, altered or unreadable.
    """
    compositions = _compositions(folder, space, backbone, row) if row else {}
    content = {language: composition.model_dump(mode="json") for language, composition in compositions.items()}
    folder.write_file(json.dumps(content, indent=1, ensure_ascii=False).encode(), CHOSEN)


def export_command(folder: SweepFolder, space: Space) -> str:
    """The command that exports the model of the first target language."""
    arguments = ["deftx", "export", folder.url(), space.targets[0], f"{folder.name}-{space.targets[0]}"]
    local = isinstance(space.backbone, str) and Path(space.backbone).expanduser().is_dir()
    return shlex.join([*arguments, *(["--backbone", str(space.backbone)] if local else [])])


def _compositions(
    folder: SweepFolder, space: Space, backbone: Published | Stage, row: PlannedRow
) -> dict[str, Composition]:
    origin, scores = _origin(folder, space), _scores(folder, [*row.grades])
    compositions = {}
    for target, grade in row.grades.items():
        settings = settings_of(grade, GradeSettings)
        language_sft = grade.input("language")
        compositions[target] = Composition(
            backbone=_part(backbone),
            task=_part(row.task),
            language=_part(language_sft) if language_sft else None,
            weights=settings.weights,
            labels=space.benchmark_spec.labels,
            max_length=settings.max_length,
            target=target,
            benchmark=space.benchmark_spec.name,
            kind=space.benchmark_spec.kind,
            origin=origin,
            scores=scores[target],
        )
    return compositions


def _part(model_or_sft: Published | Stage) -> Part:
    return Stored(address=model_or_sft.address) if isinstance(model_or_sft, Stage) else model_or_sft


def _origin(folder: SweepFolder, space: Space) -> str:
    info, state = folder.info(), folder.state()
    assert info is not None and state.chosen_row is not None
    return (
        f"{state.chosen_row.title}, of {len(state.combinations)} combinations of the sweep {folder.name!r} "
        f"(seed {space.seed}), by {format_selection(info, space.benchmark_spec.metric)}."
    )


def _scores(folder: SweepFolder, targets: Sequence[str]) -> dict[str, tuple[SplitScore, ...]]:
    splits = [read_results(folder, targets, split, chosen_only=True) for split in _SPLITS]
    return {target: tuple(_score(results, target) for results in splits if results) for target in targets}


def _score(results: Results, target: str) -> SplitScore:
    assert results.chosen is not None
    score = results.chosen.scores[target]
    return SplitScore(
        split=results.split, metric=results.metric, value=score.value, low=score.low, high=score.high,
        items=results.items(target), occurring=results.occurring(results.chosen, target),
    )  # fmt: skip

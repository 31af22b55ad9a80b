"""What MLflow shows of an experiment before anyone has clicked: a description, and two saved views of each sweep.

MLflow shows no scores in its list of runs by default and has no call to change that; a view saved by hand is a tag of
the experiment, and so are these, under Views. A version of MLflow that knows no such views passes them over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from orchestrator.record.sweep import SweepInfo
from orchestrator.tracking import names as shown
from orchestrator.wording import METRIC_WORDS

_NOTE = (
    "DEFT-X on {benchmark}. One run for each sweep; under it (the plus sign) one for each stage. "
    "**Views**, on top of the list of runs, has the scores and the vectors of a sweep as tables."
)
_WIDTHS = {"tags.`language`": 90, "tags.`subject`": 90, "tags.`rows`": 280, "tags.`chosen`": 80}  # pixels
_OF_VECTORS = ("mean_rank", "energy_kept", "jaccard_lt_sft", "valid_loss", "valid_score")


def experiment_tags(info: SweepInfo) -> dict[str, str]:
    """The tags of a sweep's experiment. What a user has changed since is theirs: they are for an experiment without."""
    scores = [shown.score_name(split, metric) for metric in METRIC_WORDS for split in ("validation", "test")]
    first = "metrics.`" + scores[0] + "`"
    grades = ["tags.`language`", "tags.`rows`", *(f"metrics.`{name}`" for name in scores), "tags.`chosen`"]
    made = [shown.result("sparse", key, 0)[0] for key in _OF_VECTORS]
    vectors = ["params.`denoise.rank`", "params.`denoise.retention`", *(f"metrics.`{name}`" for name in made)]
    return {
        "mlflow.note.content": _NOTE.format(benchmark=info.benchmark),
        "mlflow.experimentKind": "custom_model_development",
        **_view(info, "scores", "grade", grades, first),
        **_view(info, "vectors", "sparse", ["tags.`subject`", *vectors], "tags.`subject`", ascending=True),
    }


def _view(
    info: SweepInfo, what: str, kind: str, columns: list[str], order: str, *, ascending: bool = False
) -> dict[str, str]:
    state: Mapping[str, object] = {
        "searchFilter": f"tags.sweep = '{info.name}' and tags.kind = '{kind}'",
        "orderByKey": order,
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: _WIDTHS.get(column, 7 * len(column) - 30) for column in columns},
    }
    view = {"name": f"{info.name}: {what}", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{info.name}-{what}": json.dumps(view)}

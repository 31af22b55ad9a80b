"""Grading a composition: theta0 + a phi_T + b phi_L on one target language. Test scores go into a file of their own."""

from __future__ import annotations

import json
from typing import Any, get_args

import torch

from deftx.config import EvaluationSplit, Metric
from deftx.data.catalogue import benchmark
from deftx.data.examples import read_examples
from deftx.evaluate.metrics import score
from deftx.masks.mask import mask_size
from deftx.masks.select import non_zero
from deftx.method.context import Context, Made, backbone_folder, dense_of, sft_of
from deftx.models.load import cut_length, load_classifier, load_tokenizer, reads_segments
from deftx.sft.compose import composed
from deftx.sft.vector import SFTMetadata, SparseFineTuning
from deftx.sources.hub import Source
from deftx.stages.facts import GradeFacts
from deftx.stages.files import DELTA, HEAD, SCORES, SEALED, SFT
from deftx.stages.kinds import kind_of
from deftx.stages.settings import GradeSettings
from deftx.stages.stage import Stage, settings_of
from deftx.stages.store import Store
from deftx.tensor_files import LazyTensors
from deftx.train.objectives import encode, predict

METRICS: tuple[Metric, ...] = get_args(Metric)


def grade(context: Context) -> Made:
    """The grade of a composition: validation scores as metrics, test scores in a file of their own alone."""
    settings, store = settings_of(context.stage, GradeSettings), context.store
    spec = benchmark(settings.benchmark)
    task_stage = context.stage.needed("task")
    task = _task_sft(store, task_stage)
    language = sft_of(store, context.stage, "language", settings.vector)
    folder = backbone_folder(store, dense_of(task_stage))
    tokenizer = load_tokenizer(folder)
    device = torch.device(context.execution.device)
    model = load_classifier(folder, spec.labels, seed=0).to(device).eval()
    length = cut_length(settings.max_length, model)
    valid: dict[str, float] = {}
    with composed(model, task, language, settings.weights):
        for split, source, name in _evaluated(settings):
            rows = read_examples(spec, source, settings.language, split)
            encoded = encode(tokenizer, rows.texts, rows.pairs, rows.labels, length, reads_segments(model))
            predicted = predict(model, encoded, tokenizer.pad_token_id, device)
            scores = {str(m): score(encoded.labels.tolist(), predicted.tolist(), spec.labels, m) for m in METRICS}
            record: dict[str, Any] = {
                "language": settings.language, "labels": list(spec.labels), "metric": spec.metric,
                "ids": list(rows.ids), "gold": encoded.labels.tolist(), "predicted": predicted.tolist(), **scores,
            }  # fmt: skip
            (context.folder / name).write_text(json.dumps(record), encoding="utf-8")
            if split == "valid":
                valid = {f"valid_{metric}": value for metric, value in scores.items()}
    return Made(GradeFacts(**valid))


def _evaluated(settings: GradeSettings) -> list[tuple[EvaluationSplit, Source, str]]:
    return [("valid", settings.valid, SCORES), ("test", settings.test, SEALED)]


def _task_sft(store: Store, stage: Stage) -> SparseFineTuning:
    if kind_of(stage.kind).makes_sft:
        return SparseFineTuning.from_folder(store.fetch_folder(stage.address, SFT))
    delta, head = LazyTensors(store.fetch(stage.address, DELTA)), LazyTensors(store.fetch(stage.address, HEAD))
    mask = non_zero(delta)
    metadata = SFTMetadata(backbone="dense phase", k=mask_size(mask))
    return SparseFineTuning.from_delta(delta, mask, metadata, head)

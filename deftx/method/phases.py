"""Algorithm 1 of the paper: the dense phase, denoising, the choice of k entries, and the sparse phase.

Both phases of a vector begin at the same start with the same head and minimise the same thing; one loop trains them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deftx.data.blocks import Blocks
from deftx.data.catalogue import Benchmark, benchmark
from deftx.data.examples import read_examples, read_training
from deftx.data.leaks import Cleaned, clean_training, texts_digest
from deftx.errors import ConfigError, DataError
from deftx.masks.mask import choose, denoise_all, mask_size, save_svd_factors, svd_factors_of
from deftx.masks.select import Indices
from deftx.method import environment
from deftx.method.context import Context, Made, backbone_folder, sft_of
from deftx.models.load import cut_length, load_classifier, load_masked_lm, load_tokenizer, longest_input, reads_segments
from deftx.models.parameters import head_of
from deftx.sft.compose import apply
from deftx.sft.vector import SFTMetadata, SparseFineTuning
from deftx.sources.published import HubFolder, local_folder, name_of
from deftx.stages.facts import DenseFacts, SparseFacts
from deftx.stages.files import BLOCKS, DELTA, DROPPED, HEAD, SFT
from deftx.stages.settings import DenseSettings, SparseSettings, TaskData, TextStageSettings
from deftx.stages.stage import Stage, settings_of
from deftx.stages.store import Store
from deftx.tensor_files import Kept, LazyTensors, write
from deftx.train.loop import TrainResult, train
from deftx.train.objectives import Classification, MaskedLanguageModelling, Masking, Objective, encode
from deftx.train.trainable import body_of, phase


def dense(context: Context) -> Made:
    """Algorithm 1, lines 1-3: train everything; the delta is the best checkpoint less the start."""
    settings = settings_of(context.stage, DenseSettings)
    model, objective = _prepare(context, context.stage)
    start = Kept()
    start.keep(body_of(model, settings.training))
    result = train(
        model, objective, settings.training, seed=context.stage.seed, trainable=phase(model, settings.training),
        execution=context.execution, checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    model.cpu()
    write(context.folder / DELTA, body_of(model, settings.training), lambda name, weight: weight - start[name])
    delta = LazyTensors(context.folder / DELTA, context.execution.device)
    save_file({name: p.detach().contiguous() for name, p in head_of(model).items()}, context.folder / HEAD)
    save_svd_factors(delta, context.folder)
    changed = sum(int(delta[name].count_nonzero()) for name in delta)
    facts = DenseFacts(**_trained(result), changed_entries=changed)
    details = {**_objective_facts(context, objective), "fingerprint": model.deftx_fingerprint, "training": result.way}
    return Made(facts, result.curve, details)


def sparse(context: Context) -> Made:
    """Algorithm 1, lines 4-9: denoise the delta, choose k entries, go back to the start and train only those."""
    settings = settings_of(context.stage, SparseSettings)
    dense_stage = context.stage.needed("dense")
    device = context.execution.device
    delta = LazyTensors(context.store.fetch(dense_stage.address, DELTA), device)
    denoised: Mapping[str, Tensor] = delta
    matrices: list[dict[str, Any]] = []
    if settings.denoise is not None:
        factors = svd_factors_of(context.store, dense_stage.address, device)
        denoised, matrices = denoise_all(delta, settings.denoise, factors)
    chosen, overlap = choose(delta, denoised, settings)
    mask = {name: index.cpu() for name, index in chosen.items()}
    del chosen  # as many numbers as entries train, on a GPU
    facts: dict[str, Any] = {"k": mask_size(mask), "jaccard_lt_sft": overlap, **_mean_denoising(matrices)}
    metadata = _metadata(context, dense_stage, settings, mask)
    curve: list[dict[str, float]] = []
    details: dict[str, Any] = {"matrices": matrices}
    if settings.retrain:
        del denoised  # as large as the weights, and only the mask is needed while they train
        sft, result = _retrain(context, dense_stage, mask, metadata)
        facts, curve = facts | _trained(result), result.curve
        details["training"] = result.way
    else:
        head = LazyTensors(context.store.fetch(dense_stage.address, HEAD))
        sft = SparseFineTuning.from_delta(denoised, mask, metadata, head)
    sft.save_pretrained(context.folder / SFT)
    return Made(SparseFacts(**facts), curve, details)


def _retrain(
    context: Context, dense: Stage, mask: Indices, metadata: SFTMetadata
) -> tuple[SparseFineTuning, TrainResult]:
    training = settings_of(dense, DenseSettings).training
    model, objective = _prepare(context, dense)
    body = body_of(model, training)
    start = {name: body[name].detach().view(-1)[index].clone() for name, index in mask.items()}
    result = train(
        model, objective, training, seed=context.stage.seed, trainable=phase(model, training, mask),
        execution=context.execution, checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    model.cpu()
    body = body_of(model, training)
    values = {name: body[name].detach().view(-1)[index] - start[name] for name, index in mask.items()}
    shapes = {name: tuple(body[name].shape) for name in mask}
    head = {name: parameter.detach() for name, parameter in head_of(model).items()}
    scored = metadata.model_copy(update={"scores": result.best})
    return SparseFineTuning(mask, values, shapes, scored, head), result


def _trained(result: TrainResult) -> dict[str, Any]:
    """The facts of a training."""
    return {**result.best, "best_step": result.best_step, "steps": result.steps}


def _prepare(context: Context, dense: Stage) -> tuple[Any, Objective]:
    """The start of both phases of a vector and what they minimise: the same in both, the head included."""
    settings = settings_of(dense, DenseSettings)
    folder = backbone_folder(context.store, dense)
    tokenizer = load_tokenizer(folder)
    if settings.task is None:
        lm_head = settings.lm_head if isinstance(settings.lm_head, str) else local_folder(settings.lm_head)
        model = load_masked_lm(folder, lm_head, settings.training.dropout, seed=dense.seed)
        _check_block(model, settings_of(dense.needed("text"), TextStageSettings).text.block, folder)
        return model, language_objective(context.store, dense, tokenizer)
    spec = benchmark(settings.task.benchmark)
    model = load_classifier(folder, spec.labels, dense.seed, settings.training.dropout)
    if (source := sft_of(context.store, dense, "start", settings.start)) is not None:
        apply(model, source)
    return model, _task_objective(context, settings.task, tokenizer, model)


def _check_block(model: Any, block: int, folder: Path) -> None:
    if block > (reads := longest_input(model)):
        raise ConfigError(f"block: {block} tokens, but {folder} reads {reads} at most")


def language_objective(store: Store, dense: Stage, tokenizer: Any) -> Objective:
    """Masked language modelling on the blocks that a dense stage reads; the validation mask is that of the text."""
    text = dense.needed("text")
    tensors = LazyTensors(store.fetch(text.address, BLOCKS))
    blocks = Blocks(tensors["train"].numpy(), tensors["valid"].numpy())
    masking = Masking(0.15, tokenizer.mask_token_id, len(tokenizer), frozenset(tokenizer.all_special_ids))
    return MaskedLanguageModelling(blocks, masking, tokenizer.pad_token_id, text.seed)


def _task_objective(context: Context, task: TaskData, tokenizer: Any, model: Any) -> Objective:
    spec, length, segments = benchmark(task.benchmark), cut_length(task.max_length, model), reads_segments(model)
    cleaned = _labelled(spec, task)
    dropped = [asdict(row) for row in cleaned.dropped]
    (context.folder / DROPPED).write_text(json.dumps(dropped, indent=1, ensure_ascii=False), encoding="utf-8")
    encoded = [
        encode(tokenizer, rows.texts, rows.pairs, rows.labels, length, segments)
        for rows in (cleaned.train.take(range(len(cleaned.train))[: task.max_rows]), cleaned.valid)
    ]
    return Classification(encoded[0], encoded[1], spec.labels, spec.metric, tokenizer.pad_token_id)


def _labelled(spec: Benchmark, task: TaskData) -> Cleaned:
    """The labelled data of the source language without its leaks."""
    training = {split: read_training(spec, sources, split) for split, sources in task.training.items()}
    language = spec.source_language
    evaluation = {split: read_examples(spec, source, language, split) for split, source in task.evaluation.items()}
    if evaluation and texts_digest(evaluation) != task.evaluation_texts:
        raise DataError(f"{spec.name}: the evaluation sentences changed since the sweep was planned")
    return clean_training(spec, training, evaluation, task.leaks)


def _metadata(context: Context, dense: Stage, settings: SparseSettings, mask: Indices) -> SFTMetadata:
    dense_settings = settings_of(dense, DenseSettings)
    spec = benchmark(dense_settings.task.benchmark) if dense_settings.task else None
    manifest = context.store.manifest(dense.address)
    published, trained = dense_settings.backbone, dense.input("backbone")
    return SFTMetadata(
        backbone=name_of(published) if published else f"stage {trained.address if trained else ''}",
        revision=published.commit if isinstance(published, HubFolder) else None,
        fingerprint=manifest.details["fingerprint"] if manifest else None,
        language=dense_settings.language,
        task=spec.name if spec else None,
        labels=list(spec.labels) if spec else None,
        k=mask_size(mask),
        rank=str(settings.denoise.rank) if settings.denoise else None,
        retention=settings.denoise.retention if settings.denoise else None,
        max_length=dense_settings.task.max_length if dense_settings.task else None,
        versions=environment.versions(),
    )


def _mean_denoising(matrices: list[dict[str, Any]]) -> dict[str, float]:
    """How far denoising went, on average over the matrices; empty for LT-SFT."""
    names = {"mean_rank": "rank", "nonzero_retention": "nonzero_retention", "energy_retention": "energy_retention"}
    return {name: sum(m[key] for m in matrices) / len(matrices) for name, key in names.items()} if matrices else {}


def _objective_facts(context: Context, objective: Objective) -> dict[str, Any]:
    dropped = context.folder / DROPPED
    rows = len(json.loads(dropped.read_text("utf-8"))) if dropped.is_file() else 0
    warnings = {"warnings": objective.warnings} if objective.warnings else {}
    return {"examples": objective.examples, "dropped_rows": rows, **warnings}

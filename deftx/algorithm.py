"""What each stage runs: Algorithm 1 of the paper, and the composition that grades its vectors.

`make` runs one stage in this process and publishes it, first making whatever it needs that is not in the store, so a
notebook needs nothing else. Stages as data are in `stages`; nothing is scheduled here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deftx import environment
from deftx.backbones import head_of, load_classifier, load_masked_lm, load_tokenizer
from deftx.compose import apply, compose
from deftx.config import Denoise, Execution, Precision, Settings, resolve_k
from deftx.data.benchmarks import Benchmark, Examples, Split, benchmark, read_examples, read_lines, read_training
from deftx.data.leaks import Cleaned, clean_training, texts_digest
from deftx.data.sources import Source
from deftx.data.text import Blocks, token_blocks
from deftx.denoise import Denoised, denoise, factorise, is_matrix
from deftx.errors import DataError
from deftx.evaluate import Metric, score
from deftx.objectives import Classification, MaskedLanguageModelling, Masking, Objective, encode, predict
from deftx.pretrain import pretrain
from deftx.published import HubFolder, Published, local_folder, name_of
from deftx.select import Indices, jaccard, non_zero, select
from deftx.sft import SFTMetadata, SparseFineTuning
from deftx.stages import (
    BackboneSettings,
    DenseSettings,
    GradeSettings,
    SparseSettings,
    Stage,
    TaskData,
    TextStageSettings,
)
from deftx.store import Attempt, Checkpoint, Manifest, Store
from deftx.training import Report, body_of, phase, train

log = logging.getLogger("deftx")
METRICS: tuple[Metric, ...] = ("macro_f1", "accuracy")
S = TypeVar("S", bound=Settings)

DELTA, HEAD, SPECTRA, BLOCKS = "delta.safetensors", "head.safetensors", "spectra.safetensors", "blocks.safetensors"
SCORES, SEALED, DROPPED = "scores.json", "sealed_test.json", "dropped_rows.json"


@dataclass
class Facts:
    """What a stage found, for its manifest."""

    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a running stage has at hand."""

    stage: Stage
    store: Store
    folder: Path
    execution: Execution
    report: Report | None

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the stage's training continues from."""
        return Checkpoint(self.store, self.stage.address)


def make(stage: Stage, store: Store, execution: Execution | None = None, report: Report | None = None) -> Manifest:
    """Make a stage, and first whatever it needs that the store does not have whole.

    Args:
        execution: device, threads and the like; none of it is meant to change the result.
        report: called with each point of the stage's own curve.

    Returns:
        The stage's manifest: the one in the store when it was there already, nothing being run then.

    Raises:
        DeftxError: for what a user did; nothing is published then.
    """
    if (manifest := store.manifest(stage.address)) is not None:
        if store.intact(stage.address):
            return manifest
        store.discard(stage.address)
    execution = execution or Execution()
    for needed in _read_by(stage):
        make(needed, store, execution)
    return _run(stage, store, execution, report)


def _read_by(stage: Stage) -> Iterator[Stage]:
    """The stages whose files a stage opens: its inputs, and what it takes from the dense phase it follows."""
    yield from (needed for _, needed in stage.inputs)
    if stage.kind == "sparse":
        yield from (needed for _, needed in dict(stage.inputs)["dense"].inputs)
    if stage.kind == "grade" and (backbone := _dense_of(dict(stage.inputs)["task"]).input("backbone")) is not None:
        yield backbone


def _dense_of(stage: Stage) -> Stage:
    return stage if stage.kind == "dense" else dict(stage.inputs)["dense"]


def _run(stage: Stage, store: Store, execution: Execution, report: Report | None) -> Manifest:
    started = time.monotonic()
    log.info("%s: starts (%s)", stage.label, stage.address)
    environment.prepare(stage.seed, execution, _precision(stage))
    environment.reset_peak_memory()
    attempt: Attempt = store.attempt(stage.address)
    try:
        facts = _RUNS[stage.kind](Context(stage, store, attempt.folder, execution, report))
    except BaseException:
        attempt.abandon()
        raise
    seconds = time.monotonic() - started
    manifest = attempt.publish(
        stage, metrics=facts.metrics, curve=facts.curve, details=facts.details, seconds=seconds,
        peak_bytes=environment.peak_memory(), execution=execution.model_dump(mode="json"),
        versions=environment.versions(), git_commit=environment.git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    log.info("%s: done in %.1f s: %s", stage.label, seconds, facts.metrics)
    return manifest


# -- backbone and text ------------------------------------------------------------------------------------------------


def _backbone(context: Context) -> Facts:
    settings = _settings(context.stage, BackboneSettings)
    texts = {language: read_lines(source) for language, source in settings.texts}
    others = {language: read_lines(source) for language, source in settings.tokenizer_texts}
    outcome = pretrain(
        context.folder / "model", settings, texts, others, seed=context.stage.seed, execution=context.execution,
        checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    return Facts({**outcome.best, "best_step": outcome.best_step, "steps": outcome.steps}, outcome.curve)


def _text(context: Context) -> Facts:
    settings = _settings(context.stage, TextStageSettings)
    lines = read_lines(settings.source)
    tokenizer = load_tokenizer(_backbone_folder(context.store, context.stage))
    try:
        blocks = token_blocks(lines, tokenizer, settings.text, context.stage.seed)
    except DataError as error:
        raise DataError(f"text of {settings.language}: {error}") from None
    save_file(
        {"train": torch.from_numpy(blocks.train), "valid": torch.from_numpy(blocks.valid)}, context.folder / BLOCKS
    )
    tokens = int((blocks.train != tokenizer.pad_token_id).sum())
    counts = {"lines": len(lines), "train_blocks": len(blocks.train), "valid_blocks": len(blocks.valid)}
    return Facts({**counts, "train_tokens": tokens})


# -- the two phases ---------------------------------------------------------------------------------------------------


def _dense(context: Context) -> Facts:
    """Algorithm 1, lines 1-3: train everything; the delta is the best checkpoint less the start."""
    settings = _settings(context.stage, DenseSettings)
    model, objective = _prepare(context, context.stage)
    start = {name: parameter.detach().clone() for name, parameter in body_of(model, settings.training).items()}
    outcome = train(
        model, objective, settings.training, seed=context.stage.seed, what=lambda: phase(model, settings.training),
        execution=context.execution, checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    model.cpu()
    delta = {name: p.detach() - start[name] for name, p in body_of(model, settings.training).items()}
    save_file(delta, context.folder / DELTA)
    save_file({name: p.detach().contiguous() for name, p in head_of(model).items()}, context.folder / HEAD)
    matrices = {name: tensor for name, tensor in delta.items() if is_matrix(tensor)}
    save_file({name: factorise(matrix).singular_values for name, matrix in matrices.items()}, context.folder / SPECTRA)
    changed = sum(int(tensor.count_nonzero()) for tensor in delta.values())
    metrics = {**outcome.best, "best_step": outcome.best_step, "steps": outcome.steps, "changed_entries": changed}
    details = {**_objective_facts(context, objective), "fingerprint": model.deftx_fingerprint}
    return Facts(metrics, outcome.curve, details)


def _sparse(context: Context) -> Facts:
    """Algorithm 1, lines 4-9: denoise the delta, choose k entries, go back to the start and train only those."""
    settings = _settings(context.stage, SparseSettings)
    dense = dict(context.stage.inputs)["dense"]
    delta = LazyTensors(context.store.fetch(dense.address, DELTA))
    denoised, matrices = _denoise_all(delta, settings.denoise)
    mask, facts = _choose(delta, denoised, settings)
    facts.details["matrices"] = matrices
    if matrices:
        facts.metrics |= _mean_denoising(matrices)
    metadata = _metadata(context, dense, settings, mask)
    if settings.retrain:
        sft = _retrain(context, dense, mask, metadata, facts)
    else:
        head = LazyTensors(context.store.fetch(dense.address, HEAD))
        sft = SparseFineTuning.from_delta(denoised, mask, metadata, head)
    sft.save_pretrained(context.folder / "sft")
    return facts


def _denoise_all(
    delta: Mapping[str, Tensor], settings: Denoise | None
) -> tuple[Mapping[str, Tensor], list[dict[str, Any]]]:
    """L + S of every matrix, biases as they are; and how far denoising went in each matrix."""
    if settings is None:
        return delta, []
    values: dict[str, Tensor] = {}
    facts = []
    for name in delta:
        tensor = delta[name]
        if is_matrix(tensor):
            result: Denoised = denoise(tensor, settings)
            values[name] = result.values
            share = result.rank / min(tensor.shape)
            facts.append(
                {"name": name, "rank": result.rank, "rank_share": share, "entries_kept": result.entries_kept,
                 "energy_kept": result.energy_kept}
            )  # fmt: skip
        else:
            values[name] = tensor
    return values, facts


def _choose(
    delta: Mapping[str, Tensor], denoised: Mapping[str, Tensor], settings: SparseSettings
) -> tuple[Indices, Facts]:
    """The mask, and its overlap with LT-SFT's mask from the same delta: denoising is never a silent no-op."""
    if settings.k is None:
        mask = non_zero(denoised)
        return mask, Facts({"k": sum(index.numel() for index in mask.values())})
    k = resolve_k(settings.k, sum(delta[name].numel() for name in delta))
    mask = select(denoised, k)
    overlap = 1.0 if denoised is delta else jaccard(mask, select(delta, k))
    return mask, Facts({"k": k, "jaccard_lt_sft": overlap})


def _retrain(context: Context, dense: Stage, mask: Indices, metadata: SFTMetadata, facts: Facts) -> SparseFineTuning:
    training = _settings(dense, DenseSettings).training
    model, objective = _prepare(context, dense)
    body = body_of(model, training)
    start = {name: body[name].detach().view(-1)[index].clone() for name, index in mask.items()}
    outcome = train(
        model, objective, training, seed=context.stage.seed, what=lambda: phase(model, training, mask),
        execution=context.execution, checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    model.cpu()
    body = body_of(model, training)
    values = {name: body[name].detach().view(-1)[index] - start[name] for name, index in mask.items()}
    shapes = {name: tuple(body[name].shape) for name in mask}
    head = {name: parameter.detach() for name, parameter in head_of(model).items()}
    facts.metrics |= {**outcome.best, "best_step": outcome.best_step, "steps": outcome.steps}
    facts.curve = outcome.curve
    scored = metadata.model_copy(update={"scores": outcome.best})
    return SparseFineTuning(mask, values, shapes, scored, head)


def _prepare(context: Context, dense: Stage) -> tuple[Any, Objective]:
    """The start of both phases of a vector and what they minimise: alike in both, the head included."""
    settings = _settings(dense, DenseSettings)
    folder = _backbone_folder(context.store, dense)
    tokenizer = load_tokenizer(folder)
    if settings.task is None:
        lm_head = settings.lm_head if isinstance(settings.lm_head, str) else local_folder(settings.lm_head)
        model = load_masked_lm(folder, lm_head, settings.training.dropout, seed=dense.seed)
        return model, _language_objective(context.store, dense, tokenizer)
    known = benchmark(settings.task.benchmark)
    model = load_classifier(folder, known.labels, dense.seed, settings.training.dropout)
    if (source := _vector(context.store, dense, "start", settings.start)) is not None:
        apply(model, source)
    return model, _task_objective(context, settings.task, tokenizer)


def _language_objective(store: Store, dense: Stage, tokenizer: Any) -> Objective:
    text = dict(dense.inputs)["text"]
    tensors = LazyTensors(store.fetch(text.address, BLOCKS))
    blocks = Blocks(tensors["train"].numpy(), tensors["valid"].numpy())
    masking = Masking(0.15, tokenizer.mask_token_id, len(tokenizer), frozenset(tokenizer.all_special_ids))
    return MaskedLanguageModelling(blocks, masking, tokenizer.pad_token_id, text.seed)


def _task_objective(context: Context, task: TaskData, tokenizer: Any) -> Objective:
    known = benchmark(task.benchmark)
    cleaned = _labelled(known, task)
    dropped = [asdict(row) for row in cleaned.dropped]
    (context.folder / DROPPED).write_text(json.dumps(dropped, indent=1, ensure_ascii=False), encoding="utf-8")
    encoded = [
        encode(tokenizer, rows.texts, rows.pairs, rows.labels, task.max_length)
        for rows in (cleaned.train.take(range(len(cleaned.train))[: task.max_rows]), cleaned.valid)
    ]
    return Classification(encoded[0], encoded[1], known.labels, known.metric, tokenizer.pad_token_id)


def _labelled(known: Benchmark, task: TaskData) -> Cleaned:
    """The labelled data of the source language without its leaks."""
    training = {split: read_training(known, sources, split) for split, sources in task.training.items()}
    language = known.source_language
    evaluation: dict[Split, Examples] = {
        split: read_examples(known, source, language, split) for split, source in task.evaluation.items()
    }
    if evaluation and texts_digest(*(evaluation[split] for split in sorted(evaluation))) != task.evaluation_texts:
        raise DataError(f"{known.name}: the evaluation sentences changed since the sweep was planned")
    return clean_training(known, training, evaluation, task.leaks)


# -- grading ----------------------------------------------------------------------------------------------------------


def _grade(context: Context) -> Facts:
    """theta0 + a phi_T + b phi_L on one target language. The test scores go into a file of their own."""
    settings, store = _settings(context.stage, GradeSettings), context.store
    known = benchmark(settings.benchmark)
    task_stage = dict(context.stage.inputs)["task"]
    task = _task_vector(store, task_stage)
    language = _vector(store, context.stage, "language", settings.vector)
    folder = _backbone_folder(store, _dense_of(task_stage))
    tokenizer = load_tokenizer(folder)
    device = torch.device(context.execution.device)
    model = load_classifier(folder, known.labels, seed=0).to(device).eval()
    facts = Facts()
    with compose(model, task, language, settings.weights):
        for split, source, name in _evaluated(settings):
            rows = read_examples(known, source, settings.language, split)
            encoded = encode(tokenizer, rows.texts, rows.pairs, rows.labels, settings.max_length)
            predicted = predict(model, encoded, tokenizer.pad_token_id, device)
            scores = {str(m): score(encoded.labels.tolist(), predicted.tolist(), known.labels, m) for m in METRICS}
            record: dict[str, Any] = {
                "language": settings.language, "labels": list(known.labels), "metric": known.metric,
                "ids": list(rows.ids), "gold": encoded.labels.tolist(), "predicted": predicted.tolist(), **scores,
            }  # fmt: skip
            (context.folder / name).write_text(json.dumps(record), encoding="utf-8")
            if split == "valid":
                facts.metrics = {f"valid_{metric}": value for metric, value in scores.items()}
    return facts


def _evaluated(settings: GradeSettings) -> list[tuple[Split, Source, str]]:
    return [("valid", settings.valid, SCORES), ("test", settings.test, SEALED)]


def _task_vector(store: Store, stage: Stage) -> SparseFineTuning:
    if stage.kind == "sparse":
        return SparseFineTuning.from_pretrained(store.fetch_folder(stage.address, "sft"))
    delta, head = LazyTensors(store.fetch(stage.address, DELTA)), LazyTensors(store.fetch(stage.address, HEAD))
    mask = non_zero(delta)
    metadata = SFTMetadata(backbone="dense phase", k=sum(index.numel() for index in mask.values()))
    return SparseFineTuning.from_delta(delta, mask, metadata, head)


# -- what stages share ------------------------------------------------------------------------------------------------


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from disk when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open a file; only its header is read."""
        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._names)


def _vector(store: Store, stage: Stage, role: str, published: Published | None) -> SparseFineTuning | None:
    if (needed := stage.input(role)) is not None:
        return SparseFineTuning.from_pretrained(store.fetch_folder(needed.address, "sft"))
    if published is None:
        return None
    revision = published.commit if isinstance(published, HubFolder) else "main"
    return SparseFineTuning.from_pretrained(name_of(published), revision)


def _backbone_folder(store: Store, stage: Stage) -> Path:
    if (trained := stage.input("backbone")) is not None:
        return store.fetch_folder(trained.address, "model")
    assert isinstance(stage.settings, TextStageSettings | DenseSettings) and stage.settings.backbone is not None
    return local_folder(stage.settings.backbone)


def _metadata(context: Context, dense: Stage, settings: SparseSettings, mask: Indices) -> SFTMetadata:
    of = _settings(dense, DenseSettings)
    known = benchmark(of.task.benchmark) if of.task else None
    made = context.store.manifest(dense.address)
    trained = dense.input("backbone")
    return SFTMetadata(
        backbone=name_of(of.backbone) if of.backbone else f"stage {trained.address if trained else ''}",
        revision=of.backbone.commit if isinstance(of.backbone, HubFolder) else None,
        fingerprint=made.details["fingerprint"] if made else None,
        language=of.language,
        task=known.name if known else None,
        labels=list(known.labels) if known else None,
        k=sum(index.numel() for index in mask.values()),
        rank=settings.denoise.rank if settings.denoise else None,
        retention=settings.denoise.retention if settings.denoise else None,
        versions=environment.versions(),
    )


def _mean_denoising(matrices: list[dict[str, Any]]) -> dict[str, float]:
    names = {"rank": "mean_rank", "entries_kept": "entries_kept", "energy_kept": "energy_kept"}
    return {new: sum(m[old] for m in matrices) / len(matrices) for old, new in names.items()}


def _objective_facts(context: Context, objective: Objective) -> dict[str, Any]:
    dropped = context.folder / DROPPED
    rows = len(json.loads(dropped.read_text("utf-8"))) if dropped.is_file() else 0
    return {"examples": objective.examples, "dropped_rows": rows}


def _precision(stage: Stage) -> Precision:
    dense = stage.input("dense") or stage
    training = getattr(dense.settings, "training", None)
    return training.precision if training else "float32"


def _settings(stage: Stage, kind: type[S]) -> S:
    assert isinstance(stage.settings, kind), f"a {stage.kind} stage has {kind.__name__}"
    return stage.settings


_RUNS: dict[str, Callable[[Context], Facts]] = {
    "backbone": _backbone,
    "text": _text,
    "dense": _dense,
    "sparse": _sparse,
    "grade": _grade,
}

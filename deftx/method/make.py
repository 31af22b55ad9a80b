"""What each stage runs. `make` runs one in this process and publishes it, first making whatever it needs.

A notebook needs nothing else. Stages as data are in the room `stages`, Algorithm 1 of the paper is in `phases`,
composition is graded in `grading`; nothing is scheduled here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import torch
from safetensors.torch import save_file

from deftx.config import Execution, Precision
from deftx.data.blocks import token_blocks
from deftx.data.catalogue import benchmark
from deftx.data.corpora import every_line, read_lines
from deftx.data.examples import read_examples
from deftx.data.text_check import check_text
from deftx.errors import DataError
from deftx.method import environment
from deftx.method.context import Context, Facts, backbone_folder, dense_of, settings_of
from deftx.method.grading import grade
from deftx.method.phases import dense, sparse
from deftx.method.pretrain import pretrain
from deftx.models.load import load_tokenizer
from deftx.stages.files import BLOCKS, CHECK, MODEL
from deftx.stages.settings import BackboneSettings, CheckSettings, TextStageSettings
from deftx.stages.stage import Stage, checked_text
from deftx.stages.store import Attempt, Manifest, Store
from deftx.train.loop import Report

log = logging.getLogger("deftx")

Watch = Callable[[Stage], Report | None]
"""Called with a stage as it begins; what it returns is called with each point of the stage's curve."""


def make(stage: Stage, store: Store, execution: Execution | None = None, watch: Watch | None = None) -> Manifest:
    """Make a stage, and first whatever it needs that the store does not have whole.

    Args:
        execution: device, threads and the like; none of it is meant to change the result.
        watch: called with each stage that is run, whatever the store has no more of among them.

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
        make(needed, store, execution, watch)
    return _run(stage, store, execution, watch)


def _read_by(stage: Stage) -> Iterator[Stage]:
    """The stages whose files a stage opens: its inputs, and what it takes from the dense phase it follows."""
    yield from (needed for _, needed in stage.inputs)
    if stage.kind == "sparse":
        yield from (needed for _, needed in dict(stage.inputs)["dense"].inputs)
    if stage.kind == "grade" and (backbone := dense_of(dict(stage.inputs)["task"]).input("backbone")) is not None:
        yield backbone


def _run(stage: Stage, store: Store, execution: Execution, watch: Watch | None) -> Manifest:
    started, report = time.monotonic(), watch(stage) if watch else None
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


def _backbone(context: Context) -> Facts:
    settings = settings_of(context.stage, BackboneSettings)
    texts = {language: read_lines(source) for language, source in settings.texts}
    others = {language: read_lines(source) for language, source in settings.tokenizer_texts}
    outcome = pretrain(
        context.folder / MODEL, settings, texts, others, seed=context.stage.seed, execution=context.execution,
        checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    return Facts({**outcome.best, "best_step": outcome.best_step, "steps": outcome.steps}, outcome.curve)


def _check(context: Context) -> Facts:
    settings = settings_of(context.stage, CheckSettings)
    found = check_text(
        settings.language, every_line(settings.source), load_tokenizer(backbone_folder(context.store, context.stage)),
        settings.text, settings.training, seed=checked_text(context.stage).seed, evaluation=_sentences(settings),
    )  # fmt: skip
    (context.folder / CHECK).write_text(found.model_dump_json(indent=1), encoding="utf-8")
    counts = {
        "lines": found.passages, "repeated_lines": found.repeated.count,
        "shared_lines": found.shared, "tokens_per_word": found.tokens_per_word,
        "unknown_share": found.unknown_share, "train_blocks": found.train_blocks, "valid_blocks": found.valid_blocks,
        "good_for_steps": found.good_for, "planned_steps": found.planned_steps, "warnings": len(found.warnings),
    }  # fmt: skip
    return Facts(counts, details={"summary": found.summary, "warnings": list(found.warnings)})


def _sentences(settings: CheckSettings) -> list[str] | None:
    """What must not be in the text: the evaluation sentences of its language, both sides of a pair."""
    if not settings.evaluation:
        return None
    known, language = benchmark(settings.benchmark), settings.language
    tables = [read_examples(known, source, language, split) for split, source in settings.evaluation.items()]
    return [text for table in tables for text in (*table.texts, *(table.pairs or ()))]


def _text(context: Context) -> Facts:
    settings = settings_of(context.stage, TextStageSettings)
    lines = read_lines(settings.source)
    tokenizer = load_tokenizer(backbone_folder(context.store, context.stage))
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


def _precision(stage: Stage) -> Precision:
    trained = stage.input("dense") or stage
    training = getattr(trained.settings, "training", None)
    return training.precision if training else "float32"


_RUNS: dict[str, Callable[[Context], Facts]] = {
    "backbone": _backbone,
    "check": _check,
    "text": _text,
    "dense": dense,
    "sparse": sparse,
    "grade": grade,
}

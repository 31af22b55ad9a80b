"""The stages that read plain text: a backbone pre-trained on it, its token blocks, and what it is good for.

How text is read, checked and cut is in `deftx.data`, the pre-training itself in `pretrain`.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from deftx.data.blocks import token_blocks
from deftx.data.catalogue import benchmark
from deftx.data.corpora import every_line, read_lines
from deftx.data.examples import read_examples
from deftx.data.text_check import check_text
from deftx.errors import DataError
from deftx.method.context import Context, Made, backbone_folder
from deftx.method.pretrain import pretrain
from deftx.models.load import load_tokenizer
from deftx.stages.facts import BackboneFacts, CheckFacts, TextFacts
from deftx.stages.files import BLOCKS, CHECK, MODEL
from deftx.stages.kinds import checked_text
from deftx.stages.settings import BackboneSettings, CheckSettings, TextStageSettings
from deftx.stages.stage import settings_of


def backbone(context: Context) -> Made:
    """A small model and its tokenizer, pre-trained here."""
    settings = settings_of(context.stage, BackboneSettings)
    texts = {language: read_lines(source) for language, source in settings.texts}
    others = {language: read_lines(source) for language, source in settings.tokenizer_texts}
    result = pretrain(
        context.folder / MODEL, settings, texts, others, seed=context.stage.seed, execution=context.execution,
        checkpoints=context.checkpoint, report=context.report,
    )  # fmt: skip
    facts = BackboneFacts(**result.best, best_step=result.best_step, steps=result.steps)
    return Made(facts, result.curve, {"training": result.way})


def check(context: Context) -> Made:
    """The check of a language's text, before anything is trained on it."""
    settings = settings_of(context.stage, CheckSettings)
    report = check_text(
        settings.language, every_line(settings.source), load_tokenizer(backbone_folder(context.store, context.stage)),
        settings.text, settings.training, seed=checked_text(context.stage).seed, evaluation=_sentences(settings),
    )  # fmt: skip
    (context.folder / CHECK).write_text(report.model_dump_json(indent=1), encoding="utf-8")
    facts = CheckFacts(
        lines=report.passages, repeated_lines=report.repeated.count, shared_lines=report.shared,
        tokens_per_word=report.tokens_per_word, unknown_share=report.unknown_share, train_blocks=report.train_blocks,
        valid_blocks=report.valid_blocks, good_for_steps=report.good_for, planned_steps=report.planned_steps,
        warnings=len(report.warnings),
    )  # fmt: skip
    return Made(facts, details={"summary": report.summary, "warnings": list(report.warnings)})


def _sentences(settings: CheckSettings) -> list[str] | None:
    """What must not be in the text: the evaluation sentences of its language, both sides of a pair."""
    if not settings.evaluation:
        return None
    spec, language = benchmark(settings.benchmark), settings.language
    tables = [read_examples(spec, source, language, split) for split, source in settings.evaluation.items()]
    return [text for table in tables for text in (*table.texts, *(table.pairs or ()))]


def text(context: Context) -> Made:
    """The token blocks of a language's text."""
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
    facts = TextFacts(
        lines=len(lines), train_blocks=len(blocks.train), valid_blocks=len(blocks.valid), train_tokens=tokens
    )
    return Made(facts)

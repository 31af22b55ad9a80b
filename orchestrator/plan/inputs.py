"""Resolves the files, data sets and models that a space names; everything that is missing is reported at once.

Resolving touches files and the hub; what is made of it (`rows`) is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from deftx.config import EVALUATION_SPLITS, EvaluationSplit
from deftx.data.corpora import corpus_source
from deftx.data.examples import evaluation_source
from deftx.data.inputs import TaskInputs, read_tables, task_inputs
from deftx.errors import ConfigError, DataError, Problems
from deftx.sources.files import file_source
from deftx.sources.hub import Source
from deftx.sources.published import Published, openable, resolve_folder
from deftx.stages.backbones import check_k, resolve_lm_head
from deftx.stages.settings import BackboneSettings, BackboneShape, LMHead
from deftx.stages.stage import Stage
from orchestrator.space.schema import Space


@dataclass(frozen=True)
class ResolvedInputs:
    """The text, tables, models and SFTs that a space names, each by content or commit."""

    backbone: Published | Stage
    lm_head: LMHead
    source_sft: Published | None
    corpora: dict[str, Source]
    task: TaskInputs
    evaluation: dict[tuple[str, EvaluationSplit], Source]
    """Of the target languages."""


def resolve(space: Space, data_root: str | None) -> ResolvedInputs:
    """The inputs of a space: every file, data set, model and vector that it names, resolved.

    Args:
        data_root: folder or URL of the original files; None: the hub.

    Raises:
        DataError: naming every file, model and data set that is missing or cannot be reached.
    """
    benchmark, problems = space.benchmark_spec, Problems()
    languages = [*space.targets] + ([benchmark.source_language] if space.source.learn else [])
    corpora = {lang: problems.get(partial(corpus_source, benchmark, lang, data_root)) for lang in languages}
    task = problems.get(lambda: task_inputs(benchmark, space.leaks, data_root))
    evaluation = {
        (lang, split): problems.get(partial(evaluation_source, benchmark, lang, split, data_root))
        for lang in space.targets
        for split in EVALUATION_SPLITS
    }
    backbone = problems.get(lambda: _backbone(space, data_root, corpora))
    lm_head = problems.get(lambda: resolve_lm_head(space.lm_head))
    published = space.source.sft
    sft = problems.get(lambda: resolve_folder(published)) if published else None
    if data_root is not None:
        read_tables(benchmark, {}, {at: table for at, table in evaluation.items() if table is not None}, problems)
    if backbone is not None:
        problems.get(lambda: check_k(backbone, space.language, "language.k"))
        problems.get(lambda: check_k(backbone, space.task, "task.k"))
    _look(problems, space, backbone, lm_head, sft)
    if problems.lines:
        raise DataError("\n".join(problems.lines))
    return ResolvedInputs(backbone, lm_head, sft, corpora, task, evaluation)  # type: ignore[arg-type]


def _look(
    problems: Problems, space: Space, backbone: Published | Stage | None, lm_head: LMHead | None, sft: Published | None
) -> None:
    """Look at what is published, which takes torch; a plan of a backbone that is pre-trained here goes without."""
    own, donor, source = openable(backbone), openable(lm_head), openable(sft)
    if not (own or donor or source):
        return
    from deftx.method.look import look

    lengths = {"task.max_length": space.task.max_length, "language.text.block": space.language.text.block}
    head = donor or (lm_head if isinstance(lm_head, str) else "random")
    look(problems, own, lengths, head, {"source.sft": source} if source else {})


def _backbone(space: Space, data_root: str | None, corpora: Mapping[str, Source | None]) -> Published | Stage:
    if isinstance(space.backbone, str):
        return resolve_folder(space.backbone, space.backbone_revision)
    recipe = space.backbone
    languages = dict.fromkeys((*recipe.languages, *recipe.tokenizer_languages))
    texts = {language: _pretraining_text(language, data_root, corpora.get(language)) for language in languages}
    settings = BackboneSettings(
        texts=tuple((language, texts[language]) for language in recipe.languages),
        tokenizer_texts=tuple((language, texts[language]) for language in recipe.tokenizer_languages),
        seed=space.seed,
        **{name: getattr(recipe, name) for name in BackboneShape.model_fields},
    )
    return Stage("backbone", settings)


def _pretraining_text(language: str, data_root: str | None, corpus: Source | None) -> Source:
    if data_root is None:
        raise ConfigError("a backbone that is pre-trained here reads its text under --data-root; none was given")
    try:
        return file_source(f"{data_root}/pretraining/{language}.txt")
    except DataError:
        return corpus or file_source(f"{data_root}/corpora/{language}.txt")

"""Everything outside that a space needs, resolved once to content or commit; all that is missing is told at once.

Resolving touches files and the hub; what is made of it (`rows`) is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from deftx.config import (
    EVALUATION_SPLITS,
    EvaluationSplit,
    LanguageRecipe,
    LeakRule,
    Split,
    TaskRecipe,
    resolve_k,
)
from deftx.data.corpora import corpus_source
from deftx.data.examples import evaluation_source, read_examples, read_training, training_sources
from deftx.data.leaks import texts_digest
from deftx.errors import ConfigError, DataError, DeftxError
from deftx.sources.files import FileSource, file_source
from deftx.sources.hub import Source
from deftx.sources.pins import resolve_once
from deftx.sources.published import Published, resolve_folder
from deftx.stages.settings import (
    BackboneSettings,
    BackboneShape,
)
from deftx.stages.stage import Stage
from orchestrator.kinds import size_of_backbone
from orchestrator.space.schema import Space

T = TypeVar("T")


@dataclass(frozen=True)
class Materials:
    """Everything outside that a space needs, resolved to content or commit."""

    backbone: Published | Stage
    lm_head: Published | Literal["own", "random"]
    source_sft: Published | None
    corpora: dict[str, Source]
    training: dict[Split, tuple[Source, ...]]
    evaluation: dict[tuple[str, EvaluationSplit], Source]
    evaluation_texts: str | None


class _Gathering:
    """Runs look-ups and keeps their errors, so that all are shown at once."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def get(self, look_up: Callable[[], T]) -> T | None:
        try:
            return look_up()
        except DeftxError as error:
            self.errors += [line for line in [str(error)] if line not in self.errors]
            return None


def resolve(space: Space, data_root: str | None) -> Materials:
    """Resolve every file, data set, model and vector that a space names.

    Args:
        data_root: folder or URL of the original files; none: the hub.

    Raises:
        DataError: naming every file, model and data set that could not be had.
    """
    known, look = space.of, _Gathering()
    languages = [*space.targets] + ([known.source_language] if space.source.learn else [])
    corpora = {lang: look.get(lambda lang=lang: corpus_source(known, lang, data_root)) for lang in languages}  # type: ignore[misc]
    training = look.get(lambda: training_sources(known, data_root))
    wanted = [*space.targets] + ([known.source_language] if leak_rule(space) != "none" else [])
    evaluation = {
        (lang, split): look.get(lambda lang=lang, split=split: evaluation_source(known, lang, split, data_root))  # type: ignore[misc]
        for lang in wanted
        for split in EVALUATION_SPLITS
    }
    backbone = look.get(lambda: _backbone(space, data_root, corpora))
    own = space.lm_head in ("own", "random")
    lm_head = space.lm_head if own else look.get(lambda: resolve_folder(space.lm_head))
    published = space.source.sft
    sft = look.get(lambda: resolve_folder(published)) if published else None
    for read in _reads(space, training, evaluation) if data_root is not None else ():
        look.get(read)
    if not look.errors:
        texts = look.get(lambda: _texts(space, evaluation))  # type: ignore[arg-type]
    if backbone is not None:
        look.errors += _k_problems(space, backbone)
    if look.errors:
        raise DataError("\n".join(look.errors))
    return Materials(backbone, lm_head, sft, corpora, training, evaluation, texts)  # type: ignore[arg-type]


def _reads(
    space: Space,
    training: Mapping[Split, tuple[Source, ...]] | None,
    evaluation: Mapping[tuple[str, EvaluationSplit], Source | None],
) -> Iterator[Callable[[], object]]:
    """Reads of every table under a data root: a wrong column or label is told now, not after days of training."""
    known = space.of
    for split, sources in (training or {}).items():
        if sources:
            yield partial(read_training, known, sources, split)
    for (language, part), table in evaluation.items():
        if table is not None:
            yield partial(read_examples, known, table, language, part)


def leak_rule(space: Space) -> LeakRule:
    """The space's rule for leaks, where its benchmark has any."""
    return space.leaks if space.of.leaks else "none"


def _texts(space: Space, evaluation: dict[tuple[str, EvaluationSplit], Source]) -> str | None:
    """Digest of the source language's evaluation sentences, labels apart, that training rows are compared with."""
    if leak_rule(space) == "none":
        return None
    known, source = space.of, space.of.source_language
    tables = {split: evaluation[source, split] for split in EVALUATION_SPLITS}

    def digest() -> str:
        return texts_digest({split: read_examples(known, table, source, split) for split, table in tables.items()})

    if any(isinstance(table, FileSource) for table in tables.values()):
        return digest()
    return resolve_once(f"evaluation sentences of {known.name}", digest)


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


def _k_problems(space: Space, backbone: Published | Stage) -> list[str]:
    """Where k exceeds the backbone, as far as its size can be told before it is loaded."""
    size = size_of_backbone(backbone)
    if size is None:
        return []
    problems = []
    recipes: dict[str, LanguageRecipe | TaskRecipe] = {"language": space.language, "task": space.task}
    for kind, recipe in recipes.items():
        frozen = size.embeddings if recipe.training.freeze_embeddings else 0
        try:
            resolve_k(recipe.k or 1, size.maskable - frozen)
        except ConfigError as error:
            problems.append(f"{kind}.k: {error}")
    return problems


def _pretraining_text(language: str, data_root: str | None, corpus: Source | None) -> Source:
    if data_root is None:
        raise ConfigError("a backbone that is pre-trained here reads its text under --data-root; none was given")
    try:
        return file_source(f"{data_root}/pretraining/{language}.txt")
    except DataError:
        return corpus or file_source(f"{data_root}/corpora/{language}.txt")

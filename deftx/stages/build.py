"""The one way to build each stage, for a sweep's plan and for a notebook: equal inputs, equal addresses.

Pure: what goes in is resolved before, `precision: auto` too. Which stages a space means is planned elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from deftx.config import Denoise, EvaluationSplit, LanguageRecipe, TaskRecipe, TextSettings, Training
from deftx.data.catalogue import OwnBenchmark, benchmark
from deftx.data.inputs import TaskInputs
from deftx.sources.hub import Source
from deftx.sources.published import Published
from deftx.stages.settings import (
    CheckSettings,
    DenseSettings,
    GradeSettings,
    LMHead,
    SparseSettings,
    TaskData,
    TextStageSettings,
)
from deftx.stages.stage import Stage, settings_of

Inputs = tuple[tuple[str, Stage], ...]


def text_stage(language: str, source: Source, text: TextSettings, backbone: Published | Stage, seed: int) -> Stage:
    """The stage that cuts plain text into token blocks, by a backbone's tokenizer."""
    settings = TextStageSettings(language=language, source=source, text=text, backbone=_published(backbone), seed=seed)
    return Stage("text", settings, _made("backbone", backbone))


def check_stage(
    text: Stage,
    training: Training,
    benchmark: str | OwnBenchmark,
    evaluation: Mapping[EvaluationSplit, Source],
) -> Stage:
    """The check of a text stage's text, made before anything is trained on it.

    Args:
        evaluation: the language's evaluation sets, whose sentences should not be in it.
    """
    settings = CheckSettings(
        **{name: getattr(text.settings, name) for name in TextStageSettings.model_fields},
        training=training, benchmark=benchmark, evaluation=dict(evaluation),
    )  # fmt: skip
    return Stage("check", settings, text.inputs)


def dense_language(text: Stage, training: Training, lm_head: LMHead = "own") -> Stage:
    """The dense phase of a language vector, with its text's language, backbone and seed."""
    settings = settings_of(text, TextStageSettings)
    dense = DenseSettings(
        language=settings.language, task=None, backbone=settings.backbone, lm_head=lm_head, training=training,
        seed=settings.seed,
    )  # fmt: skip
    return Stage("dense", dense, (("text", text), *text.inputs))


def dense_task(
    of: str | OwnBenchmark,
    inputs: TaskInputs,
    recipe: TaskRecipe,
    backbone: Published | Stage,
    start: Published | Stage | None,
    seed: int,
) -> Stage:
    """The dense phase of a task vector.

    Args:
        of: the benchmark, by name where it is built in.
        start: the source language's vector that training starts from.
    """
    settings = DenseSettings(
        language=benchmark(of).source_language, task=_task_data(of, inputs, recipe),
        backbone=_published(backbone), start=_published(start),
        training=recipe.training, seed=seed,
    )  # fmt: skip
    return Stage("dense", settings, (*_made("backbone", backbone), *_made("start", start)))


def sparse_stage(dense: Stage, recipe: LanguageRecipe | TaskRecipe, denoise: Denoise | None) -> Stage:
    """The SFT of a dense phase; LT-SFT without denoising."""
    # LT-SFT has its sparse phase also where an ablation leaves it out of the others
    settings = SparseSettings(denoise=denoise, k=recipe.k, retrain=recipe.retrain or denoise is None)
    return Stage("sparse", settings, (("dense", dense),))


def grade_stage(
    task: Stage,
    language_sft: Published | Stage | None,
    language: str,
    benchmark: str | OwnBenchmark,
    evaluation: Mapping[EvaluationSplit, Source],
    max_length: int,
) -> Stage:
    """The grade of a task vector and, where there is one, a language vector on a target language's two tables."""
    settings = GradeSettings(
        language=language, benchmark=benchmark, valid=evaluation["valid"], test=evaluation["test"],
        vector=_published(language_sft), max_length=max_length,
    )  # fmt: skip
    return Stage("grade", settings, (("task", task), *_made("language", language_sft)))


def _task_data(of: str | OwnBenchmark, inputs: TaskInputs, recipe: TaskRecipe) -> TaskData:
    # only LT-SFT's rule looks at the training data's own test split
    splits = [split for split in inputs.training if split != "test" or inputs.leaks == "lt-sft"]
    return TaskData(
        benchmark=of, training={split: inputs.training[split] for split in splits}, leaks=inputs.leaks,
        evaluation_texts=inputs.evaluation_texts, evaluation=dict(inputs.evaluation),
        max_length=recipe.max_length, max_rows=recipe.max_rows,
    )  # fmt: skip


def _published(given: Published | Stage | None) -> Published | None:
    """The published model or SFT for the settings; None for a stage, which is an input."""
    return None if isinstance(given, Stage) else given


def _made(role: str, given: Published | Stage | None) -> Inputs:
    """The stage as an input; no input for what is published."""
    return ((role, given),) if isinstance(given, Stage) else ()

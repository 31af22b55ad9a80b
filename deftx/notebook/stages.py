"""The stages that `learn_language` and `learn_task` make, from their arguments; nothing is trained here.

Every wrong argument is reported at once. The addresses are those of a sweep with the same inputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from deftx.config import LanguageRecipe, LeakRule, Metric, PresetName, TaskKind, TaskRecipe
from deftx.data.catalogue import BENCHMARKS, OwnBenchmark, benchmark
from deftx.data.corpora import wikipedia
from deftx.data.inputs import TaskInputs, read_tables, task_inputs
from deftx.errors import ConfigError, Problems, hint
from deftx.recipes import denoising, explain_all, preset, recipe_of
from deftx.sft.vector import SparseFineTuning
from deftx.sources.files import file_source
from deftx.sources.hub import Source
from deftx.sources.published import Published, resolve_folder
from deftx.stages.backbones import check_k, resolve_lm_head
from deftx.stages.build import dense_language, dense_task, sparse_stage, text_stage
from deftx.stages.stage import Stage

PathLike = str | Path
"""A folder or a hub id."""
SFTLike = SparseFineTuning | Stage | PathLike

_WIKIPEDIA = "wikipedia:"
_OWN = "own"
_UNDETERMINED = "und"


def language_stage(
    text: PathLike,
    *,
    backbone: PathLike,
    language: str | None = None,
    preset: PresetName = "paper",
    seed: int = 0,
    rank: str | int | None = "100",
    retention: float = 0.05,
    lm_head: PathLike = "own",
    revision: str = "main",
    **training: Any,
) -> Stage:
    """The stage that `learn_language` makes, not run; it takes the same arguments and raises the same errors."""
    problems = Problems()
    recipe = problems.get(lambda: recipe_of(LanguageRecipe, _below(preset, "sentiment", "language"), training))
    denoise = problems.get(lambda: denoising(rank, retention))
    code = problems.get(lambda: _language(text, language))
    problems.get(lambda: _check_seed(seed))
    source = problems.get(lambda: _text(str(text)))
    base = problems.get(lambda: resolve_folder(str(backbone), revision))
    head = problems.get(lambda: resolve_lm_head(str(lm_head)))
    if base and recipe:
        problems.get(lambda: check_k(base, recipe, "k"))
    problems.tell()
    assert recipe and code and source and base and head, "each is missing only after an error, which was raised"
    blocks = text_stage(code, source, recipe.text, base, seed)
    return sparse_stage(dense_language(blocks, recipe.training, head), recipe, denoise)


def task_stage(
    of: str | OwnBenchmark | None = None,
    *,
    backbone: PathLike,
    train: PathLike | None = None,
    valid: PathLike | None = None,
    labels: Sequence[str] | None = None,
    language: str | None = None,
    kind: TaskKind = "sentiment",
    metric: Metric = "macro_f1",
    source: SFTLike | None = None,
    data_root: PathLike | None = None,
    leaks: LeakRule = "strict",
    preset: PresetName = "paper",
    seed: int = 0,
    rank: str | int | None = "100",
    retention: float = 0.05,
    revision: str = "main",
    **training: Any,
) -> Stage:
    """The stage that `learn_task` makes, not run; it takes the same arguments and raises the same errors."""
    problems = Problems()
    tables = {"train": train, "valid": valid}
    task_benchmark = problems.get(lambda: _benchmark(of, tables, labels, language, kind, metric))
    task_kind = benchmark(task_benchmark).kind if task_benchmark else kind
    recipe = problems.get(lambda: recipe_of(TaskRecipe, _below(preset, task_kind, "task"), training))
    denoise = problems.get(lambda: denoising(rank, retention))
    problems.get(lambda: _check_seed(seed))
    problems.get(lambda: _check_leaks(leaks))
    inputs = problems.get(lambda: _inputs(task_benchmark, tables, leaks, data_root)) if task_benchmark else None
    base = problems.get(lambda: resolve_folder(str(backbone), revision))
    start = problems.get(lambda: _start(source))
    if base and recipe:
        problems.get(lambda: check_k(base, recipe, "k"))
    problems.tell()
    assert task_benchmark and recipe and inputs and base, "each is missing only after an error, which was raised"
    return sparse_stage(dense_task(task_benchmark, inputs, recipe, base, start, seed), recipe, denoise)


def _below(name: PresetName, kind: TaskKind, part: str) -> dict[str, Any]:
    settings: dict[str, Any] = preset(name, kind)[part]
    return settings


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed: a whole number from 0 to {2**31 - 1:,} (given: {seed!r})")


def _check_leaks(leaks: str) -> None:
    rules = get_args(LeakRule)
    if leaks not in rules:
        raise ConfigError(f"leaks: {', '.join(rules)} (given: {leaks!r}){hint(str(leaks), rules)}")


def _language(text: PathLike, language: str | None) -> str:
    name = str(text)
    if language is None:
        language = name.removeprefix(_WIKIPEDIA) if name.startswith(_WIKIPEDIA) else Path(name).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language):
        raise ConfigError(f"language: {language!r} is no code of a language; name it, such as language='ace'")
    return language


def _text(text: str) -> Source:
    if text.startswith(_WIKIPEDIA):
        return wikipedia(text.removeprefix(_WIKIPEDIA))
    return file_source(text, text=True)


def _benchmark(
    of: str | OwnBenchmark | None,
    tables: dict[str, PathLike | None],
    labels: Sequence[str] | None,
    language: str | None,
    kind: TaskKind,
    metric: Metric,
) -> str | OwnBenchmark:
    """The benchmark as given, or that of the user's own tables."""
    missing = [name for name, value in {**tables, "labels": labels}.items() if value is None]
    if len(missing) == 3 and of is not None:
        benchmark(of)
        if language is not None:
            raise ConfigError(f"language: {language!r} is for tables of your own; a benchmark has its source language")
        return of
    if missing or isinstance(of, OwnBenchmark):
        names = ", ".join(BENCHMARKS)
        raise ConfigError(
            f"give a benchmark ({names}), or tables of your own as train=, valid= and labels="
            + (f"; {', '.join(f'{name}=' for name in missing)} is missing" if 0 < len(missing) < 3 else "")
        )
    try:
        return OwnBenchmark.model_validate({
            "name": of or _OWN, "kind": kind, "labels": tuple(labels or ()), "metric": metric,
            "source_language": language or _UNDETERMINED,
        })  # fmt: skip
    except ValidationError as error:
        raise ConfigError("\n".join(explain_all(error))) from None


def _inputs(
    of: str | OwnBenchmark, tables: dict[str, PathLike | None], leaks: LeakRule, data_root: PathLike | None
) -> TaskInputs:
    spec = benchmark(of)
    if tables["train"] is None or tables["valid"] is None:
        return task_inputs(spec, leaks, None if data_root is None else str(data_root))
    problems, train, valid = Problems(), str(tables["train"]), str(tables["valid"])
    first, second = problems.get(lambda: file_source(train)), problems.get(lambda: file_source(valid))
    training: dict[Any, tuple[Source, ...]] = {
        split: (source,) for split, source in (("train", first), ("valid", second)) if source
    }
    read_tables(spec, training, {}, problems)
    problems.tell()
    return TaskInputs(training)


def _start(source: SFTLike | None) -> Published | Stage | None:
    if source is None or isinstance(source, Stage):
        return source
    if not isinstance(source, SparseFineTuning):
        return resolve_folder(str(source))
    if source.stage is None:
        raise ConfigError("source: this vector does not say where it lies; give its folder or hub id instead")
    return source.stage

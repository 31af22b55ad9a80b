"""The stages that `learn_language` and `learn_task` make, from their arguments; nothing is trained here.

Every wrong argument is reported at once. The addresses are those of a sweep with the same inputs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from deftx.config import (
    Execution,
    LanguageRecipe,
    LeakRule,
    Metric,
    PresetName,
    RetentionOf,
    Split,
    TaskKind,
    TaskRecipe,
)
from deftx.data.catalogue import BENCHMARKS, OwnBenchmark, benchmark
from deftx.data.corpora import wikipedia
from deftx.data.inputs import TaskInputs, read_tables, task_inputs
from deftx.errors import ConfigError, Problems, hint
from deftx.method.look import look
from deftx.notebook.arguments import PathLike, execution_of, list_of_labels, path_of
from deftx.recipes import Recipe, denoising, explain_all, preset, recipe_of
from deftx.sft.vector import SparseFineTuning
from deftx.sources.files import file_source
from deftx.sources.hub import Source
from deftx.sources.published import Published, resolve_folder
from deftx.stages.backbones import check_k, resolve_lm_head
from deftx.stages.build import dense_language, dense_task, sparse_stage, text_stage
from deftx.stages.kinds import kind_of
from deftx.stages.stage import Stage

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
    retention_of: RetentionOf = "numel",
    lm_head: PathLike = "own",
    revision: str = "main",
    execution: Execution | None = None,
    **training: Any,
) -> Stage:
    """The stage that `learn_language` makes, not run; it takes the same arguments and raises the same errors."""
    problems = Problems()
    run = problems.get(lambda: execution_of(execution))
    recipe = problems.get(
        lambda: _recipe(language_stage, LanguageRecipe, _below(preset, "sentiment", "language"), training, run)
    )
    denoise = problems.get(lambda: denoising(rank, retention, retention_of))
    place = problems.get(lambda: path_of("text", text))
    code = problems.get(lambda: _language(place, language)) if place else None
    problems.get(lambda: _check_seed(seed))
    source = problems.get(lambda: _text(place)) if place else None
    base = problems.get(lambda: resolve_folder(path_of("backbone", backbone), revision))
    head = problems.get(lambda: resolve_lm_head(path_of("lm_head", lm_head)))
    if base and recipe:
        problems.get(lambda: check_k(base, recipe, "k"))
        look(problems, base, {"block": recipe.text.block}, head or "random")
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
    kind: TaskKind | None = None,
    metric: Metric | None = None,
    source: SFTLike | None = None,
    data_root: PathLike | None = None,
    leaks: LeakRule = "strict",
    preset: PresetName = "paper",
    seed: int = 0,
    rank: str | int | None = "100",
    retention: float = 0.05,
    retention_of: RetentionOf = "numel",
    revision: str = "main",
    execution: Execution | None = None,
    **training: Any,
) -> Stage:
    """The stage that `learn_task` makes, not run; it takes the same arguments and raises the same errors."""
    problems = Problems()
    own = {"train": train, "valid": valid, "labels": labels}
    about = {"language": language, "kind": kind, "metric": metric}
    task_benchmark = problems.get(lambda: _benchmark(of, own, about, data_root))
    tables: dict[Split, Source | None] = {
        "train": problems.get(lambda: _table("train", train)), "valid": problems.get(lambda: _table("valid", valid)),
    }  # fmt: skip
    task_kind = benchmark(task_benchmark).kind if task_benchmark else "sentiment"
    run = problems.get(lambda: execution_of(execution))
    recipe = problems.get(lambda: _recipe(task_stage, TaskRecipe, _below(preset, task_kind, "task"), training, run))
    denoise = problems.get(lambda: denoising(rank, retention, retention_of))
    problems.get(lambda: _check_seed(seed))
    problems.get(lambda: _check_leaks(leaks))
    if task_benchmark and train is None:
        inputs = problems.get(lambda: _benchmark_inputs(task_benchmark, leaks, data_root))
    else:
        inputs = problems.get(lambda: _own_inputs(task_benchmark, tables)) if task_benchmark else None
    base = problems.get(lambda: resolve_folder(path_of("backbone", backbone), revision))
    start = problems.get(lambda: _start(source))
    if base and recipe:
        problems.get(lambda: check_k(base, recipe, "k"))
        vectors = {"source": start} if start and not isinstance(start, Stage) else {}
        look(problems, base, {"max_length": recipe.max_length}, vectors=vectors)
    problems.tell()
    assert task_benchmark and recipe and inputs and base, "each is missing only after an error, which was raised"
    return sparse_stage(dense_task(task_benchmark, inputs, recipe, base, start, seed), recipe, denoise)


def _below(name: PresetName, kind: TaskKind, part: str) -> dict[str, Any]:
    settings: dict[str, Any] = preset(name, kind)[part]
    return settings


def _recipe(
    door: Callable[..., Stage], kind: type[Recipe], below: Mapping[str, Any], training: Any, run: Execution | None
) -> Recipe:  # fmt: skip
    """The recipe, its precision decided by the device; a misspelt setting may have been meant for an argument."""
    recipe = recipe_of(kind, below, training, inspect.signature(door).parameters.keys() - {"training"})
    on_gpu = run is not None and run.device.startswith("cuda")
    return recipe.model_copy(update={"training": recipe.training.decided(on_gpu)})


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed: a whole number from 0 to {2**31 - 1:,} (given: {seed!r})")


def _check_leaks(leaks: str) -> None:
    rules = get_args(LeakRule)
    if leaks not in rules:
        raise ConfigError(f"leaks: {', '.join(rules)} (given: {leaks!r}){hint(str(leaks), rules)}")


def _language(text: str, language: str | None) -> str:
    if language is None:
        language = text.removeprefix(_WIKIPEDIA) if text.startswith(_WIKIPEDIA) else Path(text).stem
    if not isinstance(language, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language):
        raise ConfigError(f"language: {language!r} is no code of a language; name it, such as language='ace'")
    return language


def _text(text: str) -> Source:
    if text.startswith(_WIKIPEDIA):
        return wikipedia(text.removeprefix(_WIKIPEDIA))
    return file_source(text, text=True)


def _benchmark(
    of: str | OwnBenchmark | None, tables: Mapping[str, Any], about: Mapping[str, Any], data_root: PathLike | None
) -> str | OwnBenchmark:
    """The benchmark as given, or that of the user's own tables.

    Args:
        tables: `train`, `valid` and `labels`.
        about: what only own tables may have said of them: `language`, `kind` and `metric`.
    """
    missing = [f"{name}=" for name, value in tables.items() if value is None]
    said = {name: value for name, value in about.items() if value is not None}
    if of is not None and not isinstance(of, str | OwnBenchmark):
        raise ConfigError(f"benchmark: a name or a deftx.OwnBenchmark, not {type(of).__name__}")
    if len(missing) == 3 and of is not None:
        benchmark(of)
        if said:
            lines = [f"{name}: {value!r} is for tables of your own" for name, value in said.items()]
            raise ConfigError("\n".join(f"{line}; a benchmark has its own" for line in lines))
        return of
    if missing or isinstance(of, OwnBenchmark):
        wanted = f"give a benchmark ({', '.join(BENCHMARKS)}), or tables of your own as train=, valid= and labels="
        lacks = f"; there is no {' and no '.join(missing)}" if 0 < len(missing) < 3 else ""
        raise ConfigError(f"{wanted}{lacks or ('' if missing else ', not both')}")
    if data_root is not None:
        raise ConfigError("data_root: is where a benchmark's files lie; train= and valid= are paths of their own")
    return _own(of or _OWN, tables["labels"], said)


def _own(name: str, labels: Sequence[str], said: Mapping[str, Any]) -> OwnBenchmark:
    given = {"source_language" if key == "language" else key: value for key, value in said.items()}
    content = {"source_language": _UNDETERMINED, **given, "name": name, "labels": list_of_labels(labels)}
    try:
        return OwnBenchmark.model_validate(content)
    except ValidationError as error:
        # a benchmark's `source_language` is `language` here
        raise ConfigError("\n".join(line.removeprefix("source_") for line in explain_all(error))) from None


def _table(name: str, table: PathLike | None) -> Source | None:
    return None if table is None else file_source(path_of(name, table))


def _benchmark_inputs(of: str | OwnBenchmark, leaks: LeakRule, data_root: PathLike | None) -> TaskInputs:
    return task_inputs(benchmark(of), leaks, None if data_root is None else path_of("data_root", data_root))


def _own_inputs(of: str | OwnBenchmark, tables: Mapping[Split, Source | None]) -> TaskInputs:
    problems = Problems()
    training = {split: (source,) for split, source in tables.items() if source is not None}
    read_tables(benchmark(of), training, {}, problems)
    problems.tell()
    return TaskInputs(training)


def _start(source: SFTLike | None) -> Published | Stage | None:
    if source is None or isinstance(source, str | Path):
        return None if source is None else resolve_folder(path_of("source", source))
    stage = source.stage if isinstance(source, SparseFineTuning) else source
    if stage is None:
        raise ConfigError("source: this vector does not say where it lies; give its folder or hub id instead")
    if not isinstance(stage, Stage) or not kind_of(stage.kind).makes_sft or stage.subject == "task":
        raise ConfigError("source: the vector of a language, such as learn_language returns")
    return stage

"""Learning a language or a task vector by one call. Its stages are those of a sweep with the same inputs, at the same
addresses: what the one made, the other finds in the store and does not make again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from deftx.method.environment import restored
from deftx.method.make import make
from deftx.notebook.given import PathLike, check_device, list_of_labels, path_of
from deftx.notebook.progress import Bars
from deftx.recipes import denoising, explain_all, preset, recipe_of
from deftx.sft.vector import SparseFineTuning
from deftx.sources.files import file_source
from deftx.sources.hub import Source
from deftx.sources.published import Published, resolve_folder
from deftx.stages.backbones import check_k, resolve_lm_head
from deftx.stages.build import dense_language, dense_task, sparse_stage, text_stage
from deftx.stages.files import SFT
from deftx.stages.kinds import kind_of
from deftx.stages.stage import Stage
from deftx.stages.store import Store

Vector = SparseFineTuning | Stage | PathLike

_WIKIPEDIA = "wikipedia:"
_OWN = "own"
_UNDETERMINED = "und"


def learn_language(
    text: PathLike,
    *,
    backbone: PathLike,
    language: str | None = None,
    preset: PresetName = "paper",
    seed: int = 0,
    store: PathLike | Store = "results",
    rank: str | int | None = "100",
    retention: float = 0.05,
    retention_of: RetentionOf = "numel",
    lm_head: PathLike = "own",
    revision: str = "main",
    execution: Execution | None = None,
    progress: bool = True,
    **training: Any,
) -> SparseFineTuning:
    """The sparse vector of a language, learnt from plain text; loaded where the store has it already.

    Args:
        text: path or URL of a UTF-8 file with one passage a line, or `wikipedia:ace` for a language's Wikipedia.
        backbone: folder or hub id of a pretrained encoder with its tokenizer.
        language: the language's code, which counts in the address as it is written; None: the file's name without its
            ending.
        preset: paper, paper-l1 or lt-sft: how both phases train, see `deftx.recipes.preset`. LT-SFT has no rank either.
        seed: of everything that is drawn.
        store: a folder or URL, such as a sweep's `--storage`.
        rank: rank that denoising keeps of each matrix, `100` or `90%` of the squared singular values; None: LT-SFT.
        retention: share of the higher-order entries retained, between 0 and 1.
        retention_of: of all entries of a matrix (numel), or of its non-zero residual entries (nonzero).
        lm_head: own, random, or folder or hub id of a donor, for a backbone without one.
        revision: branch, tag or commit of a backbone from the hub.
        execution: device, threads, micro-batch; None: a GPU where there is one, and the threads that torch has.
        progress: whether to show bars on a terminal or in a notebook.
        training: settings over the preset, by name: those of `Training` (`max_steps=5000`), of `TextSettings`
            (`block=128`), and `k` and `retrain`.

    Returns:
        The vector; its `stage` says how it was made, its `metadata` what it scored.

    Raises:
        ConfigError: with a line for each setting that is unknown (and the nearest name) or out of range.
        DataError: when the text or the backbone is missing or cannot be read.
        HubError: when something has to be downloaded and cannot be.
        TrainingError: when a loss or a weight stops being a number.
    """
    return _learn(
        lambda: language_stage(
            text, backbone=backbone, language=language, preset=preset, seed=seed, rank=rank, retention=retention,
            retention_of=retention_of, lm_head=lm_head, revision=revision, **training,
        ),
        store, execution, progress,
    )  # fmt: skip


def learn_task(
    benchmark: str | OwnBenchmark | None = None,
    *,
    backbone: PathLike,
    train: PathLike | None = None,
    valid: PathLike | None = None,
    labels: Sequence[str] | None = None,
    language: str | None = None,
    kind: TaskKind | None = None,
    metric: Metric | None = None,
    source: Vector | None = None,
    data_root: PathLike | None = None,
    leaks: LeakRule = "strict",
    preset: PresetName = "paper",
    seed: int = 0,
    store: PathLike | Store = "results",
    rank: str | int | None = "100",
    retention: float = 0.05,
    retention_of: RetentionOf = "numel",
    revision: str = "main",
    execution: Execution | None = None,
    progress: bool = True,
    **training: Any,
) -> SparseFineTuning:
    """The sparse vector of a task, with its classifier, learnt from labelled text of the source language.

    Either of a benchmark, or of tables of one's own: CSV files with the columns `text` and `label` (and `hypothesis`
    for pairs).

    Args:
        benchmark: nusax, americasnli, archipelago, or the definition of one's own as in a space; with tables of one's
            own, the name to give them (as a space does, for the same addresses).
        backbone: as of `learn_language`.
        train: table to train on.
        valid: table that chooses the checkpoint.
        labels: every label as the tables spell it, in the order that the classifier's outputs shall have.
        language: code of the language of tables of one's own; None: `und`.
        kind: of tables of one's own: sentiment for a label for a text, nli for a text and its hypothesis; None:
            sentiment.
        metric: by which the checkpoint is chosen, macro_f1 or accuracy, for tables of one's own; None: macro_f1.
        source: the source language's vector that training starts from: what `learn_language` returned, a stage, or a
            folder or hub id; None: it starts from the backbone as it is. It is made again in a store that has it not.
        data_root: folder or URL of the benchmark's original files; None: the hub.
        leaks: strict, lt-sft or none: which training rows go for being in the benchmark's evaluation sets.

    The others are those of `learn_language`; `training` takes the names of `Training`, `k`, `retrain`, `max_length`
    and `max_rows`.

    Returns:
        The vector; its `head` is the classifier.

    Raises:
        DeftxError: as `learn_language`; also for a table with a missing column or an unknown label, by file and line.
    """
    return _learn(
        lambda: task_stage(
            benchmark, backbone=backbone, train=train, valid=valid, labels=labels, language=language, kind=kind,
            metric=metric, source=source, data_root=data_root, leaks=leaks, preset=preset, seed=seed, rank=rank,
            retention=retention, retention_of=retention_of, revision=revision, **training,
        ),
        store, execution, progress,
    )  # fmt: skip


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
    **training: Any,
) -> Stage:
    """The stage that `learn_language` makes, nothing being run; arguments and errors are its own."""
    problems = Problems()
    recipe = problems.get(lambda: recipe_of(LanguageRecipe, _below(preset, "sentiment", "language"), training))
    denoise = problems.get(lambda: denoising(rank, retention, retention_of))
    place = problems.get(lambda: path_of("text", text))
    code = problems.get(lambda: _language(place, language)) if place else None
    problems.get(lambda: _check_seed(seed))
    source = problems.get(lambda: _text(place)) if place else None
    base = problems.get(lambda: resolve_folder(path_of("backbone", backbone), revision))
    head = problems.get(lambda: resolve_lm_head(path_of("lm_head", lm_head)))
    if base and recipe:
        problems.get(lambda: check_k(base, recipe, "k"))
    problems.tell()
    assert recipe and code and source and base and head, "each is missing for a problem alone, which was told"
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
    source: Vector | None = None,
    data_root: PathLike | None = None,
    leaks: LeakRule = "strict",
    preset: PresetName = "paper",
    seed: int = 0,
    rank: str | int | None = "100",
    retention: float = 0.05,
    retention_of: RetentionOf = "numel",
    revision: str = "main",
    **training: Any,
) -> Stage:
    """The stage that `learn_task` makes, nothing being run; arguments and errors are its own."""
    problems = Problems()
    about = {"language": language, "kind": kind, "metric": metric}
    given = problems.get(lambda: _benchmark(of, {"train": train, "valid": valid, "labels": labels}, about, data_root))
    tables: dict[Split, Source | None] = {
        "train": problems.get(lambda: _table("train", train)), "valid": problems.get(lambda: _table("valid", valid)),
    }  # fmt: skip
    task_kind = benchmark(given).kind if given else "sentiment"
    recipe = problems.get(lambda: recipe_of(TaskRecipe, _below(preset, task_kind, "task"), training))
    denoise = problems.get(lambda: denoising(rank, retention, retention_of))
    problems.get(lambda: _check_seed(seed))
    problems.get(lambda: _check_leaks(leaks))
    inputs = (
        problems.get(lambda: _inputs(given, None if train is None else tables, leaks, data_root)) if given else None
    )
    base = problems.get(lambda: resolve_folder(path_of("backbone", backbone), revision))
    start = problems.get(lambda: _start(source))
    if base and recipe:
        problems.get(lambda: check_k(base, recipe, "k"))
    problems.tell()
    assert given and recipe and inputs and base, "each is missing for a problem alone, which was told"
    return sparse_stage(dense_task(given, inputs, recipe, base, start, seed), recipe, denoise)


def _learn(
    described: Callable[[], Stage], store: PathLike | Store, execution: Execution | None, progress: bool
) -> SparseFineTuning:
    problems = Problems()
    stage = problems.get(described)
    run = problems.get(lambda: _execution(execution))
    place = problems.get(lambda: store if isinstance(store, Store) else Store(path_of("store", store)))
    problems.tell()
    assert stage and run and place, "each is missing for a problem alone, which was told"
    with restored(), Bars(progress) as bars:
        make(stage, place, run, bars.watch)
    return replace(SparseFineTuning.from_pretrained(place.fetch_folder(stage.address, SFT)), stage=stage)


def _execution(given: Execution | None) -> Execution:
    if given is None:
        return _here()
    if not isinstance(given, Execution):
        raise ConfigError(f"execution: a deftx.Execution, such as Execution(threads=8), not {type(given).__name__}")
    check_device(given.device)
    return given


def _here() -> Execution:
    """This machine's GPU where it has one, and as many threads as torch would take."""
    import torch

    return Execution(device="cuda" if torch.cuda.is_available() else "cpu", threads=torch.get_num_threads())


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
    """The benchmark by name or definition, or the one that tables of one's own are.

    Args:
        tables: `train`, `valid` and `labels`.
        about: what else tables of one's own may have said of them: `language`, `kind` and `metric`.
    """
    missing = [f"{name}=" for name, value in tables.items() if value is None]
    if of is not None and not isinstance(of, str | OwnBenchmark):
        raise ConfigError(f"benchmark: a name or a deftx.OwnBenchmark, not {type(of).__name__}")
    if len(missing) == 3 and of is not None:
        benchmark(of)
        if stray := [f"{name}: {value!r}" for name, value in about.items() if value is not None]:
            raise ConfigError(
                "\n".join(f"{entry} is for tables of your own; a benchmark has its own" for entry in stray)
            )
        return of
    if missing or isinstance(of, OwnBenchmark):
        wanted = f"give a benchmark ({', '.join(BENCHMARKS)}), or tables of your own as train=, valid= and labels="
        lacks = f"; there is no {' and no '.join(missing)}" if 0 < len(missing) < 3 else ""
        raise ConfigError(f"{wanted}{lacks or ('' if missing else ', not both')}")
    if data_root is not None:
        raise ConfigError("data_root: is where a benchmark's files lie; train= and valid= are paths of their own")
    return _own(of or _OWN, tables["labels"], {name: value for name, value in about.items() if value is not None})


def _own(name: str, labels: Sequence[str], about: Mapping[str, Any]) -> OwnBenchmark:
    given = {"source_language" if key == "language" else key: value for key, value in about.items()}
    try:
        return OwnBenchmark.model_validate({
            "name": name, "labels": list_of_labels(labels), "source_language": _UNDETERMINED, **given,
        })  # fmt: skip
    except ValidationError as error:
        # a benchmark's `source_language` is `language` here
        raise ConfigError("\n".join(line.removeprefix("source_") for line in explain_all(error))) from None


def _table(name: str, table: PathLike | None) -> Source | None:
    return None if table is None else file_source(path_of(name, table))


def _inputs(
    of: str | OwnBenchmark, tables: Mapping[Split, Source | None] | None, leaks: LeakRule, data_root: PathLike | None
) -> TaskInputs:
    """What a task is learnt from: a benchmark's data, or tables of one's own."""
    known = benchmark(of)
    if tables is None:
        return task_inputs(known, leaks, None if data_root is None else path_of("data_root", data_root))
    problems = Problems()
    training = {split: (source,) for split, source in tables.items() if source is not None}
    read_tables(known, training, {}, problems)
    problems.tell()
    return TaskInputs(training)


def _start(source: Vector | None) -> Published | Stage | None:
    if source is None or isinstance(source, str | Path):
        return None if source is None else resolve_folder(path_of("source", source))
    stage = source.stage if isinstance(source, SparseFineTuning) else source
    if stage is None:
        raise ConfigError("source: this vector does not say where it lies; give its folder or hub id instead")
    if not isinstance(stage, Stage) or not kind_of(stage.kind).makes_sft or stage.subject == "task":
        raise ConfigError("source: the vector of a language, such as learn_language returns")
    return stage

"""Learning a language or a task vector by one call. Its stages are those of a sweep with the same inputs, at the same
addresses: what a sweep made is loaded from the store, and the other way round.

How the arguments become stages is in `stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from deftx.config import Execution, LeakRule, Metric, PresetName, RetentionOf, TaskKind
from deftx.data.catalogue import OwnBenchmark
from deftx.errors import Problems
from deftx.method.environment import check_device, check_precision, restored
from deftx.method.make import make
from deftx.notebook.arguments import PathLike, execution_of, path_of
from deftx.notebook.progress import Bars
from deftx.notebook.stages import SFTLike, language_stage, task_stage
from deftx.sft.vector import SparseFineTuning
from deftx.stages.files import SFT
from deftx.stages.stage import Stage
from deftx.stages.store import Store


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
        preset: paper, paper-l1 or lt-sft: how both phases train, see `deftx.recipes.preset`. LT-SFT is `rank=None`.
        seed: of every random draw.
        store: a folder or URL, such as a sweep's `--storage`.
        rank: rank that denoising retains of each matrix, `100` or `90%` of the squared singular values; None: LT-SFT.
        retention: share of the higher-order entries retained, between 0 and 1.
        retention_of: of all entries of a matrix (numel), or of its non-zero residual entries (nonzero).
        lm_head: own, random, or folder or hub id of a donor, for a backbone without one.
        revision: branch, tag or commit of a backbone from the hub.
        execution: device, threads, micro-batch; None: a GPU where there is one, and the threads that torch has.
            Its device decides `precision="auto"`.
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
            retention_of=retention_of, lm_head=lm_head, revision=revision, execution=execution, **training,
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
    source: SFTLike | None = None,
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

    Either of a benchmark, or of tables of your own: CSV files with the columns `text` and `label` (and `hypothesis`
    for pairs).

    Args:
        benchmark: nusax, americasnli, archipelago, or the definition of your own as in a space; with tables of your
            own, the name to give them (as a space does, for the same addresses).
        backbone: as of `learn_language`.
        train: table to train on.
        valid: table that chooses the checkpoint.
        labels: every label as the tables spell it, in the order of the classifier's outputs.
        language: of tables of your own: the code of their language; None: `und`.
        kind: of tables of your own: sentiment for a label for a text, nli for a text and its hypothesis; None:
            sentiment.
        metric: of tables of your own: by which the checkpoint is chosen, macro_f1 or accuracy; None: macro_f1.
        source: the source language's vector that training starts from: what `learn_language` returned, a stage, or a
            folder or hub id; None: it starts from the backbone as it is. A store that does not have it makes it again.
        data_root: folder or URL of the benchmark's original files; None: the hub.
        leaks: strict, lt-sft or none: which training rows are dropped because they are in the evaluation sets.

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
            retention=retention, retention_of=retention_of, revision=revision, execution=execution, **training,
        ),
        store, execution, progress,
    )  # fmt: skip


def _learn(
    described: Callable[[], Stage], store: PathLike | Store, execution: Execution | None, progress: bool
) -> SparseFineTuning:
    problems = Problems()
    stage = problems.get(described)
    run = problems.get(lambda: execution_of(execution))
    if run:
        problems.get(lambda: check_device(run.device))
    place = problems.get(lambda: store if isinstance(store, Store) else Store(path_of("store", store)))
    problems.tell()
    assert stage and run and place, "each is missing only after an error, which was raised"
    for needed in _to_make(stage, place):
        check_precision(needed.precision, run.device)
    with restored(), Bars(progress) as bars:
        make(stage, place, run, bars.watch)
    return replace(SparseFineTuning.from_pretrained(place.fetch_folder(stage.address, SFT)), stage=stage)


def _to_make(stage: Stage, store: Store) -> Iterator[Stage]:
    """The stages that are to be made for a stage, itself included: inputs first."""
    if not store.has(stage.address):
        for needed in stage.reads:
            yield from _to_make(needed, store)
        yield stage

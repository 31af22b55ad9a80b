"""No one let in: what comes from elsewhere is whole or refused in words of our own, in bounded memory and time.

Valid input of each kind is spoilt (`support.hostile`) and read by the code that reads it for a user. A hundred inputs
of each kind here, ten thousand (and a thousand model folders) in `make faults`. What is promised: docs/security.md.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from support.composable_files import encode, write
from support.facts import metrics_of
from support.hostile import CHANGES, Change, spoilt
from support.islands import write_space
from support.tiny import make_sft, make_tokenizer, write_backbone, write_pickled

from deftx.config import TextSettings, Training
from deftx.data.catalogue import OwnBenchmark, benchmark
from deftx.data.corpora import every_line
from deftx.data.examples import read_training
from deftx.data.tables import Layout, read_rows
from deftx.data.text_check import check_text
from deftx.errors import DeftxError, Problems, StoreError
from deftx.method.look import look
from deftx.models.load import load_masked_lm, load_tokenizer
from deftx.models.sizes import size_of_folder
from deftx.sft.composition import read_chosen
from deftx.sft.vector import SparseFineTuning, shapes_of
from deftx.sources.files import FileSource, file_source
from deftx.sources.published import HubFolder, resolve_folder
from deftx.stages.manifest import MANIFEST
from deftx.stages.settings import TextStageSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Store
from orchestrator.record import lease as driver_lease
from orchestrator.record.lease import running_driver
from orchestrator.record.sweep import Failure, GradeRow, StageEntry, State, SweepFolder, SweepInfo
from orchestrator.space.load import load_space

MANY = settings().max_examples
PHASES = [Phase.reuse, Phase.generate, Phase.shrink]
SECONDS, MEBIBYTES = 5.0, 256
"""Of processor time and of memory, for one input of a few kilobytes."""
WORDS = make_tokenizer()
STAGE = Stage(
    "text",
    TextStageSettings(
        language="ace", source=FileSource(sha256="0" * 64, url="ace.txt"), text=TextSettings(),
        backbone=HubFolder(repo="tiny", commit="1" * 40), seed=0,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of input: how valid input is written into a folder, which files of it are spoilt, and what reads it."""

    write: Callable[[Path], object]
    spoil: tuple[str, ...]
    read: Callable[[Path], object]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Warnings about each of ten thousand inputs are nobody's affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        yield
        logging.disable(logging.NOTSET)


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where what is done within takes too much processor time, or too much memory for a moment."""
    late: list[int] = []

    def stop(*_: object) -> None:
        late.append(1)
        raise TimeoutError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    assert not late, f"more than {SECONDS} seconds"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < MEBIBYTES, f"{grown} MiB"


# SFTs


def write_sft(folder: Path) -> None:
    sft = make_sft(load_masked_lm(write_backbone(folder.parent / "backbone", num_hidden_layers=1)), labels=["a", "b"])
    named = {name: sft.shapes[name] for name in [*sft.shapes][:4]}
    indices, values = ({name: part[name] for name in named} for part in (sft.indices, sft.values))
    k = sum(index.numel() for index in indices.values())
    head = {"classifier.dense.weight": torch.ones(4, 4), "classifier.dense.bias": torch.zeros(4)}
    SparseFineTuning(indices, values, named, sft.metadata.model_copy(update={"k": k}), head).save_pretrained(folder)


def write_composable(folder: Path) -> None:
    folder.mkdir()
    write(folder, {"roberta.a": encode(torch.eye(4)), "roberta.b": encode(torch.ones(3))}, {"lm_head.b": torch.ones(3)})


def read_sft(folder: Path) -> None:
    source = resolve_folder(str(folder))
    with suppress(DeftxError):
        shapes_of(source)
    sft = SparseFineTuning.from_published(source)
    assert sft.metadata.k == len(sft) >= 0
    assert sft.indices.keys() == sft.values.keys() == sft.shapes.keys()
    for name, index in sft.indices.items():
        shape, size = sft.shapes[name], math.prod(sft.shapes[name])
        assert all(type(length) is int and length > 0 for length in shape)
        assert index.dtype == torch.int64 and sft.values[name].dtype == torch.float32
        assert index.shape == sft.values[name].shape and index.dim() == 1
        assert not index.numel() or (index[0] >= 0 and index[-1] < size and bool((index[1:] > index[:-1]).all()))
        assert bool(sft.values[name].isfinite().all())
    for value in sft.head.values():
        assert value.is_floating_point() and bool(value.isfinite().all())


# a storage: manifests, records of a sweep, what an export reads


def write_storage(folder: Path) -> None:
    store = Store(str(folder))
    attempt = store.attempt(STAGE.address)
    (attempt.folder / "blocks.npz").write_bytes(b"0" * 100)
    (attempt.folder / "check.json").write_bytes(b"{}")
    manifest = attempt.publish(STAGE, metrics=metrics_of(STAGE), seconds=1.0, curve=[{"step": 1.0, "loss": 0.5}])
    shutil.copyfile(folder / "stages" / STAGE.address / MANIFEST, folder / MANIFEST)
    sweep = SweepFolder(store, "s")
    sweep.write_info(
        SweepInfo(
            name="s", benchmark="nusax", backbone="tiny", seed=0, space={"rank_l": ["2"]}, revisions={"a": "b"},
            command=["sweep", "s"], packages={"torch": "2"}, git_commit=None, created="2026-01-01",
        )
    )  # fmt: skip
    address = manifest.address
    row = GradeRow(
        kind="combination", number=0, parameters={"rank_l": "2", "rank_t": "2", "retention_l": 0.1, "retention_t": 0.1},
        status="complete", score=0.5, grades={"ace": address}, language_sfts={"ace": address}, task_sft=address,
    )  # fmt: skip
    sweep.write_state(State(stages={address: StageEntry.of(STAGE)}, rows=[row], chosen=0, ended=True))
    sweep.write_failure(Failure(address=address, label="l", reason="r", final=True, trace="t"))
    lease = {"token": "t", "host": "h", "pid": 1, "born": "1", "beat": 1.0}
    (folder / "sweeps" / "s" / "lease.json").write_text(json.dumps(lease))
    part = {"kind": "stage", "address": address}
    hub = {"kind": "hub", "repo": "a/b", "commit": "1" * 40}
    score = {"split": "test", "metric": "macro_f1", "value": 0.5, "low": 0.4, "high": 0.6, "items": 10}
    chosen = {"backbone": part, "task": part, "language": hub, "labels": ["a", "b"], "scores": [score], "target": "ace"}
    (folder / "sweeps" / "s" / "chosen.json").write_text(json.dumps({"ace": chosen}))


def read_manifests(folder: Path) -> None:
    place = folder / "stages" / STAGE.address / MANIFEST
    shutil.copyfile(folder / MANIFEST, place)
    store = Store(str(folder))
    store.has(STAGE.address), store.intact(STAGE.address)
    manifest = store.published(STAGE.address)
    assert (manifest.address, manifest.identity) == (STAGE.address, STAGE.identity())
    inside = (folder / "stages" / STAGE.address).resolve()
    for name in manifest.files:
        assert (inside / manifest.attempt / name).resolve().is_relative_to(inside)
        with suppress(StoreError):
            store.fetch(STAGE.address, name)
    assert manifest.facts


def read_records(folder: Path) -> None:
    sweep = SweepFolder(Store(str(folder)), "s")
    with pytest.MonkeyPatch.context() as patch:  # a driver elsewhere is watched for its beats
        patch.setattr(driver_lease, "WATCHED_SECONDS", 0.0)
        running_driver(sweep)
    sweep.final_failures()
    sweep.info()
    state = sweep.state()
    _ = [row.title for row in state.rows], state.chosen_row


def read_export(folder: Path) -> None:
    composition, _ = read_chosen(str(folder / "sweeps" / "s"), "ace")
    assert len(composition.labels) > 1


# model folders


def write_safe(folder: Path) -> None:
    write_backbone(folder, num_hidden_layers=1)


def write_bin(folder: Path) -> None:
    write_pickled(write_backbone(folder.parent / "whole", num_hidden_layers=1), folder)


def write_shards(folder: Path) -> None:
    write_pickled(write_backbone(folder.parent / "whole", num_hidden_layers=1), folder, shards=2)


def problems_of(folder: Path) -> list[str]:
    problems = Problems()
    look(problems, resolve_folder(str(folder)), {"task.max_length": 16}, "own")
    return problems.lines


def read_model(folder: Path) -> None:
    size_of_folder(folder)
    if not problems_of(folder):
        model = load_masked_lm(folder)
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    load_tokenizer(folder)("w1 w2")


# spaces, tables, texts

BENCHMARK = {"name": "reviews", "kind": "sentiment", "labels": ["no", "yes"], "source_language": "sor"}


def write_spaces(folder: Path) -> None:
    folder.mkdir()
    write_space(
        folder / "space.yaml", benchmark=BENCHMARK, targets=["ila", "vek"],
        rank_l=[{"from": 1, "to": 5, "step": 2}, "90%"],
        first=[{"rank_l": "1", "rank_t": "2", "retention": 0.05}], rank_t=[2], retention=[0.05], note="a note",
    )  # fmt: skip
    (folder / "set").write_text("language.training.max_steps=[1, {a: 2}]")


def read_space(folder: Path) -> None:
    override = (folder / "set").read_text(encoding="utf-8", errors="surrogateescape")
    _, space = load_space(str(folder / "space.yaml"), () if "a: 2}]" in override else [override])
    assert 0 < len(space.cells()) <= 100_000
    space.model_dump_json()  # as it is written down


def write_tables(folder: Path) -> None:
    folder.mkdir()
    rows = "".join(
        f'{number},"a text, ""{number}""\nof two lines",{label}\n' for number, label in enumerate(["no", "yes"] * 4)
    )
    (folder / "quoted.csv").write_text(f"id,text,label\n{rows}", encoding="utf-8")
    (folder / "plain.tsv").write_text("".join(f"bam rumed ñe’ẽ {n}\tyes\n" for n in range(8)), encoding="utf-8")


def read_tables(folder: Path) -> None:
    spec = benchmark(OwnBenchmark.model_validate(BENCHMARK))
    rows = read_rows(
        file_source(str(folder / "plain.tsv"), text=True), Layout("text", "label", header=("text", "label"))
    )
    assert all(row.text and row.label for row in rows)
    examples = read_training(spec, (file_source(str(folder / "quoted.csv"), text=True),), "test")
    assert len(examples) and len({*examples.ids}) == len(examples) and {*examples.labels} <= {0, 1}


def write_text(folder: Path) -> None:
    folder.mkdir()
    lines = [f"w{n} w{n + 1} ñe’ẽ w{n + 2}. w3 w4! Ã© w{n}" for n in range(40)]
    (folder / "ace.txt").write_text("\n".join(lines), encoding="utf-8")


def read_corpus(folder: Path) -> None:
    lines = every_line(file_source(str(folder / "ace.txt"), text=True))
    settings = TextSettings(block=16, valid_fraction=0.1)
    report = check_text("ace", lines, WORDS, settings, Training(max_steps=9), evaluation=["w3 w4 w5 ñe’ẽ", "w7"])
    assert report.passages > 0 and 0 <= report.unknown_tokens <= report.tokens
    assert report.summary and all(warning.isprintable() for warning in report.warnings)


KINDS = {
    "an SFT": Kind(write_sft, ("sft.safetensors", "sft.json"), read_sft),
    "a composable-sft vector": Kind(write_composable, ("pytorch_diff.bin",), read_sft),
    "a manifest": Kind(write_storage, (MANIFEST,), read_manifests),
    "records of a sweep": Kind(
        write_storage,
        tuple(f"sweeps/s/{name}.json" for name in ("sweep", "state", f"failures/{STAGE.address}", "lease")),
        read_records,
    ),
    "what was chosen": Kind(write_storage, ("sweeps/s/chosen.json",), read_export),
    "a space": Kind(write_spaces, ("space.yaml", "space.yaml", "space.yaml", "set"), read_space),
    "tables": Kind(write_tables, ("quoted.csv", "plain.tsv"), read_tables),
    "a text": Kind(write_text, ("ace.txt",), read_corpus),
}  # fmt: skip
CONFIGURATION = ("config.json", "tokenizer.json", "tokenizer_config.json")
MODELS = {
    "a model": Kind(write_safe, (*CONFIGURATION, "config.json", "model.safetensors"), read_model),
    "a model in a pickle": Kind(write_bin, ("pytorch_model.bin",), read_model),
    "a model in shards": Kind(write_shards, ("pytorch_model.bin.index.json",), read_model),
}


def fuzz(kind: Kind, folder: Path, examples: int) -> None:
    """Spoil one file at a time, read the folder, and put the file back."""
    kind.write(folder)
    kind.read(folder)  # valid, as it was written
    valid = [(folder / name, (folder / name).read_bytes()) for name in kind.spoil]

    @settings(max_examples=examples, phases=PHASES, report_multiple_bugs=False)
    @given(CHANGES)
    def read(drawn: tuple[int, bool, list[Change]]) -> None:
        number, structure, changes = drawn
        path, content = valid[number % len(valid)]
        path.write_bytes(spoilt(content, path.suffix, structure, changes))
        try:
            with bounded():
                kind.read(folder)
        except DeftxError:
            pass
        finally:
            path.write_bytes(content)

    read()


@pytest.mark.parametrize("name", KINDS)
def test_what_comes_from_elsewhere_is_whole_or_refused(name: str, tmp_path: Path) -> None:
    fuzz(KINDS[name], tmp_path / "given", MANY)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_elsewhere_is_whole_or_refused(name: str, tmp_path: Path) -> None:
    fuzz(MODELS[name], tmp_path / "given", MANY * {"a model": 8}.get(name, 1) // 100)

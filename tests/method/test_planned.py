"""What was planned is what trains: a local folder that was edited since is refused, and none is read twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.patience import PATIENCE
from support.tiny import LABELS, make_sft
from support.world import World, write_files

from deftx.errors import DataError
from deftx.method.make import make
from deftx.models import load
from deftx.models.load import load_classifier, load_masked_lm
from deftx.models.parameters import head_of
from deftx.sft.composition import Composition
from deftx.sft.export import export
from deftx.sources import published
from deftx.sources.published import LocalFolder, local_folder, resolve_folder
from deftx.stages.stage import Stage
from deftx.stages.store import Store

CHANGED = "changed since the sweep was planned"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data")))


@pytest.fixture
def world(data: str, backbone: Path, tmp_path: Path) -> World:
    """With a backbone of its own, to be edited."""
    return World(data, Path(shutil.copytree(backbone, tmp_path / "model")))


def donor_of(world: World, folder: Path) -> Path:
    return Path(shutil.copytree(world.folder, folder))


def vector_of(world: World, folder: Path) -> Path:
    make_sft(load_masked_lm(world.folder)).save_pretrained(folder)
    return folder


def edit(file: Path) -> None:
    """Other numbers in a file of the same size, which loads as well as the one before; written after all others."""
    if file.suffix == ".json":
        file.write_bytes(file.read_bytes().replace(b" ", b"\n", 1))
    else:
        tensors = load_file(file)
        name = max((name for name in tensors if tensors[name].is_floating_point()), key=lambda n: tensors[n].numel())
        tensors[name] = tensors[name] / 2
        save_file(tensors, file, {"format": "pt"})
    os.utime(file, (time.time() + 10, time.time() + 10))  # within a few milliseconds a file system's clock stands still


PLANS: dict[str, Callable[[World, Path], tuple[Stage, Path]]] = {
    "tokenizer of a text": lambda world, _: (world.text(), world.folder / "tokenizer.json"),
    "backbone of a task": lambda world, _: (world.task_dense(), world.folder / "model.safetensors"),
    "donor of the LM head": lambda world, tmp: (
        world.dense(lm_head=resolve_folder(str(donor_of(world, tmp / "donor")))), tmp / "donor" / "model.safetensors",
    ),
    "source vector": lambda world, tmp: (
        world.task_dense(start=resolve_folder(str(vector_of(world, tmp / "source")))), tmp / "source/sft.safetensors",
    ),
    "published language vector": lambda world, tmp: (
        world.grade(world.task_dense(), None, vector=resolve_folder(str(vector_of(world, tmp / "ace")))),
        tmp / "ace" / "sft.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_folder_edited_after_planning_does_not_train_under_the_old_address(
    world: World, tmp_path: Path, name: str
) -> None:
    stage, file = PLANS[name](world, tmp_path)
    store, before = Store(str(tmp_path / "store")), file.read_bytes()
    edit(file)
    with pytest.raises(DataError, match=CHANGED) as error:
        make(stage, store)
    assert str(error.value).startswith(f"{file.parent}: changed")
    assert f"written last: {file.name})" in str(error.value)
    assert "--retry-failed" in str(error.value) and "another --name" in str(error.value)
    assert not store.has(stage.address)
    file.write_bytes(before)
    make(stage, store)
    assert store.has(stage.address)


def test_export_refuses_a_part_that_was_edited_after_it_was_resolved(world: World, tmp_path: Path) -> None:
    model = load_classifier(world.folder, LABELS, 0)
    head = {name: weight.detach() for name, weight in head_of(model).items()}
    replace(make_sft(model), head=head).save_pretrained(tmp_path / "task")
    parts = {"backbone": resolve_folder(str(world.folder)), "task": resolve_folder(str(tmp_path / "task"))}
    composition = Composition(**parts, labels=LABELS)  # type: ignore[arg-type]
    export(composition, tmp_path / "whole")
    for file in (world.folder / "model.safetensors", tmp_path / "task" / "sft.safetensors"):
        before = file.read_bytes()
        edit(file)
        with pytest.raises(DataError, match=f"{file.parent}: {CHANGED}"):
            export(composition, tmp_path / "broken")
        assert not (tmp_path / "broken").exists()
        file.write_bytes(before)


def test_an_edit_of_the_same_size_whose_time_was_set_back_is_seen(world: World) -> None:
    source, file = resolve_folder(str(world.folder)), world.folder / "model.safetensors"
    stat = file.stat()
    edit(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    with pytest.raises(DataError, match=CHANGED):
        local_folder(source)


def test_a_file_added_or_taken_away_is_a_change_and_a_hidden_one_is_none(world: World) -> None:
    source = resolve_folder(str(world.folder))
    (world.folder / ".cache").write_text("of some tool")
    assert local_folder(source) == world.folder
    (world.folder / "more.json").write_text("{}")
    with pytest.raises(DataError, match=rf"{CHANGED} .* written last: more.json"):
        local_folder(source)
    (world.folder / "more.json").unlink()
    assert local_folder(source) == world.folder
    (world.folder / "config.json").unlink()
    with pytest.raises(DataError, match=CHANGED):
        local_folder(source)


@pytest.mark.parametrize("name", ["sub/model.safetensors", ".model.safetensors"])
@pytest.mark.parametrize("named_by", ["config.json", "model.safetensors.index.json"])
def test_weights_in_a_folder_of_the_folder_or_hidden_are_refused(world: World, named_by: str, name: str) -> None:
    """They load, but are not counted: edited after planning they would train under the old address."""
    path, weights = world.folder / named_by, world.folder / name
    weights.parent.mkdir(exist_ok=True)
    (world.folder / "model.safetensors").rename(weights)
    if named_by == "config.json":
        content = {**json.loads(path.read_text()), "transformers_weights": name}
    else:
        content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(weights), name)}
    path.write_text(json.dumps(content))
    load_masked_lm(world.folder)
    with pytest.raises(DataError) as error:
        resolve_folder(str(world.folder))
    assert str(error.value) == (
        f"{path}: names the weights {name!r}; weights must lie in the folder itself and not be hidden"
    )


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1, "b": "b.safetensors"}}'])
def test_an_index_of_another_form_is_left_to_whoever_loads_it(world: World, content: str) -> None:
    (world.folder / "model.safetensors.index.json").write_text(content)
    source = resolve_folder(str(world.folder))
    assert local_folder(source) == world.folder


def test_another_process_compares_too(world: World) -> None:
    source = resolve_folder(str(world.folder))
    assert isinstance(source, LocalFolder)
    code = f"from deftx.sources.published import *; local_folder(LocalFolder(sha256='{source.sha256}', path='{{}}'))"

    def opened() -> str:
        words = [sys.executable, "-c", code.format(source.path)]
        return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False).stderr

    assert opened() == ""
    edit(world.folder / "model.safetensors")
    assert CHANGED in opened()


def test_a_folder_is_digested_once_while_nobody_touches_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digested, digest = list[str](), published.hashlib.file_digest
    monkeypatch.setattr(
        published.hashlib, "file_digest", lambda file, name: digested.append(Path(file.name).name) or digest(file, name)
    )
    source = resolve_folder(str(world.folder))
    for _ in range(3):
        assert local_folder(source) == world.folder
        assert resolve_folder(str(world.folder)) == source
    files = sorted(path.name for path in world.folder.iterdir())
    assert digested == files
    os.utime(world.folder / "config.json")
    assert local_folder(source) == world.folder
    assert digested == files * 2


def test_a_models_fingerprint_is_taken_once_while_nobody_touches_its_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, take = list[str](), load.fingerprint
    monkeypatch.setattr(load, "fingerprint", lambda model: taken.append(take(model)) or taken[-1])
    loaded = [load_masked_lm(world.folder).deftx_fingerprint for _ in range(3)]
    assert loaded == taken * 3
    assert load_classifier(world.folder, LABELS, 0).deftx_fingerprint == loaded[0]  # another class: taken, and equal
    assert len(taken) == 2
    edit(world.folder / "model.safetensors")
    assert load_masked_lm(world.folder).deftx_fingerprint == taken[2] != loaded[0]

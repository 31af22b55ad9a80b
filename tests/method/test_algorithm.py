"""Each kind of stage run for real on a tiny model and hand-written files: Algorithm 1 and its special cases."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.patience import PATIENCE
from support.tiny import LABELS, make_sft, make_tokenizer, same_bits, write_backbone
from support.world import LANGUAGE_TRAINING, NUSAX, TASK_TRAINING, World, write_files
from torch import Tensor

import deftx
from deftx.config import Denoise, Execution, Training
from deftx.data.corpora import corpus_source
from deftx.data.examples import evaluation_source, read_examples
from deftx.errors import DataError, StoreError, TrainingError
from deftx.masks.denoise import denoise, is_matrix
from deftx.masks.select import non_zero, select
from deftx.method import phases
from deftx.method.make import make
from deftx.models.load import load_classifier, load_masked_lm
from deftx.models.parameters import base_of, embeddings_of, head_of, maskable
from deftx.sft.vector import SparseFineTuning
from deftx.sources.published import resolve_folder
from deftx.stages.kinds import Kind
from deftx.stages.manifest import Manifest
from deftx.stages.settings import (
    BackboneSettings,
    SparseSettings,
)
from deftx.stages.stage import Stage
from deftx.stages.store import Store

K = 300
DENOISE = Denoise(rank=3, retention=0.05)


def sparse(dense: Stage, denoise_: Denoise | None = DENOISE, k: int | str | None = K, retrain: bool = True) -> Stage:
    return Stage("sparse", SparseSettings(denoise=denoise_, k=k, retrain=retrain), (("dense", dense),))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Its backbone's weights are large, so that an untrained classifier's predictions differ."""
    backbone = write_backbone(tmp_path_factory.mktemp("lively"), initializer_range=0.7)
    return World(str(write_files(tmp_path_factory.mktemp("data"))), backbone)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared by the tests that only read: a dense phase is trained once."""
    return Store(str(tmp_path_factory.mktemp("store")))


def tensors(store: Store, stage: Stage, name: str) -> dict[str, Tensor]:
    make(stage, store)
    return load_file(store.fetch(stage.address, name))


def vector(store: Store, stage: Stage) -> SparseFineTuning:
    make(stage, store)
    return SparseFineTuning.from_pretrained(store.fetch_folder(stage.address, "sft"))


def hashes(manifest: Manifest) -> dict[str, str]:
    """Of all files but the metadata, which name the versions of the packages at hand."""
    return {name: entry.sha256 for name, entry in manifest.files.items() if name != "sft/sft.json"}


# -- the two phases ---------------------------------------------------------------------------------------------------


def test_a_text_stage_holds_what_both_phases_read(world: World, store: Store) -> None:
    blocks = tensors(store, world.text(), "blocks.safetensors")
    manifest = make(world.text(), store)
    assert {name: tuple(b.shape)[1] for name, b in blocks.items()} == {"train": 12, "valid": 12}
    assert manifest.metrics["train_tokens"] == blocks["train"].numel()
    assert manifest.metrics["train_blocks"] == len(blocks["train"])


def test_a_dense_delta_is_of_all_maskable_parameters_the_embeddings_included(world: World, store: Store) -> None:
    delta = tensors(store, world.dense(), "delta.safetensors")
    model = load_masked_lm(world.folder)
    assert {name: tuple(d.shape) for name, d in delta.items()} == {
        n: tuple(p.shape) for n, p in maskable(model).items()
    }
    assert bool(delta["embeddings.word_embeddings.weight"].any())
    assert set(tensors(store, world.dense(), "head.safetensors")) == set(head_of(model))
    spectra = tensors(store, world.dense(), "spectra.safetensors")
    assert set(spectra) == {name for name, d in delta.items() if is_matrix(d)}
    for name, values in spectra.items():
        exact = np.linalg.svd(delta[name].double().numpy(), compute_uv=False)
        np.testing.assert_allclose(values.numpy(), exact, atol=1e-6 * exact[0])


def test_a_dense_delta_is_the_best_checkpoint_less_the_start(world: World, store: Store) -> None:
    """Weights rebuilt from delta and head have the validation loss that the manifest names."""
    manifest = make(world.dense(), store)
    model = load_masked_lm(world.folder).eval()
    with torch.no_grad():
        for name, change in tensors(store, world.dense(), "delta.safetensors").items():
            maskable(model)[name].add_(change)
        for name, value in tensors(store, world.dense(), "head.safetensors").items():
            head_of(model)[name].copy_(value)
    objective = phases.language_objective(store, world.dense(), make_tokenizer())
    found = objective.validate(model, torch.device("cpu"))["valid_loss"]
    assert found == pytest.approx(manifest.metrics["valid_loss"], rel=1e-5)
    assert manifest.metrics["valid_loss"] == min(point["valid_loss"] for point in manifest.curve)
    assert manifest.details["fingerprint"] == model.deftx_fingerprint


def denoised_by_hand(delta: dict[str, Tensor], settings: Denoise) -> dict[str, Tensor]:
    return {name: denoise(d, settings).values if is_matrix(d) else d for name, d in delta.items()}


def indices_of(sft: SparseFineTuning) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in sft.indices.items()}


def lists(indices: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in indices.items()}


@pytest.mark.parametrize(
    "setting",
    [None, DENOISE, Denoise(rank="90%"), Denoise(rank=2, retention=0), Denoise(rank=3, retention_of="nonzero")],
    ids=["lt-sft", "deft-x", "by variance", "low rank only", "share of non-zero"],
)
def test_the_mask_is_the_top_k_of_the_denoised_delta(world: World, store: Store, setting: Denoise | None) -> None:
    delta = tensors(store, world.dense(), "delta.safetensors")
    stage = sparse(world.dense(), setting)
    sft, manifest = vector(store, stage), make(stage, store)
    expected = select(denoised_by_hand(delta, setting) if setting else delta, K)
    assert indices_of(sft) == lists(expected)
    assert len(sft) == sft.metadata.k == K
    plain = {(name, i) for name, index in select(delta, K).items() for i in index.tolist()}
    ours = {(name, i) for name, index in sft.indices.items() for i in index.tolist()}
    assert manifest.metrics["jaccard_lt_sft"] == len(plain & ours) / len(plain | ours)
    assert (setting is None) == (manifest.metrics["jaccard_lt_sft"] == 1.0)
    assert len(manifest.details["matrices"]) == (0 if setting is None else sum(is_matrix(d) for d in delta.values()))


def test_every_sparse_stage_records_how_far_denoising_went(world: World, store: Store) -> None:
    matrices = make(sparse(world.dense()), store).details["matrices"]
    delta = tensors(store, world.dense(), "delta.safetensors")
    for facts in matrices:
        result = denoise(delta[facts["name"]], DENOISE)
        assert facts["rank"] == 3
        assert facts["rank_share"] == 3 / min(delta[facts["name"]].shape)
        assert facts["nonzero_retention"] == result.nonzero_retention
        assert facts["energy_retention"] == result.energy_retention


def test_the_vector_is_what_the_sparse_phase_changed_not_the_denoised_values(world: World, store: Store) -> None:
    stage = sparse(world.dense())
    sft, delta = vector(store, stage), tensors(store, world.dense(), "delta.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(sft.values[name], denoised_by_hand(delta, DENOISE)[name].reshape(-1)[sft.indices[name]])
    model = load_masked_lm(world.folder).eval()
    with torch.no_grad():
        for name, index in sft.indices.items():
            maskable(model)[name].view(-1)[index] += sft.values[name]
        for name, value in sft.head.items():
            head_of(model)[name].copy_(value)
    objective = phases.language_objective(store, world.dense(), make_tokenizer())
    found = objective.validate(model, torch.device("cpu"))["valid_loss"]
    assert found == pytest.approx(make(stage, store).metrics["valid_loss"], rel=1e-5)
    assert sft.metadata.scores["valid_loss"] == make(stage, store).metrics["valid_loss"]
    assert (sft.metadata.language, sft.metadata.task, sft.metadata.rank) == ("ace", None, "3")
    assert sft.metadata.fingerprint == model.deftx_fingerprint


@pytest.mark.parametrize("setting", [None, DENOISE], ids=["plain", "denoised"])
def test_without_sparse_fine_tuning_it_is_the_top_k_of_the_change_with_the_dense_head(
    world: World, store: Store, setting: Denoise | None
) -> None:
    delta = tensors(store, world.dense(), "delta.safetensors")
    changed = denoised_by_hand(delta, setting) if setting else delta
    sft = vector(store, sparse(world.dense(), setting, retrain=False))
    assert indices_of(sft) == lists(select(changed, K))
    assert same_bits(sft.values, {name: changed[name].reshape(-1)[index] for name, index in sft.indices.items()})
    assert same_bits(sft.head, tensors(store, world.dense(), "head.safetensors"))


def test_without_pruning_either_it_is_l_plus_s_and_the_raw_bias_changes(world: World, store: Store) -> None:
    changed = denoised_by_hand(tensors(store, world.dense(), "delta.safetensors"), DENOISE)
    sft = vector(store, sparse(world.dense(), k=None, retrain=False))
    assert indices_of(sft) == lists(non_zero(changed))
    for name, whole in changed.items():
        flat = torch.zeros(whole.numel())
        if name in sft.indices:
            flat[sft.indices[name]] = sft.values[name]
        assert torch.equal(flat.view_as(whole), whole)


def test_k_as_a_share_is_of_the_maskable_entries(world: World, store: Store) -> None:
    total = sum(p.numel() for p in maskable(load_masked_lm(world.folder)).values())
    assert len(vector(store, sparse(world.dense(), k="10%"))) == total // 10


def noted_starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that each training run begins with, as they come."""
    begun: list[dict[str, Tensor]] = []
    train = phases.train

    def noting(model: Any, *args: Any, **options: Any) -> Any:
        begun.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return train(model, *args, **options)

    monkeypatch.setattr(phases, "train", noting)
    return begun


def test_both_phases_of_both_kinds_begin_alike_the_head_included(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = noted_starts(monkeypatch)
    store = Store(str(tmp_path))
    for dense in (world.dense(), world.task_dense()):
        make(sparse(dense), store)
    assert same_bits(begun[0], begun[1])
    assert same_bits(begun[2], begun[3])
    drawn = load_classifier(world.folder, LABELS, world.task_dense().seed)
    assert same_bits(begun[2], {name: p.detach() for name, p in drawn.named_parameters()})


def test_frozen_embeddings_are_in_no_delta_and_no_mask(world: World, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    dense = world.task_dense(training=TASK_TRAINING.model_copy(update={"freeze_embeddings": True}))
    embeddings = embeddings_of(load_masked_lm(world.folder))
    assert not embeddings & set(vector(store, sparse(dense)).indices)
    assert not embeddings & set(tensors(store, dense, "delta.safetensors"))


# -- the task, its source vector and leaks ----------------------------------------------------------------------------


def test_a_source_vector_is_where_training_starts_and_no_part_of_the_task_vector(world: World, tmp_path: Path) -> None:
    source = make_sft(load_masked_lm(world.folder), fingerprint=load_masked_lm(world.folder).deftx_fingerprint)
    source.save_pretrained(tmp_path / "source")
    still = TASK_TRAINING.model_copy(update={"learning_rate": 1e-9})
    store = Store(str(tmp_path / "store"))
    with_source = world.task_dense(training=still, start=resolve_folder(str(tmp_path / "source")))
    delta = tensors(store, with_source, "delta.safetensors")
    assert max(float(d.abs().max()) for d in delta.values()) < 1e-6
    losses = [make(stage, store).curve[0]["train_loss"] for stage in (with_source, world.task_dense(training=still))]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("learnt_here", [True, False])
def test_both_phases_of_a_task_start_from_theta0_plus_the_source_vector(
    world: World, store: Store, tmp_path: Path, learnt_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = sparse(world.dense())
    source = vector(store, language)
    source.save_pretrained(tmp_path / "sft")
    plain = world.task_dense()
    by_stage = Stage("dense", plain.settings, (("start", language),))
    task = by_stage if learnt_here else world.task_dense(start=resolve_folder(str(tmp_path / "sft")))
    assert task.address != plain.address
    begun = noted_starts(monkeypatch)
    make(sparse(task), store)
    expected = {name: p.detach().clone() for name, p in base_of(load_masked_lm(world.folder)).named_parameters()}
    for name, index in source.indices.items():
        expected[name].view(-1)[index] += source.values[name]
    assert len(begun) == 2
    for start in begun:
        assert same_bits(
            {n.removeprefix("roberta."): w for n, w in start.items() if n.startswith("roberta.")}, expected
        )


def test_a_source_vector_of_another_backbone_is_refused_and_nothing_published(world: World, tmp_path: Path) -> None:
    make_sft(load_masked_lm(world.folder), fingerprint="0" * 64).save_pretrained(tmp_path / "source")
    stage, store = world.task_dense(start=resolve_folder(str(tmp_path / "source"))), Store(str(tmp_path / "store"))
    with pytest.raises(DataError, match="fingerprint"):
        make(stage, store)
    assert not store.has(stage.address)
    assert store.names("stages", stage.address) == []


def test_rows_dropped_as_leaks_are_listed_and_not_trained_on(world: World, store: Store) -> None:
    manifest = make(world.task_dense(), store)
    dropped = json.loads(store.fetch(world.task_dense().address, "dropped_rows.json").read_bytes())
    in_training = [row for row in dropped if row["split"] == "train"]
    assert manifest.details["dropped_rows"] == len(dropped) > 0
    assert manifest.details["examples"] == 40 - len(in_training)


@pytest.mark.parametrize("lm_head", ["own", "donor", "random"])
def test_a_backbone_without_an_lm_head(world: World, headless: Path, tmp_path: Path, lm_head: str) -> None:
    here, store = World(world.root, headless), Store(str(tmp_path))
    stage = here.dense(lm_head=resolve_folder(str(world.folder)) if lm_head == "donor" else lm_head)
    if lm_head == "own":
        with pytest.raises(DataError, match="has no LM head"):
            make(stage, store)
        assert not store.has(stage.address)
    else:
        sft = vector(store, sparse(stage))
        assert len(sft) == K
        assert "embeddings.word_embeddings.weight" in sft.indices
        assert sft.metadata.fingerprint == load_classifier(headless, LABELS, 0).deftx_fingerprint


def test_more_entries_than_changed_is_an_error_that_says_so(world: World, store: Store) -> None:
    with pytest.raises(DataError, match="entries of the weight change differ from zero"):
        make(sparse(world.dense(), k="100%"), store)


# -- grading ----------------------------------------------------------------------------------------------------------


def scores_by_hand(
    world: World, task: SparseFineTuning, language: SparseFineTuning | None, weights: tuple[float, float], split: str
) -> list[int]:
    model = load_classifier(world.folder, LABELS, seed=99).eval()
    parameters = dict(base_of(model).named_parameters())
    with torch.no_grad():
        for sft, weight in zip((task, language), weights, strict=True):
            for name, index in (sft.indices if sft else {}).items():
                assert sft is not None
                parameters[name].view(-1)[index] += weight * sft.values[name]
        for name, value in task.head.items():
            head_of(model)[name].copy_(value)
        source = evaluation_source(NUSAX, "ace", split, world.root)  # type: ignore[arg-type]
        texts = read_examples(NUSAX, source, "ace", split).texts  # type: ignore[arg-type]
        tokenizer = make_tokenizer()
        return [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("alone", [True, False])
def test_a_grade_is_of_theta0_plus_both_vectors_and_the_task_head(
    world: World, store: Store, weights: tuple[float, float], alone: bool
) -> None:
    task, language = sparse(world.task_dense()), sparse(world.dense())
    stage = world.grade(task, None if alone else language, weights=weights)
    manifest = make(stage, store)
    for split, name in (("valid", "scores.json"), ("test", "sealed_test.json")):
        record = json.loads(store.fetch(stage.address, name).read_bytes())
        expected = scores_by_hand(
            world, vector(store, task), None if alone else vector(store, language), weights, split
        )
        assert record["predicted"] == expected
        assert len(set(expected)) > 1
        right = sum(p == g for p, g in zip(record["predicted"], record["gold"], strict=True))
        assert record["accuracy"] == right / len(expected)
        if split == "valid":
            assert manifest.metrics == {"valid_macro_f1": record["macro_f1"], "valid_accuracy": record["accuracy"]}


def test_test_scores_lie_in_a_file_of_their_own_and_nowhere_in_the_manifest(world: World, store: Store) -> None:
    stage = world.grade(sparse(world.task_dense()), sparse(world.dense()))
    manifest = make(stage, store)
    assert set(manifest.files) == {"scores.json", "sealed_test.json"}
    assert not [name for name in manifest.metrics if "test" in name]
    assert (manifest.curve, manifest.details) == ([], {})
    assert len(json.loads(store.fetch(stage.address, "scores.json").read_bytes())["gold"]) == 12


def test_the_dense_task_model_can_be_graded(world: World, store: Store) -> None:
    stage = world.grade(world.task_dense(), None)
    make(stage, store)
    delta = tensors(store, world.task_dense(), "delta.safetensors")
    head = tensors(store, world.task_dense(), "head.safetensors")
    task = SparseFineTuning.from_delta(delta, non_zero(delta), vector(store, sparse(world.dense())).metadata, head)
    record = json.loads(store.fetch(stage.address, "scores.json").read_bytes())
    assert record["predicted"] == scores_by_hand(world, task, None, (1.0, 1.0), "valid")


def test_shuffled_test_labels_change_the_address_of_no_training_stage(world: World, tmp_path: Path) -> None:
    root = write_files(tmp_path / "data")
    other = World(str(root), world.folder)
    same = [(w.dense(), sparse(w.dense()), w.task_dense(), sparse(w.task_dense())) for w in (world, other)]
    assert [s.address for s in same[0]] == [s.address for s in same[1]]  # where files lie does not count
    for language in ("indonesian", "acehnese"):
        path = root / "nusax" / language / "test.csv"
        rows = [line.rsplit(",", 1) for line in path.read_text().splitlines()[1:]]
        labels = [label for _, label in rows]
        turned = [f"{rest},{label}" for (rest, _), label in zip(rows, labels[1:] + labels[:1], strict=True)]
        path.write_text("\n".join(["id,text,label", *turned]) + "\n")
    after = (other.dense(), sparse(other.dense()), other.task_dense(), sparse(other.task_dense()))
    assert [s.address for s in after] == [s.address for s in same[0]]
    grades = [w.grade(sparse(w.task_dense()), None).address for w in (world, other)]
    assert grades[0] != grades[1]
    text = (root / "nusax" / "indonesian" / "test.csv").read_text()
    (root / "nusax" / "indonesian" / "test.csv").write_text(text.replace("w1", "w2"))
    assert other.task_dense().address != after[2].address  # its sentences do count


def test_a_training_that_ends_in_no_number_publishes_nothing(world: World, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    training = LANGUAGE_TRAINING.model_copy(update={"learning_rate": 1e30, "clip": 1e30})
    stage = world.dense(training=training)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        make(stage, store)
    assert store.manifest(stage.address) is None
    assert not list(tmp_path.glob(f"stages/{stage.address}/*"))


# -- the same bits, whatever came before ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(world: World, store: Store) -> dict[str, dict[str, str]]:
    """Hashes of all files of four stages, made in order in this process."""
    return {stage.address: hashes(make(stage, store)) for stage in four(world)}


def four(world: World) -> list[Stage]:
    return [world.dense(), sparse(world.dense()), world.task_dense(), sparse(world.task_dense())]


def test_a_worker_that_did_other_work_before_makes_the_same_bytes(
    world: World, tmp_path: Path, reference: dict[str, dict[str, str]]
) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    torch.rand(100)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("medium")
    store = Store(str(tmp_path))
    for stage in reversed(four(world)):  # the other order
        assert hashes(make(stage, store)) == reference[stage.address]


def test_a_fresh_process_makes_the_same_bytes(
    world: World, tmp_path: Path, reference: dict[str, dict[str, str]]
) -> None:
    (tmp_path / "stages.pickle").write_bytes(pickle.dumps(four(world)))
    code = f"""
import pickle, sys
from pathlib import Path
from deftx.method.make import make
from deftx.stages.store import Store
for stage in pickle.loads(Path({str(tmp_path / "stages.pickle")!r}).read_bytes()):
    make(stage, Store({str(tmp_path / "store")!r}))
"""
    here = Path(deftx.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here, timeout=PATIENCE)
    store = Store(str(tmp_path / "store"))
    for stage in four(world):
        manifest = store.manifest(stage.address)
        assert manifest is not None
        assert hashes(manifest) == reference[stage.address]


def test_a_remote_store_holds_the_same_bytes(
    world: World, tmp_path: Path, reference: dict[str, dict[str, str]]
) -> None:
    remote = Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache", cache_bytes=100_000)
    for stage in four(world):
        assert hashes(make(stage, remote)) == reference[stage.address]
    grade = world.grade(four(world)[3], four(world)[1])
    assert set(make(grade, remote).files) == {"scores.json", "sealed_test.json"}
    remote.remove()


class Interruption(Exception):
    """Power cut."""


def stop_after(points: int) -> Callable[[Stage], Callable[[dict[str, float]], None]]:
    seen: list[dict[str, float]] = []

    def report(point: dict[str, float]) -> None:
        seen.append(point)
        if len(seen) == 1 + points:  # the first says where training begins
            raise Interruption

    return lambda stage: report


@pytest.mark.parametrize("points", [1, 2])
def test_a_stage_that_was_cut_off_continues_to_the_same_bytes(
    world: World, tmp_path: Path, reference: dict[str, dict[str, str]], points: int
) -> None:
    store, often = Store(str(tmp_path)), Execution(checkpoint_seconds=1e-9)
    stage = sparse(world.dense())
    make(world.dense(), store)
    with pytest.raises(Interruption):
        make(stage, store, often, stop_after(points))
    assert not store.has(stage.address)
    assert "checkpoint" in store.names("stages", stage.address)
    resumed: list[dict[str, float]] = []
    assert hashes(make(stage, store, often, lambda made: resumed.append)) == reference[stage.address]
    assert len(resumed) == 1 + (2 - points + 1)
    assert "checkpoint" not in store.names("stages", stage.address)


def test_a_stage_in_the_store_is_not_run_again(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = world.grade(sparse(world.task_dense()), sparse(world.dense()))
    manifest = make(stage, store)
    monkeypatch.setattr(Kind, "load", None)
    assert make(stage, Store(store.url)) == manifest


def spoil(store: Store, stage: Stage, name: str) -> None:
    """Turn one byte of a published file, its size unchanged."""
    manifest = store.manifest(stage.address)
    assert manifest is not None
    path = Path(store.path("stages", stage.address, manifest.attempt, name))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("of_dense", [True, False], ids=["delta", "blocks"])
def test_a_spoilt_input_is_made_again_to_the_same_bytes(
    world: World, tmp_path: Path, reference: dict[str, dict[str, str]], of_dense: bool
) -> None:
    """The token blocks too, which a sparse stage reads through its dense stage."""
    store, dense, text = Store(str(tmp_path)), world.dense(), world.text()
    make(dense, store)
    spoilt, name = (dense, "delta.safetensors") if of_dense else (text, "blocks.safetensors")
    spoil(store, spoilt, name)
    again = Store(store.url)
    stage = sparse(dense)
    assert hashes(make(stage, again)) == reference[stage.address]
    assert again.intact(spoilt.address)


def test_a_backbone_trained_here_carries_the_whole_chain_and_is_made_again_when_spoilt(
    world: World, tmp_path: Path
) -> None:
    root = world.root
    training = Training(max_steps=4, batch_size=8, learning_rate=1e-3, validate_every=2)
    sources = tuple((code, corpus_source(NUSAX, code, root)) for code in ("id", "ace"))
    settings = BackboneSettings(
        texts=sources[:1], tokenizer_texts=sources[1:], vocabulary=300, layers=1, hidden=16, heads=2, feed_forward=16,
        block=16, training=training, seed=0,
    )  # fmt: skip
    backbone = Stage("backbone", settings)
    text = Stage("text", world.text().settings.model_copy(update={"backbone": None}), (("backbone", backbone),))
    dense = Stage(
        "dense", world.dense(backbone=None).settings, (("backbone", backbone), ("text", text))
    )  # fmt: skip
    task = Stage("dense", world.task_dense(backbone=None).settings, (("backbone", backbone),))
    store = Store(str(tmp_path))
    vectors = sparse(task, k="5%"), sparse(dense, k="5%")
    first = make(world.grade(*vectors), store)
    assert vector(store, vectors[1]).metadata.backbone == f"stage {backbone.address}"
    before = store.manifest(backbone.address)
    spoil(store, backbone, "model/model.safetensors")
    again = Store(store.url)
    with pytest.raises(StoreError, match=r"model.safetensors"):
        again.fetch_folder(backbone.address, "model")
    other = world.grade(vectors[0], None)
    make(other, again)
    after = again.manifest(backbone.address)
    assert before is not None
    assert after is not None
    assert hashes(after) == hashes(before)
    again.discard(world.grade(*vectors).address)
    assert hashes(make(world.grade(*vectors), again)) == hashes(first)

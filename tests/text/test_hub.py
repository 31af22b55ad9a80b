"""The hub over HTTP, from a stand-in on this machine: what it has, what it lacks, when it moves and when it is gone.

Calls are made in processes of their own (`Client`), because the hub's client reads its address when it is imported.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from support.composable_files import encode, write
from support.encoders import write_encoder
from support.hub_stand_in import ANSELL, NUSAX, TINY, VECTOR, WIKIPEDIA, Client, HubStandIn, dataset, parquet
from support.islands import sweep, write_data, write_space
from support.tiny import make_sft, make_tokenizer, write_pickled

from deftx.data.catalogue import BENCHMARKS
from deftx.data.corpora import corpus_source, read_lines
from deftx.data.examples import Examples, evaluation_source, read_examples
from deftx.errors import DataError, HubError, Problems
from deftx.method.look import look
from deftx.models.load import load_masked_lm, load_tokenizer
from deftx.models.parameters import fingerprint
from deftx.sft.composable import FILE
from deftx.sft.vector import SparseFineTuning
from deftx.sources.files import online_file, read_text
from deftx.sources.hub import HubSource, hub_commit, hub_table
from deftx.sources.published import HubFolder, local_folder, resolve_folder, settings_folder
from deftx.sources.revisions import Revisions, pinned_revisions
from deftx.stages.backbones import resolve_lm_head
from deftx.stages.store import Store
from orchestrator.record.sweep import SweepFolder
from orchestrator.run import session
from orchestrator.space.load import load_space

QUICK = 15.0
"""Seconds within which an unreachable hub must be an answer; the hub's client by itself takes 23."""


def nusax(first: str) -> dict[str, bytes]:
    test, valid = parquet(text=[first, "lah"], label=[2, 0]), parquet(text=["pih"], label=[1])
    return dataset(ace={"test": test, "validation": valid}, ind={"test": parquet(text=["baik"], label=[2])})


@pytest.fixture(scope="module")
def hub(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandIn]:
    hub = HubStandIn()
    files = {path.name: path.read_bytes() for path in backbone.iterdir()}
    hub.push(TINY, files | {"pytorch_model.bin": b"the same again", "onnx/model.onnx": b"and again"})
    folder = tmp_path_factory.mktemp("vectors")
    make_sft(load_masked_lm(backbone), language="ace").save_pretrained(folder / "own")
    hub.push(VECTOR, folder / "own")
    file = io.BytesIO()
    torch.save({"diffs": {"roberta.w": encode(torch.eye(3))}, "abs": {}}, file)
    hub.push(ANSELL, {"README.md": b"empty"})
    hub.push(ANSELL, {FILE: file.getvalue()}, branch="feature/v2")
    hub.push(NUSAX, nusax("get"), kind="dataset")
    articles = parquet(id=["1", "2"], title=["A", "B"], text=["Nanggroë\n\nAceh", "Banda"])
    hub.push(WIKIPEDIA, dataset(**{"20231101.ace": {"train": articles}}), kind="dataset")
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("huggingface")


@pytest.fixture(scope="module")
def online(hub: HubStandIn, home: Path) -> Iterator[Client]:
    with Client(hub.url, home) as client:
        yield client


@pytest.fixture(scope="module")
def fetched(online: Client) -> dict[str, Any]:
    """What was had from the hub while it was there."""
    return {
        "model": online(load_model, TINY), "vector": online(SparseFineTuning.from_pretrained, VECTOR),
        "test": online(examples, "ace", "test"), "text": online(lines, "ace"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def later(hub: HubStandIn, home: Path, fetched: dict[str, Any]) -> Iterator[Client]:
    """A new process with the cache of the first."""
    with Client(hub.url, home) as client:
        yield client


@pytest.fixture(scope="module")
def told(hub: HubStandIn, home: Path, fetched: dict[str, Any]) -> Iterator[Client]:
    """Another, told not to ask the hub."""
    with Client(hub.url, home, offline=True) as client:
        yield client


@pytest.fixture(params=["refused", "out of order", "HF_HUB_OFFLINE"])
def offline(request: pytest.FixtureRequest, hub: HubStandIn, later: Client, told: Client) -> Iterator[Client]:
    """A new process, with the hub gone or not to be asked."""
    if request.param == "HF_HUB_OFFLINE":
        hub.asked.clear()
        yield told
        assert hub.asked == []
    elif request.param == "refused":
        hub.stop()
        yield later
        hub.start_again()
    else:
        hub.out_of_order = True
        yield later
        hub.out_of_order = False


# --- what runs in the client's process


def load_model(name: str) -> tuple[str, list[int]]:
    """Fingerprint of the model at a hub id, and what its tokenizer makes of a text."""
    folder = local_folder(resolve_folder(name))
    return fingerprint(load_masked_lm(folder)), load_tokenizer(folder)("w0 w3")["input_ids"]


def examples(language: str, split: Any) -> Examples:
    benchmark = BENCHMARKS["nusax"]
    return read_examples(benchmark, evaluation_source(benchmark, language, split), language, split)


def lines(language: str) -> list[str]:
    return list(read_lines(corpus_source(BENCHMARKS["nusax"], language)))


def table(source: HubSource, *columns: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = hub_table(source, columns)[:]
    return found


def commit_under(found: dict[str, str], repo: str) -> tuple[str, dict[str, str]]:
    with pinned_revisions(Revisions(dict(found))) as revisions:
        return hub_commit(repo), revisions.resolved


def begin(space: Path, data: Path, storage: Path, name: str) -> str:
    """Start a sweep, as far as its record; the identity of its backbone."""
    title, loaded = load_space(str(space), [], backbone="somebody/moving")
    prepared = session.prepare(title, loaded, SweepFolder(Store(str(storage)), name), str(data))
    with session.held(prepared) as info:
        assert info.backbone_identity == prepared.backbone
    return prepared.backbone


def plan(space: Path, data: Path, storage: Path, *options: str) -> tuple[int, str]:
    result = sweep(space, "--data-root", data, "--storage", storage, "--plan", *options)
    return result.exit_code, result.output.replace("\n", " ")


# --- while the hub is there


def test_an_id_becomes_the_commit_of_main_of_a_branch_or_itself(hub: HubStandIn, online: Client) -> None:
    assert online(resolve_folder, TINY) == HubFolder(repo=TINY, commit=hub.branches["model", TINY]["main"])
    v2 = hub.branches["model", ANSELL]["feature/v2"]
    assert online(resolve_folder, ANSELL, "feature/v2") == HubFolder(repo=ANSELL, commit=v2)
    hub.asked.clear()
    assert online(resolve_folder, ANSELL, v2) == HubFolder(repo=ANSELL, commit=v2)
    assert hub.asked == []


def test_what_the_hub_lacks_is_named(online: Client) -> None:
    with pytest.raises(HubError, match=f"^model '{TINY}' has no revision 'v9' on the hub$"):
        online(resolve_folder, TINY, "v9")
    with pytest.raises(HubError, match=r"^there is no model 'somebody/nothing' on the hub, or it is private"):
        online(SparseFineTuning.from_pretrained, "somebody/nothing")
    with pytest.raises(HubError, match=f"{TINY} at commit {'1' * 12} .* has no revision '{'1' * 40}' on the hub$"):
        online(local_folder, HubFolder(repo=TINY, commit="1" * 40))
    with pytest.raises(HubError, match=f"^{ANSELL} at commit {'.' * 12} holds no weights .*; it has README.md$"):
        online(SparseFineTuning.from_pretrained, ANSELL)
    with pytest.raises(HubError, match=f"^dataset '{NUSAX}' has no revision 'v9' on the hub$"):
        online(hub_commit, NUSAX, "v9", kind="dataset")
    with pytest.raises(HubError, match=r"^there is no dataset 'somebody/nothing' on the hub"):
        online(hub_commit, "somebody/nothing", kind="dataset")


def test_a_gated_repository_says_what_to_do(hub: HubStandIn, online: Client) -> None:
    commit = hub.push("somebody/gated", {"config.json": b"{}", "model.safetensors": b"weights"})
    rows = hub.push("somebody/rows", dataset(ace={"test": parquet(text=["a"], label=[0])}), kind="dataset")
    hub.gated |= {"somebody/gated", "somebody/rows"}
    source = online(resolve_folder, "somebody/gated")
    assert source == HubFolder(repo="somebody/gated", commit=commit)
    with pytest.raises(HubError, match=f"^model 'somebody/gated' at {commit[:12]} is gated: ask for .* set HF_TOKEN"):
        online(local_folder, source)
    with pytest.raises(HubError, match=f"^somebody/rows/ace/test: .* at commit {rows[:12]} .*gated"):
        online(table, HubSource(repo="somebody/rows", commit=rows, config="ace", split="test"), "text")


def test_a_file_on_line_is_fetched_once_and_kept(hub: HubStandIn, home: Path, online: Client) -> None:
    hub.web["smsa.tsv"] = b"baik\tpositive\n"
    url = f"{hub.url}/web/smsa.tsv"
    source = online(online_file, url)
    hub.asked.clear()
    with Client(hub.url, home) as later:
        assert later(online_file, url) == source
        assert later(read_text, source) == "baik\tpositive\n"
        assert hub.asked == []
        other = source.model_copy(update={"sha256": "0" * 64})
        with pytest.raises(DataError, match="changed since the sweep was planned"):  # what is kept is not believed
            later(read_text, other)
        assert hub.asked
        with pytest.raises(HubError, match=r"/web/none: could not be fetched .*give a data root"):
            later(online_file, f"{hub.url}/web/none")


def test_a_backbone_by_its_id_is_the_one_that_was_published(
    hub: HubStandIn, fetched: dict[str, Any], backbone: Path
) -> None:
    ids = make_tokenizer()("w0 w3")["input_ids"]
    assert fetched["model"] == (fingerprint(load_masked_lm(backbone)), ids)
    loaded = {line.rpartition("/")[2] for line in hub.asked if line.startswith(f"GET /{TINY}/resolve/")}
    assert {"model.safetensors", "tokenizer.json"} <= loaded
    assert loaded.isdisjoint({"pytorch_model.bin", "model.onnx"}), "the weights come once"


def test_of_a_repository_comes_what_a_model_needs_and_none_of_its_checkpoints(
    hub: HubStandIn, online: Client, backbone: Path
) -> None:
    files = {path.name: path.read_bytes() for path in backbone.iterdir()}
    weights = files["model.safetensors"]
    checkpoint = {f"checkpoint-500/{name}": content for name, content in files.items()}
    other = {"model.fp16.safetensors": weights, "training_args.bin": b"a pickle", "tf_model.h5": b"and again"}
    source = HubFolder(repo="somebody/trained", commit=hub.push("somebody/trained", files | checkpoint | other))
    described = online(settings_folder, source)
    assert {path.name for path in described.iterdir()} == files.keys() - {"model.safetensors"}
    folder = online(local_folder, source)
    assert folder == described
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    commit = hub.push("somebody/between", checkpoint | {"config.json": files["config.json"]})
    with pytest.raises(HubError, match=r"holds no weights .*; it has checkpoint-500/config.json, checkpoint-500/model"):
        online(settings_folder, HubFolder(repo="somebody/between", commit=commit))


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_in_shards_come_whole(
    hub: HubStandIn, home: Path, online: Client, backbone: Path, tmp_path: Path, shards: int
) -> None:
    write_pickled(backbone, tmp_path / "pickled", shards)
    repo = f"somebody/pickled-{shards}"
    source = HubFolder(repo=repo, commit=hub.push(repo, tmp_path / "pickled"))
    online(settings_folder, source)
    with Client(hub.url, home) as early:
        hub.stop()
        with pytest.raises(HubError, match="is not in the local cache, and the hub could not be reached"):
            early(local_folder, source)
        hub.start_again()
    assert online(load_model, repo) == (fingerprint(load_masked_lm(backbone)), make_tokenizer()("w0 w3")["input_ids"])


def test_vectors_by_their_id(hub: HubStandIn, online: Client, fetched: dict[str, Any], backbone: Path) -> None:
    own = make_sft(load_masked_lm(backbone), language="ace")
    assert fetched["vector"].metadata == own.metadata
    assert all(torch.equal(fetched["vector"].values[name], value) for name, value in own.values.items())
    sft = online(SparseFineTuning.from_pretrained, ANSELL, "feature/v2")
    assert sft.indices["w"].tolist() == [0, 4, 8]
    assert sft.metadata.revision == hub.branches["model", ANSELL]["feature/v2"]
    assert sft.metadata.backbone_basis == "asserted"
    with pytest.raises(DataError, match=f"^{TINY}: holds neither sft.safetensors nor {FILE}"):
        online(SparseFineTuning.from_pretrained, TINY)


def test_data_sets_by_parquet(hub: HubStandIn, online: Client, fetched: dict[str, Any]) -> None:
    assert fetched["test"] == Examples(("0", "1"), ("get", "lah"), None, (2, 0))
    assert online(examples, "ace", "valid") == Examples(("0",), ("pih",), None, (1,))
    assert online(examples, "id", "test").texts == ("baik",)
    assert fetched["text"] == ["Nanggroë", "Aceh", "Banda"]
    commit = hub.branches["dataset", NUSAX]["main"]
    with pytest.raises(HubError, match=f"^{NUSAX}/acee/test: could not be loaded from the hub"):
        online(table, HubSource(repo=NUSAX, commit=commit, config="acee", split="test"), "text")
    with pytest.raises(DataError, match=f"^{NUSAX}/ace/test: no column 'tweet'; found: text, label"):
        online(table, HubSource(repo=NUSAX, commit=commit, config="ace", split="test"), "tweet")


def test_pins_hold_when_main_moves(hub: HubStandIn, online: Client) -> None:
    before = hub.push("somebody/moving", {"config.json": b"1"})
    assert online(commit_under, {}, "somebody/moving") == (before, {"model somebody/moving@main": before})
    after = hub.push("somebody/moving", {"config.json": b"2"})
    found = {"model somebody/moving@main": before}
    assert online(commit_under, found, "somebody/moving") == (before, found)
    assert online(commit_under, {}, "somebody/moving")[0] == after


def test_a_sweep_keeps_to_the_commit_it_began_with(
    hub: HubStandIn, online: Client, backbone: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in backbone.iterdir()}
    asked = write_space(tmp_path / "tiny.yaml"), write_data(tmp_path / "data"), tmp_path / "storage"
    first = hub.push("somebody/moving", files | {"README.md": b"first"})
    assert online(begin, *asked, "old") == f"somebody/moving@{first}"
    second = hub.push("somebody/moving", files | {"README.md": b"second"})
    hub.asked.clear()
    assert online(begin, *asked, "old") == f"somebody/moving@{first}"
    assert all(first in request for request in hub.asked), "nothing is asked of main"
    assert online(begin, *asked, "new") == f"somebody/moving@{second}"
    hub.stop()
    assert online(begin, *asked, "old") == f"somebody/moving@{first}"
    hub.start_again()


def large(backbone: Path) -> bytes:
    """The weights of a backbone, with a megabyte that no model has."""
    return save(load_file(backbone / "model.safetensors") | {"unused": torch.zeros(2**18)}, {"format": "pt"})


def look_at(backbone: str, *, length: int, lm_head: str | HubFolder = "own", **vectors: str | HubFolder) -> list[str]:
    problems = Problems()
    head = lm_head if isinstance(lm_head, HubFolder) else resolve_lm_head(lm_head)
    resolved = {key: resolve_folder(name) if isinstance(name, str) else name for key, name in vectors.items()}
    look(problems, resolve_folder(backbone), {"task.max_length": length}, head, resolved)
    return problems.lines


def test_a_look_fetches_settings_and_headers_alone(hub: HubStandIn, home: Path, backbone: Path, headless: Path) -> None:
    files = {path.name: path.read_bytes() for path in backbone.iterdir()}
    config = json.loads(files["config.json"])
    hub.push("somebody/large", files | {"model.safetensors": large(backbone)})
    hub.push("somebody/wrong", files | {"config.json": json.dumps(config | {"intermediate_size": 32}).encode()})
    hub.push("somebody/headless", headless)
    hub.push("somebody/vector-2", hub.commits["model", VECTOR][hub.branches["model", VECTOR]["main"]])
    hub.push("somebody/of-2022", {FILE: b"not fetched"})
    hub.push("somebody/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"})
    hub.sent.clear()
    with Client(hub.url, home) as client:
        assert client(look_at, "somebody/large", length=38, source="somebody/vector-2", other="somebody/of-2022") == []
        assert client(look_at, "somebody/headless", lm_head="somebody/large", length=38) == []
        sent = {path.rpartition("/")[2]: size for path, size in hub.sent.items() if "/resolve/" in path}
        assert {"config.json", "tokenizer.json", "sft.json"} <= sent.keys()
        assert sent.pop("model.safetensors") <= 3 * 100_001
        assert not any(name.endswith((".safetensors", ".bin")) for name in sent)
        assert client(look_at, "somebody/large", length=39) == [
            "task.max_length: 39 tokens, but somebody/large reads 38 at most"
        ]
        told = client(look_at, "somebody/wrong", length=38, lm_head="somebody/headless", source="somebody/lora")
    assert [line.partition(" (")[0] for line in told] == [
        "backbone: somebody/wrong: roberta.encoder.layer.0.intermediate.dense.weight has shape",
        "lm_head: somebody/headless: has no LM head to give",
        "source: somebody/lora: holds neither sft.safetensors nor pytorch_diff.bin, so it is not an SFT: it is a LoRA "
        "or another adapter",
    ]


def test_pickles_on_the_hub_are_looked_at_when_they_are_here(hub: HubStandIn, home: Path, tmp_path: Path) -> None:
    folder = write_pickled(write_encoder(tmp_path / "bert", "bert"), tmp_path / "pickled")
    torch.save({}, folder / "pytorch_model.bin")
    hub.push("somebody/empty", folder)
    (tmp_path / "vector").mkdir()
    write(tmp_path / "vector", {"bert.pooler.dense.weight": encode(torch.eye(16))})
    with Client(hub.url, home) as client:
        assert client(look_at, "somebody/empty", length=38, source=str(tmp_path / "vector")) == []
        folder = client(local_folder, client(resolve_folder, "somebody/empty"))
        weights, vector = client(look_at, str(folder), length=38, lm_head="random", source=str(tmp_path / "vector"))
    assert weights.endswith("give a whole checkpoint")
    assert "changes pooler.dense.weight, which this backbone does not have" in vector


def test_a_plan_looks_at_the_hub(hub: HubStandIn, online: Client, backbone: Path, tmp_path: Path) -> None:
    space, data = write_space(tmp_path / "tiny.yaml"), write_data(tmp_path / "data")
    code, output = online(plan, space, data, tmp_path / "none", "--backbone", TINY, "--set", "task.max_length=64")
    assert (code, output) == (2, f"error: task.max_length: 64 tokens, but {TINY} reads 38 at most ")


# --- when it is gone


def test_what_was_fetched_loads_without_a_hub(offline: Client, fetched: dict[str, Any], capfd: Any) -> None:
    assert offline(load_model, TINY) == fetched["model"]
    assert offline(SparseFineTuning.from_pretrained, VECTOR).metadata == fetched["vector"].metadata
    assert offline(examples, "ace", "test") == fetched["test"]
    assert offline(lines, "ace") == fetched["text"]
    assert "Retrying" not in capfd.readouterr().err


def test_a_look_without_a_hub_sees_what_is_here_and_passes_over_the_rest(
    hub: HubStandIn, offline: Client, capfd: Any
) -> None:
    began = time.monotonic()
    assert offline(look_at, TINY, length=39) == [f"task.max_length: 39 tokens, but {TINY} reads 38 at most"]
    never = HubFolder(repo="somebody/never", commit="1" * 40)
    assert offline(look_at, TINY, length=38, source=never, lm_head=never) == []
    assert time.monotonic() - began < QUICK
    assert "Retrying" not in capfd.readouterr().err


def test_what_was_not_fetched_is_a_clear_error_at_once(hub: HubStandIn, offline: Client, capfd: Any) -> None:
    commit = hub.push(NUSAX, nusax("changed"), kind="dataset")
    assert offline(hub_commit, NUSAX, kind="dataset") != commit
    offline(table, HubSource(repo=WIKIPEDIA, **_known(hub, WIKIPEDIA)), "text")
    capfd.readouterr()
    gone = r"the hub could not be reached for {} '{}' \(.*\); give a {} instead, or run where there is a network"
    began = time.monotonic()
    with pytest.raises(HubError, match=gone.format("model", "somebody/else", "local folder")):
        offline(resolve_folder, "somebody/else")
    with pytest.raises(
        HubError, match=f"^{TINY} at commit {'1' * 12} is not in the local cache, and the hub could not"
    ):
        offline(local_folder, HubFolder(repo=TINY, commit="1" * 40))
    for config, at in (("ace", commit), ("ind", "1" * 40)):  # never another commit's rows, though they are at hand
        with pytest.raises(HubError, match=gone.format("dataset", NUSAX, "data root")):
            offline(table, HubSource(repo=NUSAX, commit=at, config=config, split="test"), "text")
    assert time.monotonic() - began < QUICK
    assert capfd.readouterr() == ("", ""), "no retries on the screen"


def test_a_download_that_was_cut_short_is_not_taken_for_whole(hub: HubStandIn, home: Path, online: Client) -> None:
    commit = hub.push("somebody/torn", {"config.json": b"{}", "model.safetensors": b"weights"})
    folder = online(local_folder, HubFolder(repo="somebody/torn", commit=commit))
    (folder / "model.safetensors").unlink()
    with Client(hub.url, home) as again:
        hub.stop()
        with pytest.raises(HubError, match=r"somebody/torn .* is not in the local cache"):
            again(local_folder, HubFolder(repo="somebody/torn", commit=commit))
        hub.start_again()
        again(local_folder, HubFolder(repo="somebody/torn", commit=commit))
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_the_command_without_a_hub(offline: Client, tmp_path: Path) -> None:
    space, data = write_space(tmp_path / "tiny.yaml"), write_data(tmp_path / "data")
    code, output = offline(plan, space, data, tmp_path / "none", "--backbone", "somebody/else")
    assert code == 0
    assert "not resolved without a network: model somebody/else@main" in output
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator.sweep", space, "--data-root", data, "--storage", tmp_path / "storage",
         "--backbone", "somebody/else"],
        env={"PATH": "/usr/bin:/bin", **offline.environment}, capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: the hub could not be reached for model 'somebody/else'")
    assert len(result.stderr.splitlines()) == 1


def _known(hub: HubStandIn, repo: str) -> dict[str, str]:
    return {"commit": hub.branches["dataset", repo]["main"], "config": "20231101.ace", "split": "train"}

"""A whole sweep on NusaX with backbone, source vector and data from a stand-in of the hub, and again without a hub."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from support.hub_stand_in import NUSAX, TINY, VECTOR, WIKIPEDIA, Client, HubStandIn, dataset, parquet
from support.islands import published, sweep
from support.tiny import LABELS, WORDS, make_sft

from deftx.data import catalogue
from deftx.data.catalogue import BENCHMARKS
from deftx.models.load import load_masked_lm

TRAINING = "{epochs: null, max_steps: 2, min_steps: 0, batch_size: 4, learning_rate: 1e-3, validate_every: 1}"
SPACE = f"""
benchmark: nusax
backbone: {TINY}
backbone_revision: v1
targets: [ace]
preset: lt-sft
source: {{sft: {VECTOR}}}
language: {{text: {{block: 16}}, k: 10%, training: {TRAINING}}}
task: {{k: 10%, max_length: 16, training: {TRAINING}}}
rank_l: [2]
rank_t: [2]
baselines: [task+source]
"""


def texts(count: int, seed: int) -> list[str]:
    """Sentences of words that the tiny tokenizer knows."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(8)) for _ in range(count)]


def labelled(seed: int) -> dict[str, bytes]:
    return {
        split: parquet(text=texts(12, seed + number), label=[n % 3 for n in range(12)])
        for number, split in enumerate(("validation", "test"))
    }


@pytest.fixture(scope="module")
def hub(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandIn]:
    hub = HubStandIn()
    hub.push(TINY, {"config.json": b"not this one"})
    hub.push(TINY, backbone, branch="v1")
    vector = tmp_path_factory.mktemp("vector")
    make_sft(load_masked_lm(backbone), language="id").save_pretrained(vector)
    hub.push(VECTOR, vector)
    hub.push(NUSAX, dataset(ace=labelled(0), ind=labelled(10)), kind="dataset")
    articles = parquet(id=["1"], title=["A"], text=["\n".join(texts(60, 20))])
    hub.push(WIKIPEDIA, dataset(**{"20231101.ace": {"train": articles}}), kind="dataset")
    for number, split in enumerate(("train", "valid", "test")):
        rows = zip(texts(24, 30 + number), [*LABELS] * 8, strict=True)
        hub.web[f"{split}.tsv"] = "".join(f"{text}\t{label}\n" for text, label in rows).encode()
    yield hub
    hub.stop()


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPACE, encoding="utf-8")
    return path


def command(web: str, *arguments: object) -> tuple[int, str]:
    """The sweep in this process, with the files of GitHub at another address."""
    known = BENCHMARKS["nusax"]
    online = replace(known.training.online, path=f"{web}/web/{{split}}.tsv")  # type: ignore[type-var]
    moved = replace(known, training=replace(known.training, online=online))
    with patch.dict(catalogue.BENCHMARKS, nusax=moved):  # type: ignore[arg-type]
        result = sweep(*arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def vectors(storage: Path) -> dict[str, bytes]:
    return {path.parts[-4]: path.read_bytes() for path in storage.glob("stages/*/attempt-*/sft/sft.safetensors")}


@pytest.mark.slow
def test_a_sweep_from_the_hub_and_again_without_it(hub: HubStandIn, space: Path, tmp_path: Path) -> None:
    """Planned, run, and run again elsewhere from the cache alone: the same vectors bit for bit."""
    home, first, again = tmp_path / "home", tmp_path / "first", tmp_path / "again"
    tracker = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")  # one for both, since making one takes seconds
    with Client(hub.url, home) as client:
        code, said = client(command, hub.url, space, "--storage", first, "--plan")
        assert code == 0 and "2 dense and 2 sparse trainings" in said, said
        assert "not resolved" not in said and not first.exists()
        code, said = client(command, hub.url, space, "--storage", first, "--serial", *tracker)
        assert code == 0, said
    commits = hub.branches["model", TINY], hub.branches["dataset", NUSAX]
    info: dict[str, Any] = json.loads((first / "sweeps/tiny/sweep.json").read_text())
    assert info["backbone_identity"] == f"{TINY}@{commits[0]['v1']}"
    assert info["revisions"][f"model {TINY}@v1"] == commits[0]["v1"]
    assert info["revisions"][f"dataset {NUSAX}@main"] == commits[1]["main"]

    hub.asked.clear()
    with Client(hub.url, home, offline=True) as told:
        code, said = told(command, hub.url, space, "--storage", again, "--plan")
        assert code == 0 and "2 dense and 2 sparse trainings" in said and "not resolved" not in said, said
        code, said = told(command, hub.url, space, "--storage", again, "--serial", *tracker)
        assert code == 0, said
    assert hub.asked == [], "nobody was asked"
    assert len(vectors(first)) == 2
    assert vectors(first) == vectors(again)
    assert published(first) == published(again)


@pytest.mark.slow
def test_without_hub_or_cache_everything_missing_is_named_at_once(hub: HubStandIn, space: Path, tmp_path: Path) -> None:
    hub.out_of_order = True
    with Client(hub.url, tmp_path / "empty") as client:
        code, said = client(command, hub.url, space, "--storage", tmp_path / "storage", "--serial")
        assert code == 2 and not (tmp_path / "storage" / "stages").exists()
        for name in (f"model '{TINY}'", f"model '{VECTOR}'", f"dataset '{NUSAX}'", f"dataset '{WIKIPEDIA}'"):
            assert f"the hub could not be reached for {name}" in said
        assert said.count("could not be reached for dataset") == 2, "each once"
    hub.out_of_order = False
    with Client(hub.url, tmp_path / "empty") as client:
        code, said = client(command, hub.url, space, "--storage", tmp_path / "storage", "--set",
                            "backbone_revision=v9", "--set", "source.sft=somebody/vectr")  # fmt: skip
        assert code == 2
        assert f"model '{TINY}' has no revision 'v9' on the hub" in said
        assert "there is no model 'somebody/vectr' on the hub" in said

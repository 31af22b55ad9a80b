"""The size of a backbone from its config.json, without its weights: what a plan has to know.

sizes.json beside this file holds the published backbones and those that the shipped spaces pre-train, so that planning
them needs no torch; any other shape is built on torch's `meta` device, where tensors have no storage. What counts as
maskable is defined in `parameters` for both. To add a backbone, write its config (and its hub ids) into sizes.json;
`python -m deftx.models.sizes` then computes every size in it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deftx.errors import DataError
from deftx.foreign import json_object, small_file

_FILE = Path(__file__).with_name("sizes.json")
_SHAPE = (
    "model_type",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
)
"""The keys of a config.json that decide the size of an encoder such as XLM-R, besides what an entry names itself."""
_MOST, _MOST_PARTS = 2**20, 1000
"""Largest number in the config of a model that is built, and largest number of layers, heads and the like: four and
forty times those of XLM-R large. A config with larger ones is a mistake, or takes long to build."""


@dataclass(frozen=True)
class Size:
    """The size of a backbone.

    Attributes:
        maskable: entries that an SFT may change.
        body: those of them outside the embeddings.
        vocabulary: rows of the word embedding.
        hidden: width of a layer.
        layers: how many layers there are.
    """

    maskable: int
    body: int
    vocabulary: int
    hidden: int
    layers: int

    @property
    def embeddings(self) -> int:
        """Entries of the word, position and token-type embeddings."""
        return self.maskable - self.body


def size_of_repository(name: str) -> Size | None:
    """The size of a backbone on the hub; None where sizes.json does not have it."""
    return next((Size(**entry["size"]) for entry in _table() if name in entry["hub"]), None)


def size_of_folder(folder: Path) -> Size | None:
    """The size of the backbone in a folder; None where no model can be built from its config.json."""
    try:
        return size_of(json_object(small_file(path := folder / "config.json"), path))
    except (DataError, RecursionError):  # JSON nested a thousand deep may be read here and not there
        return None


def size_of(config: Mapping[str, Any]) -> Size | None:
    """The size of the backbone that a config.json describes; None where it cannot be built."""
    decoder = config.get("add_cross_attention")  # each layer has a second attention then, which `_SHAPE` does not tell
    for entry in () if decoder else _table():
        if all(config.get(name) == entry["config"].get(name) for name in {*_SHAPE, *entry["config"]}):
            return Size(**entry["size"])
    return _built(json.dumps(config, sort_keys=True))


@cache
def _table() -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return table


@cache
def _built(text: str) -> Size | None:
    config = json.loads(text)
    try:
        return size_by_definition(config) if bounded(config) else None
    except Exception:  # a wrong value makes transformers raise anything
        return None


def bounded(value: object, name: str = "") -> bool:
    """Whether the model of a config is built in seconds: each module takes time, even on the `meta` device."""
    if isinstance(value, dict):
        return all(bounded(part, str(key)) for key, part in value.items())
    if isinstance(value, list):
        return all(bounded(part, name) for part in value)
    if not isinstance(value, int | float):
        return True
    return 0 <= value <= _MOST_PARTS if "layer" in name or name.startswith("num_") else value <= _MOST


def size_by_definition(config: Mapping[str, Any]) -> Size:
    """The size of the masked language model of a config, built on the `meta` device. Imports torch.

    Raises:
        Exception: of any kind, for a config that no model can be built from.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from deftx.models.load import quiet
    from deftx.models.parameters import embeddings_of, maskable

    with quiet(), torch.device("meta"):
        typed = AutoConfig.for_model(**config)
        model = AutoModelForMaskedLM.from_config(typed, trust_remote_code=False)
    entries = {name: parameter.numel() for name, parameter in maskable(model).items()}
    total, embeddings = sum(entries.values()), sum(entries[name] for name in embeddings_of(model))
    return Size(total, total - embeddings, typed.vocab_size, typed.hidden_size, typed.num_hidden_layers)


def remade() -> list[dict[str, Any]]:
    """The entries of sizes.json, each size computed again from its config."""
    return [{**entry, "size": asdict(size_by_definition(entry["config"]))} for entry in _table()]


if __name__ == "__main__":
    _FILE.write_text(json.dumps(remade(), indent=1) + "\n", encoding="utf-8")

"""Addresses are stable while settings grow: a field added after 0.1.0 counts only where it differs from its default.

`fields_0.1.0.json` holds the fields of every class of settings that is part of an address, as they were in 0.1.0 (of a
class that came later, as it first was). It may grow by a class, never by a field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, create_model
from support.later import LaterTraining, later

from deftx.config import Denoise, Settings, Since, Training, later_fields
from deftx.stages.kinds import KINDS
from deftx.stages.settings import DenseSettings
from deftx.stages.stage import Stage

FIELDS: dict[str, list[str]] = json.loads((Path(__file__).parents[1] / "fields_0.1.0.json").read_text("utf-8"))


RANK_2 = Denoise(rank=2)


def classes(of: Any) -> Iterator[type[BaseModel]]:
    """A class of settings and all those within it."""
    if isinstance(of, type) and issubclass(of, BaseModel):
        yield of
        for field in of.model_fields.values():
            yield from classes(field.annotation)
    for part in get_args(of):
        yield from classes(part)


ADDRESSED = {of.__name__: of for kind in KINDS.values() for of in classes(kind.settings)}


def counted(of: type[Settings]) -> list[str]:
    """The fields that are in every address."""
    return sorted(name for name, field in of.model_fields.items() if name not in later_fields(of) and not field.exclude)


def test_every_class_that_is_part_of_an_address_is_on_record() -> None:
    assert {"Training", "TextSettings", "Denoise", "OwnBenchmark", "TaskData", "FileSource"} <= set(ADDRESSED)
    assert all(issubclass(of, Settings) for of in ADDRESSED.values()), "else Since would not be heeded in it"
    assert sorted(ADDRESSED) == sorted(FIELDS), "write the first fields of a new class into fields_0.1.0.json"


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_added_after_0_1_0_is_marked(name: str) -> None:
    """Where this fails every stored result is lost: mark the field `Annotated[..., Since("...")]`, with a default."""
    assert counted(ADDRESSED[name]) == FIELDS[name]


# -- fields that are added: that golden addresses stay is seen in test_plan -------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"shuffle": "once"}, {"training": LaterTraining(nesterov=True)}, {"training": LaterTraining(rounds=(RANK_2,))}],
)
def test_a_later_field_that_is_set_counts(change: dict[str, Any]) -> None:
    settings = DenseSettings(language="ace", task=None, backbone=None, training=Training(), seed=0)
    grown = later(Stage("dense", settings))
    changed = Stage("dense", grown.settings.model_copy(update=change))
    assert changed.address != grown.address == Stage("dense", settings).address


def test_what_is_kept_for_a_reader_is_whole() -> None:
    training = LaterTraining()
    assert training.model_dump().keys() - Training().model_dump().keys() == {"nesterov", "rounds"}
    assert training.identity() == Training().model_dump(mode="json") == Training().identity()
    assert LaterTraining(nesterov=True).identity() == {**Training().identity(), "nesterov": True}


def test_a_field_that_is_not_marked_is_noticed() -> None:
    forgotten = create_model("Training", __base__=Training, forgotten=(int, 0))
    assert set(counted(forgotten)) - set(FIELDS["Training"]) == {"forgotten"}


def test_a_marked_field_needs_a_default() -> None:
    with pytest.raises(TypeError, match=r"Bare\.needed: a field marked Since needs a default"):
        create_model("Bare", __base__=Settings, needed=(Annotated[int, Since("0.2.0")], ...))

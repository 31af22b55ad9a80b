"""A kind of stage that is not ours: it counts the token blocks of a text. Registered for a test, and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deftx.config import Settings
from deftx.method.context import Context, Made
from deftx.stages.facts import Facts, Whole
from deftx.stages.files import BLOCKS
from deftx.stages.kinds import KINDS, Kind, register
from deftx.stages.stage import Stage, settings_of
from deftx.tensor_files import LazyTensors
from orchestrator import kinds as shown
from orchestrator.kinds import SHOWN, ShownKind

FILE = "census.txt"


class CensusSettings(Settings):
    """Which blocks are counted."""

    language: str
    part: str = "train"


class CensusFacts(Facts):
    """How many there are."""

    blocks: Whole


def census(context: Context) -> Made:
    """Count the blocks of the text that is the stage's input."""
    part = settings_of(context.stage, CensusSettings).part
    blocks = LazyTensors(context.store.fetch(context.stage.needed("text").address, BLOCKS))[part]
    (context.folder / FILE).write_text(f"{len(blocks)}\n", encoding="utf-8")
    return Made(CensusFacts(blocks=len(blocks)), details={"summary": f"{context.stage.language}: counted"})


@contextmanager
def registered() -> Iterator[None]:
    """Known by two calls while the block lasts."""
    register(
        Kind(
            name="census", version=1, settings=CensusSettings, facts=CensusFacts,
            runs="support.made_up:census", reads=("text",),
        )
    )  # fmt: skip
    try:
        shown.register(
            "census",
            ShownKind(
                "The blocks of {language}, counted.", fill=3, files=FILE, names={"blocks": ("census/blocks counted", 1)}
            ),
        )
        yield
    finally:
        KINDS.pop("census", None)
        SHOWN.pop("census", None)


def census_of(text: Stage) -> Stage:
    """The stage that counts the blocks of a text."""
    return Stage("census", CensusSettings(language=text.language), (("text", text),))

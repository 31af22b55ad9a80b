"""Settings as a later version may have them: with fields that 0.1.0 had not, nested ones too."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from deftx.config import Denoise, Since, Training
from deftx.stages.settings import DenseSettings, SparseSettings
from deftx.stages.stage import Stage


class LaterTraining(Training):
    nesterov: Annotated[bool, Since("0.2.0")] = False
    rounds: Annotated[tuple[Denoise, ...], Since("0.2.0"), Field(description="made up")] = ()


class LaterDenoise(Denoise):
    rounds: Annotated[int, Since("0.2.0")] = 1


class LaterDense(DenseSettings):
    training: LaterTraining
    shuffle: Annotated[str | None, Since("0.2.0")] = None


class LaterSparse(SparseSettings):
    denoise: LaterDenoise | None


def later(stage: Stage) -> Stage:
    """The same stage in that version."""
    inputs = tuple((role, later(needed)) for role, needed in stage.inputs)
    values: dict[str, Any] = dict(stage.settings)
    if stage.kind == "dense":
        values["training"] = LaterTraining(**dict(values["training"]))
        return Stage(stage.kind, LaterDense(**values), inputs)
    if stage.kind == "sparse":
        values["denoise"] = LaterDenoise(**dict(values["denoise"])) if values["denoise"] else None
        return Stage(stage.kind, LaterSparse(**values), inputs)
    return Stage(stage.kind, stage.settings, inputs)

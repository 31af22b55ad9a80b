"""What a phase trains: whole parameters, or the entries of a mask. How they lie in memory is in `weights`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from deftx.config import Training
from deftx.masks.select import Indices
from deftx.models.architectures import lm_head_of
from deftx.models.parameters import embeddings_of, head_of, maskable


@dataclass(frozen=True)
class Trainable:
    """The parameters of a model that train.

    Attributes:
        parameters: those that train, whole or in part, by name.
        index: by name, [entries] int64 ascending flat indices of the entries that train; a parameter without one
            trains whole. None: all train whole.
    """

    parameters: Mapping[str, nn.Parameter]
    index: Indices | None = None


def body_of(model: nn.Module, settings: Training) -> dict[str, nn.Parameter]:
    """The maskable parameters that no setting freezes, by their names in the base model."""
    frozen = embeddings_of(model) if settings.freeze_embeddings else set()
    return {name: parameter for name, parameter in maskable(model).items() if name not in frozen}


def phase(model: nn.Module, settings: Training, mask: Indices | None = None) -> Trainable:
    """What a phase trains: the body (dense phase) or the mask's entries of it (sparse phase), and the whole head.

    The head's names begin with `head/`.
    """
    body = body_of(model, settings)
    if mask is not None:
        body = {name: parameter for name, parameter in body.items() if name in mask}
    frozen_head = settings.freeze_lm_head and lm_head_of(model) is not None
    head = {} if frozen_head else {f"head/{name}": parameter for name, parameter in head_of(model).items()}
    return Trainable({**body, **head}, mask)

"""What can be said of a backbone before it is loaded: its size, and where its LM head comes from. No torch here."""

from __future__ import annotations

from functools import cache

from deftx.config import LanguageRecipe, TaskRecipe, resolve_k
from deftx.errors import ConfigError, DeftxError
from deftx.models.sizes import Size, size_of, size_of_folder, size_of_repository
from deftx.sources.published import HubFolder, Published, openable, resolve_folder, settings_folder
from deftx.stages.settings import BackboneSettings, LMHead
from deftx.stages.stage import Stage, settings_of


def size_of_backbone(backbone: Published | Stage | None) -> Size | None:
    """The size of a backbone; None where that takes its weights to say."""
    if isinstance(backbone, Stage):
        return size_of({"model_type": "xlm-roberta", **settings_of(backbone, BackboneSettings).config})
    if isinstance(backbone, HubFolder) and (known := size_of_repository(backbone.repo)):
        return known
    return _size_of_folder(published) if (published := openable(backbone)) else None


def check_k(backbone: Published | Stage, recipe: LanguageRecipe | TaskRecipe, name: str) -> None:
    """Check that k entries can train, where the size of the backbone is known.

    Args:
        name: what errors call the setting, such as `language.k`.

    Raises:
        ConfigError: when k is more than the backbone has.
    """
    if (size := size_of_backbone(backbone)) is None:
        return
    frozen = size.embeddings if recipe.training.freeze_embeddings else 0
    try:
        resolve_k(recipe.k or 1, size.maskable - frozen)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def resolve_lm_head(name: str) -> LMHead:
    """The origin of an LM head: own, random, or the donor resolved.

    Args:
        name: own, random, or the hub id or folder of a donor.

    Raises:
        DataError, HubError: as `resolve_folder`.
    """
    own: dict[str, LMHead] = {"own": "own", "random": "random"}
    return own.get(name) or resolve_folder(name)


@cache
def _size_of_folder(backbone: Published) -> Size | None:
    """The size of a published backbone, of which the configuration alone is read; once, since it cannot change."""
    try:
        return size_of_folder(settings_folder(backbone))
    except DeftxError:  # whoever needs the backbone itself tells it
        return None

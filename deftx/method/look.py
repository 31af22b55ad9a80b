"""A look at the models and vectors that somebody names, before work begins: what would fail after hours fails now.

Nothing is loaded whole: a model is built from its config.json on torch's `meta` device, where tensors have no storage,
and compared with the headers of its weights; a vector is compared by the names and shapes of what it changes. Of a
repository the configuration, the tokenizer and the headers are fetched. Left to the download are the names and shapes
of pickles on the hub; left to the load are the numbers themselves. What cannot be fetched now is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from deftx.errors import DataError, DeftxError, Problems
from deftx.folders import pointers_in
from deftx.models.headers import Header, Headers, headers_of
from deftx.models.outline import Outline
from deftx.sft.compose import check_shapes
from deftx.sft.vector import shapes_of
from deftx.sources.hub import UnreachableError, hub_headers
from deftx.sources.published import HubFolder, Published, name_of, settings_folder
from deftx.stages.settings import LMHead

T = TypeVar("T")


def look(
    problems: Problems,
    backbone: Published | None,
    lengths: Mapping[str, int],
    lm_head: LMHead | None = None,
    vectors: Mapping[str, Published] | None = None,
) -> None:
    """Look at what is named, and keep every problem, each beginning with the setting it is about.

    Args:
        problems: where they are kept.
        backbone: None: it is pre-trained here.
        lengths: tokens that a text is cut to, by the setting's name.
        lm_head: where the LM head comes from; None: no language vector is learnt.
        vectors: SFTs for the backbone, by the setting's name.
    """

    def tell(setting: str, look_at: Callable[[], T]) -> T | None:
        return problems.get(lambda: _of(setting, look_at))

    encoder = tell("backbone", partial(_outline, backbone)) if backbone else None
    if encoder:
        tell("backbone", encoder.check_weights)
        tell("backbone", partial(encoder.check_tokenizer, masks=lm_head is not None))
        for setting, tokens in lengths.items():
            tell(setting, partial(encoder.check_length, tokens))
        if lm_head == "own":
            tell("lm_head", encoder.check_own_head)
    if lm_head is not None and not isinstance(lm_head, str) and (donor := tell("lm_head", partial(_outline, lm_head))):
        tell("lm_head", donor.check_weights)
        tell("lm_head", partial(donor.check_gives_head, encoder))
    for setting, vector in (vectors or {}).items():
        tell(setting, partial(_check_vector, vector, encoder))


def _of(setting: str, look_at: Callable[[], T]) -> T | None:
    """What a look shows; None for what cannot be fetched now. Errors begin with the setting."""
    try:
        return look_at()
    except UnreachableError:
        return None
    except DeftxError as error:
        raise type(error)("\n".join(f"{setting}: {line}" for line in str(error).splitlines())) from None


def _folder(source: Published) -> Path:
    folder = settings_folder(source)
    if pointers := [path.name for path in pointers_in(folder)]:
        raise DataError(f"{name_of(source)}: {', '.join(pointers)}: left by Git LFS, not fetched; run `git lfs pull`")
    return folder


def _outline(source: Published) -> Outline:
    folder = _folder(source)
    return Outline.of(name_of(source), folder, lambda: _headers(source, folder))


def _headers(source: Published, folder: Path) -> Headers | None:
    if not isinstance(source, HubFolder):
        return headers_of(folder)
    if (found := hub_headers(source.repo, source.commit)) is None:
        return None
    return {name: Header.of(shape, dtype) for name, (shape, dtype) in found.items()}


def _check_vector(source: Published, encoder: Outline | None) -> None:
    """Check that this is a vector, and that what it changes is in an encoder."""
    _folder(source)
    theirs = shapes_of(source)
    if theirs is None or encoder is None:
        return
    if encoder.headers is None:  # whether there is a pooler is not known
        theirs = {name: shape for name, shape in theirs.items() if not name.startswith("pooler.")}
    try:
        check_shapes(encoder.shapes(), theirs)
    except DataError as error:
        raise DataError(f"{name_of(source)}: {error}") from None

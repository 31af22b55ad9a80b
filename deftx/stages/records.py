"""JSON files read back into models. One that is broken, or that a newer version wrote, is an error that says which."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from deftx.errors import StoreError

M = TypeVar("M", bound=BaseModel)


class BrokenRecord(StoreError):
    """A file that is cut short, altered or out of place. A reader that can do without it may treat it as absent."""


def read_record(model: type[M], content: bytes, where: str, *, name: str, advice: str) -> M:
    """The record in a file.

    Args:
        where: the file's path, for messages.
        name: what the file should be, with its article.
        advice: what to do about a broken one.

    Raises:
        BrokenRecord: when the content is not such a record.
        StoreError: when it has fields that this version does not know, and is right otherwise: then it is not broken.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        problems = error.errors()
    unknown = [".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "extra_forbidden"]
    if len(unknown) == len(problems):
        raise StoreError(
            f"{where}: was written by a newer version of deftx-sweeps (this one does not know {', '.join(unknown)}); "
            "use that version, or another storage"
        )
    raise BrokenRecord(f"{where}: not {name} ({problems[0]['msg']}); {advice}")

"""MkDocs hook: the tables of docs/spaces.md, from the schema that validates a space, so that neither can lag behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from orchestrator.space.schema import Space

MARKER = "<!-- settings of a space -->"
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls for each page."""
    return markdown.replace(MARKER, "\n\n".join(tables(Space.model_json_schema()))) if MARKER in markdown else markdown


def tables(schema: dict[str, Any]) -> Iterator[str]:
    """A heading, a sentence and a table for the space and for each group of settings in it."""
    groups = {"Space": schema, **{name: group for name, group in schema["$defs"].items() if "properties" in group}}
    for name, group in groups.items():
        rows = [row(key, field, key in group.get("required", ())) for key, field in group["properties"].items()]
        head = "| key | value | default | meaning |\n|---|---|---|---|\n"
        yield f"## {name}\n\n{group['description'].split(chr(10) * 2)[0]}\n\n{head}" + "\n".join(rows)


def row(key: str, field: dict[str, Any], required: bool) -> str:
    """One setting as a row of a table."""
    default = "required" if required else f"`{json.dumps(field.get('default'), ensure_ascii=False)}`"
    if isinstance(field.get("default"), dict) or "$ref" in field:
        default = ""  # a group has its own defaults
    cells = (f"`{key}`", value(field), default, field.get("description", ""))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def value(field: dict[str, Any]) -> str:
    """What may be written, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return ", or ".join(value(one) for one in field["anyOf"])
    if "enum" in field:
        return " / ".join(f"`{word}`" for word in field["enum"])
    if field.get("type") == "array":
        return f"list of {value(field['items'])}" if "items" in field else f"{field['minItems']} numbers"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        keys = value(field["propertyNames"]) if "propertyNames" in field else ""
        return f"{keys}: {value(inner)}" if isinstance(inner, dict) else "mapping"
    bounds = " and ".join(f"{word} {field[name]}" for name, word in _BOUNDS.items() if name in field)
    return f"{_TYPES[field['type']]} {bounds}".rstrip()

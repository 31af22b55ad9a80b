"""Cluster files filled in for hosts of namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def fill(path: Path, values: dict[str, str], changes: dict[str, Any]) -> dict[str, Any]:
    """Fill in a cluster file where it lies, and what is then in it.

    Args:
        path: of a file as shipped.
        values: by what stands in the file; each must be there, and none may be left over.
        changes: of its settings, merged into it.
    """
    text = path.read_text(encoding="utf-8")
    for placeholder, value in values.items():
        assert placeholder in text, f"{path.name} has no {placeholder}"
        text = text.replace(placeholder, value)
    config = _merged(yaml.safe_load(text), changes)
    text = yaml.safe_dump(config, sort_keys=False)
    assert "REPLACE" not in text, text
    path.write_text(text, encoding="utf-8")
    return config


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {key: _merged(config[key], value) for key, value in changes.items() if isinstance(value, dict)}
    return config | changes | nested

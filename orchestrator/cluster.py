"""`python -m orchestrator.cluster`: is a cluster file filled in, and does a node's torch see its GPUs?

What `ray up` itself checks of the file, and what a sweep checks of the nodes at its start, are left to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from deftx.cli.command import HELP, Command, example
from deftx.errors import ConfigError
from orchestrator.run.node import lacks_gpus

_PLACEHOLDER = "REPLACE"
_TOKEN = "auth_token"

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", context_settings=HELP,
    help="Look over a cluster file before `ray up`, and a node before it is given a trial.",
)  # fmt: skip


@app.command(cls=Command, epilog=example("python -m orchestrator.cluster check ray_cluster.yaml"))
def check(file: Annotated[Path, typer.Argument(help="Such as ray_cluster.yaml, or one of clusters/.")]) -> None:
    """Say what is not filled in yet in a cluster file; nothing is started."""
    if problems := list(_problems(file)):
        raise ConfigError("\n".join(problems))
    typer.echo(f"{file}: filled in; next: ray up {file}")


@app.command(cls=Command, epilog=example("python -m orchestrator.cluster gpus 8"))
def gpus(count: Annotated[int, typer.Argument(min=1, help="How many torch must see on this machine.")] = 1) -> None:
    """Check that torch sees this machine's GPUs."""
    if words := lacks_gpus(count):
        raise ConfigError(words)
    typer.echo(f"torch sees {count} GPUs")


def _problems(file: Path) -> Iterator[str]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: not a cluster file, which is a mapping with cluster_name, provider and so on")
    # by value: an anchor is written once and stands in several places
    placeholders: dict[str, str] = {}
    for path, value in _texts(config):
        if _PLACEHOLDER in value:
            placeholders.setdefault(value, path)
    for value, path in placeholders.items():
        yield f"{file}: {path} is still {value!r}: fill it in (the line is marked FILL IN)"
    for there, here in (config.get("file_mounts") or {}).items():
        if not Path(str(here)).expanduser().exists():
            how = "; make it once: ray get-auth-token --generate" if str(here).endswith(_TOKEN) else ""
            yield f"{file}: file_mounts.{there}: there is no {here} here{how}"


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested mappings and lists, with where it stands."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{number}]")


if __name__ == "__main__":
    app()

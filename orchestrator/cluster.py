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

_PLACEHOLDER = "REPLACE-"
_TOKEN = "auth_token"
_MAKE_TOKEN = "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token"
_KUBERNETES = "RayJob"

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", context_settings=HELP,
    help="Look over a cluster file before `ray up`, and a node before it is given a trial.",
)  # fmt: skip


@app.command(cls=Command, epilog=example("python -m orchestrator.cluster check ray_cluster.yaml"))
def check(file: Annotated[Path, typer.Argument(help="Such as ray_cluster.yaml, or one of clusters/.")]) -> None:
    """Say what is not filled in yet in a cluster file; nothing is started."""
    config = _read(file)
    if problems := list(_problems(file, config)):
        raise ConfigError("\n".join(problems))
    brings_up = "kubectl create -f" if config.get("kind") == _KUBERNETES else "ray up"
    typer.echo(f"{file}: filled in; next: {brings_up} {file}")


@app.command(cls=Command, epilog=example("python -m orchestrator.cluster gpus 8"))
def gpus(count: Annotated[int, typer.Argument(min=1, help="How many torch must see on this machine.")] = 1) -> None:
    """Check that torch sees this machine's GPUs."""
    if words := lacks_gpus(count):
        raise ConfigError(words)
    typer.echo(f"torch sees {count} GPUs")


def _read(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: not a cluster file, which is a mapping with cluster_name, provider and so on")
    return config


def _problems(file: Path, config: dict[str, Any]) -> Iterator[str]:
    # by value: an anchor is written once and stands in several places
    placeholders: dict[str, str] = {}
    for path, value in _texts(config):
        if _PLACEHOLDER in value:
            placeholders.setdefault(value, path)
    for value, path in placeholders.items():
        yield f"{file}: {path} is still {value!r}: fill it in (the line is marked FILL IN)"
    for there, here in (config.get("file_mounts") or {}).items():
        mounted, token = Path(str(here)).expanduser(), str(here).endswith(_TOKEN)
        if not mounted.exists():
            how = f"make it once: {_MAKE_TOKEN}" if token else "run this, and ray up, in the checkout's root"
            yield f"{file}: file_mounts.{there}: there is no {here} here; {how}"
        elif token and mounted.stat().st_mode & 0o077:
            yield f"{file}: {here}: other users can read it, and with it command the cluster; chmod 600 {here}"
    key = (config.get("auth") or {}).get("ssh_private_key")
    if key and not Path(str(key)).expanduser().exists():
        yield f"{file}: auth.ssh_private_key: there is no {key} here"


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

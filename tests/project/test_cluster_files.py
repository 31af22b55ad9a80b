"""The cluster files, before anything is brought up: through Ray's own checks, and through KubeRay's schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
SCHEMA = Path(os.environ.get("DEFTX_KUBERAY_SCHEMA", ROOT.parent / "shared" / "kuberay" / "ray.io_rayjobs.yaml"))
FILES = ["ray_cluster.yaml", *sorted(f"clusters/{path.name}" for path in (ROOT / "clusters").glob("*.yaml"))]
FILES_INSTALLED = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
CLUSTERS = [name for name in FILES if name != "clusters/rayjob.yaml"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_passes_rays_own_checks(name: str) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    shipped = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    config = util.prepare_config(shipped)
    util.validate_config(config)
    assert config["provider"]["type"] == shipped["provider"]["type"]
    installed = {"deftx", "orchestrator", "search_spaces", "clusters", *FILES_INSTALLED}
    assert {*shipped["file_mounts"]} == {f"~/deftx-sweeps/{name}" for name in installed} | {"~/.ray/auth_token"}
    assert all((ROOT / name).exists() for name in installed)


def test_the_cluster_files_are_those_that_are_known_here() -> None:
    assert FILES == ["ray_cluster.yaml", "clusters/gcp.yaml", "clusters/local.yaml", "clusters/rayjob.yaml"]


@pytest.fixture(scope="module")
def ray_job() -> Draft202012Validator:
    """A checker of RayJobs that knows every field, and takes no other."""
    if not SCHEMA.is_file():
        pytest.skip(f"no schema of KubeRay's RayJob at {SCHEMA}: set DEFTX_KUBERAY_SCHEMA to ray.io_rayjobs.yaml")
    definition = yaml.load(SCHEMA.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == "v1"]
    return Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """A schema in which an object that names its fields has no others, as `kubectl` warns of them."""
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: _strict(inner) for key, inner in schema.items()}
    open_ended = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & known.keys()
    if isinstance(known.get("properties"), dict) and known.get("type") == "object" and not open_ended:
        known["additionalProperties"] = False
    return known


def _problems(validator: Draft202012Validator, manifest: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(manifest)]


def test_the_manifest_for_kubernetes_is_a_ray_job(ray_job: Draft202012Validator) -> None:
    manifest = yaml.safe_load((ROOT / "clusters" / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert _problems(ray_job, manifest) == []
    container = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["imagePullPolice"] = manifest["spec"]["entrypoints"] = "?"
    assert len(_problems(ray_job, manifest)) == 2


def test_kuberay_gets_the_ray_that_is_pinned() -> None:
    manifest = yaml.safe_load((ROOT / "clusters" / "rayjob.yaml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={manifest['spec']['rayClusterSpec']['rayVersion']}" in [line.split("#")[0].strip() for line in pins]

"""Which kind of machine is started next, and what a sweep knows of machines that may be started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilitySummary,
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
from ray.autoscaler.node_launch_exception import NodeLaunchException

from orchestrator.run import tune
from orchestrator.spot import score

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
SPOT, ON_DEMAND = "a100_worker", "a100_worker_on_demand"


def started(waiting: list[dict[str, float]], seen: NodeAvailabilitySummary) -> dict[str, int]:
    """How many of which kind of the shipped file Ray would start."""

    def scorer(node_resources, resources, node_type):  # type: ignore[no-untyped-def]
        return score(node_resources, resources, node_type, node_availability_summary=seen)

    kinds = FILE["available_node_types"]
    return dict(get_nodes_for(kinds, {"head": 1}, "head", 4, waiting, scorer)[0])


def refusals(*kinds: str) -> NodeAvailabilitySummary:
    """As after the refusal of one kind after another."""
    tracker = NodeProviderAvailabilityTracker(timer=lambda: 100.0)
    for second, kind in enumerate(kinds):
        refused = NodeLaunchException("InsufficientInstanceCapacity", "", None)
        tracker.update_node_availability(kind, second + 1, refused)
    return tracker.summary()


@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        ((), SPOT),
        ((SPOT,), ON_DEMAND),
        ((ON_DEMAND,), SPOT),
        ((SPOT, ON_DEMAND), SPOT),  # where both were refused, the one that was refused first
        ((ON_DEMAND, SPOT), ON_DEMAND),
    ],
)
def test_spot_machines_come_first_and_others_while_there_is_none(refused: tuple[str, ...], kind: str) -> None:
    assert started([{"GPU": 1.0, "CPU": 1.0}] * 9, refusals(*refused)) == {kind: 2}


def test_no_gpu_is_started_for_work_without() -> None:
    assert started([{"CPU": 4.0}] * 7, refusals()) == {}
    assert score({"CPU": 4, "GPU": 1}, [{"CPU": 1}], SPOT, node_availability_summary=refusals()) is None
    assert score({"CPU": 4}, [{"CPU": 1}], "cpu", node_availability_summary=refusals("cpu")) is not None
    assert score({"CPU": 4}, [{"GPU": 1}], "cpu", node_availability_summary=refusals()) is None


def test_what_may_be_started_is_read_from_the_file_that_ray_up_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bootstrap.yaml"
    file.write_text(yaml.safe_dump(FILE))
    monkeypatch.setattr(tune, "_BOOTSTRAP", str(file))
    assert tune._to_come() == [{"CPU": 96, "GPU": 8}] * 2
    local = {"local.cluster.node": {"resources": {}, "max_workers": 2}}
    file.write_text(yaml.safe_dump({"available_node_types": local}))
    assert tune._to_come() == [{}]

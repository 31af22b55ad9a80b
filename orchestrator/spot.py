"""Which kind of machine a cluster starts next: spot ones first, and on-demand ones while no spot one is to be had.

Ray's autoscaler (v1, on the head) calls `score`, which RAY_AUTOSCALER_UTILIZATION_SCORER names in the cluster files.
Its v2 knows priorities of kinds, and asks for ever for the first one when a cloud refuses it; v1 knows none. Left out:
prices, and any kind but the two.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

ON_DEMAND = "_on_demand"
"""How the names of kinds end that are taken second."""


def score(
    node_resources: dict[str, Any], resources: list[dict[str, Any]], node_type: str,
    *, node_availability_summary: Any,
) -> tuple[Any, ...] | None:  # fmt: skip
    """How well a kind of machine suits what waits, to be compared with other kinds' scores; None where it does not.

    Args:
        node_resources: what such a machine has, by Ray's names.
        resources: what waits, the same way.
        node_type: its name in the cluster file.
        node_availability_summary: of the last half hour, which kinds were refused (Ray's NodeAvailabilitySummary).
    """
    if node_resources.get("GPU") and not any(each.get("GPU") for each in resources):
        return None  # the head has room for it sooner or later, and costs a hundredth
    fits = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if fits is None:
        return None
    last = node_availability_summary.node_availabilities.get(node_type)
    # of kinds that were refused, the one whose refusal is longest ago: where all are, they take turns
    refused_at = 0.0 if last is None or last.is_available else float(last.last_checked_timestamp)
    gpus_are_for_gpu_work, *rest = fits
    return gpus_are_for_gpu_work, -refused_at, *rest, not node_type.endswith(ON_DEMAND)

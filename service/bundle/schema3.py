"""Schema 3 of manifest.json, of bundles with one head: its values in the form of schema 4."""

from __future__ import annotations

from typing import Any

from service.errors import BundleError

_HEAD = ("task", "classes", "thresholds")
_WORTH = ("quality", "quality_quantiles")


def upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a manifest.json of schema 3 as schema 4 has it: the one head is named after
    its task, and the GFLOPs of a plan are all its encoder's.

    Only what moved is looked at; the rest is checked with the result. Raises BundleError.
    """
    for key in ("heads", "default_preference", "encoder_plans"):
        if key in value:
            raise BundleError(f"{key}: is unknown in schema 3")
    name = str(value.get("task"))
    rest = {key: item for key, item in value.items() if key not in (*_HEAD, "plans")}
    if isinstance(plans := value.get("plans"), list):
        plans = [_plan(plan, name) for plan in plans]
    if isinstance(graphs := value.get("graphs"), dict):
        graphs = {shape: _graphs(own, name) for shape, own in graphs.items()}
    moved = {"encoder_plans": plans, "graphs": graphs}
    return (
        rest
        | {key: item for key, item in moved.items() if item is not None}
        | {"heads": [{"name": name} | {key: value[key] for key in _HEAD if key in value}]}
        | {"default_preference": {name: 1.0}, "schema": 4}
    )


def _plan(plan: Any, name: str) -> Any:
    if not isinstance(plan, dict):
        return plan
    worth = {key: plan[key] for key in _WORTH if key in plan}
    rest = {key: item for key, item in plan.items() if key not in _WORTH}
    return rest | {"heads": {name: {"gflops": 0.0} | worth}}


def _graphs(graphs: Any, name: str) -> Any:
    if not isinstance(graphs, dict) or "decoder" not in graphs:
        return graphs
    rest = {key: item for key, item in graphs.items() if key != "decoder"}
    return rest | {"heads": {name: graphs["decoder"]}}

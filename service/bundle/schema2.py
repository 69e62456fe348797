"""Schema 2 of manifest.json, of bundles with one canvas: its values in the form of schema 3."""

from __future__ import annotations

from typing import Any

from service.bundle.canvases import Canvas, Shape
from service.errors import BundleError


def upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a manifest.json of schema 2 as schema 3 has it.

    Only what moved is looked at; the rest is checked with the result. Raises BundleError.
    """
    spec = value.get("input")
    if not isinstance(spec, dict) or not isinstance(plans := value.get("plans"), list):
        raise BundleError("input, plans: one is missing or has the wrong type")
    height, width = spec.get("height"), spec.get("width")
    if not (type(height) is int and type(width) is int):
        raise BundleError("input: height and width must be whole numbers")
    shape = Shape(height, width)
    canvas = Canvas.of([shape])
    encoders: dict[str, Any] = {}
    moved = []
    for row, plan in enumerate(plans):
        if not isinstance(plan, dict) or "encoder" not in plan:
            raise BundleError(f"plans[{row}].encoder: is missing")
        rest = {key: item for key, item in plan.items() if key != "encoder"}
        encoders[str(plan.get("name"))] = plan["encoder"]
        moved.append(rest | {"canvas": canvas.name})
    kept = {key: item for key, item in spec.items() if key not in ("height", "width")}
    size = {"height": shape.height, "width": shape.width}
    canvases = [{"name": canvas.name, "shapes": [size]}]
    graphs = {"front": "front", "decoder": "decoder", "encoders": encoders}
    changed = {"input": kept | {"canvases": canvases}, "plans": moved, "schema": 3}
    return value | changed | {"graphs": {shape.name: graphs}}

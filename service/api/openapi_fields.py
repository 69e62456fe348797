"""What /openapi.json says of the header fields with which a request asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.fields import PREFERENCE, PRIORITY, URGENCIES, pattern, preference_pattern
from service.ask import NUMBERS
from service.inference.place import URGENCY
from service.structured import MAX_LENGTH


def ask_fields(layers: int, heads: Sequence[str]) -> list[dict[str, Any]]:
    """All of them. layers: the bundle's deepest exit. heads: the names of its heads."""
    budget = (
        "Ceilings and a floor, all optional (RFC 9651 Dictionary). "
        "depth: most encoder layers. "
        "gflops: most compute. "
        f"ms: deadline on the server, from {NUMBERS['ms'].low} to {NUMBERS['ms'].high}. "
        "max-loss: expected loss against the full plan that is accepted, from 0 to 1. "
        "strict: refuse the image if that floor is out of reach."
    )
    written = {"pattern": pattern(layers), "maxLength": MAX_LENGTH}
    value_range = (
        "How 16-bit samples become 8: over the full range, or (auto) over the range that the image "
        "uses, from its 0.1th to its 99.9th percentile, as for microscopes"
    )
    priority = (
        f"Urgency from u={URGENCIES[0]}, the most urgent, to u={URGENCIES[-1]}; without it, "
        f"u={URGENCY} (RFC 9218). What cannot be understood is ignored"
    )
    return [
        header("Compute-Budget", budget, "depth=3, gflops=6.5, ms=500, max-loss=0.01", **written),
        preference(heads),
        header(PRIORITY, priority, "u=1"),
        header("Value-Range", value_range, "auto", enum=["full", "auto"]),
    ]


def preference(heads: Sequence[str]) -> dict[str, Any]:
    """The field `Task-Preference`. heads: the names of the bundle's."""
    text = (
        "How much each head matters (RFC 9651 Dictionary of numbers, 0 or more); a head with 0, or "
        "without a weight, is neither run nor answered. This bundle's: " + ", ".join(heads)
    )
    weights = {"pattern": preference_pattern(heads), "maxLength": MAX_LENGTH}
    return header(PREFERENCE, text, f"{heads[0]}=0.7", **weights)


def header(name: str, description: str, example: str, **schema: object) -> dict[str, Any]:
    """A field of a request. schema: what more than a string it is."""
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }

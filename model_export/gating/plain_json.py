"""Numbers as JSON can have them."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """Floats with five decimals; None for nan and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value

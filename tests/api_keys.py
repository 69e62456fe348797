"""API keys as they stand in a file of the service."""

from __future__ import annotations

import hashlib

KEY, OTHER = "wSk2-9f8e7d", "key two"


def line(name: str, key: str) -> str:
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"

"""Texts and numbers that every part of the service can show: in JSON, in headers, in a log line."""

from __future__ import annotations

import math
import re
from typing import Any

from service.errors import BundleError, shown

# Control characters, line separators, and halves of surrogate pairs, which UTF-8 cannot encode.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LARGEST = 2**53  # up to it, every whole number is a float, too


def is_line(text: str) -> bool:
    """Whether a text is one line that can be encoded, and not empty."""
    return bool(text) and _UNFIT.search(text) is None


def check_values(value: Any, where: str = "") -> None:
    """Look at every key, text and number of a JSON value. where: the path of keys so far.

    Raises BundleError that names the path.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            path = f"{where}.{key}" if where else key
            if _UNFIT.search(key):
                at = where or "manifest.json"
                raise BundleError(f"{at}: the key {shown(key)} must be one line of UTF-8")
            check_values(item, path)
    elif isinstance(value, list):
        for row, item in enumerate(value):
            check_values(item, f"{where}[{row}]")
    elif isinstance(value, str) and _UNFIT.search(value):
        raise BundleError(f"{where}: {shown(value)} must be one line of UTF-8")
    elif isinstance(value, float) and not math.isfinite(value):  # JSON's 1e999
        raise BundleError(f"{where}: it is larger than a number can be")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise BundleError(f"{where}: it must be at most {LARGEST}")

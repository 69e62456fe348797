"""Dictionaries of RFC 9651 as plain values: for header fields, and for parameters in their syntax.

http_sf does the parsing. Inner lists and parameters are refused: they have no meaning here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import http_sf

from service.errors import FathomError

MAX_LENGTH = 1024  # characters; all keys of a budget with their longest values take about 100


class MemberWithoutKeyError(ValueError):
    """A member of a dictionary has no key."""


def plain_members(text: str, bad: Callable[[str, str], FathomError]) -> dict[str, object]:
    """Key -> value; the last value of a repeated key counts, as the format says.

    bad: the error for a key, with what is wrong as the end of a sentence. Raises it, or
    MemberWithoutKeyError.
    """
    return {key: _value(key, *member, bad) for key, member in _parse(text, bad).items()}


def dictionary(text: str) -> dict[str, tuple[object, object]]:
    """Key -> (value, parameters). Raises http_sf.StructuredFieldError or UnicodeEncodeError."""
    members = http_sf.parse(text.encode("ascii"), tltype="dictionary")
    return dict(members)  # type: ignore[arg-type]  # the type of the top level is in the argument


def _value(
    key: str, value: object, parameters: object, bad: Callable[[str, str], FathomError]
) -> object:
    if isinstance(value, list):
        raise bad(key, "must be a single value, not a list")
    if parameters:
        raise bad(key, "takes no parameters (the part after ';')")
    return value


def _parse(text: str, bad: Callable[[str, str], FathomError]) -> dict[str, tuple[object, object]]:
    try:
        return dictionary(text)
    except (http_sf.StructuredFieldError, UnicodeEncodeError) as error:
        members = map(str.strip, text.split(","))
        wrong = next((member for member in members if not _is_dictionary(member)), text)
        key = re.split(r"[=;]", wrong)[0][:40]
        if not key:
            raise MemberWithoutKeyError(text[:40]) from error
        form = "write key=value, the key in lower case, a number with at most 3 decimals (RFC 9651)"
        raise bad(key, f"cannot be understood: {form}") from error


def _is_dictionary(text: str) -> bool:
    try:
        dictionary(text)
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return False
    return bool(text)

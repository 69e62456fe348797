"""Strict conversion of JSON values to dataclasses, by their annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from service.errors import BundleError

_T = TypeVar("_T")


def build(kind: type[_T], value: Any, where: str) -> _T:
    """Build the annotated type from a JSON value. where: the path of keys so far.

    Raises BundleError that names the path, for an unknown or missing key or a wrong type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, prefix = get_type_hints(kind), f"{where}." if where else ""
        optional = {
            field.name
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        }
        for key in sorted((hints.keys() ^ value.keys()) - (optional - value.keys())):
            raise BundleError(f"{prefix}{key}: is {'missing' if key in hints else 'unknown'}")
        return kind(**{key: build(hints[key], item, prefix + key) for key, item in value.items()})
    built: Any
    if origin is UnionType:
        built = build(type(value) if type(value) in arguments else arguments[0], value, where)
    elif (
        origin is tuple
        and isinstance(value, list)
        and len(value) == (len(value) if ... in arguments else len(arguments))
    ):
        built = tuple(
            build(arguments[0], item, f"{where}[{row}]") for row, item in enumerate(value)
        )
    elif origin is Mapping and isinstance(value, dict):
        built = {key: build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is Any or type(value) is kind:  # not isinstance(): True is an int
        built = value
    elif kind is float and type(value) is int:
        built = float(value)
    else:
        raise BundleError(f"{where}: {value!r} has the wrong type")
    return built  # type: ignore[no-any-return]

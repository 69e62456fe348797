"""An inference request: its one input tensor, the outputs that it wants, and its ask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.core import Ask
from service.errors import BadInference, shown
from service.open_inference.parameters import ask_of

IMAGE, PIXELS = "image", "pixels"  # the inputs by name; the datatype decides what is in them
MAX_IMAGES = 16  # of one request
MAX_ID = 1024  # characters
MAX_AXES = 8  # of a tensor: four, and what more people write by mistake

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Input:
    """The tensor with the images, of a name and a datatype that `check_input` took.

    files: the elements of BYTES. values: those of other datatypes, one byte each, the last axis
    first.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    files: Sequence[bytes] = ()
    values: bytes = b""

    def pictures(self, limit: int) -> Sequence[bytes | Pixels]:
        """One entry per image: the bytes of a file, or RGB pixels (height, width, 3).

        limit: most images. Raises BadInference.
        """
        found = self._images() if self.datatype == "BYTES" else self._arrays()
        if not 1 <= len(found) <= limit:
            raise self._bad(f"has {len(found)} images: send 1 to {limit}")
        return found

    def _images(self) -> Sequence[bytes]:
        if len(self.shape) not in (1, 2) or list(self.shape[1:]) not in ([], [1]):
            raise self._bad(f"has the shape {list(self.shape)}: BYTES must be [N] or [N, 1]")
        if len(self.files) != self.shape[0]:
            raise self._bad(
                f"has {_counted(len(self.files), 'element')}, but its shape is {list(self.shape)}"
            )
        return self.files

    def _arrays(self) -> Sequence[Pixels]:
        shape = list(self.shape)
        if len(shape) not in (3, 4) or shape[-1] != 3:
            raise self._bad(f"has the shape {shape}: UINT8 must be [N, H, W, 3] or [H, W, 3]")
        if len(self.values) != math.prod(shape):
            raise self._bad(f"has {_counted(len(self.values), 'value')}, but its shape is {shape}")
        if not self.values:
            return []
        return list(np.frombuffer(self.values, np.uint8).reshape(-1, *shape[-3:]))

    def _bad(self, what: str) -> BadInference:
        return _bad_input(self.name, what)


class Offer(Protocol):
    """The outputs of the model."""

    def chosen(self, names: Sequence[object], ask: Ask) -> tuple[str, ...]:
        """The names, checked; of none, all that are asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller wants of the images. outputs: names, in the order of the answer."""

    id: str
    ask: Ask
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What was sent, whichever way."""

    wanted: Wanted
    input: Input


def check_input(name: str, datatype: str) -> None:
    """Whether such a tensor can hold images; before its values are read. Raises BadInference."""
    if name not in (IMAGE, PIXELS):
        raise _bad_input(name, f"is unknown: the inputs are '{IMAGE}' and '{PIXELS}'")
    if datatype not in ("BYTES", "UINT8"):
        raise _bad_input(
            name, f"is {shown(datatype)}: send BYTES (image files) or UINT8 (RGB pixels)"
        )


def check_shape(name: str, shape: object) -> list[int]:
    """The shape of an input; whether its data fit is checked with them. Raises BadInference."""
    sizes = shape if isinstance(shape, list) else []
    right = all(type(size) is int and 0 <= size < 2**31 for size in sizes)
    if isinstance(shape, list) and len(sizes) <= MAX_AXES and right:
        return sizes
    raise BadInference(
        f"the shape of the input {shown(name)} must be a list of up to {MAX_AXES} sizes below 2**31"
    )


def wanted(
    request_id: object,
    parameters: object,
    outputs: Sequence[object],
    offer: Offer,
    fields: Ask,
) -> Wanted:
    """The request but for its input. outputs: names; none: all of them. fields: what the header
    fields ask for. Raises BadInference, BadBudget and BadPreference."""
    if not isinstance(request_id, str) or len(request_id) > MAX_ID:
        raise BadInference(f"the id must be a string of at most {MAX_ID} characters")
    ask = ask_of(parameters, fields)
    return Wanted(request_id, ask, offer.chosen(outputs, ask))


def _bad_input(name: str, what: str) -> BadInference:
    return BadInference(f"the input {shown(name)} {what}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def elements(raw: bytes, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in its binary form: a length in 4 bytes, little endian, before
    each.

    count: how many the shape promises. Raises BadInference.
    """
    found: list[bytes] = []
    start = 0
    while start < len(raw) and len(found) < count:
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if start + 4 > len(raw) or end > len(raw):
            raise BadInference(f"element {len(found)} of the BYTES tensor is longer than its data")
        found.append(raw[start + 4 : end])
        start = end
    if start != len(raw) or len(found) != count:
        raise BadInference(
            f"the BYTES tensor has {len(raw)} bytes, which are not the "
            f"{_counted(count, 'element')} that its shape promises: each is its length in 4 "
            "bytes, little endian, and its bytes"
        )
    return found

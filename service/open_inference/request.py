"""An inference request: its one input tensor, the outputs that it wants, and its ask.

Parameters of a request are the keys of `Compute-Budget` with underscores (`max_loss`),
`task_preference` in the syntax of that field, and those of the protocol itself: `timeout` is a
deadline in microseconds, `sequence_*` and `priority` have no meaning here and are ignored,
`binary_data_output` belongs to the HTTP form. All others are refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.ask import KEYS, bad_weight, budget_of, preference_of, value_range_of
from service.core import Ask
from service.errors import BadBudget, BadInference, BadPreference
from service.structured import MAX_LENGTH, MemberWithoutKeyError, plain_members

IMAGE, PIXELS = "image", "pixels"  # the inputs by name; the datatype decides what is in them
MAX_IMAGES = 16  # of one request
MAX_ID = 1024  # characters
TIMEOUT = "timeout"  # in microseconds
VALUE_RANGE = "value_range"
PREFERENCE = "task_preference"  # in the syntax of the field Task-Preference
IGNORED = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "binary_data_output"}
)
_BUDGET = {key.replace("-", "_"): key for key in KEYS}
_LONGEST_MS = 600_000.0  # of the key ms
_INTEGER, _DECIMAL = re.compile(r"\d{1,15}"), re.compile(r"\d{1,15}\.\d{1,15}")

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


def wanted(
    request_id: object, parameters: object, outputs: Sequence[object], offer: Offer
) -> Wanted:
    """The request but for its input. outputs: names; none: all of them. Raises BadInference,
    BadBudget and BadPreference."""
    if not isinstance(request_id, str) or len(request_id) > MAX_ID:
        raise BadInference(f"the id must be a string of at most {MAX_ID} characters")
    ask = ask_of(parameters)
    return Wanted(request_id, ask, offer.chosen(outputs, ask))


def ask_of(parameters: object) -> Ask:
    """The ask in a request's parameters. Raises BadInference, or BadBudget or BadPreference that
    names the key.

    Numbers may be strings: KServe's gRPC client cannot send fractions.
    """
    if not isinstance(parameters, Mapping):
        raise BadInference("the parameters must be an object")
    values: dict[str, object] = {}
    for name, value in parameters.items():
        if name in _BUDGET:
            values[_BUDGET[name]] = _plain(name, value)
        elif name not in IGNORED and name not in (TIMEOUT, VALUE_RANGE, PREFERENCE):
            raise _unknown(name)
    try:
        budget = budget_of(values | _deadline(parameters.get(TIMEOUT), values.get("ms")))
        value_range = value_range_of(parameters.get(VALUE_RANGE, "full"))
    except BadBudget as error:
        name = str(error.extra["key"]).replace("-", "_")
        detail = error.detail.replace(f"'{error.extra['key']}'", f"'{name}'")
        raise BadBudget(f"parameters: {detail}", key=name) from error
    return Ask(budget, value_range, preference=_preference(parameters.get(PREFERENCE)))


def _preference(text: object) -> dict[str, float] | None:
    """None: the parameter is not there, or empty. Raises BadPreference."""
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        form = f"a string of at most {MAX_LENGTH} characters, such as 'semantic=0.7, depth=0.3'"
        raise BadPreference(f"parameters: the key '{PREFERENCE}' must be {form}", key=PREFERENCE)
    try:
        return preference_of(plain_members(text, bad_weight))
    except BadPreference as error:
        detail = f"parameters: {PREFERENCE}: {error.detail}"
        raise BadPreference(detail, key=error.extra["key"]) from error
    except MemberWithoutKeyError as error:
        detail = f"parameters: {PREFERENCE} has a member without a key"
        raise BadPreference(detail, key=PREFERENCE) from error


def _plain(name: str, value: object) -> object:
    """A value as budgets have it."""
    if name == "strict":
        value = {"true": True, "false": False}.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise BadBudget("parameters: the key 'strict' must be true or false", key=name)
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)  # in JSON, 2.0 is an integer
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value)
    return value


def _deadline(timeout: object, ms: object) -> dict[str, object]:
    """The tighter one of `timeout` (microseconds, 0: none) and `ms`, as the key ms."""
    if timeout is None:
        return {}
    number = _plain(TIMEOUT, timeout)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise BadBudget(f"the key '{TIMEOUT}' must be a whole number of microseconds", key=TIMEOUT)
    limit = min(max(number / 1000, 1.0), _LONGEST_MS)
    if number == 0 or (ms is not None and not isinstance(ms, int | float)):
        return {}
    return {"ms": limit if ms is None else min(limit, ms)}


def _unknown(name: object) -> BadInference:
    keys = (*_BUDGET, PREFERENCE, VALUE_RANGE, TIMEOUT, "binary_data_output")
    near = difflib.get_close_matches(str(name)[:40], keys, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(keys)}"
    return BadInference(f"parameters: the key {shown(name)} is unknown: {hint}")


def _bad_input(name: str, what: str) -> BadInference:
    return BadInference(f"the input {shown(name)} {what}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def shown(text: object) -> str:
    """What a stranger wrote, quoted and short enough for a message."""
    return repr(str(text)[:40])


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

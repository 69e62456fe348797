"""The fields `Compute-Budget` (request) and `Compute-Used` (answer): Dictionaries of RFC 9651.

    Compute-Budget: depth=3, gflops=6.5, ms=80, max-loss=0.01, strict
    Compute-Used: depth=2, of=6, gflops=4.1, reason=request
    Compute-Used: depth=6, of=6, keep=0.25, width=0.5, gflops=5.2, reason=gate

http_sf does the parsing. Parameters, which have no meaning here, are refused below.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import http_sf

from service.core import Budget, Decision
from service.errors import BadHeader

FIELD = "Compute-Budget"
MAX_LENGTH = 1024  # characters; all keys with values of full length take about 100


@dataclass(frozen=True, slots=True)
class _Number:
    """A key with a number in [low, high]; whole: an Integer, else an Integer or a Decimal."""

    low: float
    high: float
    whole: bool = False

    def read(self, key: str, value: object, high: float) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, Decimal)):
            raise _bad(key, f"must be {'an Integer' if self.whole else 'a number'}")
        number = value if isinstance(value, int) and self.whole else float(value)
        if not self.low <= number <= high:
            raise _bad(key, f"must be from {self.low:g} to {high:g}, but is {value}")
        return number


_NUMBERS = {
    "depth": _Number(1, 0, whole=True),  # the highest depth is the bundle's
    "gflops": _Number(0.001, 1e6),
    "ms": _Number(1, 600_000),
    "max-loss": _Number(0, 1),
}
KEYS = (*_NUMBERS, "strict")


def parse_budget(values: Sequence[str], of: int) -> Budget:
    """The field's lines, in their order, as one Budget. No line, or only empty ones: no ceiling and
    no floor.

    of: the bundle's deepest exit, the highest `depth`. Raises BadHeader (400) that names the key;
    nothing else. A key that is repeated counts by its last value, as the format says.
    """
    text = ", ".join(value for value in (line.strip(" \t") for line in values) if value)
    if not text:
        return Budget()
    if len(text) > MAX_LENGTH:
        raise BadHeader(f"{FIELD} has {len(text)} characters, more than {MAX_LENGTH}", header=FIELD)
    found: dict[str, int | float | bool] = {}
    for key, (value, parameters) in _parse(text).items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(KEYS)}"
            raise _bad(key, f"is unknown: {hint}")
        if isinstance(value, list):
            raise _bad(key, "must be a single value, not a list")
        if parameters:
            raise _bad(key, "takes no parameters (the part after ';')")
        if key == "strict":
            if not isinstance(value, bool):
                raise _bad(key, "must be a Boolean: strict, strict=?1 or strict=?0")
            found[key] = value
        else:
            number = _NUMBERS[key]
            found[key.replace("-", "_")] = number.read(
                key, value, of if key == "depth" else number.high
            )
    return Budget(**found)  # type: ignore[arg-type]  # each key was read as its field's type


def format_used(decision: Decision, of: int) -> str:
    """The value of `Compute-Used`. of: the bundle's deepest exit. keep and width are left out where
    they are 1."""
    plan, reason = decision.plan, http_sf.Token(decision.reason.value)
    less = {
        key: Decimal(share)
        for key, share in (("keep", plan.keep), ("width", plan.width))
        if share < 1
    }
    return http_sf.ser(
        {"depth": plan.depth, "of": of, **less, "gflops": Decimal(plan.gflops), "reason": reason}
    )


def _bad(key: str, problem: str) -> BadHeader:
    return BadHeader(f"{FIELD}: the key '{key}' {problem}", header=FIELD, key=key)


def _parse(text: str) -> dict[str, tuple[object, object]]:
    """key -> (value, parameters). Any failure of the parser is a BadHeader that names the member it
    stumbled over."""
    try:
        return _dictionary(text)
    except (http_sf.StructuredFieldError, UnicodeEncodeError) as error:
        wrong = next(
            (member for member in map(str.strip, text.split(",")) if not _is_dictionary(member)),
            text,
        )
        key = re.split(r"[=;]", wrong)[0][:40]
        if not key:
            raise BadHeader(f"{FIELD} has a member without a key", header=FIELD) from error
        form = "write key=value, the key in lower case, a number with at most 3 decimals (RFC 9651)"
        raise _bad(key, f"cannot be understood: {form}") from error


def _dictionary(text: str) -> dict[str, tuple[object, object]]:
    found = http_sf.parse(text.encode("ascii"), tltype="dictionary")
    return dict(found)  # type: ignore[arg-type]  # the type of the top level is in the argument


def _is_dictionary(text: str) -> bool:
    try:
        _dictionary(text)
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return False
    return bool(text)

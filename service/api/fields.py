"""The fields `Compute-Budget` (request) and `Compute-Used` (answer): Dictionaries of RFC 9651.

    Compute-Budget: depth=3, gflops=6.5, ms=80, max-loss=0.01, strict
    Compute-Used: depth=2, of=6, gflops=4.1, reason=request
    Compute-Used: depth=6, of=6, keep=0.25, width=0.5, gflops=5.2, reason=gate
    Compute-Used: canvas=c640, depth=4, of=6, gflops=21.3, reason=gate

http_sf does the parsing. Parameters are refused below: they have no meaning here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

import http_sf

from service.ask import bad, budget_of
from service.core import Budget, Decision, ValueRange
from service.errors import BadBudget, BadHeader
from service.inference.place import URGENCY

FIELD = "Compute-Budget"
VALUE_RANGE = "Value-Range"
PRIORITY = "Priority"
URGENCIES = range(8)  # RFC 9218, 4.1
MAX_LENGTH = 1024  # characters; all keys with their longest values take about 100


def parse_budget(lines: Sequence[str]) -> Budget:
    """The budget in the field's lines, in their order. Without a line that has text: no limits.

    The last value of a repeated key counts, as the format says. Raises only BadHeader (400), which
    names the key.
    """
    text = ", ".join(line for line in (line.strip(" \t") for line in lines) if line)
    if not text:
        return Budget()
    if len(text) > MAX_LENGTH:
        raise BadHeader(f"{FIELD} has {len(text)} characters, more than {MAX_LENGTH}", header=FIELD)
    with names_the_header():
        return budget_of({key: _value(key, *member) for key, member in _parse(text).items()})


def parse_value_range(lines: Sequence[str]) -> ValueRange:
    """The lines of `Value-Range`; none: full. Raises BadHeader (400)."""
    values = {line.strip(" \t").lower() for line in lines}
    if values <= {"full"}:
        return "full"
    if values == {"auto"}:
        return "auto"
    raise BadHeader(
        f"{VALUE_RANGE} is '{', '.join(lines)[:40]}': it must be full or auto", header=VALUE_RANGE
    )


def parse_urgency(lines: Sequence[str]) -> int:
    """The urgency in the lines of `Priority` (RFC 9218), 3 without one.

    A field or value that cannot be understood is ignored, as section 4 asks; `i` has no meaning
    here.
    """
    try:
        value, _ = _dictionary(", ".join(lines)[:MAX_LENGTH]).get("u", (None, None))
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return URGENCY
    known = isinstance(value, int) and not isinstance(value, bool) and value in URGENCIES
    return int(value) if known else URGENCY  # type: ignore[call-overload]


def pattern(layers: int) -> str:
    """A regular expression for the usual spellings of a budget, for clients that check before they
    send: whatever matches is understood. layers: the bundle's deepest exit.

    RFC 9651 has a few more spellings, such as leading zeros.
    """
    thousandths = r"(?:\.[0-9]{1,3})?"
    small = "0[.](?:[1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9])"  # 0.001 to 0.999
    member = "|".join(
        (
            f"depth=(?:{'|'.join(map(str, range(1, layers + 1)))})",
            f"gflops=(?:[1-9][0-9]{{0,5}}{thousandths}|{small})",
            f"ms=(?:[1-9][0-9]{{0,4}}{thousandths}|[1-5][0-9]{{5}}{thousandths}|600000)",
            f"max-loss=(?:0{thousandths}|1)",
            r"strict(?:=\?[01])?",
        )
    )
    return rf"^(?:(?:{member})(?:[ \t]*,[ \t]*(?:{member}))*)?$"


@contextmanager
def names_the_header() -> Iterator[None]:
    """Turn BadBudget into BadHeader: here the budget came in the header."""
    try:
        yield
    except BadBudget as error:
        detail = f"{FIELD}: {error.detail}"
        raise BadHeader(detail, header=FIELD, key=error.extra["key"]) from error


def format_used(decision: Decision, of: int, *, several_canvases: bool = False) -> str:
    """The value of `Compute-Used`. of: the bundle's deepest exit.

    The canvas is left out if the bundle has only one, keep and width if they are 1.
    """
    plan, reason = decision.plan, http_sf.Token(decision.reason.value)
    canvas = {"canvas": http_sf.Token(plan.canvas)} if several_canvases else {}
    shares = (("keep", plan.keep), ("width", plan.width))
    reduced = {key: Decimal(share) for key, share in shares if share < 1}
    gflops = Decimal(str(plan.price))
    return http_sf.ser(
        {**canvas, "depth": plan.depth, "of": of, **reduced, "gflops": gflops, "reason": reason}
    )


def _value(key: str, value: object, parameters: object) -> object:
    if isinstance(value, list):
        raise bad(key, "must be a single value, not a list")
    if parameters:
        raise bad(key, "takes no parameters (the part after ';')")
    if key == "strict" and not isinstance(value, bool):
        raise bad(key, "must be a Boolean: strict, strict=?1 or strict=?0")
    return value


def _parse(text: str) -> dict[str, tuple[object, object]]:
    """Parse to key -> (value, parameters).

    Any failure of the parser becomes BadBudget with the key of the wrong member.
    """
    try:
        return _dictionary(text)
    except (http_sf.StructuredFieldError, UnicodeEncodeError) as error:
        members = map(str.strip, text.split(","))
        wrong = next((member for member in members if not _is_dictionary(member)), text)
        key = re.split(r"[=;]", wrong)[0][:40]
        if not key:
            raise BadHeader(f"{FIELD} has a member without a key", header=FIELD) from error
        form = "write key=value, the key in lower case, a number with at most 3 decimals (RFC 9651)"
        raise bad(key, f"cannot be understood: {form}") from error


def _dictionary(text: str) -> dict[str, tuple[object, object]]:
    members = http_sf.parse(text.encode("ascii"), tltype="dictionary")
    return dict(members)  # type: ignore[arg-type]  # the type of the top level is in the argument


def _is_dictionary(text: str) -> bool:
    try:
        _dictionary(text)
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return False
    return bool(text)

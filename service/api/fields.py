"""The fields `Compute-Budget` and `Task-Preference` (request), `Compute-Used` and `Value-Scale`
(answer): Dictionaries and an Item of RFC 9651; `Value-Range`, `Priority`, and fields of one value.

    Compute-Budget: depth=3, gflops=6.5, ms=80, max-loss=0.01, strict
    Task-Preference: semantic=0.7, depth=0.3
    Compute-Used: depth=2, of=6, gflops=4.1, reason=request
    Compute-Used: depth=6, of=6, keep=0.25, width=0.5, gflops=5.2, reason=gate
    Compute-Used: canvas=c640, depth=4, of=6, gflops=21.3, reason=gate
    Compute-Used: depth=2, of=6, heads=(semantic depth;width=0.5), gflops=3.2, reason=gate
    Value-Scale: 512.0;unit="m"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from typing import TypeAlias

import http_sf
from starlette.datastructures import Headers

from service.ask import bad, bad_weight, budget_of, preference_of
from service.core import Budget, Decision, Plan, Reason, ValueRange
from service.errors import BadBudget, BadHeader, BadPreference, FathomError
from service.inference.place import URGENCY
from service.structured import MAX_LENGTH, MemberWithoutKeyError, dictionary, plain_members

FIELD = "Compute-Budget"
PREFERENCE = "Task-Preference"
VALUE_RANGE = "Value-Range"
VALUE_SCALE = "Value-Scale"
PRIORITY = "Priority"
URGENCIES = range(8)  # RFC 9218, 4.1
Fields: TypeAlias = Headers  # for transports without HTTP's
SEEN = 256  # values of a field that are remembered: a client sends the same ones again and again


def of_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> Fields:
    """Header fields from the metadata of a call, of which binary ones are none."""
    texts = ((name, text) for name, text in pairs if isinstance(text, str))
    return Headers(raw=[(name.encode(), text.encode("latin-1", "replace")) for name, text in texts])


def single(headers: Headers, name: str) -> str:
    """The value of a field that is no list; "" without a line that has text.

    Raises BadHeader (400) if it is there with several: whoever takes the other one sees another
    request.
    """
    values = {line.strip(" \t") for line in headers.getlist(name)} - {""}
    if len(values) > 1:
        raise BadHeader(f"{name} is there with {len(values)} values: send one", header=name)
    return values.pop() if values else ""


def parse_budget(lines: Sequence[str]) -> Budget:
    """The budget in the field's lines, in their order. Without a line that has text: no limits.

    The last value of a repeated key counts, as the format says. Raises only BadHeader (400), which
    names the key.
    """
    return _budget(_joined(lines, FIELD))


def parse_preference(lines: Sequence[str]) -> dict[str, float] | None:
    """The weights of heads in the lines of `Task-Preference`; None without a line that has text.

    Raises only BadHeader (400), which names the key. Whether the bundle has such heads is checked
    with it.
    """
    text = _joined(lines, PREFERENCE)
    if not text:
        return None
    with names_the_header():
        return preference_of(_members(text, PREFERENCE, bad_weight))


def parse_value_range(lines: Sequence[str]) -> ValueRange:
    """The lines of `Value-Range`; without one that has text: full. Raises BadHeader (400)."""
    # One line may hold several that a proxy has joined.
    values = {value.strip(" \t").lower() for value in ",".join(lines).split(",")} - {""}
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
        value, _ = dictionary(_one_line(lines)[:MAX_LENGTH]).get("u", (None, None))
    except (http_sf.StructuredFieldError, UnicodeEncodeError):
        return URGENCY
    known = isinstance(value, int) and not isinstance(value, bool) and value in URGENCIES
    return int(value) if known else URGENCY  # type: ignore[call-overload]


def weight_of(text: str) -> float | None:
    """A weight, the q of Accept and its kin (RFC 9110, 12.4.2), 0..1; None: it is none. More digits
    than three, or none before the point, as old clients of Java send them, do no harm."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 <= weight <= 1 else None


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


def preference_pattern(heads: Sequence[str]) -> str:
    """The same for a preference: weights from 0.001 to 1. heads: of the bundle."""
    weight = "(?:1|0[.](?:[1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9]))"
    member = f"(?:{'|'.join(heads)})={weight}"
    return rf"^(?:{member}(?:[ \t]*,[ \t]*{member})*)?$"


@contextmanager
def names_the_header() -> Iterator[None]:
    """Turn BadBudget and BadPreference into BadHeader: here the ask came in header fields."""
    try:
        yield
    except (BadBudget, BadPreference) as error:
        field = FIELD if isinstance(error, BadBudget) else PREFERENCE
        detail = f"{field}: {error.detail}"
        raise BadHeader(detail, header=field, key=error.extra["key"]) from error


def format_used(decision: Decision, of: int, *, several_canvases: bool = False) -> str:
    """The value of `Compute-Used`. of: the bundle's deepest exit.

    The canvas is left out if the bundle has only one, keep and width if they are 1, and the heads
    if there is one of one width.
    """
    return _used(decision.plan, decision.reason, of, several_canvases)


def format_scale(scale: float, unit: str) -> str:
    """The value of `Value-Scale`: by what values of this unit were multiplied."""
    item: http_sf.ItemType = (Decimal(str(scale)), {"unit": unit})
    return http_sf.ser(item)


@lru_cache(SEEN)
def _used(plan: Plan, reason: Reason, of: int, several_canvases: bool) -> str:
    canvas = {"canvas": http_sf.Token(plan.canvas)} if several_canvases else {}
    shares = (("keep", plan.keep), ("width", plan.width))
    reduced = {key: Decimal(share) for key, share in shares if share < 1}
    gflops = Decimal(str(plan.price))
    heads = {"heads": _heads(plan)} if plan.chooses_heads else {}
    return http_sf.ser(
        {
            **canvas,
            "depth": plan.depth,
            "of": of,
            **reduced,
            **heads,
            "gflops": gflops,
            "reason": http_sf.Token(reason.value),
        }
    )


def _heads(plan: Plan) -> http_sf.InnerListType:
    return [
        (
            http_sf.Token(head.name),
            {} if head.width == 1 else {"width": Decimal(str(round(head.width, 3)))},
        )
        for head in plan.heads
    ]


@lru_cache(SEEN)
def _budget(text: str) -> Budget:
    if not text:
        return Budget()
    with names_the_header():
        values = _members(text, FIELD, bad)
        if not isinstance(values.get("strict", False), bool):
            raise bad("strict", "must be a Boolean: strict, strict=?1 or strict=?0")
        return budget_of(values)


def _members(text: str, field: str, bad: Callable[[str, str], FathomError]) -> dict[str, object]:
    try:
        return plain_members(text, bad)
    except MemberWithoutKeyError as error:
        raise BadHeader(f"{field} has a member without a key", header=field) from error


def _joined(lines: Sequence[str], field: str) -> str:
    """The lines of a field as one. Raises BadHeader if that is too long."""
    text = _one_line(lines)
    if len(text) > MAX_LENGTH:
        raise BadHeader(f"{field} has {len(text)} characters, more than {MAX_LENGTH}", header=field)
    return text


def _one_line(lines: Sequence[str]) -> str:
    return ", ".join(line for line in (line.strip(" \t") for line in lines) if line)

"""Compute-Budget and Compute-Used: the grammar, the ranges, and what hostile input meets."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.fields import MAX_LENGTH, format_used, names_the_header, parse_budget
from service.ask import bad, budget_of
from service.core import Budget, Decision, Plan, Reason
from service.errors import BadBudget, BadHeader

OF = 6
PLAN = Plan("d2", 2, 1.0, 1.0, 4.1, 0.7)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], Budget()),
        (["", " \t"], Budget()),
        (["depth=3"], Budget(depth=3)),
        (["gflops=6.5"], Budget(gflops=6.5)),
        (["gflops=6"], Budget(gflops=6.0)),
        (["ms=80, max-loss=0.01"], Budget(ms=80.0, max_loss=0.01)),
        (["max-loss=0"], Budget(max_loss=0.0)),
        (["strict"], Budget(strict=True)),
        (["strict=?0"], Budget(strict=False)),
        (["depth=3, gflops=6.5, ms=80, max-loss=0.01, strict"], Budget(3, 6.5, 80.0, 0.01, True)),
        (["depth=3", "ms=80"], Budget(depth=3, ms=80.0)),  # lines are joined
        (["depth=3", "", "ms=80"], Budget(depth=3, ms=80.0)),
        (["depth=5", "depth=2"], Budget(depth=2)),  # the last one counts
        (["depth=1"], Budget(depth=1)),
        (["depth=6"], Budget(depth=6)),
        (["gflops=0.001"], Budget(gflops=0.001)),
        (["gflops=1000000"], Budget(gflops=1e6)),
        (["ms=1"], Budget(ms=1.0)),
        (["ms=600000"], Budget(ms=6e5)),
        (["max-loss=1.0"], Budget(max_loss=1.0)),
    ],
)
def test_a_field_within_the_grammar_is_read(lines: list[str], expected: Budget) -> None:
    assert parse_budget(lines) == expected


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("depth=2.0", "depth"),
        ("depth", "depth"),
        ('depth="2"', "depth"),
        ("depth=(1 2)", "depth"),
        ("depth=2;soft", "depth"),
        ("depth==2", "depth"),
        ("depth=", "depth"),
        ("depth=999999999999999999999", "depth"),
        ("depth=two", "depth"),
        ("depth=:aGk=:", "depth"),
        ("depth=@1", "depth"),
        ("depth=\u0662", "depth"),  # a digit to int(), not to the format
        ("gflops=0", "gflops"),
        ("gflops=-0.5", "gflops"),
        ("gflops=1000000.001", "gflops"),
        ("gflops=6.", "gflops"),
        ("gflops=nan", "gflops"),
        ("gflops=?1", "gflops"),
        ("ms=0", "ms"),
        ("ms=0.999", "ms"),
        ("ms=600001", "ms"),
        ("max-loss=1.001", "max-loss"),
        ("max-loss=-0.001", "max-loss"),
        ("max-loss=0.0001", "max-loss"),  # the format has three decimals
        ("strict=1", "strict"),
        ("strict=?2", "strict"),
        ("Depth=2", "Depth"),
        ("depht=2", "depht"),
        ("max_loss=0.1", "max_loss"),
        ("ms=80, layers=3", "layers"),
        ("depth=2, ms=a b", "ms"),
        ("depth=2,\tms=80,\tstrict=", "strict"),
    ],
)
def test_a_wrong_field_is_refused_and_the_error_names_its_key(text: str, key: str) -> None:
    with pytest.raises(BadHeader) as caught:
        parse_budget([text])
    assert caught.value.extra == {"header": "Compute-Budget", "key": key}
    assert f"'{key}'" in caught.value.detail


@pytest.mark.parametrize(
    "text", ["depth=2,", ",", "depth=2,,ms=4", "x" * (MAX_LENGTH + 1), 'depth="a, b']
)
def test_a_field_without_a_key_to_name_is_refused(text: str) -> None:
    with pytest.raises(BadHeader):
        parse_budget([text])


def test_a_number_with_too_many_decimals_is_answered_with_the_limit() -> None:
    with pytest.raises(BadHeader, match=r"'gflops' .* a number with at most 3 decimals"):
        parse_budget(["depth=2, gflops=3.0149"])


def test_a_budget_that_the_policy_refuses_is_answered_by_the_header_and_its_key() -> None:
    with pytest.raises(BadHeader) as caught, names_the_header():
        raise bad("depth", "must be from 1 to 6, but is 7")
    assert caught.value.extra == {"header": "Compute-Budget", "key": "depth"}
    assert caught.value.detail == ("Compute-Budget: the key 'depth' must be from 1 to 6, but is 7")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"depth": 2.0}, "'depth' must be an Integer"),
        ({"depth": True}, "'depth' must be an Integer"),
        ({"gflops": "6.5"}, "'gflops' must be a number"),
        ({"ms": float("nan")}, "'ms' must be from 1 to 600000, but is nan"),
        ({"ms": Decimal("sNaN")}, "'ms' must be a number"),
        ({"ms": 600000.5}, "'ms' must be from 1 to 600000, but is 600000.5"),
        ({"ms": -(10**400)}, "'ms' must be from 1 to 600000, but is an integer of about 401"),
        ({"gflops": Fraction(10**400)}, "'gflops' must be from 0.001 to 1000000, but is an"),
        ({"max-loss": 10**5000}, "'max-loss' must be from 0 to 1, but is an integer of about 5001"),
        ({"max_loss": 0.1}, "'max_loss' is unknown: did you mean 'max-loss'?"),
        ({"strict": 1}, "'strict' must be a Boolean"),
    ],
)
def test_plain_values_are_read_by_the_same_rules(values: dict[str, object], what: str) -> None:
    with pytest.raises(BadBudget) as caught:
        budget_of(values)
    assert f"the key {what}" in caught.value.detail
    assert caught.value.extra == {"key": next(iter(values))}


def test_plain_values_become_a_budget() -> None:
    values = {"depth": 3, "gflops": 6.5, "ms": 80, "max-loss": 0.01, "strict": True}
    assert budget_of(values) == Budget(3, 6.5, 80.0, 0.01, True)
    assert budget_of({}) == Budget()


def test_a_misspelt_key_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(BadHeader, match="did you mean 'gflops'"):
        parse_budget(["gflop=3"])


PUNCTUATION = [
    "=",
    "?1",
    "?2",
    ",",
    ";",
    " ",
    "(",
    ")",
    '"',
    ":",
    "@",
    "%",
    ".",
    "-",
    "*",
    "\\",
    "\t",
    "\n",
    "\x00",
    "\x7f",
]
FRAGMENTS = st.sampled_from(
    [
        "depth",
        "gflops",
        "ms",
        "max-loss",
        "strict",
        "3",
        "0.5",
        "9" * 16,
        "1e9",
        "é",
        "𝟚",
        *PUNCTUATION,
    ]
)


@given(st.lists(st.lists(FRAGMENTS).map("".join) | st.text(), max_size=4))
def test_hostile_text_raises_nothing_but_bad_header(lines: list[str]) -> None:
    try:
        budget = parse_budget(lines)
    except BadHeader:
        return
    assert budget.ms is None or 1 <= budget.ms <= 600_000


@given(
    depth=st.none() | st.integers(1, OF),
    gflops=st.none() | st.integers(1, 10**9).map(lambda thousandths: thousandths / 1000),
    strict=st.booleans(),
)
def test_every_budget_that_can_be_written_is_read_back(
    depth: int | None, gflops: float | None, strict: bool
) -> None:
    parts = [] if depth is None else [f"depth={depth}"]
    parts += [] if gflops is None else [f"gflops={gflops:.3f}"]
    parts += ["strict"] if strict else []
    assert parse_budget([", ".join(parts)]) == Budget(depth=depth, gflops=gflops, strict=strict)


def test_compute_used_has_the_documented_text() -> None:
    assert (
        format_used(Decision(PLAN, Reason.REQUEST, 0.7), OF)
        == "depth=2, of=6, gflops=4.1, reason=request"
    )


@pytest.mark.parametrize(
    ("keep", "width", "shown"),
    [
        (0.25, 1.0, "keep=0.25, "),
        (1.0, 0.5, "width=0.5, "),
        (0.5, 0.25, "keep=0.5, width=0.25, "),
        (1 / 3, 1.0, "keep=0.333, "),
    ],
)
def test_compute_used_names_keep_and_width_where_they_are_not_1(
    keep: float, width: float, shown: str
) -> None:
    plan = Plan("d2", 2, keep, width, 4.1, 0.7)
    assert (
        format_used(Decision(plan, Reason.GATE, 0.7), OF)
        == f"depth=2, of=6, {shown}gflops=4.1, reason=gate"
    )


@pytest.mark.parametrize("gflops", [0.0004, 0.05, 12.0, 12345.67891, 1e6])
@pytest.mark.parametrize("reason", list(Reason))
def test_compute_used_is_a_dictionary_of_the_format(gflops: float, reason: Reason) -> None:
    text = format_used(Decision(Plan("d2", 2, 1, 1, gflops, 0.7), reason, 0.7), OF)
    parsed = {
        key: value for key, (value, _) in http_sf.parse(text.encode(), tltype="dictionary").items()
    }
    assert (parsed["depth"], parsed["of"], str(parsed["reason"])) == (2, OF, reason.value)
    # Rounded up, so that the number buys the plan when it is sent back as a ceiling.
    assert 0 <= float(parsed["gflops"]) - gflops < 0.001

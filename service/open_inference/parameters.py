"""The parameters of an inference request: what it asks for.

They are the keys of `Compute-Budget` with underscores (`max_loss`), `value_range` and
`task_preference` in the syntax of those fields, and those of the protocol itself: `timeout` is a
deadline in microseconds, `sequence_*` and `priority` have no meaning here and are ignored,
`binary_data_output` belongs to the HTTP form. All others are refused. Over HTTP the fields may say
the same, or what the parameters leave open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from service.ask import KEYS, NUMBERS, bad, bad_weight, budget_of, preference_of, value_range_of
from service.core import Ask, Budget
from service.errors import BadBudget, BadInference, BadPreference, did_you_mean, shown
from service.structured import MAX_LENGTH, MemberWithoutKeyError, plain_members

TIMEOUT = "timeout"  # in microseconds
VALUE_RANGE = "value_range"
PREFERENCE = "task_preference"  # in the syntax of the field Task-Preference
IGNORED = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "binary_data_output"}
)
_BUDGET = {key.replace("-", "_"): key for key in KEYS}
_LONGEST_US = 1000 * NUMBERS["ms"].high
_INTEGER, _DECIMAL = re.compile(r"\d{1,15}"), re.compile(r"\d{1,15}\.\d{1,15}")


def given(members: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a value: null counts as absent, in every part of the protocol."""
    return {name: value for name, value in members.items() if value is not None}


def ask_of(parameters: object, fields: Ask) -> Ask:
    """The ask in a request's parameters, or where they say nothing, in its header fields. Raises
    BadInference, also where the two differ, or BadBudget or BadPreference that names the key.

    Numbers may be strings: KServe's gRPC client cannot send fractions. A parameter without a value
    counts as absent.
    """
    if not isinstance(parameters, Mapping):
        raise BadInference("the parameters must be an object")
    parameters = given(parameters)
    values: dict[str, object] = {}
    for name, value in parameters.items():
        if name in _BUDGET:
            values[_BUDGET[name]] = _plain(name, value)
        elif name not in IGNORED and name not in (TIMEOUT, VALUE_RANGE, PREFERENCE):
            raise _unknown(name)
    try:
        own = budget_of(values)
        timeout_ms = _timeout_ms(parameters.get(TIMEOUT))
        value_range = value_range_of(parameters.get(VALUE_RANGE, fields.value_range))
    except BadBudget as error:
        name = str(error.extra["key"]).replace("-", "_")
        detail = error.detail.replace(f"'{error.extra['key']}'", f"'{name}'")
        raise BadBudget(f"parameters: {detail}", key=name) from error
    preference = _preference(parameters.get(PREFERENCE))
    said = {name: getattr(own, name) for name, key in _BUDGET.items() if key in values}
    for name, value in said.items():
        _check(name, value, getattr(fields.budget, name), getattr(Budget(), name), "Compute-Budget")
    _check(VALUE_RANGE, value_range, fields.value_range, "full", "Value-Range")
    if preference is not None:
        _check(PREFERENCE, preference, fields.preference, None, "Task-Preference")
    return Ask(
        within(replace(fields.budget, **said), timeout_ms),
        value_range,
        fields.urgency,
        fields.preference if preference is None else preference,
    )


def _check(name: str, value: object, told: object, default: object, field: str) -> None:
    """A parameter against what a header field has told; the default is as good as nothing. Raises
    BadInference."""
    if told not in (default, value):
        raise BadInference(
            f"parameters: the key '{name}' and the header field {field} differ: send one of them"
        )


def within(budget: Budget, ms: float | None) -> Budget:
    """The budget with the tighter one of its deadline and this one, in milliseconds; None: none."""
    if ms is None or (budget.ms is not None and budget.ms <= ms):
        return budget
    return replace(budget, ms=ms)


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


def _timeout_ms(timeout: object) -> float | None:
    """`timeout` (microseconds) as milliseconds. None: it is not there, or 0."""
    if timeout is None:
        return None
    number = _plain(TIMEOUT, timeout)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise bad(TIMEOUT, "must be a whole number of microseconds")
    # The longest one is cut first: an integer may be too large for a float.
    return max(1.0, min(number, _LONGEST_US) / 1000) if number else None


def _unknown(name: object) -> BadInference:
    keys = (*_BUDGET, PREFERENCE, VALUE_RANGE, TIMEOUT, "binary_data_output")
    hint = did_you_mean(str(name)[:40], keys) or f"the keys are {', '.join(keys)}"
    return BadInference(f"parameters: the key {shown(name)} is unknown: {hint}")

"""What a caller may ask for: the keys of a budget, their types and ranges, for every transport.

HTTP fields, parameters of inference protocols and Python arguments all arrive here as plain values.
Reading them needs no bundle: the policy checks what depends on one, such as the deepest exit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real

from service.core import Budget, ValueRange
from service.errors import BadBudget, BadPreference, did_you_mean


@dataclass(frozen=True, slots=True)
class Number:
    """A key with a number in [low, high]; whole: an integer."""

    low: float
    high: float
    whole: bool = False

    def read(self, key: str, value: object) -> int | float:
        number = None if isinstance(value, bool) else self._number(value)
        if number is None:
            raise bad(key, f"must be {'an Integer' if self.whole else 'a number'}")
        if not self.low <= number <= self.high:  # this form also refuses NaN
            raise out_of_range(key, number, self.low, self.high)
        return number if self.whole else float(number)

    def _number(self, value: object) -> int | float | None:
        """None: it is none, or none of this kind. NumPy's scalars are of these types too."""
        if isinstance(value, Integral):
            return int(value)  # it may be too large for a float
        if isinstance(value, Real | Decimal) and not self.whole:
            try:
                return float(value)
            except OverflowError:
                return int(value)  # type: ignore[arg-type]  # a fraction, which may be, too
            except ValueError:
                return None  # a signalling NaN
        return None


# Of the budget. The policy checks the range of the depth: it depends on the bundle.
NUMBERS = {
    "depth": Number(float("-inf"), float("inf"), whole=True),
    "gflops": Number(0.001, 1e6),
    "ms": Number(1, 600_000),
    "max-loss": Number(0, 1),
}
_WEIGHT = Number(0, 1e6)  # of a head
KEYS = (*NUMBERS, "strict")


def budget_of(values: Mapping[str, object]) -> Budget:
    """Build a budget from plain values, by KEYS. Raises BadBudget that names the key."""
    read: dict[str, int | float | bool] = {}
    for key, value in values.items():
        if key in NUMBERS:
            read[key.replace("-", "_")] = NUMBERS[key].read(key, value)
        elif key != "strict":
            hint = did_you_mean(key, KEYS) or f"the keys are {', '.join(KEYS)}"
            raise bad(key, f"is unknown: {hint}")
        elif type(value).__name__ in ("bool", "bool_"):  # NumPy's, too
            read[key] = bool(value)
        else:
            raise bad(key, "must be a Boolean")
    return Budget(**read)  # type: ignore[arg-type]  # each key was read as its field's type


def preference_of(values: Mapping[str, object]) -> dict[str, float]:
    """Weights of heads by name, from plain values. Raises BadPreference that names the key.

    Whether the bundle has such heads is checked with it (`Policies.check`).
    """
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise BadPreference(
            "the heads have weights by name: {'semantic': 0.7, 'depth': 0.3}", key=""
        )
    try:
        weights = {key: _WEIGHT.read(key, value) for key, value in values.items()}
    except BadBudget as error:
        raise BadPreference(error.detail, key=error.extra["key"]) from error
    if not any(weights.values()):
        key = next(iter(weights), "")
        named = f"the key '{key}' is 0, and so are all others" if key else "there is no head"
        raise BadPreference(f"{named}: at least one weight must be over 0", key=key)
    return {key: float(weight) for key, weight in weights.items()}


def value_range_of(value: object) -> ValueRange:
    """How deep samples become 8 bits: full or auto. Raises BadBudget for another value."""
    if value == "full":
        return "full"
    if value == "auto":
        return "auto"
    raise bad("value_range", "must be 'full' or 'auto'")


def bad_weight(key: str, what: str) -> BadPreference:
    """The error for a head's weight; see `bad`."""
    return BadPreference(f"the key '{key}' {what}", key=key)


def out_of_range(key: str, number: float, low: float, high: float) -> BadBudget:
    """The error for a number that is not from low to high. It may be an integer of any size: Python
    makes no float of one over 1e308, and no text of one with over 4300 digits."""
    try:
        told = f"{number:.15g}"
    except OverflowError:
        told = f"an integer of about {math.floor(math.log10(abs(number))) + 1} digits"
    return bad(key, f"must be from {low:g} to {high:.15g}, but is {told}")


def bad(key: str, what: str) -> BadBudget:
    """The error for a key. what: what is wrong with it, as the end of a sentence."""
    return BadBudget(f"the key '{key}' {what}", key=key)

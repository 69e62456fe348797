"""What numbers options of the commands take: told by argparse, with the option's name, before any
work.

No number is NaN or endless unless its option says so: `register` makes that so for the options that
ask for a plain `int` or `float`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

LARGEST = 2**31 - 1  # that seeds, counts and sizes can have everywhere
FINITE = sys.float_info.max


def whole(least: int = 1, most: int = LARGEST) -> Callable[[str], int]:
    """An argparse type: a whole number, both ends included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also where there are too many digits
            value = least - 1
        if not least <= value <= most:
            upper = "or more" if most == LARGEST else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} {upper}")
        return value

    return parse


def number(least: float = 0.0, most: float = FINITE) -> Callable[[str], float]:
    """An argparse type: a number, both ends included. most: math.inf where "inf" has a meaning."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            upper = "or more" if most >= FINITE else f"to {most:g}"
            lower = "a finite number" if least == -FINITE else f"a number, {least:g} {upper}"
            raise argparse.ArgumentTypeError(f"{text!r} must be {lower}")
        return value

    return parse


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the plain types take no NaN, nothing endless, and no number beyond `LARGEST`."""
    parser.register("type", int, whole(-LARGEST))
    parser.register("type", float, number(-FINITE))

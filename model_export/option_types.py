"""What numbers options of the commands take: told by argparse, with the option's name, before any
work. And how `--help` shows their defaults.

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


class Help(argparse.HelpFormatter):
    """Behind each option its default in brackets, as `python -m service --help` has it, unless its
    help tells it in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, argparse.SUPPRESS) or default is False or "default" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        return f"{text} [{shown}]"


def register(parser: argparse.ArgumentParser) -> None:
    """Options of the plain types take no NaN, nothing endless, and no number beyond `LARGEST`."""
    parser.register("type", int, whole(-LARGEST))
    parser.register("type", float, number(-FINITE))

"""A bundle, a labelled folder and the command that evaluates them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.small_bundle import GRID
from tests.toy import command, last_json

Row = dict[str, Any]


# Of blue and red, of 12; the rest is green.
COLUMNS = {
    "a_0": (0, 6),
    "a_1": (0, 4),
    "b_0": (3, 5),
    "b_1": (6, 3),
}


def cells(blue: int, red: int) -> np.ndarray:
    row = np.full(GRID[1], 1)
    row[: blue + red], row[:blue] = 0, 2
    return np.tile(row, (GRID[0], 1)).astype(np.uint8)


def blind(blue: int, red: int) -> float:
    """mIoU over the classes that the image shows when blue cells are taken for red."""
    return (red / (red + blue) + 1 + 0) / 3 if blue else 1.0


BLIND = [blind(*columns) for columns in COLUMNS.values()]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, Row]:
    """Exit code 0; what was printed, and its last line."""
    code = command("evaluate", *words, "--threads", 1, "--draws", 50)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out, last_json(shown.out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert command("evaluate", *words) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.err


def by_name(found: Row) -> dict[str, Row]:
    return {row["policy"]: row for row in found["policies"]}

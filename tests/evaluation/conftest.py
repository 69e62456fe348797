"""What is evaluated: a bundle whose cheap plan is blind to blue, and a labelled folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.seer import COLUMNS, cells
from tests.small_bundle import write_bundle, write_image


@pytest.fixture
def semantic(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "seer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, columns in COLUMNS.items():
        write_image(tmp_path / "data", name, cells(*columns), cells(*columns))
    return tmp_path / "data"

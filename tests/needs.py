"""What some tests need that no package brings: programs of the system, and data sets that may not
be redistributed.

Without it such a test skips and says what is missing. Where REQUIRE_{WHAT}=1 is set, as in CI, it
fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from service.native import build


def missing(what: str, reason: str) -> NoReturn:
    """Skips the test, or fails it where REQUIRE_{what}=1 is set. what: BROWSER, DATA, ..."""
    if os.environ.get(f"REQUIRE_{what}") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def data_at(place: str) -> Path:
    """A file or folder below TEST_DATA, as "camvid". Skips the test without it; REQUIRE_DATA."""
    folder = os.environ.get("TEST_DATA")
    if not folder:
        missing("DATA", f"TEST_DATA names no folder with {place}")
    path = Path(folder) / place
    if not path.exists():
        missing("DATA", f"there is no {place} in TEST_DATA")
    return path


def compiled_library() -> None:
    """Builds service/native of this checkout. Skips the test where
    there is no C compiler."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    build.build()

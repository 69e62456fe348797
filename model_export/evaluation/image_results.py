"""The results of one image on disk, so that a measurement that was stopped can continue."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.datasets import DataError

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove it to measure the image again"
        ) from error


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Complete or not at all: the command may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.replace(path)

"""The results of one image on disk, so that a measurement that was stopped can continue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.files import replacing
from model_export.training.runs import read_archive

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """Raises RunError that names a file that is damaged."""
    return read_archive(path, "remove it to measure the image again")


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Complete or not at all: the command may be stopped at any time, and may run twice at once.
    Raises OSError that names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mark=str(os.getpid())) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]

"""The results of a long measurement so far, in one file: the same command continues where it was
stopped."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAVE_EVERY = 60.0  # seconds

Row = dict[str, NDArray[Any]]  # in every row the same names and shapes


def key_of(weights: Path, *about: object) -> str:
    """weights: the network's file. about: everything else that the rows depend on, JSON values."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()


class PartialResults:
    """rows: one for each step so far, in order; None for a step with nothing to measure.

    key: stands for all that the rows depend on; a file with another key is ignored. Without a path
    nothing is saved.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self.path, self.key, self.rows = path, key, list[Row | None]()
        self.written, self.saved = 0, time.monotonic()
        if path is None or not path.exists():
            return
        with np.load(path) as archive:
            if str(archive["key"]) == key:
                columns = {
                    name: iter(archive[name])
                    for name in archive.files
                    if name not in ("key", "void")
                }
                self.rows = [
                    None if void else {name: next(column) for name, column in columns.items()}
                    for void in archive["void"]
                ]
                self.written = len(self.rows)

    def add(self, row: Row | None) -> None:
        self.rows.append(row)
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def columns(self) -> Row:
        """Name -> the rows with something to measure, stacked."""
        known = [row for row in self.rows if row is not None]
        return {name: np.stack([row[name] for row in known]) for name in known[0]} if known else {}

    def save(self) -> None:
        if self.path is None or self.written == len(self.rows):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new.npz")
        about: Row = {
            "key": np.array(self.key),
            "void": np.array([row is None for row in self.rows], bool),
        }
        np.savez_compressed(temporary, **(about | self.columns()))  # type: ignore[arg-type]
        temporary.replace(self.path)
        self.written, self.saved = len(self.rows), time.monotonic()

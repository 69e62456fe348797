"""The results of a long measurement so far, in one file: the same command continues where it was
stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.datasets import Dataset
from model_export.files import replacing
from model_export.training.run_files import reading
from model_export.training.runs import read_archive

SAVE_EVERY = 60.0  # seconds

Row = dict[str, NDArray[Any]]  # in every row the same names and shapes


def key_of(weights: Path, *about: object) -> str:
    """weights: the network's file. about: everything else that the rows depend on, JSON values."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def partial_files(place: Path) -> dict[str, Path]:
    """Of each part the file of its results so far."""
    return {part: place.with_name(f"{place.name}-{part}.partial.npz") for part in ("held", "fit")}


def discard_partial(place: Path) -> None:
    """Once what they were for is written."""
    for file in partial_files(place).values():
        file.unlink(missing_ok=True)


def contents_of(data: Dataset) -> list[Any]:
    """What rows depend on beyond the data set's name, as JSON: its files, which may have changed,
    or be of another folder, and what their labels mean."""
    data = getattr(data, "data", data)  # of those images that are large enough
    pairs = [*getattr(data, "files", ()), (getattr(data, "file", None),)]
    files = sorted({file.resolve() for pair in pairs for file in pair if file is not None})
    meaning = [getattr(data, name, None) for name in ("classes", "values", "groups", "names")]
    about = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return [*about, repr(meaning)]


class PartialResults:
    """rows: one for each step so far, in order; None for a step with nothing to measure. There are
    none before `begin`.

    key: stands for all that the rows depend on but the data's contents; a file with another key is
    ignored. Without a path nothing is saved.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self.path, self.key, self.rows = path, key, list[Row | None]()
        self.written, self.saved = 0, time.monotonic()

    def begin(self, datasets: Iterable[Dataset]) -> None:
        """Take the rows of an earlier measurement of these data. Raises RunError where the file is
        damaged."""
        if self.path is None:
            return
        about = json.dumps([self.key, *map(contents_of, datasets)])
        self.key = hashlib.sha256(about.encode()).hexdigest()
        if not self.path.exists():
            return
        again = "delete it, and repeat the command: it measures everything anew"
        columns = read_archive(self.path, again)
        with reading(self.path, again):
            if str(columns.pop("key")) == self.key:
                void = columns.pop("void")
                rows = {name: iter(column) for name, column in columns.items()}
                self.rows = [
                    None if empty else {name: next(row) for name, row in rows.items()}
                    for empty in void
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
        about: Row = {
            "key": np.array(self.key),
            "void": np.array([row is None for row in self.rows], bool),
        }
        with replacing(self.path) as temporary:
            np.savez_compressed(temporary, **(about | self.columns()))  # type: ignore[arg-type]
        self.written, self.saved = len(self.rows), time.monotonic()

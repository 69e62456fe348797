"""Images with labels, wherever the labels come from: what all such data sets have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.data.cache import SampleCache
from model_export.data.sample import DataError, Sample, read_image, same_form
from model_export.tasks import TASKS, VOID, Task
from model_export.tasks.base import Labels

Colours = tuple[tuple[int, int, int], ...]
Groups = Mapping[str, str]
# Labels, and which of their pixels count nowhere although the labels cannot say so; None: none.
Read = tuple[Labels, NDArray[np.bool_] | None]
SHOWN = 10  # faults in one message


class LabelledImages:
    """files: (image, where its labels stand) of each. A subclass says how labels are read.

    hint: after a look at all labels, what may be the cause of their faults.
    """

    def __init__(
        self,
        task: str,
        classes: tuple[str, ...],
        palette: Colours,
        files: Sequence[tuple[Path, Path]],
        groups: Groups | None = None,
        labels_right: float = 0.0,
        kind: Task | None = None,
    ) -> None:
        """groups: of the names that have one. kind: of the labels; None: the task's own."""
        self.task, self.kind = task, kind or TASKS[task]
        self.classes, self.palette = classes, palette
        self.channels = self.kind.channels(len(classes))
        self.files, self.groups, self.labels_right = files, groups or {}, labels_right
        self.cache = SampleCache()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return self.cache.get((self, index), lambda: self._sample(index))

    def name_of(self, index: int) -> str:
        """The image's name, without suffix."""
        return same_form(self.files[index][0].stem)

    def group_of(self, index: int) -> str:
        """The image's group, empty where it has none."""
        return self.groups.get(self.name_of(index), "")

    def truth(self, index: int) -> Labels:
        """(H, W) labels. Read anew each time: a data set may be larger than the memory."""
        return self.read(index)[1]

    def label_bytes(self, index: int) -> bytes:
        """All that the labels of an image depend on."""
        return self.files[index][1].read_bytes()

    def read_labels(self, index: int, size: tuple[int, int]) -> Read:
        """Labels of an image of this (height, width), not yet checked. Raises DataError."""
        raise NotImplementedError

    def hint(self, values: set[int]) -> str:
        return ""

    def read(self, index: int) -> tuple[NDArray[np.uint8], Labels, NDArray[np.bool_] | None]:
        """Image and labels, of one size, and what of them counts nowhere. Raises DataError."""
        image = read_image(self.files[index][0])
        labels, void = self.read_labels(index, image.shape[:2])
        unknown = self.kind.unknown(labels, len(self.classes))
        if unknown:
            raise DataError(self._has_unknown(index, unknown))
        return image, labels, void

    def look(self, index: int) -> tuple[set[int], str]:
        """The values of an image's labels, and what is wrong with it or them, or ""."""
        try:
            image = read_image(self.files[index][0])
            labels, _ = self.read_labels(index, image.shape[:2])
        except DataError as error:
            return set(), str(error)
        unknown = self.kind.unknown(labels, len(self.classes))
        fault = self._has_unknown(index, unknown) if unknown else ""
        return set(np.unique(labels).tolist()), fault

    def look_at_all(
        self, what: str, known: Iterable[str] = (), show: bool = True
    ) -> list[set[int]]:
        """As `looked_at`."""
        return looked_at(what, len(self), self.look, known, self.hint, show)

    def _sample(self, index: int) -> Sample:
        image, labels, void = self.read(index)
        mask = self.kind.target(labels)
        if void is not None:
            mask = np.where(void, np.uint8(VOID), mask)
        return Sample(
            self.name_of(index),
            image,
            mask,
            labels if self.kind.objects else None,
            self.group_of(index),
            self.labels_right,
        )

    def _has_unknown(self, index: int, unknown: Sequence[int]) -> str:
        some = str(list(unknown[:SHOWN]))
        if len(unknown) > SHOWN:
            some += f" and {len(unknown) - SHOWN} more"
        return (
            f"{self.files[index][1]} has labels {some}; known are 0..{len(self.classes) - 1} and "
            f"{VOID}"
        )


def looked_at(
    what: str,
    count: int,
    look: Callable[[int], tuple[set[int], str]],
    known: Iterable[str] = (),
    hint: Callable[[set[int]], str] = lambda values: "",
    show: bool = True,
) -> list[set[int]]:
    """Read everything, with a progress bar. Returns the values of each image's labels.

    what: the data set, as it was named. look, hint: as of LabelledImages. known: faults that were
    found before. Raises DataError, one for all, that lists the first faults by file.
    """
    # Decoders let other threads run; each thread holds one image.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(look, range(count))
        found = list(tqdm(looks, f"checking {what}", count, mininterval=1, disable=not show))
    values = [values for values, _ in found]
    faults = sorted([*known, *(fault for _, fault in found if fault)])
    if faults:
        said = hint(set().union(*values))
        raise DataError(listed(what, faults) + (f"\n{said}" if said else ""))
    return values


def listed(what: str, faults: Sequence[str]) -> str:
    """One message for all faults. A single one stands for itself."""
    if len(faults) == 1:
        return faults[0]
    first = "" if len(faults) <= SHOWN else f", the first {SHOWN} of them"
    lines = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
    return f"{what} has {len(faults)} faults{first}:{lines}"

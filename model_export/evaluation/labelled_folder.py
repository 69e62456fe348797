"""Any labelled folder, opened for a bundle's task: what `evaluate` measures on.

An image's group, for promises that are to hold in each, is its `seq` or `kind` in meta.json where
the folder has one, else its name up to the first "_".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.data.datasets import DataError, Folder, InstanceFolder
from model_export.data.meta_json import groups_in, read_description


class SemanticTruth(Folder):
    def truth(self, index: int) -> NDArray[np.uint8]:
        """(H, W) class index, 255 = void. Read anew each time: a folder may be larger than the
        memory."""
        return self._read(index).mask


class InstanceTruth(InstanceFolder):
    def truth(self, index: int) -> NDArray[np.uint16]:
        """(H, W), 0 = background, k = object k. Read anew each time."""
        instances = self._read(index).instances
        assert instances is not None
        return instances


Truth = SemanticTruth | InstanceTruth


def open_labelled(root: Path, below: str, task: str, classes: tuple[str, ...]) -> Truth:
    """below: a folder inside images/ and masks/ or instances/, "" = none. task, classes: the
    bundle's.

    Raises DataError that names the folder or file; for files' contents, when they are read.
    """
    wanted, other = ("masks", "instances") if task == "semantic" else ("instances", "masks")
    if not (root / wanted / below).is_dir() and (root / other / below).is_dir():
        raise DataError(
            f"{root / other / below} does not fit the bundle: its task is {task}, it needs "
            f"{wanted}/"
        )
    groups = groups_in(read_description(root), root)
    if task == "semantic":
        return SemanticTruth(root, classes=classes, palette=(), below=below, groups=groups)
    if len(classes) != 1:
        raise DataError(
            f"{root / wanted} tells no classes apart, and the bundle has {len(classes)}"
        )
    return InstanceTruth(root, thing=classes[0], below=below, groups=groups)


def group_of(name: str, groups: Mapping[str, str]) -> str:
    """groups: those that meta.json tells."""
    return groups.get(name, name.partition("_")[0] if "_" in name else "")

"""Any labelled folder, or annotations of COCO's, opened for a bundle's task: what `evaluate`
measures on.

An image's group (promises are to hold in each group) is its `seq` or `kind` in meta.json if there
is one, else its name up to the first "_".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model_export.data.class_names import refuse_other_classes
from model_export.data.datasets import DataError, Folder, is_coco, open_dataset
from model_export.data.labelled import LabelledImages
from model_export.data.meta_json import classes_in, groups_in, read_description, values_in
from model_export.tasks import TASKS
from model_export.tasks.segments import Segments


def open_labelled(root: Path, below: str, task: str, classes: tuple[str, ...]) -> Folder:
    """below: a folder inside images/ and that of the labels, "" = none. task, classes: the
    bundle's.

    Raises DataError that names the folder or file; for files' contents, when they are read.
    """
    if isinstance(TASKS[task], Segments):
        raise DataError(
            f"{root}: labels of the {task} task are COCO's: name them by --on coco:PATH.json"
        )
    wanted = TASKS[task].folder
    others = [other.folder for name, other in TASKS.items() if name != task]
    if not (root / wanted / below).is_dir():
        for other in others:
            if (root / other / below).is_dir():
                raise DataError(
                    f"{root / other / below} does not fit the bundle: its task is {task}, it needs "
                    f"{wanted}/"
                )
    meta = read_description(root)
    named, groups = classes_in(meta, root)[0], groups_in(meta, root)
    values = None if TASKS[task].objects else values_in(meta, root, classes)
    if named:
        refuse_other_classes(
            str(root / "meta.json"),
            named,
            classes,
            "the bundle",
            "give it a folder of the classes that it was made for",
        )
    if TASKS[task].objects and len(classes) != 1:
        raise DataError(
            f"{root / wanted} does not tell classes apart, and the bundle has {len(classes)}: name "
            f"annotations of COCO's by --on coco:PATH.json"
        )
    return Folder(
        root, task, classes=classes, palette=(), below=below, groups=groups, values=values
    )


def open_annotated(
    on: str, root: Path | None, task: str, classes: tuple[str, ...], segments: bool
) -> LabelledImages:
    """on: coco:PATH.json. root: the folder of its images, if it is not beside it. task, classes:
    the bundle's. segments: whether it answers by queries. Raises DataError."""
    data = open_dataset(on, root, segments=segments)
    if not is_coco(on) or not isinstance(data, LabelledImages):
        raise DataError(f"a bundle is measured on a folder or on coco:PATH.json, not on {on!r}")
    if data.task != task:
        raise DataError(f"{on} is of the {data.task} task, the bundle of {task}: add @{task} to it")
    advice = f"choose the bundle's classes, as in coco:PATH.json@{task}:NAME"
    refuse_other_classes(on, data.classes, classes, "the bundle", advice)
    return data


def group_of(name: str, groups: Mapping[str, str]) -> str:
    """groups: those in meta.json."""
    return groups.get(name, name.partition("_")[0] if "_" in name else "")

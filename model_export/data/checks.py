"""All data are read once before they are used: what is wrong is said before hours of work, not
after."""

from __future__ import annotations

import sys

from model_export.data.class_names import few
from model_export.data.datasets import Dataset
from model_export.data.folders import Folder, without_image
from model_export.data.labelled import LabelledImages, looked_at
from model_export.data.sample import DataError
from model_export.data.unlabelled import Unlabelled
from model_export.tasks import VOID


def check(data: Dataset, what: str, *, complete: bool = True, show: bool = True) -> None:
    """Reads every image and its labels, if it has any, with a progress bar; generated data need
    none of it.

    what: the data set, as it was named. complete: every class should occur, as in data to learn
    from: a class that does not is warned of. show: the bar and the warnings. Raises DataError: one
    message that lists the first ten faults by file.
    """
    if isinstance(data, Unlabelled):
        looked_at(what, len(data), data.look, show=show)
    if not isinstance(data, LabelledImages):
        return
    values = data.look_at_all(what, show=show)
    warnings = (
        _of_objects(values) if data.kind.objects else _of_classes(data, what, values, complete)
    )
    if isinstance(data, Folder):
        warnings += _of_files(data)
    for warning in warnings if show else ():
        print(f"warning: {what}: {warning}", file=sys.stderr, flush=True)


def _of_classes(
    data: LabelledImages, what: str, values: list[set[int]], complete: bool
) -> list[str]:
    """Warnings. Raises DataError where there is nothing to learn."""
    seen = set().union(*values)
    plain = getattr(data, "values", None) is None
    if complete and plain and seen <= {0, VOID} and VOID in seen:
        if not isinstance(data, Folder):
            raise DataError(
                f"{what}: every pixel is of {data.classes[0]!r} or void, so that there is nothing "
                f"to learn"
            )
        raise DataError(
            f"{data.files[0][1].parent}: all labels are 0 or {VOID}, and {VOID} is void, so that "
            f"{data.classes[0]!r} would be the only class. If {VOID} is a class, say so in "
            f'meta.json: {{"classes": ["background", NAME], '
            f'"labels": {{"0": "background", "{VOID}": NAME}}}}'
        )
    absent = [name for index, name in enumerate(data.classes) if index not in seen]
    if absent and complete:
        return [f"no pixel is of {few(absent, 10)}, in {len(data)} images"]
    return []


def _of_objects(values: list[set[int]]) -> list[str]:
    objects = [len(ids - {0}) for ids in values]
    if not any(objects):
        return ["there is no object in any image"]
    if max(objects) == 1 and len(objects) > 1:
        return ["no image has more than one object; each object of an image needs its own number"]
    return []


def _of_files(data: Folder) -> list[str]:
    unused = [] if data.chosen else without_image(data)
    if not unused:
        return []
    return [f"{len(unused)} label files have no image, the first one is {unused[0]}"]

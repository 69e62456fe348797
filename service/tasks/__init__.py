"""TASKS: what a head can answer, one module per task. Tasks differ here and nowhere else.

A new task is a module with a class like these, and a row in the table. A task that depends on its
head, on its thresholds or its unit, has a row in the second or third table, too, and is made for
the head.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.bundle import Bundle, Head, Manifest, remade
from service.errors import BundleError
from service.tasks.base import Masks, MaskTask, Region, Segment, Shown, Task
from service.tasks.boxes import Box, Boxes, BoxSegment
from service.tasks.depth import Depth
from service.tasks.detection import Detection
from service.tasks.instance import Instance
from service.tasks.queries import InstanceQueries, Panoptic, QueryTask, class_planes
from service.tasks.semantic import Semantic
from service.tasks.values import Statistics, Values

__all__ = [
    "TASKS",
    "Box",
    "BoxSegment",
    "Boxes",
    "MaskTask",
    "Masks",
    "Region",
    "Segment",
    "Shown",
    "Statistics",
    "Task",
    "Values",
    "check_tiles",
    "class_planes",
    "task_of",
    "tasks_of",
]

TASKS: dict[str, Task] = {
    task.name: task for task in (Semantic(), Instance(), Panoptic(), Detection(), Depth())
}
OF_QUERIES: dict[str, type[QueryTask | Detection]] = {
    kind.name: kind for kind in (Panoptic, InstanceQueries, Detection)
}
OF_VALUES: dict[str, type[Depth]] = {kind.name: kind for kind in (Depth,)}


def task_of(head: Head, key: str = "head") -> Task:
    """key: that of the head, for errors. Raises BundleError where there is no such task."""
    if head.thresholds is not None:
        if (of_queries := OF_QUERIES.get(head.task)) is not None:
            return of_queries.of(head)
    elif (of_values := OF_VALUES.get(head.task)) is not None:
        return of_values.of(head)
    elif (task := TASKS.get(head.task)) is not None:
        return task
    known = TASKS if head.thresholds is None else OF_QUERIES
    raise BundleError(f"{key}.task: {head.task!r} is not one of {', '.join(known)}")


def tasks_of(bundle: Bundle) -> dict[str, Task]:
    """Each head's task by the head's name, after a check of its classes and its graphs. Raises
    BundleError."""
    manifest, tasks = bundle.manifest, dict[str, Task]()
    try:
        for i, head in enumerate(manifest.heads):
            task = tasks[head.name] = task_of(head, f"heads[{i}]")
            for graphs in manifest.graphs.values():
                for at in head.at_widths():
                    stage = graphs.heads[at.key]
                    outputs = manifest.stages[stage].outputs
                    task.check(head.classes, outputs, f"stages.{stage}.outputs")
        check_tiles(manifest, tasks)
    except BundleError as error:
        raise remade(bundle.root, error.detail) from error
    return tasks


def check_tiles(manifest: Manifest, tasks: Mapping[str, Task]) -> None:
    """Check that what the heads answer on tiles can be joined. tasks: by the heads' names.

    Raises BundleError that names the head or the stage.
    """
    canvases = {canvas.name: canvas for canvas in manifest.input.canvases}
    for name, tiles in manifest.input.tiled.items():
        for head in manifest.heads:
            if not tasks[head.name].dense:
                raise BundleError(
                    f"input.canvases: {name} is tiled, but the head {head.name!r} of the task "
                    f"{head.task!r} answers no map that could be joined"
                )
        for tile in canvases[tiles.of].shapes:
            for stage in manifest.graphs[tile.name].heads.values():
                for output in manifest.stages[stage].outputs:
                    height, width = output.sizes[-2:]
                    if tiles.stride(height, width, tile) is None:
                        raise BundleError(
                            f"stages.{stage}.outputs: the cells of {output.name} do not fit the "
                            f"tiles of {name}, or their overlap of {tiles.overlap} pixels"
                        )

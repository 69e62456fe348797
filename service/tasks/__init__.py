"""TASKS: what a head can answer, one module per task. Tasks differ here and nowhere else.

A new task is a module with a class like these, and a row in the table. A head of queries has a row
in the second table, too: its task is made for the bundle's classes and thresholds.
"""

from __future__ import annotations

from service.bundle import Bundle, Head, remade
from service.errors import BundleError
from service.tasks.base import Masks, Region, Segment, Task
from service.tasks.instance import Instance
from service.tasks.queries import InstanceQueries, Panoptic, QueryTask, class_planes
from service.tasks.semantic import Semantic

__all__ = [
    "TASKS",
    "Masks",
    "Region",
    "Segment",
    "Task",
    "class_planes",
    "task_of",
    "tasks_of",
]

TASKS: dict[str, Task] = {task.name: task for task in (Semantic(), Instance(), Panoptic())}
OF_QUERIES: dict[str, type[QueryTask]] = {kind.name: kind for kind in (Panoptic, InstanceQueries)}


def task_of(head: Head, key: str = "head") -> Task:
    """key: that of the head, for errors. Raises BundleError where there is no such task."""
    if head.thresholds is None:
        if (task := TASKS.get(head.task)) is not None:
            return task
    elif (kind := OF_QUERIES.get(head.task)) is not None:
        return kind(head.classes, head.thresholds)
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
    except BundleError as error:
        raise remade(bundle.root, error.detail) from error
    return tasks

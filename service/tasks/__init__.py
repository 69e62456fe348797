"""TASKS: what a head can answer, one module per task. Tasks differ here and nowhere else.

A new task is a module with a class like these two, and a row in the table.
"""

from __future__ import annotations

from service.bundle import Bundle, remade
from service.errors import BundleError
from service.tasks.base import Masks, Region, Segment, Task
from service.tasks.instance import Instance
from service.tasks.semantic import Semantic

__all__ = ["TASKS", "Masks", "Region", "Segment", "Task", "task_of"]

TASKS: dict[str, Task] = {task.name: task for task in (Semantic(), Instance())}


def task_of(bundle: Bundle) -> Task:
    """The bundle's task, after a check of its classes and its head. Raises BundleError."""
    manifest = bundle.manifest
    try:
        task = TASKS.get(manifest.task)
        if task is None:
            raise BundleError(f"task: {manifest.task!r} is not one of {', '.join(TASKS)}")
        for graphs in manifest.graphs.values():
            outputs = manifest.stages[graphs.decoder].outputs
            task.check(manifest.classes, outputs, f"stages.{graphs.decoder}.outputs")
    except BundleError as error:
        raise remade(bundle.root, error.detail) from error
    return task

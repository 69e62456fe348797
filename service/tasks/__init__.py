"""TASKS: what a head can answer, one module per task. Tasks differ here and nowhere else.

A new task is a module with a class like these, and a row in the table. A head of queries has a row
in the second table, too: its task is made for the bundle's classes and thresholds.
"""

from __future__ import annotations

from service.bundle import Bundle, Manifest, remade
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
    "task_of_manifest",
]

TASKS: dict[str, Task] = {task.name: task for task in (Semantic(), Instance(), Panoptic())}
OF_QUERIES: dict[str, type[QueryTask]] = {kind.name: kind for kind in (Panoptic, InstanceQueries)}


def task_of_manifest(manifest: Manifest) -> Task:
    """Raises BundleError where there is no such task."""
    if manifest.thresholds is None:
        if (task := TASKS.get(manifest.task)) is not None:
            return task
    elif (kind := OF_QUERIES.get(manifest.task)) is not None:
        return kind(manifest.classes, manifest.thresholds)
    known = TASKS if manifest.thresholds is None else OF_QUERIES
    raise BundleError(f"task: {manifest.task!r} is not one of {', '.join(known)}")


def task_of(bundle: Bundle) -> Task:
    """The bundle's task, after a check of its classes and its head. Raises BundleError."""
    manifest = bundle.manifest
    try:
        task = task_of_manifest(manifest)
        for graphs in manifest.graphs.values():
            outputs = manifest.stages[graphs.decoder].outputs
            task.check(manifest.classes, outputs, f"stages.{graphs.decoder}.outputs")
    except BundleError as error:
        raise remade(bundle.root, error.detail) from error
    return task

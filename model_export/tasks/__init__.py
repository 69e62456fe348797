"""TASKS: what a network can be trained for, one module per task. The only place where tasks differ.

The twin of `service/tasks`: what labels become as targets, and how good an answer is. A new task is
a module with a class like the two below, and a row in the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from model_export.network.config import Config
from model_export.tasks.base import VOID, Task, qualities
from model_export.tasks.instance import Instance
from model_export.tasks.segments import Segments
from model_export.tasks.semantic import Semantic

__all__ = ["IMPORTED", "TASKS", "VOID", "Task", "qualities", "task_of"]

TASKS: Mapping[str, Task] = {
    task.name: task for task in (Semantic(), Instance(), Segments("panoptic"))
}

# What a checkpoint of others can be trained for -> whether its segments are made from queries, and
# which classes are things: all, none, or None: somebody has to say.
IMPORTED: Mapping[str, tuple[bool, bool | None]] = {
    "panoptic": (True, None),
    "instance": (True, True),
    "semantic": (False, False),
}


def task_of(config: Config) -> Task:
    """The task of a network: with a head of queries, whatever its name, one of segments."""
    return Segments(config.task, config) if config.head == "queries" else TASKS[config.task]

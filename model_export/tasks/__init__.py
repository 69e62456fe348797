"""TASKS: what a network can be trained for, one module per task. The only place where tasks differ.

The twin of `service/tasks`: what labels become as targets, and how good an answer is. A new task is
a module with a class like the two below, and a row in the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from model_export.tasks.base import VOID, Task, qualities
from model_export.tasks.instance import Instance
from model_export.tasks.semantic import Semantic

__all__ = ["TASKS", "VOID", "Task", "qualities"]

TASKS: Mapping[str, Task] = {task.name: task for task in (Semantic(), Instance())}

"""Tasks differ in model_export/tasks alone, and its table has the same rows as the service's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_export.tasks import TASKS, VOID

MODEL_EXPORT = Path(__file__).parents[1] / "model_export"


def comparisons(source: str) -> Iterator[str]:
    """Every comparison with a task's name, or lookup by one, as the code has it."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.match_case):
            parts = [p.value for p in ast.walk(node.pattern) if isinstance(p, ast.MatchValue)]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        names = {
            constant.value
            for part in parts
            for constant in ast.walk(part)
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
        }
        if names & TASKS.keys():
            yield ast.unparse(node) if isinstance(node, ast.expr) else str(sorted(names))


@pytest.mark.parametrize(
    "source",
    [
        "if config.task == 'instance': pass",
        "x = 'semantic' != task",
        "x = task in ('semantic', 'depth')",
        "match task:\n    case 'instance' | 'panoptic': pass",
        "x = {'semantic': 1, 'instance': 2}[task]",
    ],
)
def test_a_comparison_is_found(source: str) -> None:
    assert len(list(comparisons(source))) == 1


def test_no_line_outside_of_tasks_compares_a_task_s_name() -> None:
    lines = {
        f"{path.relative_to(MODEL_EXPORT)}: {comparison}"
        for path in MODEL_EXPORT.rglob("*.py")
        if path.parent.name != "tasks"
        for comparison in comparisons(path.read_text())
    }
    assert lines == set()


@pytest.mark.parametrize("name", TASKS)
def test_perfect_labels_have_the_best_quality(name: str) -> None:
    task, truth = TASKS[name], np.zeros((16, 16), np.uint16)
    truth[2:8, 2:8] = 1
    truth = truth.astype(f"uint{task.bits}")
    counts = task.counts(truth, truth, task.channels(2))
    assert task.of_image(counts) == task.of_set(counts + counts) == 1
    assert task.target(truth).dtype == np.uint8
    assert {*np.unique(task.target(truth)).tolist()} <= {*range(task.channels(2)), VOID}

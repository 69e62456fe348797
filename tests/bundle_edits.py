"""Bundles for tests, changes of their manifests, and what is said to those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import bundle
from service.bundle import Bundle, Manifest
from service.errors import BundleError
from service.tasks import tasks_of

Change = Callable[[dict[str, Any]], object]
HEAD, WORTH = ("heads", 0), ("encoder_plans", 0, "heads", "semantic")
PAUSED = ("stages", "encoder-d4-k25-w50", "outputs", 3)


def change(folder: Path, edit: Change) -> None:
    path = folder / bundle.FILE
    value = json.loads(path.read_text("utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def written(folder: Path, manifest: Manifest) -> Bundle:
    """A folder with a few bytes in the place of each graph."""
    for entry in (*manifest.stages.values(), *manifest.files):
        (folder / entry.file).write_bytes(entry.file.encode())
    return bundle.save(folder, manifest)


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        tasks_of(bundle.load(folder))
    assert f"python -m model_export export RUN -o {folder}" in caught.value.detail
    return caught.value.detail


def drop(*keys: str | int) -> Change:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return edit


def put(new: object, *keys: str | int) -> Change:
    def edit(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return edit

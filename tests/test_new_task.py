"""Adding a task takes a module and a row in the table: a toy task is registered and served."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from service.bundle import ClassInfo, Manifest, TensorSpec
from service.core import Geometry
from service.pixels import png
from service.pixels.resample import covering
from service.pixels.runs import Runs
from service.tasks import TASKS, Masks, Region, made_up
from service.tasks.base import Labels, Tensors, check_planes
from tests.serving import app_of

SERVICE = Path(__file__).resolve().parent.parent / "service"


class Saliency:
    """One plane, and one segment: what is more salient than the mean."""

    name = "saliency"
    objects = False
    png = "255 where it is salient"
    gives = Masks

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        check_planes(outputs, key, 1, "1")

    def channels(self, classes: Sequence[ClassInfo]) -> list[str]:
        return ["salient"]

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks:
        (plane,) = tensors["salient"]
        salient = np.where(plane > plane.mean(), 255, 0).astype(np.uint8)
        runs = Runs.looked_up(salient, *covering(plane.shape, geometry))
        return Masks(runs, lambda: [Region(255, 1, 0, float(plane.max()))])

    def to_png(self, labels: Labels, classes: Sequence[ClassInfo]) -> bytes:
        return png.gray(labels.astype(np.uint16))

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        _, height, width = spec.sizes
        bright = made_up.brightness(images, height, width)[:, None] / 255
        return (bright * certainty[:, None, None, None]).astype(np.float32)


@pytest.fixture
def client(fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setitem(TASKS, "saliency", Saliency())
    output = TensorSpec("salient", "float32", ("batch", 1, 12, 16))
    stages = dict(fake_manifest.stages)
    stages["decoder"] = replace(stages["decoder"], outputs=(output,))
    classes = (ClassInfo("salient", (255, 255, 255), False),)
    head = replace(fake_manifest.head, task="saliency", classes=classes)
    manifest = replace(fake_manifest, heads=(head,), stages=stages)
    with TestClient(app_of(manifest)) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def test_a_task_of_ones_own_is_served_in_every_form(client: TestClient) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = 255
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    ask = {"content": file.getvalue(), "headers": {"Content-Type": "image/png"}}
    answer = client.post("/segment", **ask).json()
    (segment,) = answer["segments"]
    assert (answer["task"], segment["label"]) == ("saliency", "salient")
    assert (segment["area"], segment["box"]) == (48 * 32, [32, 0, 32, 48])
    ask["headers"]["Accept"] = "image/png"
    labels = np.asarray(Image.open(io.BytesIO(client.post("/segment", **ask).content)))
    assert (labels == np.where(picture[..., 0] > 0, 255, 0)).all()
    assert client.get("/plans").json()["task"] == "saliency"


def compared(tree: ast.AST) -> Iterator[str]:
    """The texts that code compares something with, or looks up in a literal."""
    for node in ast.walk(tree):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            patterns = [case.pattern for case in node.cases]
            parts = [pattern.value for pattern in patterns if isinstance(pattern, ast.MatchValue)]
        for part in parts:
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield leaf.value


def test_no_line_of_the_service_outside_of_tasks_compares_a_tasks_name() -> None:
    guilty = [
        str(path.relative_to(SERVICE))
        for path in SERVICE.rglob("*.py")
        if path.parent.name != "tasks"
        and set(compared(ast.parse(path.read_text("utf-8")))) & set(TASKS)
    ]
    assert guilty == []
    scripts = list((SERVICE / "web").glob("*.js"))
    assert scripts
    for name in set(TASKS) - {"depth"}:  # of a budget, too
        assert [p.name for p in scripts if f'"{name}"' in p.read_text("utf-8")] == []


def test_a_comparison_with_a_tasks_name_is_found() -> None:
    for source in ('task == "semantic"', '"instance" in name', 'task in ("semantic", "x")'):
        assert set(compared(ast.parse(source))) & set(TASKS)

"""Fixtures that many tests share: a small bundle whose graphs are never opened, for the fake
backend; a toy run.

And one rule: where torch and the other packages of training are not installed, the tests that need
them skip. Only a file that itself names the training side (NEEDS_TRAINING) may: any other is the
service's, and fails.
"""

from __future__ import annotations

import ast
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service import bundle
from service.bundle import Bundle, BundleFile, ClassInfo, InputSpec, Manifest, Stage, TensorSpec
from service.core import Margin, Plan
from tests.small_graphs import write_graphs
from tests.toy import one_thread, toy_bundle, toy_config, toy_run, train_words, trained_run

__all__ = [
    "one_thread",
    "toy_bundle",
    "toy_config",
    "toy_run",
    "train_words",
    "trained_run",
]

TRAINING = {
    "accelerate",
    "cv2",
    "matplotlib",
    "onnxscript",
    "safetensors",
    "scipy",
    "torch",
    "torchmetrics",
    "tqdm",
    "transformers",
}
# Modules that stand on those packages: a test file that imports one of them may need them, too.
NEEDS_TRAINING = (
    "model_export",
    "tests.bench.gpu",
    "tests.bench.picture",
    "tests.evaluation",
    "tests.gpu_bench",
)
HEIGHT, WIDTH, DEPTHS = 48, 64, (1, 2, 3, 4)


class TrainingFile(pytest.Module):
    """A test file that imports the training side, at its top or in a function."""

    def collect(self) -> list[Any]:
        try:
            return list(super().collect())
        except self.CollectError as error:
            skip_without(error.__cause__)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Any:
    tree = ast.parse(module_path.read_text("utf-8"))
    names = [name for node in ast.walk(tree) for name in imported(node)]
    training = any(name.startswith(NEEDS_TRAINING) for name in names)
    kind = TrainingFile if training else pytest.Module
    return kind.from_parent(parent, path=module_path)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from training_skips(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from training_skips(item))


def training_skips(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if item.getparent(TrainingFile) is not None:
            skip_without(error)
        raise


def skip_without(error: BaseException | None) -> None:
    """Skips if the error says that a package of training is not installed."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in TRAINING:
        pytest.skip(f"training needs {error.name}: pip install '.[test]'")


@pytest.fixture
def seed() -> None:
    import torch

    torch.manual_seed(0)


def _maps(prefix: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(f"{prefix}{stride}", "float32", ("batch", 8, HEIGHT // stride, WIDTH // stride))
        for stride in (8, 16, 32)
    )


@pytest.fixture
def fake_manifest() -> Manifest:
    """Four plans (d1 to d4; 2, 3, 4, 5 GFLOPs), four classes, a canvas of 48 x 64, masks of 12 x
    16.

    For every max-loss from 0.0025 to 0.2 the gate is taken at its word.
    """
    f4 = TensorSpec("f4", "float32", ("batch", 8, HEIGHT // 4, WIDTH // 4))
    quality = TensorSpec("quality", "float32", ("batch", len(DEPTHS)))
    probabilities = TensorSpec("probabilities", "float32", ("batch", 4, HEIGHT // 4, WIDTH // 4))
    image = TensorSpec("image", "uint8", ("batch", HEIGHT, WIDTH, 3))
    stages = {"front": Stage("front.onnx", "", (image,), (f4, *_maps("f"), quality), 0.0)}
    stages |= {
        f"encoder-d{depth}": Stage(f"encoder-d{depth}.onnx", "", _maps("f"), _maps("e"), 0.0)
        for depth in DEPTHS
    }
    stages["decoder"] = Stage("decoder.onnx", "", (f4, *_maps("e")), (probabilities,), 0.0)
    return Manifest(
        name="fake",
        revision="0" * 40,
        provenance={"data": "none", "recipe": "none", "licence": "none", "backbone": "none"},
        task="semantic",
        classes=(
            ClassInfo("Road", (128, 64, 128), False),
            ClassInfo("Building", (128, 0, 0), False),
            ClassInfo("Car", (64, 0, 128), True),
            ClassInfo("Sky", (128, 128, 128), False),
        ),
        input=InputSpec(HEIGHT, WIDTH, "uint8", "NHWC", (127, 127, 127)),
        stages=stages,
        files=(BundleFile("model.safetensors", ""),),
        plans=tuple(
            Plan(
                f"d{depth}",
                depth,
                1.0,
                1.0,
                1.0 + depth,
                0.6 + depth / 50,
                (0.3, 0.5, 0.6, 0.7, 0.8),
            )
            for depth in DEPTHS
        ),
        encoder_of={f"d{depth}": f"encoder-d{depth}" for depth in DEPTHS},
        margins=tuple(
            Margin(asked, asked) for asked in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
        ),
        calibration={},
    )


@pytest.fixture
def instance_manifest(fake_manifest: Manifest) -> Manifest:
    """The instance task with one class; in the place of d3 the plan d4-k25-w50, which pauses tokens
    of a 6 x 8 grid."""
    stages, narrow = dict(fake_manifest.stages), "encoder-d4-k25-w50"
    probabilities = TensorSpec("probabilities", "float32", ("batch", 3, HEIGHT // 4, WIDTH // 4))
    paused = TensorSpec("paused", "uint8", ("batch", HEIGHT // 8, WIDTH // 8))
    stages["decoder"] = replace(stages["decoder"], outputs=(probabilities,))
    stages[narrow] = Stage(f"{narrow}.onnx", "", _maps("f"), (*_maps("e"), paused), 0.0)
    del stages["encoder-d3"]
    d1, d2, d3, d4 = fake_manifest.plans
    return replace(
        fake_manifest,
        task="instance",
        classes=(ClassInfo("nucleus", (200, 80, 160), True),),
        stages=stages,
        plans=(d1, d2, replace(d3, name="d4-k25-w50", depth=4, keep=0.25, width=0.5), d4),
        encoder_of={
            "d1": "encoder-d1",
            "d2": "encoder-d2",
            "d4-k25-w50": narrow,
            "d4": "encoder-d4",
        },
    )


@pytest.fixture
def fake_bundle(tmp_path: Path, fake_manifest: Manifest) -> Bundle:
    """`fake_manifest` in a folder of its own, with a few bytes in the place of each graph."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for entry in (*fake_manifest.stages.values(), *fake_manifest.files):
        (folder / entry.file).write_bytes(entry.file.encode())
    return bundle.save(folder, fake_manifest)


@pytest.fixture
def onnx_bundle(tmp_path: Path, fake_manifest: Manifest) -> Bundle:
    write_graphs(tmp_path, fake_manifest)
    bundle.save(tmp_path, fake_manifest)
    return bundle.load(tmp_path)

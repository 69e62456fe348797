"""Fixtures that many tests share: a small bundle whose graphs are never opened, for the fake
backend; a toy run.

And two rules. Where torch and the other packages of training are not installed, the tests that need
them skip; only a file that itself names the training side (NEEDS_TRAINING) may: any other is the
service's, and fails. And coverage is not measured while the training side's tests run.
"""

from __future__ import annotations

import ast
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage
from hypothesis import HealthCheck, settings

from service import bundle
from service.bundle import (
    SIZE,
    Bundle,
    BundleFile,
    Canvas,
    ClassInfo,
    EncoderPlan,
    Graphs,
    Head,
    HeadWorth,
    InputSpec,
    Manifest,
    Shape,
    Stage,
    TensorSpec,
)
from service.core import Margin
from tests.several_heads import several_heads
from tests.small_graphs import write_graphs
from tests.toy import one_thread, toy_bundle, toy_config, toy_run, train_words, trained_run
from tests.traced_once import traced_once

__all__ = [
    "one_thread",
    "several_heads",
    "toy_bundle",
    "toy_config",
    "toy_run",
    "traced_once",
    "train_words",
    "trained_run",
]

# How fast Hypothesis draws inputs tells how busy the machine is, and nothing about a test.
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

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
    "tests.bench.cpu_peers",
    "tests.bench.gpu",
    "tests.bench.picture",
    "tests.evaluation",
    "tests.gpu_bench",
)
HEIGHT, WIDTH, DEPTHS = 48, 64, (1, 2, 3, 4)
SHAPE = Shape(HEIGHT, WIDTH)
CANVAS = Canvas.of([SHAPE])
CLASSES = (
    ClassInfo("Road", (128, 64, 128), False),
    ClassInfo("Building", (128, 0, 0), False),
    ClassInfo("Car", (64, 0, 128), True),
    ClassInfo("Sky", (128, 128, 128), False),
)


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train come first: one that starts last would end long after all others."""
    items.sort(key=lambda item: item.getparent(TrainingFile) is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Coverage is the service's: PyTorch takes 1.7 times as long to trace a graph under it."""
    stopped: list[Coverage] = []
    if item.getparent(TrainingFile) is not None:
        while (running := Coverage.current()) is not None:  # two where pytest-xdist works
            running.stop()
            stopped.append(running)
    try:
        return (yield)
    finally:
        for each in reversed(stopped):
            each.start()


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
        heads=(Head("semantic", "semantic", CLASSES),),
        default_preference={"semantic": 1.0},
        input=InputSpec.of([CANVAS], (127, 127, 127)),
        stages=stages,
        files=(BundleFile("model.safetensors", ""),),
        encoder_plans=tuple(
            EncoderPlan(
                f"d{depth}",
                depth,
                1.0,
                1.0,
                1.0 + depth,
                {"semantic": HeadWorth(0.0, 0.6 + depth / 50, (0.3, 0.5, 0.6, 0.7, 0.8))},
                CANVAS.name,
            )
            for depth in DEPTHS
        ),
        graphs={
            SHAPE.name: Graphs(
                "front",
                {f"d{depth}": f"encoder-d{depth}" for depth in DEPTHS},
                {"semantic": "decoder"},
            )
        },
        margins=tuple(
            Margin(asked, asked) for asked in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
        ),
        calibration={},
    )


@pytest.fixture
def canvases_manifest(fake_manifest: Manifest) -> Manifest:
    """The plans c32-d1 (1.5 GFLOPs), c64-d1 (2.5) and c64-d4 (5.5) on two canvases: c32 of 24 x 32,
    the glance, and c64 of 48 x 64 or, for portraits, 64 x 48. The gate knows the image's size."""
    glance = Canvas("c32", (Shape(24, 32),))
    large = Canvas("c64", (SHAPE, Shape(64, 48)))
    quality = TensorSpec("quality", "float32", ("batch", 3))

    def maps(prefix: str, shape: Shape, *strides: int) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(f"{prefix}{s}", "float32", ("batch", 8, shape.height // s, shape.width // s))
            for s in strides
        )

    stages, graphs = dict[str, Stage](), dict[str, Graphs]()
    for canvas, depths in ((glance, (1,)), (large, (1, 4))):
        for shape in canvas.shapes:
            names = {f"{canvas.name}-d{d}": f"encoder-{shape.name}-d{d}" for d in depths}
            image = TensorSpec("image", "uint8", ("batch", shape.height, shape.width, 3))
            front, decoder = f"front-{shape.name}", f"decoder-{shape.name}"
            features, encoded = maps("f", shape, 4, 8, 16), maps("e", shape, 8, 16)
            graphs[shape.name] = Graphs(front, names, {"semantic": decoder})
            inputs, scores = ((image, SIZE), (quality,)) if canvas is glance else ((image,), ())
            stages[front] = Stage(f"{front}.onnx", "", inputs, (*features, *scores), 0.0)
            for name in names.values():
                stages[name] = Stage(f"{name}.onnx", "", features[1:], encoded, 0.0)
            answer = TensorSpec(
                "probabilities", "float32", ("batch", 4, shape.height // 4, shape.width // 4)
            )
            stages[decoder] = Stage(f"{decoder}.onnx", "", (features[0], *encoded), (answer,), 0.0)
    d1, *_, d4 = fake_manifest.encoder_plans
    plans = (
        replace(d1, name="c32-d1", gflops=1.5, canvas="c32"),
        replace(d1, name="c64-d1", gflops=2.5, canvas="c64"),
        replace(d4, name="c64-d4", gflops=5.5, canvas="c64"),
    )
    spec = InputSpec.of([glance, large], (127, 127, 127))
    return replace(fake_manifest, input=spec, stages=stages, graphs=graphs, encoder_plans=plans)


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
    d1, d2, d3, d4 = (
        replace(plan, heads={"instance": plan.heads["semantic"]})
        for plan in fake_manifest.encoder_plans
    )
    nuclei = (ClassInfo("nucleus", (200, 80, 160), True),)
    return replace(
        fake_manifest,
        heads=(Head("instance", "instance", nuclei),),
        default_preference={"instance": 1.0},
        stages=stages,
        encoder_plans=(d1, d2, replace(d3, name="d4-k25-w50", depth=4, keep=0.25, width=0.5), d4),
        graphs={
            SHAPE.name: Graphs(
                "front",
                {
                    "d1": "encoder-d1",
                    "d2": "encoder-d2",
                    "d4-k25-w50": narrow,
                    "d4": "encoder-d4",
                },
                {"instance": "decoder"},
            )
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

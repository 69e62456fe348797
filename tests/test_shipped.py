"""The bundles that ship: whole, small, and as good through the service's own code as their READMEs
say."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_export.data import scenes
from model_export.data.datasets import CamVid, Nuclei
from model_export.tasks.panoptic_quality import image_quality, match_counts, panoptic_quality
from model_export.tasks.semantic import confusion, mean_iou
from service import bundle
from service.core import Frames
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages
from service.pixels.decode import Limits, decode, from_memory
from service.tasks import tasks_of
from tests.needs import data_at
from tests.toy import command

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ROOT / "trained_weights"
ROADS = ("camvid-tiny",)
NUCLEI = ("nuclei-tiny",)
SHIPPED = ROADS + NUCLEI
SEVERAL_HEADS = ("streets-multi",)  # tests/test_shipped_heads.py
MEGABYTES = 14
LIMITS = Limits(25_000_000, 8192, 16)


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> bundle.Bundle:
    return bundle.load(BUNDLES / request.param)


@pytest.fixture(scope="module")
def stages(shipped: bundle.Bundle) -> Iterator[Stages]:
    opened = OnnxRuntimeBackend(shipped, threads=1)  # the suite's other process has the other core
    yield Stages(opened, shipped.manifest)
    opened.close()


def served(
    shipped: bundle.Bundle, stages: Stages, data: bytes, kind: str
) -> Iterator[NDArray[np.unsignedinteger]]:
    """A file's labels or objects, plan by plan, by the code that answers requests."""
    manifest, task = shipped.manifest, tasks_of(shipped)[shipped.manifest.head.name]
    frames = decode(data, kind, LIMITS, manifest.input)
    features = {canvas: stages.front([frame]) for canvas, frame in frames.items()}
    for plan in manifest.plans:
        geometry = frames[plan.canvas].geometry
        encoded = stages.encode(plan, geometry.shape, features[plan.canvas])
        tensors = stages.head(geometry.shape, encoded)
        own = {name: values[0] for name, values in tensors.items()}
        yield task.read(own, geometry).labels


def scene(shipped: bundle.Bundle, seed: int, clutter: float) -> Frames:
    image, _ = scenes.render(seed, clutter=clutter)
    return from_memory(image, LIMITS, shipped.manifest.input)


def test_nothing_ships_that_is_not_tested_here() -> None:
    named = {file.parent.name for file in BUNDLES.glob("*/manifest.json")}
    assert named == {*SHIPPED, *SEVERAL_HEADS}


def test_plans_grow_in_cost_up_to_the_full_one_and_the_bundle_is_small(
    shipped: bundle.Bundle,
) -> None:
    plans = shipped.manifest.plans
    assert 8 <= len(plans) <= 14
    *_, full = (plan for plan in plans if plan.canvas not in shipped.manifest.input.tiled)
    assert (full.depth, full.keep, full.width) == (6, 1.0, 1.0)
    assert full.gflops >= 8 * plans[0].gflops
    assert sum(file.stat().st_size for file in shipped.root.iterdir()) < MEGABYTES * 1e6


def test_a_new_gate_is_promised_nothing_by_images_that_the_network_was_trained_on(
    shipped: bundle.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = shipped.manifest.calibration["trained_on"][0]
    fit = f"{trained.partition(':')[0]}:gate"
    assert (
        command("retarget", shipped.root, "-o", tmp_path / "new", "--fit", fit, "--held", trained)
        == 1
    )
    assert (
        f"shares images with {trained}, which the network learned from" in capsys.readouterr().err
    )


def test_plans_turn_every_knob(shipped: bundle.Bundle) -> None:
    for knob in ("canvas", "depth", "keep", "width"):
        assert len({getattr(plan, knob) for plan in shipped.manifest.plans}) > 1


def test_paused_maps_have_the_plan_s_share(shipped: bundle.Bundle, stages: Stages) -> None:
    frames = scene(shipped, 78, 0.5)
    features = {canvas: stages.front([frame]) for canvas, frame in frames.items()}
    for plan in shipped.manifest.plans:
        shape = frames[plan.canvas].geometry.shape
        encoded = stages.encode(plan, shape, features[plan.canvas])
        paused = stages.paused(plan, shape, encoded)
        assert (paused is None) == (plan.keep == 1)
        if paused is not None:
            # Where tiles overlap, each tile's share does not say what the joined map has.
            near = 0.03 if plan.canvas in shipped.manifest.input.tiled else 1e-3
            assert paused.mean() == pytest.approx(1 - plan.keep, abs=near)


def test_weights_lie_there_once(shipped: bundle.Bundle) -> None:
    graphs = [file.stat().st_size for file in shipped.root.glob("*.onnx")]
    assert max(graphs) < 400_000  # nodes and shapes only


def test_recorded_parity_is_within_the_bound(shipped: bundle.Bundle) -> None:
    assert all(0 < stage.parity <= 1e-3 for stage in shipped.manifest.stages.values())


def test_gate_costs_little_and_tells_images_apart(shipped: bundle.Bundle, stages: Stages) -> None:
    found = []
    for clutter in (0.0, 1.0):
        frame = scene(shipped, 77, clutter)[shipped.manifest.glance.name]
        found.append(stages.glance([frame])[1][0])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert all((scores > 0).all() and (scores < 1).all() for scores in found)


@pytest.mark.parametrize("shipped", ROADS, indirect=True)
def test_it_segments_generated_scenes_that_it_has_never_seen(
    shipped: bundle.Bundle, stages: Stages
) -> None:
    total = np.zeros((len(shipped.manifest.plans), 11, 11), np.int64)
    for seed in range(6):
        image, mask = scenes.render(500_000 + seed, clutter=seed / 5)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        for k, labels in enumerate(served(shipped, stages, file.getvalue(), "image/png")):
            total[k] += confusion(labels, mask, 11)
    assert mean_iou(total[-1]) >= 0.6
    assert min(mean_iou(matrix) for matrix in total) >= 0.45


@pytest.mark.parametrize("shipped", NUCLEI, indirect=True)
def test_it_finds_drawn_nuclei_one_by_one(shipped: bundle.Bundle, stages: Stages) -> None:
    """Soft bright discs on a dark, noisy ground, in rows; every second pair touches."""
    y, x = np.mgrid[:256, :256]
    image, truth = np.full((256, 256), 12.0), np.zeros((256, 256), np.uint16)
    for k, (row, column) in enumerate(((r, c) for r in range(5) for c in range(6)), 1):
        distance = np.hypot(
            y - 28 - 50 * row, x - 24 - 38 * column - (8 if column % 2 == 0 else -8)
        )
        truth[distance < 11.5] = k
        image += 110 / (1 + np.exp((distance - 11) / 1.2))
    image += np.random.default_rng(0).normal(0, 4, image.shape)
    file = io.BytesIO()
    Image.fromarray(np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2)).save(
        file, "PNG"
    )
    answers = served(shipped, stages, file.getvalue(), "image/png")
    quality = [panoptic_quality(match_counts(labels, truth)) for labels in answers]
    assert quality[-1] > 0.75
    assert min(quality) > 0.6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shipped", NUCLEI, indirect=True)
def test_nuclei_val_reaches_the_bar_with_every_plan(shipped: bundle.Bundle, stages: Stages) -> None:
    dataset = Nuclei(data_at("nuclei"), "val")
    counts: list[list[NDArray[np.float64]]] = []
    for image_file, instances_file in dataset.files[::3]:
        truth = np.asarray(Image.open(instances_file))
        answers = served(shipped, stages, image_file.read_bytes(), "image/jpeg")
        counts.append([match_counts(labels, truth) for labels in answers])
    assert panoptic_quality(np.sum([image[-1] for image in counts], axis=0)) >= 0.68
    quality = np.mean([[image_quality(plan) for plan in image] for image in counts], axis=0)
    for plan, found in zip(shipped.manifest.plans, quality, strict=True):
        assert found >= plan.quality - 0.05, plan.name  # a third of the images it was told of


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shipped", ROADS, indirect=True)
def test_camvid_val_reaches_the_bar_with_every_plan(shipped: bundle.Bundle, stages: Stages) -> None:
    dataset = CamVid(data_at("camvid"), "val")
    total = np.zeros((len(shipped.manifest.plans), 11, 11), np.int64)
    for image_file, mask_file in dataset.files[::4]:
        mask = np.asarray(Image.open(mask_file))
        for k, labels in enumerate(served(shipped, stages, image_file.read_bytes(), "image/jpeg")):
            total[k] += confusion(labels, mask, 11)
    found = [mean_iou(matrix) for matrix in total]
    assert found[-1] >= 0.72
    for plan, of_set in zip(shipped.manifest.plans, found, strict=True):
        assert of_set >= plan.quality - 0.03, plan.name  # that is of each image, and lower

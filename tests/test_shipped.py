"""The bundle that ships: whole, small, and as good through the service's own code as its README says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_export.recipe import scenes
from model_export.recipe.datasets import CamVid
from model_export.recipe.quality import confusion, mean_iou
from service import bundle
from service.api.image import Limits, decode
from service.api.masks import label_map
from service.core import Decision, Outcome, Reason
from service.engines.onnxruntime import OnnxRuntimeBackend

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "trained_weights" / "camvid-tiny"
CAMVID = ROOT.parent / "shared" / "data" / "camvid"
MEGABYTES = 12


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.load(SHIPPED)


@pytest.fixture(scope="module")
def backend(shipped: bundle.Bundle) -> Iterator[OnnxRuntimeBackend]:
    opened = OnnxRuntimeBackend(shipped, threads=2)
    yield opened
    opened.close()


def served(
    shipped: bundle.Bundle, backend: OnnxRuntimeBackend, data: bytes, kind: str
) -> tuple[NDArray[np.float32], list[NDArray[np.uint8]]]:
    """A file's predicted quality per plan, and its labels per plan, by the code that answers requests."""
    manifest = shipped.manifest
    frame = decode(data, kind, Limits(25_000_000, 8192, 16), manifest.input)
    features, scores = backend.front(frame.pixels[None])
    labels = []
    for plan in manifest.plans:
        probabilities = backend.decode(backend.encode(plan, features))[0]
        outcome = Outcome(Decision(plan, Reason.GATE, 0.0), frame.geometry, probabilities)
        labels.append(label_map(outcome, manifest.input))
    return scores[0], labels


def test_it_has_six_exits_of_growing_cost_and_is_small(shipped: bundle.Bundle) -> None:
    plans = shipped.manifest.plans
    assert [plan.depth for plan in plans] == [1, 2, 3, 4, 5, 6]
    assert plans[-1].gflops >= 1.8 * plans[0].gflops
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < MEGABYTES * 1e6


def test_weights_lie_there_once(shipped: bundle.Bundle) -> None:
    graphs = [file.stat().st_size for file in SHIPPED.glob("*.onnx")]
    assert max(graphs) < 400_000  # nodes and shapes only


def test_recorded_parity_is_within_the_bound(shipped: bundle.Bundle) -> None:
    assert all(0 < stage.parity <= 1e-3 for stage in shipped.manifest.stages.values())


def test_gate_costs_little_and_tells_images_apart(shipped: bundle.Bundle, backend: OnnxRuntimeBackend) -> None:
    found = []
    for clutter in (0.0, 1.0):
        canvas = np.full((1, shipped.manifest.input.height, shipped.manifest.input.width, 3), 127, np.uint8)
        canvas[0, :360, :480] = scenes.render(77, clutter=clutter)[0]
        found.append(backend.front(canvas)[1][0])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert all((scores > 0).all() and (scores < 1).all() for scores in found)


def test_it_segments_generated_scenes_that_it_has_never_seen(
    shipped: bundle.Bundle, backend: OnnxRuntimeBackend
) -> None:
    total = np.zeros((len(shipped.manifest.plans), 11, 11), np.int64)
    for seed in range(6):
        image, mask = scenes.render(500_000 + seed, clutter=seed / 5)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        for k, labels in enumerate(served(shipped, backend, file.getvalue(), "image/png")[1]):
            total[k] += confusion(labels, mask, 11)
    assert min(mean_iou(matrix) for matrix in total) >= 0.6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_camvid_val_reaches_the_bar_at_every_exit(shipped: bundle.Bundle, backend: OnnxRuntimeBackend) -> None:
    if not CAMVID.exists():
        pytest.skip("the CamVid files are not at hand")
    dataset = CamVid(CAMVID, "val")
    total = np.zeros((len(shipped.manifest.plans), 11, 11), np.int64)
    for image_file, mask_file in dataset.files[::3]:
        mask = np.asarray(Image.open(mask_file))
        for k, labels in enumerate(served(shipped, backend, image_file.read_bytes(), "image/jpeg")[1]):
            total[k] += confusion(labels, mask, 11)
    found = [mean_iou(matrix) for matrix in total]
    assert found[-1] >= 0.68
    assert min(found) >= 0.65

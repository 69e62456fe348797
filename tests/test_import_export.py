"""An imported checkpoint as a bundle: its graphs give transformers' logits, and it is served."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from model_export.__main__ import main
from service import bundle
from service.segmenting import open_bundle
from tests.checkpoints import CLASSES, PROCESSOR, QUERIES, random_model, saved

pytestmark = pytest.mark.slow
MOST = 1e-3  # of a logit
SIZE = (64, 96)


@pytest.fixture(scope="module", params=["resnet", "swin", "convnext"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, traced_once: None
) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(request.param)
    checkpoint, run = saved(model, folder / "checkpoint"), folder / "run"
    ask = ["import", str(checkpoint), "--out", str(run), "--task", "panoptic", "--things", "0-2"]
    assert main([*ask, "--canvases", "64x96", "--threshold", "0.2"]) == 0
    assert main(["export", str(run), "-o", str(folder / "bundle")]) == 0
    return model, folder / "bundle"


@pytest.mark.timeout(300)
def test_the_graphs_give_the_checkpoints_logits(case: tuple[nn.Module, Path]) -> None:
    model, folder = case
    manifest = bundle.load(folder).manifest
    assert manifest.head.thresholds == bundle.Thresholds(0.2, 0.5, 0.8)
    assert [entry.thing for entry in manifest.head.classes] == [True, True, True, False, False]
    (graphs,) = manifest.graphs.values()
    images = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), np.uint8)
    tensors = {"image": images, "size": np.array([SIZE, SIZE], np.float32)}
    for name in (graphs.front, *graphs.encoders.values(), *graphs.heads.values()):
        session = onnxruntime.InferenceSession(folder / manifest.stages[name].file)
        wanted = [value.name for value in session.get_outputs()]
        given = {value.name: tensors[value.name] for value in session.get_inputs()}
        tensors |= dict(zip(wanted, session.run(wanted, given), strict=True))
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2) * PROCESSOR["rescale_factor"]
    mean, std = (torch.tensor(PROCESSOR[k])[:, None, None] for k in ("image_mean", "image_std"))
    with torch.no_grad():
        theirs = model(pixel_values=(scaled - mean) / std)
    for ours, logits in (
        (tensors["class_logits"], theirs.class_queries_logits),
        (tensors["mask_logits"], theirs.masks_queries_logits),
    ):
        assert np.abs(ours - logits.numpy()).max() < MOST


@pytest.mark.timeout(300)
def test_it_is_served(case: tuple[nn.Module, Path]) -> None:
    file = io.BytesIO()
    picture = np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(picture).save(file, "PNG")
    with open_bundle(case[1], threads=1) as segmenter:
        answer = segmenter.segment(file.getvalue())
        assert answer.labels.shape == (50, 70)
        assert {segment.value for segment in answer.segments} == {*np.unique(answer.labels)} - {0}
        assert answer.decision.plan.name == "c96-d3"
        (tensors,) = answer.outcome.heads.values()
        assert tensors["class_logits"].shape == (QUERIES, CLASSES + 1)

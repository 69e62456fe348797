"""Queries -> segments: as transformers makes them, without its detour by way of 384 x 384."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from service.bundle import ClassInfo, Manifest, TensorSpec, Thresholds
from service.core import Geometry
from service.errors import BundleError
from service.tasks import TASKS, Region, class_planes, task_of
from service.tasks.queries import InstanceQueries, Panoptic
from service.tasks.query_maps import object_map, panoptic_map
from tests.serving import app_of

CELLS = 384  # the size that transformers resizes all masks to: here a detour of no consequence
CLASSES, QUERIES = 6, 12
THINGS = (True, True, True, False, False, False)
DEFAULT = Thresholds(0.5, 0.5, 0.8)
Planes = NDArray[np.float32]


def head(seed: int, cells: int = CELLS, queries: int = QUERIES) -> tuple[Planes, Planes]:
    """Class logits and mask logits of blobs, some of which lie over each other."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(0, 1, (queries, CLASSES + 1)).astype(np.float32)
    kinds[np.arange(queries), rng.integers(0, CLASSES + 1, queries)] += rng.uniform(1, 7, queries)
    y, x = np.mgrid[:cells, :cells] / cells
    masks = []
    for _ in range(queries):
        (cy, cx), (ry, rx) = rng.uniform(0, 1, 2), rng.uniform(0.1, 0.5, 2)
        wave = 0.3 * np.sin(20 * x + rng.uniform(0, 6)) * np.sin(15 * y)
        masks.append(6 * (1 - ((y - cy) / ry) ** 2 - ((x - cx) / rx) ** 2 + wave))
    return kinds, np.stack(masks).clip(-12, 12).astype(np.float32)


def whole(width: int, height: int) -> Geometry:
    """An image that fills the canvas."""
    return Geometry(width, height, 4 * CELLS, 4 * CELLS, (4 * CELLS, 4 * CELLS))


def kinds_of(regions: Sequence[Region]) -> NDArray[np.intp]:
    return np.array([0] + [region.class_id + 1 for region in regions])


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("transformers", reason="the reference is not installed")
    from transformers.models.mask2former.image_processing_pil_mask2former import (
        Mask2FormerImageProcessorPil,
    )

    return Mask2FormerImageProcessorPil()


def outputs(kinds: Planes, masks: Planes) -> Any:
    import torch
    from transformers.utils import ModelOutput

    return ModelOutput(
        class_queries_logits=torch.from_numpy(kinds)[None],
        masks_queries_logits=torch.from_numpy(masks)[None],
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thresholds", [DEFAULT, Thresholds(0.3, 0.4, 0.5)])
def test_panoptic_segments_are_transformers(seed: int, thresholds: Thresholds, theirs: Any) -> None:
    kinds, masks = head(seed)
    runs, regions = panoptic_map(kinds, masks, whole(317, 241), THINGS, thresholds)
    wanted = theirs.post_process_panoptic_segmentation(
        outputs(kinds, masks),
        threshold=thresholds.score,
        mask_threshold=thresholds.mask,
        overlap_mask_area_threshold=thresholds.overlap,
        label_ids_to_fuse={3, 4, 5},
        target_sizes=[(241, 317)],
    )[0]
    found: list[dict[str, Any]] = []
    for segment in wanted["segments_info"]:  # a fused one is listed once for each of its parts
        if not segment["was_fused"] or segment["label_id"] not in [f["label_id"] for f in found]:
            found.append(segment)
    assert [r.class_id for r in regions] == [segment["label_id"] for segment in found]
    scores = [segment["score"] for segment in found]
    assert [r.score for r in regions] == pytest.approx(scores, abs=1e-5)
    ids, labels = [segment["id"] for segment in found], wanted["segmentation"].numpy().astype(int)
    table = np.zeros(QUERIES + 1, np.intp)
    table[ids] = [segment["label_id"] + 1 for segment in found]
    # Its ids can come again after a fused segment: such pixels have no class there.
    known = ~np.isin(labels, [value for value in ids if ids.count(value) > 1])
    same = kinds_of(regions)[runs.labels()] == table[labels]
    assert known.mean() > 0.3
    assert same[known].mean() > 0.9999


@pytest.mark.parametrize("seed", range(6))
def test_objects_are_transformers(seed: int, theirs: Any) -> None:
    kinds, masks = head(seed)
    runs, regions = object_map(kinds, masks, whole(CELLS, CELLS), Thresholds(0.3, 0.5, 0.8))
    wanted = theirs.post_process_instance_segmentation(
        outputs(kinds, masks),
        threshold=0.3,
        target_sizes=[(CELLS, CELLS)],
        return_binary_maps=True,
    )[0]
    order = sorted(
        zip(wanted["segments_info"], wanted["segmentation"].numpy(), strict=True),
        key=lambda pair: -pair[0]["score"],
    )
    painted = np.zeros((CELLS, CELLS), np.uint16)
    for number, (_, mask) in reversed([*enumerate(order, 1)]):
        painted[mask == 1] = number
    visible = [
        (segment["label_id"], segment["score"])
        for number, (segment, _) in enumerate(order, 1)
        if (painted == number).any()
    ]
    assert [r.class_id for r in regions] == [kind for kind, _ in visible]
    assert [r.score for r in regions] == pytest.approx([s for _, s in visible], abs=1e-4)
    names = np.unique(painted)
    renumbered = np.searchsorted(names[names > 0], painted) + (painted > 0)
    assert (runs.labels() == renumbered).mean() > 0.9999


def test_ids_are_different_after_a_fused_segment() -> None:
    """transformers gives the segment after a fused one an id that another one may have."""
    masks = np.full((4, 8, 8), -9, np.float32)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 9
    kinds = np.full((4, CLASSES + 1), -9, np.float32)
    kinds[[0, 1, 2, 3], [3, 0, 3, 1]] = 9
    geometry = Geometry(32, 32, 32, 32, (32, 32))
    runs, regions = panoptic_map(kinds, masks, geometry, THINGS, DEFAULT)
    assert [(r.id, r.class_id) for r in regions] == [(1, 3), (2, 0), (3, 1)]
    assert runs.labels()[0, ::8].tolist() == [1, 2, 1, 3]


def test_nothing_that_counts_leaves_the_map_empty() -> None:
    kinds, masks = head(0, 16)
    kinds[:, CLASSES] = 30
    geometry = Geometry(20, 30, 43, 64, (64, 64))
    for runs, regions in (
        panoptic_map(kinds, masks, geometry, THINGS, DEFAULT),
        object_map(kinds, masks, geometry, DEFAULT),
    ):
        assert (regions, runs.labels().shape, runs.labels().any()) == ([], (30, 20), False)


def test_padding_is_no_part_of_a_mask() -> None:
    """A query that only covers the padding of the canvas is no segment."""
    masks = np.full((1, 16, 16), -9, np.float32)
    masks[0, 10:] = 9
    kinds = np.full((1, CLASSES + 1), -9, np.float32)
    kinds[0, 0] = 9
    geometry = Geometry(64, 32, 64, 32, (64, 64))
    assert object_map(kinds, masks, geometry, DEFAULT)[1] == []
    assert panoptic_map(kinds, masks, geometry, THINGS, Thresholds(0.5, 0.5, 0))[1] == []


@pytest.mark.parametrize("height", [32, 33])  # up to a border of cells, and into the next cell
def test_a_mask_reaches_the_border_of_the_image_whatever_padding_says(height: int) -> None:
    masks = np.full((1, 16, 16), -99, np.float32)
    masks[0, :8] = 9
    kinds = np.full((1, CLASSES + 1), -9, np.float32)
    kinds[0, 0] = 9
    geometry = Geometry(64, height, 64, height, (64, 64))
    assert (object_map(kinds, masks, geometry, DEFAULT)[0].labels() == 1).all()
    assert (panoptic_map(kinds, masks, geometry, THINGS, DEFAULT)[0].labels() == 1).all()


# --------------------------------------------------------------------------------------------------
# served


@pytest.fixture(params=["instance", "panoptic"])
def manifest(request: pytest.FixtureRequest, fake_manifest: Manifest) -> Manifest:
    classes = tuple(
        ClassInfo(f"class {i}", (40 * i, 80, 255 - 40 * i), thing or request.param == "instance")
        for i, thing in enumerate(THINGS)
    )
    specs = (
        TensorSpec("class_logits", "float32", ("batch", 8, CLASSES + 1)),
        TensorSpec("mask_logits", "float32", ("batch", 8, 12, 16)),
    )
    stages = dict(fake_manifest.stages)
    stages["decoder"] = replace(stages["decoder"], outputs=specs)
    head = replace(fake_manifest.head, task=request.param, classes=classes, thresholds=DEFAULT)
    return replace(fake_manifest, heads=(head,), stages=stages)


@pytest.fixture
def client(manifest: Manifest) -> Iterator[TestClient]:
    with TestClient(app_of(manifest)) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def test_every_form_shows_the_same_segments(client: TestClient, manifest: Manifest) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = 255
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")

    def ask(accept: str) -> Any:
        headers = {"Content-Type": "image/png", "Accept": accept}
        answer = client.post("/segment", content=file.getvalue(), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    answer = ask("application/json").json()
    assert answer["task"] == manifest.head.task
    dark, bright = sorted(answer["segments"], key=lambda segment: segment["box"][0])
    assert (dark["label"], bright["label"]) == ("class 0", "class 5")
    assert (dark["area"], bright["area"]) == (48 * 32, 48 * 32)
    assert (dark["is_thing"], bright["is_thing"]) == (True, manifest.head.task == "instance")
    labels = np.asarray(Image.open(io.BytesIO(ask("image/png").content)))
    assert (labels == np.where(picture[..., 0] > 0, bright["id"], dark["id"])).all()
    panoptic = ask("application/vnd.coco.panoptic+json").json()
    assert [s["area"] for s in panoptic["segments_info"]] == [48 * 32] * 2
    things = {entry["name"]: entry["isthing"] for entry in panoptic["categories"]}
    assert things["class 5"] == int(manifest.head.task == "instance")
    polygons = ask("application/geo+json").json()["features"]
    assert {feature["properties"]["label"] for feature in polygons} == {"class 0", "class 5"}
    archive = np.load(io.BytesIO(ask("application/x-npz").content))
    assert archive["probabilities"].shape == (CLASSES, 12, 16)
    assert archive["channels"].tolist() == [entry.name for entry in manifest.head.classes]
    assert 0 <= archive["probabilities"].min() <= archive["probabilities"].max() <= 1


def test_class_planes_are_the_semantic_inference() -> None:
    kinds, masks = head(1, 8)
    planes = class_planes({"class_logits": kinds, "mask_logits": masks})
    exponents = np.exp(kinds.astype(float))
    weights = (exponents / exponents.sum(1, keepdims=True))[:, :-1]
    wanted = np.einsum("qc,qhw->chw", weights, 1 / (1 + np.exp(-masks.astype(float))))
    assert np.abs(planes - wanted.clip(max=1)).max() < 1e-5


@pytest.mark.parametrize("kind", [Panoptic, InstanceQueries])
def test_a_head_that_does_not_fit_is_refused(kind: type[Panoptic] | type[InstanceQueries]) -> None:
    classes = tuple(ClassInfo(str(i), (0, 0, 0), True) for i in range(3))
    task = kind(classes, DEFAULT)

    def specs(queries: int, channels: int, others: int) -> list[TensorSpec]:
        return [
            TensorSpec("class_logits", "float32", ("batch", queries, channels)),
            TensorSpec("mask_logits", "float32", ("batch", others, 12, 16)),
        ]

    task.check(classes, specs(8, 4, 8), "outputs")
    for wrong in (specs(8, 3, 8), specs(8, 4, 7), specs(300, 4, 300), specs(8, 4, 8)[:1]):
        with pytest.raises(BundleError, match=r"^outputs: "):
            task.check(classes, wrong, "outputs")
    with pytest.raises(BundleError, match=r"^thresholds: "):
        TASKS["panoptic"].check(classes, specs(8, 4, 8), "outputs")


def test_thresholds_are_for_heads_of_queries(fake_manifest: Manifest) -> None:
    known = "panoptic, instance, detection"
    with pytest.raises(BundleError, match=f"task: 'semantic' is not one of {known}"):
        task_of(replace(fake_manifest.head, thresholds=DEFAULT))

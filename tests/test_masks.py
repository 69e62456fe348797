"""Outcome -> labels -> PNG and COCO segments, against slow references."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.bundle import ClassInfo, InputSpec, Manifest
from service.core import Decision, Geometry, Outcome, Plan, Reason
from service.tasks import semantic as masks
from service.tasks.objects import Instance

DECISION = Decision(Plan("d1", 1, 1.0, 1.0, 1.0, 0.5), Reason.GATE, 0.5)
CANVAS = InputSpec(48, 64, "uint8", "NHWC", (127, 127, 127))
CLASSES = tuple(ClassInfo(f"class {i}", (20 * i, 255 - 20 * i, i), False) for i in range(5))


def outcome(
    probabilities: NDArray[np.float32], width: int, height: int, scaled: tuple[int, int]
) -> Outcome:
    return Outcome(DECISION, Geometry(width, height, *scaled), probabilities)


def noise(
    classes: int = 5, height: int = 12, width: int = 16, seed: int = 0
) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).random((classes, height, width), np.float32)
    return values / values.sum(axis=0)


def blobs(
    classes: int = 5, height: int = 12, width: int = 16, seed: int = 0
) -> NDArray[np.float32]:
    """Large areas of one class, as a network gives them."""
    y, x = np.mgrid[0:height, 0:width]
    points = np.random.default_rng(seed).random((classes, 2)) * (height, width)
    distance = np.hypot(y - points[:, :1, None], x - points[:, 1:, None])
    values = np.exp(-distance).astype(np.float32)
    return np.asarray(values / values.sum(axis=0), np.float32)


def slow(result: Outcome, canvas: InputSpec) -> NDArray[np.float64]:
    """The probabilities at every pixel of the image, one at a time: (C, height, width)."""
    geometry, (classes, rows, columns) = result.geometry, result.probabilities.shape

    def cells(pixel: int, size: int, scaled: int, full: int, count: int) -> tuple[int, int, float]:
        at = min(max((pixel + 0.5) * scaled / size * count / full - 0.5, 0), count - 1)
        return int(at), min(int(at) + 1, count - 1), at - int(at)

    found = np.zeros((classes, geometry.height, geometry.width))
    p = result.probabilities.astype(np.float64)
    for y in range(geometry.height):
        y0, y1, fy = cells(y, geometry.height, geometry.scaled_height, canvas.height, rows)
        for x in range(geometry.width):
            x0, x1, fx = cells(x, geometry.width, geometry.scaled_width, canvas.width, columns)
            upper = p[:, y0, x0] * (1 - fx) + p[:, y0, x1] * fx
            lower = p[:, y1, x0] * (1 - fx) + p[:, y1, x1] * fx
            found[:, y, x] = upper * (1 - fy) + lower * fy
    return found


SHAPES = [
    (64, 48, (64, 48)),  # the whole canvas
    (64, 36, (64, 36)),  # padding below
    (36, 48, (36, 48)),  # padding at the right
    (120, 90, (64, 48)),
    (33, 97, (16, 48)),
    (16, 12, (64, 48)),  # smaller than the canvas
    (200, 3, (64, 1)),
    (1, 1, (48, 48)),
]


@pytest.mark.parametrize("make", [noise, blobs])
@pytest.mark.parametrize(("width", "height", "scaled"), SHAPES)
def test_labels_are_the_argmax_of_the_interpolated_probabilities(
    make: object, width: int, height: int, scaled: tuple[int, int]
) -> None:
    result = outcome(make(), width, height, scaled)  # type: ignore[operator]
    assert (masks.label_map(result, CANVAS) == slow(result, CANVAS).argmax(axis=0)).all()


def test_labels_agree_with_torch_interpolating_the_canvas_and_cropping() -> None:
    torch = pytest.importorskip("torch", reason="torch is there for the training side only")
    probabilities = noise(11, 96, 120)
    canvas = InputSpec(384, 480, "uint8", "NHWC", (0, 0, 0))
    full = torch.nn.functional.interpolate(
        torch.from_numpy(probabilities)[None], (384, 480), mode="bilinear"
    )
    expected = full[0, :, :360].argmax(0).numpy()
    assert (
        masks.label_map(outcome(probabilities, 480, 360, (480, 360)), canvas) != expected
    ).sum() <= 2  # float ties


def test_bands_of_rows_join_without_a_seam(
    monkeypatch: pytest.MonkeyPatch, fake_manifest: Manifest
) -> None:
    manifest = replace(fake_manifest, classes=CLASSES)
    result = outcome(noise(), 120, 90, (64, 48))
    whole = masks.label_map(result, CANVAS)
    found = masks.segments(whole, result, manifest)
    monkeypatch.setattr(masks, "BAND_PIXELS", 7 * 120)  # 90 rows are no multiple of 7
    assert (masks.label_map(result, CANVAS) == whole).all()
    assert masks.segments(whole, result, manifest) == found


def test_padding_has_no_say_beyond_the_border_of_the_image() -> None:
    probabilities = np.zeros((2, 12, 16), np.float32)
    probabilities[0, :6], probabilities[1, 6:] = 1, 1  # the lower half of the canvas is padding
    labels = masks.label_map(outcome(probabilities, 64, 20, (64, 20)), CANVAS)
    assert (labels == 0).all()


def test_equal_probabilities_go_to_the_lower_class() -> None:
    assert (
        masks.label_map(outcome(np.full((5, 12, 16), 0.2, np.float32), 64, 48, (64, 48)), CANVAS)
        == 0
    ).all()


@pytest.mark.parametrize("classes", [1, 2, 5, 17, 255])
def test_png_pixels_are_class_ids_shown_in_their_colours(classes: int) -> None:
    entries = tuple(ClassInfo(str(i), (i, 255 - i, i // 2), False) for i in range(classes))
    labels = np.random.default_rng(0).integers(0, classes, (37, 53)).astype(np.uint8)
    image = Image.open(io.BytesIO(masks.index_png(labels, entries)))
    assert image.mode == "P"
    assert (np.asarray(image) == labels).all()
    assert (
        np.asarray(image.convert("RGB")) == np.array([entry.color for entry in entries])[labels]
    ).all()


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode
def test_segments_are_one_per_class_and_cover_every_pixel_once(fake_manifest: Manifest) -> None:
    manifest = replace(fake_manifest, classes=CLASSES)
    result = outcome(blobs(), 120, 90, (64, 48))
    labels = masks.label_map(result, CANVAS)
    found = masks.segments(labels, result, manifest)
    assert [segment["class_id"] for segment in found] == np.unique(labels).tolist()
    assert [segment["id"] for segment in found] == list(range(1, len(found) + 1))
    drawn = np.full(labels.shape, 255)
    for segment in found:
        inside = coco.decode(segment["rle"]).astype(bool)
        assert (drawn[inside] == 255).all()
        drawn[inside] = segment["class_id"]
    assert (drawn == labels).all()


@pytest.mark.parametrize(("width", "height", "scaled"), SHAPES)
def test_segments_have_the_area_box_and_score_of_their_pixels(
    width: int, height: int, scaled: tuple[int, int], fake_manifest: Manifest
) -> None:
    manifest = replace(fake_manifest, classes=CLASSES)
    result = outcome(noise(), width, height, scaled)
    labels, exact = masks.label_map(result, CANVAS), slow(result, CANVAS)
    for segment in masks.segments(labels, result, manifest):
        inside = labels == segment["class_id"]
        y, x = np.nonzero(inside)
        assert segment["area"] == inside.sum()
        assert segment["box"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert segment["score"] == pytest.approx(
            exact[segment["class_id"]][inside].mean(), abs=1e-4
        )
        assert segment["label"] == f"class {segment['class_id']}"


# -- run lengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((3, 5), np.uint8),
        np.full((3, 5), 2, np.uint8),
        np.array([[1]], np.uint8),
        np.arange(35, dtype=np.uint16).reshape(5, 7) % 3 + 300,
        np.random.default_rng(0).integers(0, 4, (41, 23)).astype(np.uint8),
        np.kron(np.random.default_rng(1).integers(0, 5, (6, 9)), np.ones((40, 30), int)).astype(
            np.uint16
        ),
    ],
)
def test_run_lengths_in_one_pass_are_those_that_coco_gives_value_by_value(
    labels: NDArray[np.unsignedinteger],
) -> None:
    values = np.array([0, 1, 2, 3, 4, 301, 65535])  # some of them are not there
    expected = [coco.encode(np.asfortranarray(labels == value, np.uint8)) for value in values]
    assert masks._run_lengths(labels, values) == expected


# -- objects ---------------------------------------------------------------------------------------


def cells(count: int, height: int, width: int) -> NDArray[np.uint16]:
    """`count` squared ellipses in a grid, numbered row by row from 1."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = y * count // height, x * count // width
    high, wide = height / count, width / count
    distance = ((y % high - high / 2) / high) ** 2 + ((x % wide - wide / 2) / wide) ** 2
    return np.where(distance < 0.16, across * count + down + 1, 0).astype(np.uint16)


def listed(labels: NDArray[np.uint16]) -> list[Instance]:
    return [Instance(k, 0, 0.75) for k in range(1, int(labels.max()) + 1)]


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode
def test_objects_have_the_area_box_and_mask_of_their_pixels(instance_manifest: Manifest) -> None:
    labels = cells(6, 90, 130)
    found = masks.objects(labels, listed(labels), instance_manifest)
    assert [each["id"] for each in found] == list(range(1, 37))
    for each in found:
        inside = labels == each["id"]
        y, x = np.nonzero(inside)
        assert (coco.decode(each["rle"]).astype(bool) == inside).all()
        assert each["area"] == inside.sum()
        assert each["box"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert (each["class_id"], each["label"], each["score"]) == (0, "nucleus", 0.75)


def test_no_objects_are_no_segments(instance_manifest: Manifest) -> None:
    assert masks.objects(np.zeros((9, 7), np.uint16), [], instance_manifest) == []


def test_400_objects_in_a_large_image_take_milliseconds(instance_manifest: Manifest) -> None:
    labels = cells(20, 1040, 1388)
    found = listed(labels)
    assert len(found) == 400
    times = []
    for _ in range(5):
        began = time.perf_counter()
        masks.objects(labels, found, instance_manifest)
        times.append(time.perf_counter() - began)
    assert (
        min(times) < 0.25
    )  # about 10 ms where it was written; encoding them one by one takes six seconds


# -- paused tokens ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode
@pytest.mark.parametrize(("width", "height", "scaled"), SHAPES)
def test_a_pixel_is_paused_if_the_token_that_covers_its_centre_is(
    width: int, height: int, scaled: tuple[int, int]
) -> None:
    grid = np.random.default_rng(3).integers(0, 2, (6, 8)).astype(np.uint8)
    result = replace(outcome(noise(), width, height, scaled), paused=grid)
    expected = np.array(
        [
            [
                grid[
                    int((y + 0.5) * scaled[1] / height) // 8,
                    int((x + 0.5) * scaled[0] / width) // 8,
                ]
                for x in range(width)
            ]
            for y in range(height)
        ]
    )
    found: Any = masks.paused_area(result, CANVAS)
    assert (coco.decode(found["rle"]) == expected).all()
    assert found["share"] == pytest.approx(expected.mean(), abs=1e-4)


def test_a_plan_that_pauses_nothing_has_no_paused_area() -> None:
    assert masks.paused_area(outcome(noise(), 64, 48, (64, 48)), CANVAS) is None


def test_nothing_of_the_image_may_be_paused() -> None:
    grid = np.zeros((6, 8), np.uint8)
    grid[3:] = 1  # the padding below the image
    result = replace(outcome(noise(), 64, 24, (64, 24)), paused=grid)
    found: Any = masks.paused_area(result, CANVAS)
    assert (found["share"], found["rle"]["size"]) == (0, [24, 64])
    assert coco.area(found["rle"] | {"counts": found["rle"]["counts"].encode()}) == 0


def test_a_label_map_and_its_png_take_milliseconds() -> None:
    canvas = InputSpec(384, 480, "uint8", "NHWC", (0, 0, 0))
    entries = tuple(ClassInfo(str(i), (i, i, i), False) for i in range(11))
    result = outcome(blobs(11, 96, 120), 480, 360, (480, 360))
    best = min(_seconds(result, canvas, entries) for _ in range(7))
    assert best < 0.03  # about 3 ms where it was written; the plain way takes ten times as long


def _seconds(result: Outcome, canvas: InputSpec, entries: tuple[ClassInfo, ...]) -> float:
    began = time.perf_counter()
    masks.index_png(masks.label_map(result, canvas), entries)
    return time.perf_counter() - began

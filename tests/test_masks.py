"""Tensors -> labels -> PNG and segments with run lengths, against slow references."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.bundle import ClassInfo
from service.core import Geometry
from service.pixels import most_probable as interpolated
from service.pixels import png
from service.pixels.most_probable import most_probable
from service.pixels.resample import axes, covering, mix
from service.pixels.rle import RunLengths, run_lengths
from service.pixels.runs import Runs
from service.tasks import TASKS, Masks, Region

CANVAS = (48, 64)
CLASSES = tuple(ClassInfo(f"class {i}", (20 * i, 255 - 20 * i, i), False) for i in range(5))
NUCLEUS = (ClassInfo("nucleus", (200, 80, 160), True),)
Planes = NDArray[np.float32]


def placed(width: int, height: int, scaled: tuple[int, int]) -> Geometry:
    return Geometry(width, height, *scaled, CANVAS)


def semantic(probabilities: Planes, geometry: Geometry) -> Masks:
    return TASKS["semantic"].read({"probabilities": probabilities}, geometry)


def drawn(mask: RunLengths) -> NDArray[np.bool_]:
    return coco.decode({"size": mask.size, "counts": mask.counts}).astype(bool)


def bounds(inside: NDArray[np.bool_]) -> tuple[int, ...]:
    """COCO's box of a mask."""
    y, x = np.nonzero(inside)
    return tuple(int(value) for value in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1))


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


def seconds(classes: int = 133, height: int = 12, width: int = 16) -> NDArray[np.float32]:
    """Class 7 is second in every cell, and leads only between them; most classes lead nowhere."""
    values = np.full((classes, height, width), 0.1 / (classes - 3), np.float32)
    left = np.arange(width) % 2 == 0
    values[3], values[90], values[7] = 0.5 * left, 0.5 * ~left, 0.4
    values[3, :, :4], values[90, :, :4] = 0.5, 0
    return values


def slow(probabilities: Planes, geometry: Geometry) -> NDArray[np.float64]:
    """The probabilities at every pixel of the image, one at a time: (C, height, width)."""
    classes, rows, columns = probabilities.shape

    def cells(pixel: int, size: int, scaled: int, full: int, count: int) -> tuple[int, int, float]:
        last = max(1, int(scaled / full * count + 0.5)) - 1  # its centre is on the image
        at = min(max((pixel + 0.5) * scaled / size * count / full - 0.5, 0), last)
        return int(at), min(int(at) + 1, last), at - int(at)

    full = np.zeros((classes, geometry.height, geometry.width))
    p = probabilities.astype(np.float64)
    for y in range(geometry.height):
        y0, y1, fy = cells(y, geometry.height, geometry.scaled_height, CANVAS[0], rows)
        for x in range(geometry.width):
            x0, x1, fx = cells(x, geometry.width, geometry.scaled_width, CANVAS[1], columns)
            upper = p[:, y0, x0] * (1 - fx) + p[:, y0, x1] * fx
            lower = p[:, y1, x0] * (1 - fx) + p[:, y1, x1] * fx
            full[:, y, x] = upper * (1 - fy) + lower * fy
    return full


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


@pytest.mark.parametrize("make", [noise, blobs, seconds])
@pytest.mark.parametrize(("width", "height", "scaled"), SHAPES)
def test_labels_are_the_argmax_of_the_interpolated_probabilities(
    make: Callable[[], Planes], width: int, height: int, scaled: tuple[int, int]
) -> None:
    probabilities, geometry = make(), placed(width, height, scaled)
    expected = slow(probabilities, geometry).argmax(axis=0)
    assert (most_probable(probabilities, geometry).labels() == expected).all()


def test_labels_agree_with_torch_interpolating_the_cells_of_the_image() -> None:
    torch = pytest.importorskip("torch", reason="torch is there for the training side only")
    probabilities = noise(11, 96, 120)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(probabilities[:, :90])[None], (360, 480), mode="bilinear"
    )
    expected = full[0].argmax(0).numpy()
    labels = most_probable(probabilities, Geometry(480, 360, 480, 360, (384, 480))).labels()
    assert (labels != expected).sum() <= 2  # float ties


def test_bands_of_columns_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, geometry = noise(), placed(120, 90, (64, 48))
    whole = semantic(probabilities, geometry)
    segments = whole.segments(CLASSES)
    monkeypatch.setattr(interpolated, "BAND_VALUES", 7 * 13 * 5)  # 120 is no multiple of 7
    banded = semantic(probabilities, geometry)
    assert (banded.labels == whole.labels).all()
    assert banded.segments(CLASSES) == segments


def plain(probabilities: Planes, geometry: Geometry) -> NDArray[np.intp]:
    """The labels by interpolating all channels at all pixels in float32."""
    rows, columns = axes(geometry, probabilities.shape[1:])
    upper, lower = (
        mix(
            probabilities[:, cell][..., columns.first],
            probabilities[:, cell][..., columns.second],
            columns.weight,
        )
        for cell in (rows.first, rows.second)
    )
    return mix(upper, lower, rows.weight[:, None]).argmax(axis=0)


@pytest.mark.parametrize("seed", range(40))
def test_runs_are_those_of_the_labels_to_the_last_pixel(seed: int) -> None:
    """Noise, ties, and certain cells; images larger and smaller than the canvas."""
    rng = np.random.default_rng(seed)
    channels, height, width = rng.integers(1, 12), *rng.integers(1, 30, 2)
    probabilities = rng.random((channels, height, width), np.float32)
    match seed % 4:
        case 1:
            probabilities = np.round(probabilities * 4) / 4
        case 2:
            probabilities = (probabilities == probabilities.max(axis=0)).astype(np.float32)
        case 3:
            probabilities **= 8
    canvas, size = (4 * int(height), 4 * int(width)), rng.integers(1, 400, 2).tolist()
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    scaled = [max(1, round(side * scale)) for side in size]
    geometry = Geometry(size[1], size[0], scaled[1], scaled[0], canvas)
    runs = most_probable(probabilities, geometry)
    labels = plain(probabilities, geometry).astype(np.uint8)
    assert np.array_equal(runs.labels(), labels)
    expected = Runs.of(labels)
    assert np.array_equal(runs.starts, expected.starts)
    assert np.array_equal(runs.values, expected.values)


@pytest.mark.parametrize("first", ["labels", "runs", "regions"])
def test_classes_are_the_same_in_whichever_form_they_are_read_first(first: str) -> None:
    probabilities, geometry = blobs(5, 24, 32), Geometry(100, 75, 64, 48, (48, 64))
    masks = TASKS["semantic"].read({"probabilities": probabilities}, geometry)
    getattr(masks, first)
    wanted = most_probable(probabilities, geometry)
    assert np.array_equal(masks.labels, wanted.labels())
    assert np.array_equal(masks.runs.starts, wanted.starts)
    assert [region.value for region in masks.regions] == np.unique(wanted.values).tolist()


def test_a_png_of_classes_needs_no_runs() -> None:
    probabilities, geometry = blobs(5, 24, 32), Geometry(100, 75, 64, 48, (48, 64))
    masks = TASKS["semantic"].read({"probabilities": probabilities}, geometry)
    assert masks.labels.shape == (75, 100)
    assert "runs" not in vars(masks)


@pytest.mark.parametrize("rows", [20, 21])  # the border between two cells, and within one
def test_padding_has_no_say_up_to_the_border_of_the_image(rows: int) -> None:
    probabilities = np.zeros((2, 12, 16), np.float32)
    probabilities[0, :5], probabilities[1, 5:] = 1, 5  # what lies on padding is all the surer
    answer = semantic(probabilities, placed(64, rows, (64, rows)))
    assert (answer.labels == 0).all()
    assert [region.score for region in answer.regions] == [1]
    turned = np.zeros((2, 12, 16), np.float32)
    turned[0, :, :5], turned[1, :, 5:] = 1, 5
    assert (most_probable(turned, placed(rows, 48, (rows, 48))).labels() == 0).all()


def test_equal_probabilities_go_to_the_lower_class() -> None:
    even = np.full((5, 12, 16), 0.2, np.float32)
    assert (most_probable(even, placed(64, 48, (64, 48))).labels() == 0).all()


@pytest.mark.parametrize("classes", [1, 2, 5, 17, 255])
def test_png_pixels_are_class_ids_shown_in_their_colours(classes: int) -> None:
    entries = tuple(ClassInfo(str(i), (i, 255 - i, i // 2), False) for i in range(classes))
    labels = np.random.default_rng(0).integers(0, classes, (37, 53)).astype(np.uint8)
    image = Image.open(io.BytesIO(TASKS["semantic"].to_png(labels, entries)))
    assert image.mode == "P"
    assert (np.asarray(image) == labels).all()
    colors = np.array([entry.color for entry in entries])
    assert (np.asarray(image.convert("RGB")) == colors[labels]).all()


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode
def test_segments_are_one_per_class_and_cover_every_pixel_once() -> None:
    masks = semantic(blobs(), placed(120, 90, (64, 48)))
    segments = masks.segments(CLASSES)
    assert [segment.class_id for segment in segments] == np.unique(masks.labels).tolist()
    assert [segment.id for segment in segments] == list(range(1, len(segments) + 1))
    seen = np.full(masks.labels.shape, 255)
    for segment in segments:
        inside = drawn(segment.mask)
        assert (seen[inside] == 255).all()
        seen[inside] = segment.class_id
    assert (seen == masks.labels).all()


@pytest.mark.parametrize(("width", "height", "scaled"), SHAPES)
def test_segments_have_the_area_box_and_score_of_their_pixels(
    width: int, height: int, scaled: tuple[int, int]
) -> None:
    probabilities, geometry = noise(), placed(width, height, scaled)
    masks, exact = semantic(probabilities, geometry), slow(probabilities, geometry)
    for segment in masks.segments(CLASSES):
        inside = masks.labels == segment.class_id
        assert segment.value == segment.class_id
        assert segment.mask.area == inside.sum()
        assert segment.mask.box == bounds(inside)
        assert segment.score == pytest.approx(exact[segment.class_id][inside].mean(), abs=1e-4)
        assert segment.label == f"class {segment.class_id}"


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
    assert [mask.counts.encode() for mask in run_lengths(Runs.of(labels), values)] == [
        mask["counts"] for mask in expected
    ]


# -- objects ---------------------------------------------------------------------------------------


def cells(count: int, height: int, width: int) -> NDArray[np.uint16]:
    """`count` squared ellipses in a grid, numbered row by row from 1."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = y * count // height, x * count // width
    high, wide = height / count, width / count
    distance = ((y % high - high / 2) / high) ** 2 + ((x % wide - wide / 2) / wide) ** 2
    return np.where(distance < 0.16, across * count + down + 1, 0).astype(np.uint16)


def listed(labels: NDArray[np.uint16]) -> Masks:
    regions = [Region(k, k, 0, 0.75) for k in range(1, int(labels.max()) + 1)]
    return Masks(labels, lambda: regions)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode
def test_objects_have_the_area_box_and_mask_of_their_pixels() -> None:
    labels = cells(6, 90, 130)
    segments = listed(labels).segments(NUCLEUS)
    assert [segment.id for segment in segments] == list(range(1, 37))
    for segment in segments:
        inside = labels == segment.id
        assert (drawn(segment.mask) == inside).all()
        assert segment.mask.area == inside.sum()
        assert segment.mask.box == bounds(inside)
        assert (segment.class_id, segment.label, segment.score) == (0, "nucleus", 0.75)


def test_no_objects_are_no_segments() -> None:
    assert listed(np.zeros((9, 7), np.uint16)).segments(NUCLEUS) == []


def test_400_objects_in_a_large_image_take_milliseconds() -> None:
    masks = listed(cells(20, 1040, 1388))
    assert len(masks.regions) == 400
    times = []
    for _ in range(5):
        began = time.thread_time()
        masks.segments(NUCLEUS)
        times.append(time.thread_time() - began)
    # About 10 ms where it was written; encoding them one by one takes six seconds.
    assert min(times) < 0.25


# -- paused tokens ---------------------------------------------------------------------------------


def shown(grid: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.unsignedinteger]:
    """(6, 8) over the canvas -> (height, width), as an answer has it."""
    return Runs.looked_up(grid, *covering((6, 8), geometry)).labels()


@pytest.mark.parametrize(("width", "height", "scaled"), SHAPES)
def test_a_pixel_takes_the_value_of_the_cell_that_covers_its_centre(
    width: int, height: int, scaled: tuple[int, int]
) -> None:
    grid = np.random.default_rng(3).integers(0, 2, (6, 8)).astype(np.uint8)
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
    assert (shown(grid, placed(width, height, scaled)) == expected).all()


def test_the_padding_of_the_canvas_is_not_of_the_image() -> None:
    grid = np.zeros((6, 8), np.uint8)
    grid[3:] = 1  # the padding below the image
    assert not shown(grid, placed(64, 24, (64, 24))).any()


def test_a_label_map_and_its_png_take_milliseconds() -> None:
    colors = [(i, i, i) for i in range(11)]
    probabilities, geometry = blobs(11, 96, 120), Geometry(480, 360, 480, 360, (384, 480))
    times = []
    for _ in range(7):
        began = time.thread_time()
        png.palette(most_probable(probabilities, geometry).labels(), colors)
        times.append(time.thread_time() - began)
    # About 3 ms where it was written; the plain way takes ten times as long.
    assert min(times) < 0.03


@pytest.mark.parametrize(("width", "height"), [(5416, 4062), (4062, 5416)])
def test_the_masks_of_22_megapixels_take_a_quarter_of_a_second(width: int, height: int) -> None:
    """All that JSON needs. 60 ms where it was written; through the label map it takes 800 ms."""
    fine = np.random.default_rng(0).random((11, 120, 160), np.float32)
    probabilities = blobs(11, 120, 160) + 0.01 * fine
    scale = min(640 / width, 480 / height)
    geometry = Geometry(width, height, round(width * scale), round(height * scale), (480, 640))
    classes = tuple(ClassInfo(str(i), (i, i, i), False) for i in range(11))
    times = []
    for _ in range(5):
        began = time.thread_time()
        semantic(probabilities, geometry).segments(classes)
        times.append(time.thread_time() - began)
    assert min(times) < 0.25

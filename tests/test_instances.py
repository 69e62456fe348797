"""Objects from probabilities of core and rim: what comes apart, what grows where, what is dropped,
at any size."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.tasks.core_and_border import core_and_border
from model_export.tasks.panoptic_quality import match_counts
from service.core import Geometry
from service.pixels import most_probable as interpolated
from service.pixels.most_probable import most_probable
from service.pixels.polygons import polygons
from service.pixels.rle import run_lengths
from service.pixels.runs import Runs
from service.tasks import Region, instance_objects

CANVAS = (128, 160)
CELLS = (32, 40)


def instance_map(
    probabilities: NDArray[np.float32], geometry: Geometry
) -> tuple[NDArray[np.uint16], list[Region]]:
    """The label map instead of its runs."""
    runs, regions = instance_objects.instance_map(probabilities, geometry)
    labels = runs.labels()
    assert np.array_equal(Runs.of(labels).starts, runs.starts)
    assert labels.dtype == np.uint16
    return labels, regions


def _geometry(height: int, width: int, canvas: tuple[int, int] = CANVAS) -> Geometry:
    """As the service places an image."""
    scale = min(canvas[0] / height, canvas[1] / width)
    return Geometry(width, height, round(width * scale), round(height * scale), canvas)


def _ideal(
    truth: NDArray[np.uint16], canvas: tuple[int, int] = CANVAS
) -> tuple[NDArray[np.float32], Geometry]:
    """What a faultless network says about these objects: means over cells of 4 x 4 pixels of the
    canvas."""
    geometry = _geometry(*truth.shape, canvas)
    rows = (
        (np.arange(geometry.scaled_height) + 0.5) * truth.shape[0] / geometry.scaled_height
    ).astype(int)
    columns = (
        (np.arange(geometry.scaled_width) + 0.5) * truth.shape[1] / geometry.scaled_width
    ).astype(int)
    placed = np.zeros(canvas, np.uint8)
    placed[: len(rows), : len(columns)] = core_and_border(truth)[rows][:, columns]
    shares = (
        (placed == np.arange(3)[:, None, None])
        .reshape(3, canvas[0] // 4, 4, canvas[1] // 4, 4)
        .mean((2, 4))
    )
    return shares.astype(np.float32), geometry


def _cells(core: NDArray[np.bool_], rim: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(3, *CELLS), certain in each cell."""
    return np.stack([~(core | rim), core, rim & ~core]).astype(np.float32)


def _discs(height: int, width: int, radius: float) -> NDArray[np.uint16]:
    """Discs in a hexagonal pattern, each touching its neighbours."""
    y, x = np.mgrid[:height, :width].astype(float)
    truth, k = np.zeros((height, width), np.uint16), 0
    for row in range(int(height / (1.75 * radius))):
        for column in range(int(width / (2 * radius)) - 1):
            k += 1
            centre = (radius * (1.1 + 1.75 * row), radius * (1.1 + 2 * column + row % 2))
            truth[np.hypot(y - centre[0], x - centre[1]) <= radius] = k
    return truth


def _consistent(labels: NDArray[np.uint16], found: list[Region]) -> bool:
    return (
        set(np.unique(labels).tolist()) - {0}
        == {each.id for each in found}
        == {*range(1, len(found) + 1)}
    )


@pytest.mark.parametrize(
    ("height", "width", "radius"),
    [(128, 160, 14), (64, 80, 7), (400, 300, 40), (90, 300, 30), (1000, 1250, 110)],
)
def test_objects_that_touch_come_apart_at_any_size_of_the_image(
    height: int, width: int, radius: float
) -> None:
    truth = _discs(height, width, radius)
    probabilities, geometry = _ideal(truth)
    labels, found = instance_map(probabilities, geometry)
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint16
    assert _consistent(labels, found)
    overlap, hits, wrong, missed = match_counts(labels, truth)
    assert (hits, wrong, missed) == (truth.max(), 0, 0)
    assert overlap / hits > 0.85
    blind = probabilities.copy()
    blind[1] += blind[2]  # without a rim, they are one
    blind[2] = 0
    assert len(instance_map(blind, geometry)[1]) < truth.max() / 2


def test_foreground_without_a_core_is_an_object() -> None:
    core, rim = np.zeros(CELLS, bool), np.zeros(CELLS, bool)
    core[4:7, 4:7], rim[2:9, 2:9] = True, True
    rim[20:24, 20:26] = True
    labels, found = instance_map(_cells(core, rim), _geometry(*CANVAS))
    assert _consistent(labels, found)
    assert len(found) == 2
    assert np.unique(labels[12:32, 12:32]).tolist() == [1]
    assert np.unique(labels[82:94, 82:102]).tolist() == [2]


@pytest.mark.parametrize(
    ("enlarged", "certain", "found"),
    [
        (2.0, 0.78, 3),  # twice as large: an object needs 0.8 of the median, which is 0.96
        (2.0, 0.75, 2),
        (4.0, 0.75, 2),
        (1.5, 0.5, 3),  # it needs 0.47 of it
        (1.5, 0.4, 2),
        (1.0, 0.1, 3),
        (0.5, 0.1, 3),
    ],
)
def test_on_an_enlarged_image_a_core_that_is_not_certain_is_no_object(
    enlarged: float, certain: float, found: int
) -> None:
    probabilities = np.zeros((3, *CELLS), np.float32)
    probabilities[0] = 1
    for left, score in ((2, 0.96), (14, 0.98), (26, certain)):
        core = np.array([0, score, 1 - score])
        probabilities[:, 2:10, left : left + 8] = core[:, None, None]
    geometry = _geometry(round(CANVAS[0] / enlarged), round(CANVAS[1] / enlarged))
    labels, regions = instance_map(probabilities, geometry)
    assert _consistent(labels, regions)
    assert len(regions) == found


def test_what_is_no_larger_than_a_cell_is_dropped() -> None:
    core = np.zeros(CELLS, bool)
    core[4, 4] = True
    assert instance_map(_cells(core, core), _geometry(*CANVAS))[1] == []
    core[4, 5] = True
    labels, found = instance_map(_cells(core, core), _geometry(*CANVAS))
    assert len(found) == 1
    assert np.count_nonzero(labels) >= 16


def test_growth_follows_the_foreground_and_does_not_jump_a_gap() -> None:
    """A hook whose far end is nearer to the other object's core than to its own."""
    core, rim = np.zeros(CELLS, bool), np.zeros(CELLS, bool)
    core[2:5, 2:5] = True
    rim[2:5, 2:30] = True
    rim[5:16, 27:30] = True  # down
    rim[13:16, 12:30] = True  # and back, to 2 cells above the other
    core[19:23, 12:20] = True
    rim[18:24, 11:21] = True
    labels, found = instance_map(_cells(core, rim), _geometry(*CANVAS))
    assert len(found) == 2
    assert labels[14 * 4 + 2, 13 * 4] == labels[3 * 4, 3 * 4] == 1
    assert labels[20 * 4, 13 * 4] == 2


def test_objects_share_the_foreground_between_them_by_the_nearest_core() -> None:
    core, rim = np.zeros(CELLS, bool), np.zeros(CELLS, bool)
    core[10:14, 4:6], core[10:14, 24:26] = True, True
    rim[8:16, 2:28] = True
    labels, _ = instance_map(_cells(core, rim), _geometry(*CANVAS))
    middle = labels[12 * 4]
    assert set(middle[10:58]) == {1}
    assert set(middle[62:110]) == {2}


def test_padding_of_the_canvas_is_not_part_of_the_image() -> None:
    core = np.zeros(CELLS, bool)
    core[2:6, 30:38] = True  # right of an image that takes the left half of the canvas
    assert instance_map(_cells(core, core), _geometry(128, 80))[1] == []
    assert len(instance_map(_cells(core, core), _geometry(128, 160))[1]) == 1


@pytest.mark.parametrize("width", [80, 81])  # up to a border of cells, and into the next cell
def test_an_object_reaches_the_border_of_the_image_whatever_padding_says(width: int) -> None:
    core = np.zeros(CELLS, bool)
    core[8:16, 12:20] = True
    probabilities = _cells(core, core)
    probabilities[0, :, 20:] = 5
    labels, _ = instance_map(probabilities, _geometry(128, width))
    assert set(labels[36:60, 52:].ravel().tolist()) == {1}


def test_classes_are_kept_apart_and_each_object_has_its_own() -> None:
    probabilities = np.zeros((5, *CELLS), np.float32)
    probabilities[0] = 1
    probabilities[:, 4:12, 4:12] = np.array([0, 0, 0, 1, 0])[:, None, None]  # class 1's core
    probabilities[:, 4:12, 12:20] = np.array([0, 1, 0, 0, 0])[
        :, None, None
    ]  # touches class 0's core
    probabilities[:, 20:28, 4:12] = np.array([0.1, 0, 0, 0.2, 0.7])[:, None, None]  # class 1's rim
    labels, found = instance_map(probabilities, _geometry(*CANVAS))
    assert _consistent(labels, found)
    places = [labels[32, 32], labels[32, 64], labels[96, 32]]
    assert sorted(places) == [1, 2, 3]
    assert [found[k - 1].class_id for k in places] == [1, 0, 1]


def test_score_is_the_probability_of_a_core_where_it_is_largest() -> None:
    probabilities = np.zeros((3, *CELLS), np.float32)
    probabilities[0] = 0.9
    probabilities[:, 2:12, 2:12] = np.array([0.1, 0.5, 0.4])[:, None, None]
    probabilities[:, 2:12, 20:30] = np.array([0.6, 0.9, 0.9])[
        :, None, None
    ]  # they need not sum to 1
    probabilities[:, 2:12, 32:40] = np.array([0.0, 1.0, 0.0])[:, None, None]
    labels, found = instance_map(probabilities, _geometry(*CANVAS))
    scores = [found[labels[24, x] - 1].score for x in (24, 100, 144)]
    assert scores == pytest.approx([0.5, 0.9 / 2.4, 1.0], abs=0.01)


def test_image_without_objects_and_image_that_is_one() -> None:
    nothing, all_core = np.zeros((3, *CELLS), np.float32), np.zeros((3, *CELLS), np.float32)
    nothing[0], all_core[1] = 1, 1
    labels, found = instance_map(nothing, _geometry(33, 77))
    assert (labels.shape, labels.any(), found) == ((33, 77), False, [])
    labels, found = instance_map(all_core, _geometry(33, 77))
    assert (labels == 1).all()
    assert found == [Region(1, 1, 0, 1.0)]


@pytest.mark.parametrize("size", [(128, 160), (31, 200), (300, 77), (1, 1), (2, 9), (700, 900)])
def test_ids_have_no_gap_and_each_is_one_piece_whatever_the_network_says(
    size: tuple[int, int],
) -> None:
    """In an image that is much smaller than the canvas, objects fall between its pixels."""
    for seed, channels in ((0, 3), (1, 3), (2, 7)):
        noise = np.random.default_rng(seed).random((channels, *CELLS)).astype(np.float32)
        noise[0] *= 1.6
        noise.flags.writeable = False
        labels, found = instance_map(noise, _geometry(*size))
        assert labels.shape == size
        assert _consistent(labels, found)
        assert {each.class_id for each in found} <= {*range((channels - 1) // 2)}
        assert all(0 <= each.score <= 1 for each in found)
        parts = polygons(Runs.of(labels), [each.id for each in found])
        assert [len(part) for part in parts] == [1] * len(found)


def test_outline_is_that_of_the_interpolated_probabilities() -> None:
    """At an image's own size, finer than the canvas: object or not is what the semantic masks would
    say."""
    truth = _discs(500, 625, 60)
    probabilities, geometry = _ideal(truth)
    labels, _ = instance_map(probabilities, geometry)
    two = np.stack([probabilities[0], probabilities[1] + probabilities[2]])
    wanted = most_probable(two, geometry).labels() == 1
    assert np.count_nonzero((labels > 0) != wanted) < 1e-3 * wanted.size
    assert np.count_nonzero(np.diff(wanted.astype(int))) > 1000


def test_bands_of_columns_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, geometry = _ideal(_discs(150, 220, 20))
    labels, found = instance_map(probabilities, geometry)
    for values in (1, 7 * 33 * 2):
        monkeypatch.setattr(interpolated, "BAND_VALUES", values)
        again, same = instance_map(probabilities, geometry)
        assert np.array_equal(labels, again)
        assert found == same


def test_there_are_no_more_objects_than_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).random((3, *CELLS)).astype(np.float32)
    assert len(instance_map(noise, _geometry(*CANVAS))[1]) > 7
    monkeypatch.setattr(instance_objects, "MOST", 7)
    labels, found = instance_map(noise, _geometry(*CANVAS))
    assert len(found) <= 7
    assert _consistent(labels, found)


def test_memory_for_a_large_image_is_its_label_map_and_little_more() -> None:
    probabilities, _ = _ideal(_discs(128, 160, 14))
    geometry = _geometry(4500, 5600)
    tracemalloc.start()
    runs, _ = instance_objects.instance_map(probabilities, geometry)
    labels = runs.labels()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < labels.nbytes + (24 << 20)


def test_longest_way_through_a_maze_takes_bounded_time_and_leaves_no_pixel_out() -> None:
    core, rim = np.zeros((96, 96), bool), np.zeros((96, 96), bool)
    rim[::2] = True
    rim[1::4, -1], rim[3::4, 0] = True, True
    core[0, 0] = True
    begun = time.thread_time()
    labels, found = instance_map(_cells(core, rim), _geometry(384, 384, (384, 384)))
    assert time.thread_time() - begun < 5
    assert _consistent(labels, found)
    assert (labels[2::8, 8:-8] > 0).all()


def _two_cores(bridge: float) -> NDArray[np.float32]:
    """A bar of foreground; its core is sure in two parts and, between them, as sure as `bridge`."""
    sure = np.zeros(CELLS, np.float32)
    sure[8:14, 6:30] = 0.9
    sure[8:14, 17:19] = bridge
    inside = np.zeros(CELLS, np.float32)
    inside[6:16, 4:32] = 1
    return np.stack([1 - inside, inside * sure, inside * (1 - sure)])


@pytest.mark.parametrize(("bridge", "objects"), [(0.9, 1), (0.6, 2), (0.3, 2)])
def test_a_core_that_is_unsure_in_its_middle_is_two(bridge: float, objects: int) -> None:
    labels, found = instance_map(_two_cores(bridge), _geometry(*CANVAS))
    assert len(found) == objects
    assert _consistent(labels, found)
    assert np.count_nonzero(labels) == np.count_nonzero(
        instance_map(_two_cores(0.9), _geometry(*CANVAS))[0]
    )


def test_a_small_sure_spot_does_not_make_an_object_of_its_own() -> None:
    """At the higher levels a part needs some cells; below them, what is left of it belongs to the
    other part."""
    spotted = _two_cores(0.58)
    spotted[1, 8:14, 19:30], spotted[2, 8:14, 19:30] = 0.58, 0.42
    spotted[1, 11, 25], spotted[2, 11, 25] = 0.63, 0.37
    assert len(instance_map(spotted, _geometry(*CANVAS))[1]) == 1
    spotted[1, 10:13, 24:27], spotted[2, 10:13, 24:27] = 0.72, 0.28
    assert len(instance_map(spotted, _geometry(*CANVAS))[1]) == 2


def test_parts_come_apart_level_by_level() -> None:
    """A comes apart from B and C at 0.6, B from C only at 0.7: three objects, none of them lost."""
    probabilities = _two_cores(0.57)
    probabilities[1, 8:14, 23:25], probabilities[2, 8:14, 23:25] = 0.67, 0.33
    assert len(instance_map(probabilities, _geometry(*CANVAS))[1]) == 3


def test_the_masks_of_22_megapixels_take_a_quarter_of_a_second() -> None:
    """All that JSON needs. 60 ms where it was written; through the label map it takes 400 ms."""
    probabilities, _ = _ideal(_discs(480, 640, 12), (480, 640))
    geometry = _geometry(4062, 5416, (480, 640))
    times = []
    for _ in range(5):
        begun = time.thread_time()
        runs, found = instance_objects.instance_map(probabilities, geometry)
        run_lengths(runs, [region.value for region in found])
        times.append(time.thread_time() - begun)
    assert len(found) > 300
    assert min(times) < 0.25

"""The procedural scenes: deterministic, complete in classes, harder with clutter, strict about
arguments."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from model_export.data.datasets import Scenes
from model_export.data.scene_depth import Camera, Surfaces
from model_export.data.scenes import CLASSES, COUNTABLE, Street, draw, render
from model_export.evaluation.labelled_folder import open_labelled
from tests.toy import command


def _edges(mask: np.ndarray) -> float:
    """Share of horizontally or vertically neighbouring pixels whose classes differ."""
    return float((mask[:, 1:] != mask[:, :-1]).mean() + (mask[1:] != mask[:-1]).mean())


def test_deterministic() -> None:
    first, again, other = (render(seed, height=120, width=160) for seed in (7, 7, 8))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_all_classes_occur() -> None:
    seen: set[int] = set()
    for seed in range(12):
        seen |= set(np.unique(render(seed, height=180, width=240, clutter=0.6)[1]).tolist())
    assert seen - {255} == set(range(len(CLASSES)))


def test_clutter_raises_edge_density_and_noise() -> None:
    def measure(clutter: float) -> tuple[float, float]:
        pairs = [render(seed, height=180, width=240, clutter=clutter) for seed in range(10)]
        grain = [
            np.abs(np.diff(image[-40:].astype(np.float32), axis=1)).mean() for image, _ in pairs
        ]
        return float(np.mean([_edges(mask) for _, mask in pairs])), float(np.mean(grain))

    calm, busy = measure(0.0), measure(1.0)
    assert busy[0] > 1.25 * calm[0]
    assert busy[1] > 1.25 * calm[1]


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 61), (1, 1), (5, 200), (200, 5)])
@pytest.mark.parametrize("clutter", [-1.0, 0.0, 1.0])
def test_any_size(height: int, width: int, clutter: float) -> None:
    image, mask = render(3, height=height, width=width, clutter=clutter)
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask).tolist()) <= {*range(len(CLASSES)), 255}


def test_below_zero_things_leave_the_street_until_it_is_bare() -> None:
    def kinds(clutter: float) -> float:
        masks = [render(seed, height=120, width=160, clutter=clutter)[1] for seed in range(8)]
        return float(np.mean([len(set(np.unique(mask).tolist()) - {255}) for mask in masks]))

    names = {
        CLASSES[kind]
        for seed in range(8)
        for kind in np.unique(render(seed, clutter=-1.0)[1])
        if kind != 255
    }
    assert names == {"Sky", "Building", "Road", "Pavement"}
    assert kinds(-1.0) < kinds(-0.5) < kinds(0.0)


def test_layout_is_a_street() -> None:
    """Sky above road: the mean row of Sky lies over that of Road in every scene."""
    for seed in range(6):
        mask = render(seed, height=120, width=160, clutter=0.3)[1]
        assert (
            np.nonzero(mask == CLASSES.index("Sky"))[0].mean()
            < np.nonzero(mask == CLASSES.index("Road"))[0].mean()
        )


@pytest.mark.parametrize("clutter", [-1.01, 1.01, float("nan")])
def test_bad_clutter(clutter: float) -> None:
    with pytest.raises(ValueError, match="clutter"):
        render(0, clutter=clutter)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-4, 8)])
def test_bad_size(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        render(0, height=height, width=width)


def test_scenes_are_written_as_a_folder_that_knows_their_clutter(tmp_path: Path) -> None:
    assert (
        command("draw-scenes", tmp_path / "scenes", "--count", 5, "--seed", 3, "--clutter", 0.5, 1)
        == 0
    )
    folder, scenes = (
        open_labelled(tmp_path / "scenes", "", "semantic", CLASSES),
        Scenes(5, 3, (0.5, 1.0)),
    )
    wanted = {scenes[i].name: (scenes[i], scenes.clutter_of(i)) for i in range(5)}
    assert len(folder) == 5
    for found in (folder[i] for i in range(5)):
        scene, clutter = wanted[found.name]
        assert np.array_equal(found.image, scene.image)
        assert np.array_equal(found.mask, scene.mask)
        low, high = (float(word) for word in found.group.split()[1::2])
        assert low <= clutter <= high == pytest.approx(low + 0.2)


def test_bare_streets_are_spread_among_the_others_and_a_group_of_their_own(tmp_path: Path) -> None:
    scenes = Scenes(20, 3, (0.5, 1.0), bare=0.25)
    clutter = np.array([scenes.clutter_of(i) for i in range(20)])
    assert (clutter == -1).sum() == 6  # 5, but for the rounding of so few
    assert np.flatnonzero(clutter == -1).min() < 5 < 15 < np.flatnonzero(clutter == -1).max()
    others = clutter[clutter != -1]
    assert others.min() < 0.55 < 0.95 < others.max()
    assert all(0.5 <= each <= 1 for each in others)
    assert (
        command("draw-scenes", tmp_path / "scenes", "--count", 4, "--seed", 3, "--bare", 0.5) == 0
    )
    folder = open_labelled(tmp_path / "scenes", "", "semantic", CLASSES)
    assert sorted(folder[i].group == "bare" for i in range(4)) == [False, False, True, True]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--bare", 1), 1),
        (("--clutter", 0.8, 0.2), 1),
        (("--clutter", -2, 1), 2),
        (("--clutter", 0, "nan"), 2),
    ],
)
def test_scenes_are_not_written_with_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...], status: int
) -> None:
    assert command("draw-scenes", tmp_path / "scenes", *words) == status
    assert str(words[0]) in capsys.readouterr().err
    assert not (tmp_path / "scenes").exists()


def test_scenes_do_not_overwrite_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert command("draw-scenes", tmp_path, "--count", 1) == 1
    assert "is not empty" in capsys.readouterr().err


# ---- what the generator knows besides classes


@pytest.fixture(scope="module")
def streets() -> list[Street]:
    return [draw(seed, height=180, width=240, clutter=0.6) for seed in range(8)]


def test_pictures_and_classes_of_a_seed_are_what_they_were() -> None:
    """Before depth and boxes: data sets that were drawn, and all that was trained on them, stay."""
    digest = hashlib.sha256()
    for seed, clutter in ((1, 0.0), (2, 0.5), (3, 1.0), (4, -1.0), (5, 0.8)):
        for plane in render(seed, height=180, width=240, clutter=clutter):
            digest.update(plane.tobytes())
    assert digest.hexdigest() == "748af0d2e87614d0b84c27cf964e2841585c0b195713e56af01afb67d19b2f66"


def test_everything_but_the_sky_is_somewhere(streets: list[Street]) -> None:
    for street in streets:
        assert street.depth.dtype == np.float32
        np.testing.assert_array_equal(street.depth == 0, street.mask == CLASSES.index("Sky"))
        known = street.depth[street.depth > 0]
        assert known.min() >= 0.9
        assert known.max() <= 220


def test_the_road_is_farther_the_higher_it_lies_in_the_picture(streets: list[Street]) -> None:
    for street in streets:
        road = street.mask == CLASSES.index("Road")
        rows = [depth[own] for depth, own in zip(street.depth, road, strict=True) if own.any()]
        assert (np.diff([row.mean() for row in rows]) <= 1e-3).all()
        for row in rows:
            assert np.ptp(row) < 1e-3 * row.mean(), "a row of level ground is one distance"


def test_a_box_holds_the_visible_pixels_of_one_thing(streets: list[Street]) -> None:
    count = 0
    for street in streets:
        for place, left, top, width, height in street.boxes.astype(int):
            assert 0 <= left < left + width <= 240
            assert 0 <= top < top + height <= 180
            own = street.mask == COUNTABLE[place]
            inside = own[top : top + height, left : left + width]
            assert inside.any(0)[[0, -1]].all(), "its left and right edge are its own"
            assert inside.any(1)[[0, -1]].all()
            count += 1
        covered = np.zeros(street.mask.shape, bool)
        for _, left, top, width, height in street.boxes.astype(int):
            covered[top : top + height, left : left + width] = True
        assert not (np.isin(street.mask, COUNTABLE) & ~covered).any()
    assert count > 40


def test_what_stands_before_another_thing_is_nearer(streets: list[Street]) -> None:
    """Where a person's lowest pixels meet the ground, both are about as far away."""
    gaps = []
    for street in streets:
        for place, left, top, width, height in street.boxes.astype(int):
            foot = top + height
            if COUNTABLE[place] == CLASSES.index("Pedestrian") and height > 12 and foot < 180:
                own = street.depth[foot - 1, left : left + width]
                ground = street.depth[foot, left : left + width]
                near = street.mask[foot, left : left + width] <= CLASSES.index("Pavement")
                if near.any() and street.mask[foot - 1, left + width // 2]:
                    gaps.append(abs(np.log(np.median(own) / np.median(ground[near]))))
    assert len(gaps) > 3
    assert np.median(gaps) < 0.15


def test_a_slanted_plane_is_as_far_as_geometry_says() -> None:
    """A wall along the street, 2 m to the right: the pixel at column x sees it at 2 f / x."""
    surfaces = Surfaces(40, 60)
    wall = [(2.0, 0.0, 3.0), (2.0, 0.0, 30.0), (2.0, 4.0, 30.0), (2.0, 4.0, 3.0)]
    surfaces.pen.rectangle((0, 0, 60, 40), fill=surfaces.plane(wall))
    depth = surfaces.depth(surfaces.numbers(), Camera(60.0, 0.0, 20.0, 1.5, 0.0))
    np.testing.assert_allclose(depth[7, 5:35], 2 * 60 / np.arange(5, 35), rtol=1e-5)
    assert depth[7, 1] == 30
    assert depth[7, 59] == 3
    bent = surfaces.depth(surfaces.numbers(), Camera(60.0, 0.0, 20.0, 1.5, 0.002))
    x = 60 * (2 / bent[7] + 0.002 * bent[7])
    np.testing.assert_allclose(x[10:35], np.arange(10, 35), atol=0.05)

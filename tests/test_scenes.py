"""The procedural scenes: deterministic, complete in classes, harder with clutter, strict about
arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_export.data.datasets import Scenes
from model_export.data.scenes import CLASSES, render
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


@pytest.mark.parametrize("words", [("--bare", 1), ("--bare", -0.1)])
def test_a_share_of_bare_streets_must_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...]
) -> None:
    assert command("draw-scenes", tmp_path / "scenes", *words) == 1
    assert "--bare" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--clutter", 0.8, 0.2), ("--clutter", -2, 1), ("--count", 0)])
def test_scenes_are_not_written_with_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...]
) -> None:
    assert command("draw-scenes", tmp_path / "scenes", *words) == 1
    assert "--clutter" in capsys.readouterr().err
    assert not (tmp_path / "scenes").exists()


def test_scenes_do_not_overwrite_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert command("draw-scenes", tmp_path, "--count", 1) == 1
    assert "is not empty" in capsys.readouterr().err

"""Data sets and how their images reach the network: refusals, splits, augmentation, and the service's own geometry."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.recipe.datasets import PALETTE, VOID, CamVid, DataError, Folder, Scenes, open_dataset

CAMVID = Path(__file__).parents[2] / "shared" / "data" / "camvid"


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 8 x 12, in three formats, with masks."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "c.webp"):
        _save(tmp_path / "images" / name, rng.integers(0, 256, (8, 12, 3), np.uint8))
        _save(tmp_path / "masks" / f"{name[0]}.png", rng.choice(np.uint8([0, 3, 10, VOID]), (8, 12)))
    return tmp_path


def test_folder_pairs_images_and_masks_by_name(folder: Path) -> None:
    data = Folder(folder)
    assert [data[i].name for i in range(len(data))] == ["a", "b", "c"]
    for i, sample in enumerate(data[i] for i in range(3)):
        assert sample.image.shape == (8, 12, 3)
        assert np.array_equal(sample.mask, np.asarray(Image.open(folder / "masks" / f"{'abc'[i]}.png")))
    assert np.array_equal(data[0].image, np.asarray(Image.open(folder / "images" / "a.png")))


def test_folder_reads_palette_masks_as_indices(folder: Path) -> None:
    mask = Image.open(folder / "masks" / "a.png")
    mask.putpalette([255 - v for v in range(256) for _ in range(3)])
    wanted = np.asarray(mask)
    mask.save(folder / "masks" / "a.png")
    assert np.array_equal(Folder(folder)[0].mask, wanted)


def test_folder_turns_images_as_exif_says(folder: Path) -> None:
    """The mask belongs to the image as it is shown, and the service turns it, too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(np.repeat(np.repeat(np.uint8([[[255, 0, 0], [0, 0, 255]]]), 8, 0), 6, 1))  # red | blue
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "images" / "a.jpg", exif=exif, quality=95)
    (folder / "images" / "a.png").unlink()
    image = Folder(folder)[0].image
    assert image.shape == (8, 12, 3)
    assert image[:, 0, 0].min() > 200 > 50 > image[:, -1, 0].max()


def _rgb_mask(root: Path) -> None:
    _save(root / "masks" / "b.png", np.zeros((8, 12, 3), np.uint8))


def _cut(root: Path) -> None:
    path = root / "images" / "b.JPG"
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "masks" / "b.png").unlink(), r"1 of 3 images have no mask.*masks/b\.png"),
        (lambda root: _save(root / "masks" / "b.png", np.zeros((8, 11), np.uint8)), r"masks/b\.png is uint8 \(8, 11\)"),
        (lambda root: _save(root / "masks" / "b.png", np.zeros((8, 12), np.uint16)), r"masks/b\.png is .*16"),
        (_rgb_mask, r"masks/b\.png is uint8 \(8, 12, 3\)"),
        (
            lambda root: _save(root / "masks" / "b.png", np.full((8, 12), 11, np.uint8)),
            r"masks/b\.png has labels \[11\]",
        ),
        (_cut, r"images/b\.JPG is no image that can be read"),
        (lambda root: (root / "masks" / "b.png").write_bytes(b"no image"), r"masks/b\.png is no image that can be"),
        (lambda root: (root / "images").rename(root / "pictures"), r"has no folder images/"),
        (lambda root: [f.unlink() for f in (root / "images").iterdir()], r"images lacks any image"),
    ],
)
def test_folder_refuses_and_names_the_file(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        Folder(folder)[1]


def _camvid(root: Path) -> dict[str, list[str]]:
    """A folder like CamVid's with 4 x 6 images. Returns the training sequences' frames in order."""
    sequences = {"0001TP": 20, "0006R0": 31, "0016E5": 47}
    frames = {seq: [f"{seq}_{30 * i:06}" for i in range(count)] for seq, count in sequences.items()}
    splits = {
        "train": [{"id": name, "seq": seq} for seq, names in frames.items() for name in names],
        "val": [{"id": f"0016E5_{i:05}", "seq": "0016E5"} for i in range(90000, 90005)],
    }
    colors = [list(color) for color in PALETTE]
    classes = list(Scenes(1).classes)
    (root / "meta.json").write_text(json.dumps({"classes": classes, "colors": colors, "splits": splits}))
    for split, entries in splits.items():
        for entry in entries:
            _save(root / "images" / split / f"{entry['id']}.png", np.zeros((4, 6, 3), np.uint8))
            _save(root / "masks" / split / f"{entry['id']}.png", np.zeros((4, 6), np.uint8))
    return frames


def _names(data: CamVid) -> list[str]:
    return [image.stem for image, _ in data.files]


def test_camvid_holds_out_one_stretch_of_every_sequence(tmp_path: Path) -> None:
    frames = _camvid(tmp_path)
    parts = {split: _names(CamVid(tmp_path, split)) for split in ("train", "gate", "dev", "all")}
    assert not set(parts["train"]) & set(parts["gate"])
    assert not set(parts["train"]) & set(parts["dev"])
    assert not set(parts["gate"]) & set(parts["dev"])
    assert sorted(parts["train"] + parts["gate"] + parts["dev"]) == sorted(parts["all"])
    assert parts["all"] == [name for names in frames.values() for name in names]
    for names in frames.values():
        for split in ("gate", "dev"):
            rows = [i for i, name in enumerate(names) if name in parts[split]]
            assert 0.08 * len(names) <= len(rows) <= 0.12 * len(names)
            assert all(b == a + 1 for a, b in pairwise(rows))


def test_camvid_val_is_the_official_split_alone(tmp_path: Path) -> None:
    frames = _camvid(tmp_path)
    val = CamVid(tmp_path, "val")
    assert len(val) == 5
    assert not set(_names(val)) & {name for names in frames.values() for name in names}
    assert "val" in str(val.files[0][0])


def test_camvid_refuses_unknown_split_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no meta\.json"):
        CamVid(tmp_path, "train")
    _camvid(tmp_path)
    with pytest.raises(DataError, match=r"no split 'test'.*'train', 'gate', 'dev', 'all', 'val'"):
        CamVid(tmp_path, "test")
    (tmp_path / "images" / "train" / "0001TP_000030.png").unlink()
    with pytest.raises(DataError, match=r"lacks.*0001TP_000030"):
        CamVid(tmp_path, "train")


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid's images are not here (they may not be redistributed)")
def test_camvid_itself_has_its_counts_and_no_val_image_in_any_other_split() -> None:
    parts = {split: CamVid(CAMVID, split) for split in ("train", "gate", "dev", "all", "val")}
    assert len(parts["all"]) == 367
    assert len(parts["val"]) == 101
    assert sum(len(parts[split]) for split in ("train", "gate", "dev")) == 367
    assert all(30 <= len(parts[split]) <= 42 for split in ("gate", "dev"))
    for split in ("train", "gate", "dev", "all"):
        assert not set(_names(parts[split])) & set(_names(parts["val"]))
    for data in parts.values():
        sample = data[len(data) // 2]
        assert sample.image.shape == (360, 480, 3)
        assert data.classes == Scenes(1).classes
        assert data.palette == PALETTE


def test_scenes_are_a_function_of_seed_and_index_and_cover_the_clutter() -> None:
    data, again, other = Scenes(4, 1, height=60, width=80), Scenes(9, 1, height=60, width=80), Scenes(4, 2)
    assert len(data) == 4
    for i in range(2):
        assert np.array_equal(data[i].image, again[i].image)
        assert np.array_equal(data[i].mask, again[i].mask)
    assert not np.array_equal(data[0].image, data[1].image)
    assert other[0].image.shape == (360, 480, 3)
    clutter = sorted(Scenes(64, clutter=(0.2, 0.6)).clutter_of(i) for i in range(64))
    assert 0.2 <= clutter[0] < 0.22
    assert 0.58 < clutter[-1] <= 0.6
    assert max(b - a for a, b in pairwise(clutter)) < 0.4 / 20


def test_open_dataset_understands_its_three_kinds(folder: Path, tmp_path: Path) -> None:
    scenes = open_dataset("scenes:5:7", None)
    assert (len(scenes), scenes[0].name) == (5, "scene-7-0")
    assert len(open_dataset("folder", folder)) == 3
    (tmp_path / "camvid").mkdir()
    _camvid(tmp_path / "camvid")
    assert len(open_dataset("camvid:val", tmp_path / "camvid")) == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cityscapes", "unknown data set 'cityscapes'; choose"),
        ("folder", "'folder' needs --data FOLDER"),
        ("scenes:many", "scenes:COUNT"),
        ("scenes:0", "positive count"),
        ("scenes:4:x", "scenes:COUNT"),
    ],
)
def test_open_dataset_refuses_what_it_does_not_know(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(spec, None)

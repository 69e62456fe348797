"""Labelled folders: images with their labels, what meta.json may say, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.data.datasets import (
    DataError,
    Folder,
    open_dataset,
    share_images,
)
from model_export.data.folders import OBJECT
from tests.image_files import png
from tests.labelled_folders import save_image, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def test_folder_pairs_images_and_masks_by_name(folder: Path) -> None:
    data = Folder(folder, "semantic")
    assert [data[i].name for i in range(len(data))] == ["a", "b", "c"]
    for i, sample in enumerate(data[i] for i in range(3)):
        assert sample.image.shape == (8, 12, 3)
        assert np.array_equal(
            sample.mask, np.asarray(Image.open(folder / "masks" / f"{'abc'[i]}.png"))
        )
    assert np.array_equal(data[0].image, np.asarray(Image.open(folder / "images" / "a.png")))


def test_accents_may_have_another_form_in_each_name(folder: Path) -> None:
    """macOS writes them as characters of their own, and copies keep that."""
    (folder / "images" / "a.png").rename(folder / "images" / "cafe\u0301.png")
    (folder / "masks" / "a.png").rename(folder / "masks" / "caf\u00e9.png")
    splits = {"all": [{"id": "cafe\u0301", "seq": "one"}]}
    (folder / "meta.json").write_text(json.dumps({"splits": splits}))
    data = open_dataset("folder", folder)
    assert {data[i].name: data[i].group for i in range(3)} == {"b": "", "c": "", "caf\u00e9": "one"}


def test_folder_reads_palette_masks_as_indices(folder: Path) -> None:
    mask = Image.open(folder / "masks" / "a.png")
    mask.putpalette([255 - v for v in range(256) for _ in range(3)])
    wanted = np.asarray(mask)
    mask.save(folder / "masks" / "a.png")
    assert np.array_equal(Folder(folder, "semantic")[0].mask, wanted)


def test_folder_turns_images_as_exif_says(folder: Path) -> None:
    """The mask belongs to the image as it is shown, and the service turns it, too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(
        np.repeat(np.repeat(np.uint8([[[255, 0, 0], [0, 0, 255]]]), 8, 0), 6, 1)
    )  # red | blue
    upright.transpose(Image.Transpose.ROTATE_90).save(
        folder / "images" / "a.jpg", exif=exif, quality=95
    )
    (folder / "images" / "a.png").unlink()
    image = Folder(folder, "semantic")[0].image
    assert image.shape == (8, 12, 3)
    assert image[:, 0, 0].min() > 200 > 50 > image[:, -1, 0].max()


def _rgb_mask(root: Path) -> None:
    save_image(root / "masks" / "b.png", np.zeros((8, 12, 3), np.uint8))


def _split(root: Path) -> None:
    (root / "images").rename(root / "all")
    (root / "images").mkdir()
    (root / "all").rename(root / "images" / "val")


def _cut(root: Path) -> None:
    path = root / "images" / "b.JPG"
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "masks" / "b.png").unlink(),
            r"^\S*masks/b\.png is missing, the labels of the image of that name$",
        ),
        (
            lambda root: save_image(root / "masks" / "b.png", np.zeros((8, 11), np.uint8)),
            r"masks/b\.png is uint8 \(8, 11\)",
        ),
        (
            lambda root: save_image(root / "masks" / "b.png", np.zeros((8, 12), np.uint16)),
            r"masks/b\.png is .*16",
        ),
        (_rgb_mask, r"masks/b\.png is uint8 \(8, 12, 3\)"),
        (
            lambda root: save_image(root / "masks" / "b.png", np.full((8, 12), 11, np.uint8)),
            r"masks/b\.png has labels \[11\]",
        ),
        (_cut, r"images/b\.JPG is no readable image"),
        (
            lambda root: (root / "masks" / "b.png").write_bytes(b"no image"),
            r"masks/b\.png is no readable image",
        ),
        (
            lambda root: (root / "masks" / "b.png").write_bytes(png(60000, 60000, 8, 0, b"")),
            r"masks/b\.png is no readable image: .*exceeds limit",
        ),
        (
            lambda root: Image.new("L", (12, 8)).save(root / "masks" / "b.png", "JPEG"),
            r"masks/b\.png is JPEG inside; labels must be PNG",
        ),
        (
            lambda root: Image.new("F", (12, 8)).save(root / "masks" / "b.png", "TIFF"),
            r"masks/b\.png is TIFF inside; labels must be PNG",
        ),
        (
            lambda root: (root / "masks" / "b.png").write_bytes(png(12, 8, 16, 2, bytes(8 * 73))),
            r"masks/b\.png has colours of 16 bits",
        ),
        (lambda root: (root / "images").rename(root / "pictures"), r"has no folder images/"),
        (lambda root: [f.unlink() for f in (root / "images").iterdir()], r"images lacks any image"),
        (_split, r"images lacks any image; .*name one of its subfolders, as in folder:val"),
        (lambda root: (root / "images" / "a.webp").touch(), r"a\.webp would share one"),
    ],
)
def test_folder_refuses_and_names_the_file(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        Folder(folder, "semantic")[1]


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_masks_of_few_bits_have_the_values_that_are_stored(folder: Path, bits: int) -> None:
    per_byte, wanted = 8 // bits, np.tile(np.uint8([0, 1, 3, 2]), (8, 3))
    packed = sum(
        wanted[:, i::per_byte].astype(np.uint8) << (8 - bits * (i + 1)) for i in range(per_byte)
    )
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(packed, np.uint8))
    (folder / "masks" / "a.png").write_bytes(png(12, 8, bits, 0, rows))
    assert np.array_equal(Folder(folder, "semantic")[0].mask, wanted)
    # As colours they are what is shown.
    step = 255 // (2**bits - 1)
    colours = {f"#{step * level:02x}" + f"{step * level:02x}" * 2: level for level in range(4)}
    names = ["sky", "road", "car", "tree"]
    _describe(folder, classes=names, labels={key: names[v] for key, v in colours.items()})
    assert np.array_equal(open_dataset("folder", folder)[0].mask, wanted)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two images of 20 x 30 with objects 1, 2 and 65535."""
    for name in ("a.jpg", "b.png"):
        objects = np.zeros((20, 30), np.uint16)
        objects[2:9, 3:10], objects[2:9, 10:18], objects[15, 25] = 1, 2, 65535
        save_image(tmp_path / "images" / name, np.full((20, 30, 3), 99, np.uint8))
        save_image(tmp_path / "instances" / f"{name[0]}.png", objects)
    return tmp_path


def test_instance_folder_gives_objects_and_what_the_network_learns_of_them(cells: Path) -> None:
    data = Folder(cells, "instance", classes=("object",), palette=(OBJECT,))
    assert (data.task, data.channels, data.classes, len(data.palette)) == (
        "instance",
        3,
        ("object",),
        1,
    )
    sample = data[1]
    assert sample.name == "b"
    assert sample.instances is not None
    assert sample.instances.dtype == np.uint16
    assert np.unique(sample.instances).tolist() == [0, 1, 2, 65535]
    assert np.array_equal(sample.mask == 0, sample.instances == 0)
    assert np.unique(sample.instances[sample.mask == 1]).tolist() == [1, 2, 65535]
    assert np.unique(sample.mask).tolist() == [0, 1, 2]
    assert sample.mask.dtype == np.uint8
    assert data[1] is sample  # made once


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "instances" / "b.png").unlink(),
            r"^\S*instances/b\.png is missing, the labels of the image of that name$",
        ),
        (
            lambda root: save_image(root / "instances" / "b.png", np.zeros((30, 20), np.uint16)),
            r"instances/b\.png is uint16 \(30, 20\); "
            r"for .*images/b\.png it must be .*16 bits, \(20, 30\)",
        ),
        (
            lambda root: save_image(root / "instances" / "b.png", np.zeros((20, 30), np.uint8)),
            r"b\.png is uint8.*16 bits",
        ),
        (
            lambda root: save_image(root / "instances" / "b.png", np.zeros((20, 30), bool)),
            r"b\.png is bool.*16 bits",
        ),
        (
            lambda root: save_image(root / "instances" / "b.png", np.zeros((20, 30, 3), np.uint8)),
            r"b\.png is .*, 3\)",
        ),
        (
            lambda root: (root / "instances" / "b.png").write_bytes(b"x"),
            r"instances/b\.png is no readable image",
        ),
        (
            lambda root: (root / "images").rename(root / "pictures"),
            r"has no folder images/.*instances/\*\.png",
        ),
    ],
)
def test_instance_folder_refuses_and_names_the_file(
    cells: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(cells)
    with pytest.raises(DataError, match=message):
        Folder(cells, "instance", classes=("object",), palette=(OBJECT,))[1]


def test_folders_of_other_roots_share_nothing(tmp_path: Path) -> None:
    assert share_images("folder", "folder", tmp_path, tmp_path / "a" / "..")
    assert not share_images("folder", "folder", tmp_path, tmp_path / "a")


def test_a_folder_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "images" / "my fit").mkdir()
    for root in (tmp_path, None):
        for other in ("folder:my fit/", "folder:./my fit", "folder:x/../my fit"):
            assert share_images("folder:my fit", other, root, root)
        assert share_images("folder", "folder:.", root, root)
        assert not share_images("folder:my fit", "folder:my", root, root)
    (tmp_path / "images" / "my").mkdir()
    assert not share_images("folder:my", "folder", tmp_path, tmp_path)
    (tmp_path / "images" / "my" / "z.png").symlink_to(tmp_path / "images" / "a.png")
    assert share_images("folder:my", "folder", tmp_path, tmp_path)
    assert share_images("instances:my", "folder", tmp_path, tmp_path)


def test_open_dataset_reads_any_folder_of_instances(cells: Path) -> None:
    data = open_dataset("instances", cells)
    assert (len(data), data.task, data.channels, data.classes) == (2, "instance", 3, ("object",))


def _describe(root: Path, **document: object) -> None:
    (root / "meta.json").write_text(json.dumps(document))


def test_a_folder_s_meta_json_names_its_classes_colours_and_groups(folder: Path) -> None:
    names = [f"kind {i}" for i in range(11)]
    _describe(folder, classes=names, splits={"all": [{"id": "a", "seq": "one"}, {"id": "b"}]})
    data = open_dataset("folder", folder)
    assert data.classes == tuple(names)
    assert data.palette[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0)), "PASCAL VOC's"
    assert len(set(data.palette)) == 11
    assert [data[i].group for i in range(3)] == ["one", "", ""]
    _describe(folder, classes=names, colors=[[i, 0, 255] for i in range(11)])
    assert open_dataset("folder", folder).palette[2] == (2, 0, 255)
    _describe(folder, classes=names[:1])
    with pytest.raises(DataError, match=r"has labels .*; known are 0\.\.0 and 255"):
        open_dataset("folder", folder)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected {.*or no such file"),
        ("{", "expected {.*or no such file"),
        ('{"classes": "road"}', "at most 255 names"),
        ('{"classes": ["road", "road"]}', "each a different one"),
        ('{"classes": ["road", "car"], "colors": [[0, 0, 0]]}', "for each of the 2 classes"),
        ('{"classes": ["road", "car"], "colors": [[0, 0, 0], [0, 0, 256]]}', "of 0 to 255"),
        ('{"splits": []}', "expected {.*or no such file"),
    ],
)
def test_a_meta_json_that_cannot_be_understood_is_refused_by_name(
    folder: Path, text: str, message: str
) -> None:
    (folder / "meta.json").write_text(text)
    with pytest.raises(DataError, match=r"meta\.json: .*" + message):
        open_dataset("folder", folder)


def test_a_meta_json_that_is_a_link_to_nowhere_is_told_of(folder: Path) -> None:
    """Its classes would be CamVid's."""
    (folder / "meta.json").symlink_to(folder / "annex")
    with pytest.raises(OSError, match=r"meta\.json"):
        open_dataset("folder", folder)


def test_a_nested_meta_json_is_refused_by_name(folder: Path) -> None:
    (folder / "meta.json").write_text('{"notes": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"meta\.json: expected .*recursion"):
        open_dataset("folder", folder)


def test_objects_are_of_the_one_class_that_meta_json_names(cells: Path) -> None:
    _describe(cells, classes=["cell"])
    assert open_dataset("instances", cells).classes == ("cell",)
    _describe(cells, classes=["cell", "debris"])
    with pytest.raises(DataError, match="names 2 classes"):
        open_dataset("instances", cells)

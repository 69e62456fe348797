"""All data are read before the first step: one message for all faults, and what may be behind
them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.data.checks import check
from model_export.data.datasets import DataError, Scenes, open_dataset
from tests.labelled_folders import save_image, write_folder
from tests.toy import Words, command

ROAD = {"classes": ["road", "car"]}


def _many(root: Path, count: int = 14, **meta: object) -> Path:
    """Images of 8 x 12, the left half road (0), the right half car (1)."""
    for index in range(count):
        save_image(root / f"images/{index:02}.png", np.full((8, 12, 3), 9 * index, np.uint8))
        _mask(root, index, 0, 1)
    (root / "meta.json").write_text(json.dumps(meta or ROAD))
    return root


def _mask(root: Path, index: int, left: int, right: int, dtype: type = np.uint8) -> None:
    mask = np.full((8, 12), left, dtype)
    mask[:, 6:] = right
    save_image(root / f"masks/{index:02}.png", mask)


def test_one_message_lists_the_first_ten_faults_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _many(tmp_path)
    for index in range(9):
        _mask(root, index, 0, 7)
    save_image(root / "masks/09.png", np.zeros((8, 11), np.uint8))
    (root / "images/10.png").write_bytes(b"no image")
    (root / "masks/11.png").unlink()
    (root / "masks/11.jpg").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        open_dataset("folder", root)
    lines = str(raised.value).splitlines()
    assert "has 12 faults, the first 10 of them:" in lines[0]
    assert len(lines) == 11
    assert "images/10.png is no readable image" in lines[1]
    assert "masks/00.png has labels [7]; known are 0..1 and 255" in lines[2]
    assert "checking" in capsys.readouterr().err
    (root / "masks/11.jpg").unlink()
    save_image(root / "masks/11.png", np.zeros((8, 12), np.uint8))
    for index in range(1, 11):
        (root / f"images/{index:02}.png").unlink()
    with pytest.raises(DataError, match=r"^\S*masks/00\.png has labels \[7\]"):
        check(open_dataset("folder", root), "--train folder")


def test_training_begins_only_with_sound_data(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _many(tmp_path / "data", 3)
    _mask(root, 2, 0, 9)
    words = ("--train", "folder", "--data", root, "--out", tmp_path / "run")
    assert command(*train_words, *words, "--dev", "folder") == 1
    assert "--dev folder shares images with folder, which the network" in capsys.readouterr().err
    for part in ("images", "masks"):
        shutil.copytree(root / part, root / part / "val")
    assert command(*train_words, *words, "--dev", "folder:val") == 1
    shown = capsys.readouterr().err
    assert "checking --train folder" in shown
    assert "masks/02.png has labels [9]" in shown
    assert not (tmp_path / "run").exists()


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """macOS puts `._a.jpg` beside `a.jpg` on disks of others."""
    root = write_folder(tmp_path)
    for part in ("images", "masks"):
        for name in ("._a.png", ".hidden.png", ".DS_Store"):
            (root / part / name).write_bytes(b"\0\5\x16\7")
    (root / "images" / "more.jpg").mkdir()
    data = open_dataset("folder", root)
    check(data, "folder")
    assert [image.name for image, _ in data.files] == ["a.png", "b.JPG", "c.webp"]


def test_classes_that_never_occur_and_labels_without_an_image_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _many(tmp_path, classes=["road", "car", "bus", "tram"])
    save_image(root / "masks/99.png", np.zeros((8, 12), np.uint8))
    data = open_dataset("folder", root)
    check(data, "--train folder")
    shown = capsys.readouterr().err
    assert "warning: --train folder: no pixel is of bus, tram, in 14 images" in shown
    assert "warning: --train folder: 1 label files have no image, the first one is" in shown
    check(data, "--dev folder", complete=False)
    assert "tram" not in capsys.readouterr().err
    check(Scenes(2), "scenes")
    assert capsys.readouterr().err == ""


def test_masks_of_0_and_255_have_nothing_to_learn(tmp_path: Path) -> None:
    root = _many(tmp_path)
    for index in range(14):
        _mask(root, index, 0, 255)
    with pytest.raises(DataError, match=r"masks: all labels are 0 or 255, and 255 is void.*meta"):
        check(open_dataset("folder", root), "folder")
    classes = {"labels": {"0": "road", "255": "car"}}
    (root / "meta.json").write_text(json.dumps(ROAD | classes))
    data = open_dataset("folder", root)
    check(data, "folder")
    assert np.unique(data[0].mask).tolist() == [0, 1]


def test_masks_that_begin_with_1_are_guessed(tmp_path: Path) -> None:
    root = _many(tmp_path)
    for index in range(14):
        _mask(root, index, 1, 2)
    with pytest.raises(DataError, match=r"has labels \[2\](.|\n)*begin with 1.*{.1.: .road., ..."):
        check(open_dataset("folder", root), "folder")
    (root / "meta.json").write_text(json.dumps({"labels": {"1": "road", "2": "car"}}))
    data = open_dataset("folder", root)
    check(data, "folder")
    assert data.classes == ("road", "car")
    assert data[0].mask[0].tolist() == [0] * 6 + [1] * 6


def test_labels_of_any_values_are_named_in_meta_json(tmp_path: Path) -> None:
    root = _many(tmp_path, 2, classes=["road", "car"], labels={"7": "car", "24000": None})
    _mask(root, 0, 7, 24000, np.uint16)
    _mask(root, 1, 7, 8)
    data = open_dataset("folder", root)
    assert data[0].mask[0].tolist() == [1] * 6 + [255] * 6
    with pytest.raises(DataError, match=r'01\.png has values that "labels" .* not name: 8$'):
        data[1]
    document = {"classes": ["road", "car"], "labels": {"7": "car", "others": "void"}}
    (root / "meta.json").write_text(json.dumps(document))
    assert open_dataset("folder", root)[1].mask[0].tolist() == [1] * 6 + [255] * 6


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA"])
def test_colours_are_labels_whatever_the_order_of_the_palette(tmp_path: Path, mode: str) -> None:
    labels = {"#804080": "road", "#0000ff": "car", "#000000": "void"}
    root = _many(tmp_path, 2, labels=labels)
    shown = np.zeros((8, 12, 3), np.uint8)
    shown[:, :6], shown[:, 6:9] = (128, 64, 128), (0, 0, 255)
    Image.fromarray(shown).convert("RGB").quantize(8).convert(mode).save(root / "masks/00.png")
    data = open_dataset("folder", root)
    assert data[0].mask[0].tolist() == [0] * 6 + [1] * 3 + [255] * 3
    shown[0, 0] = 1, 2, 3
    Image.fromarray(shown).save(root / "masks/01.png")
    with pytest.raises(DataError, match="does not name: #010203"):
        data[1]


def test_colours_without_a_meaning_say_how_to_give_them_one(tmp_path: Path) -> None:
    root = _many(tmp_path, 1)
    save_image(root / "masks/00.png", np.zeros((8, 12, 3), np.uint8))
    with pytest.raises(DataError, match=r"00\.png is uint8 .*can give colours a class"):
        open_dataset("folder", root)[0]
    (root / "meta.json").write_text(json.dumps({"labels": {"0": "road"}}))
    with pytest.raises(DataError, match=r"00\.png has colours"):
        open_dataset("folder", root)[0]


def test_a_mask_of_one_bit_has_the_labels_0_and_1(tmp_path: Path) -> None:
    root = _many(tmp_path, 1)
    save_image(root / "masks/00.png", np.arange(12)[None].repeat(8, 0) > 5)
    assert open_dataset("folder", root)[0].mask[0].tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"names": ["road"]}, "has 'names', which means nothing here; do you mean 'classes'?"),
        ({"clases": ["road"]}, "do you mean 'classes'?"),
        ({"colours": []}, "do you mean 'colors'?"),
        ({"label_map": {}}, "do you mean 'labels'?"),
        ({"split": {}}, "do you mean 'splits'?"),
        ({**ROAD, "ignore_index": 0}, '"labels": {"0": "void", ...}, not by ignore_index'),
        ({**ROAD, "labels": {"1": "raod"}}, "'raod' is no class; do you mean 'road'?"),
        ({**ROAD, "labels": {"x": "road"}}, "it has the key 'x'"),
        ({**ROAD, "labels": {"65536": "road"}}, "it has the key '65536'"),
        ({**ROAD, "labels": {"1": "road", "#000000": "car"}}, "values or colours, not both"),
        ({"classes": ["a\nb"]}, "and one line of text"),
        ({"classes": ["\ud800"]}, "and one line of text"),
        ({"classes": ["\0"]}, "and one line of text"),
        ({**ROAD, "labels": ["road"]}, "must give each value of the masks"),
        ({**ROAD, "labels": {"others": "road"}}, "values or colours"),
    ],
)
def test_a_meta_json_that_means_something_else_is_refused(
    tmp_path: Path, document: dict[str, object], message: str
) -> None:
    root = _many(tmp_path, 1, **document)
    with pytest.raises(DataError, match=r"meta\.json") as raised:
        open_dataset("folder", root)
    assert message in str(raised.value)


def test_notes_of_one_s_own_and_what_data_sets_say_of_themselves_are_let_be(tmp_path: Path) -> None:
    about = {"_by": "me", "license": "CC0", "ignore_index": 255, "size": [8, 12]}
    root = _many(tmp_path, 1, **ROAD, **about)
    (root / "meta.json").write_bytes(b"\xef\xbb\xbf" + (root / "meta.json").read_bytes())
    assert open_dataset("folder", root).classes == ("road", "car")


@pytest.mark.parametrize(
    ("ids", "warning"),
    [
        (lambda index: 0, "there is no object in any image"),
        (lambda index: 255, "no image has more than one object"),
    ],
)
def test_instances_that_tell_no_objects_apart_are_warned_of(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ids: Callable[[int], int],
    warning: str,
) -> None:
    for index in range(2):
        save_image(tmp_path / f"images/{index}.png", np.zeros((8, 12, 3), np.uint8))
        objects = np.zeros((8, 12), np.uint16)
        objects[2:5, 2:5] = ids(index)
        save_image(tmp_path / f"instances/{index}.png", objects)
    check(open_dataset("instances", tmp_path), "--train instances")
    assert f"warning: --train instances: {warning}" in capsys.readouterr().err
    (tmp_path / "meta.json").write_text(json.dumps({"labels": {"255": "cell"}}))
    with pytest.raises(DataError, match=r'"labels" is for masks/'):
        open_dataset("instances", tmp_path)

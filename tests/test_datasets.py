"""Data sets by name: their splits and groups, what they share, generated scenes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.data.datasets import (
    PALETTE,
    CamVid,
    DataError,
    Nuclei,
    Scenes,
    open_dataset,
    share_images,
)
from model_export.data.scenes import CLASSES
from tests.labelled_folders import save_image, write_folder
from tests.needs import data_at


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
    (root / "meta.json").write_text(
        json.dumps({"classes": classes, "colors": colors, "splits": splits})
    )
    for split, entries in splits.items():
        for entry in entries:
            save_image(
                root / "images" / split / f"{entry['id']}.png", np.zeros((4, 6, 3), np.uint8)
            )
            save_image(root / "masks" / split / f"{entry['id']}.png", np.zeros((4, 6), np.uint8))
    return frames


def _names(data: CamVid | Nuclei) -> list[str]:
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
    with pytest.raises(DataError, match=r"0001TP_000030\.\* is missing, the image"):
        CamVid(tmp_path, "train")


@pytest.mark.parametrize("name", ["camvid:train", "nuclei:train"])
@pytest.mark.parametrize("said", [{"classes": ["a"]}, {"splits": {"all": [{"id": "a"}]}}])
def test_a_folder_of_other_data_is_none_of_the_named_sets(
    tmp_path: Path, name: str, said: dict[str, Any]
) -> None:
    (tmp_path / "meta.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match=r"meta\.json is of other data .*expected the folder of"):
        open_dataset(name, tmp_path)


def test_camvid_itself_has_its_counts_and_no_val_image_in_any_other_split() -> None:
    root = data_at("camvid")
    parts = {split: CamVid(root, split) for split in ("train", "gate", "dev", "all", "val")}
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


def test_camvid_s_groups_are_its_sequences(tmp_path: Path) -> None:
    _camvid(tmp_path)
    for split in ("all", "val"):
        data = CamVid(tmp_path, split)
        assert all(data[i].group == data[i].name.partition("_")[0] for i in range(len(data)))
    assert (data.task, data.channels) == ("semantic", 11)


KINDS = {
    ("fluorescence", 4): 90,
    ("fluorescence", 5): 30,
    ("stained", 4): 41,
    ("brightfield", 6): 11,
}


def _nuclei(root: Path) -> None:
    """A folder like that of nuclei, with square images; the size stands behind the kind in
    KINDS."""
    kinds = [key for key, count in KINDS.items() for _ in range(count)]
    names = np.random.default_rng(0).permutation(len(kinds)).tolist()
    rows = [
        {"id": f"{name:03}-{kind[0]}{size}", "size": [size, size], "kind": kind}
        for name, (kind, size) in zip(names, kinds, strict=True)
    ]
    splits = {
        "train": rows,
        "val": [{"id": f"v{i}", "size": [4, 4], "kind": "stained"} for i in range(5)],
    }
    (root / "meta.json").write_text(json.dumps({"classes": ["nucleus"], "splits": splits}))
    for split, part in splits.items():
        for row in part:
            save_image(
                root / "images" / split / f"{row['id']}.png", np.zeros((*row["size"], 3), np.uint8)
            )
            save_image(
                root / "instances" / split / f"{row['id']}.png",
                np.eye(*row["size"], dtype=np.uint16),
            )


def test_nuclei_have_parts_that_do_not_meet_and_share_every_kind_and_size(tmp_path: Path) -> None:
    _nuclei(tmp_path)
    parts = {split: Nuclei(tmp_path, split) for split in ("train", "gate", "dev", "all")}
    names = [name for split in ("train", "gate", "dev") for name in _names(parts[split])]
    assert len(names) == len(set(names)) == sum(KINDS.values())
    assert sorted(names) == sorted(_names(parts["all"]))
    for split, share in (("train", 0.708), ("gate", 0.203), ("dev", 0.089)):
        found = Counter(name.partition("-")[2] for name in _names(parts[split]))
        for (kind, size), count in KINDS.items():
            assert abs(found[f"{kind[0]}{size}"] - share * count) <= 2, (split, kind, size)
    assert _names(Nuclei(tmp_path, "gate")) == _names(parts["gate"])
    assert len(Nuclei(tmp_path, "val")) == 5
    assert not set(_names(Nuclei(tmp_path, "val"))) & set(names)


def test_splits_are_joined_by_a_plus(tmp_path: Path) -> None:
    _nuclei(tmp_path)
    parts = [_names(Nuclei(tmp_path, split)) for split in ("train", "dev")]
    assert _names(open_dataset("nuclei:train+dev", tmp_path)) == parts[0] + parts[1]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train+test", "no split 'test'; choose one of .*'dev'.*, or several, as in train"),
        ("train+", "no split ''"),
        ("all+dev", "splits of 'all.dev' share images"),
        ("train+val", "val is for comparison: use it alone"),
    ],
)
def test_splits_that_cannot_be_joined_are_refused(tmp_path: Path, split: str, message: str) -> None:
    _nuclei(tmp_path)
    with pytest.raises(DataError, match=message):
        Nuclei(tmp_path, split)


@pytest.mark.parametrize(
    ("spec", "other", "shared"),
    [
        ("camvid:dev", "camvid:train+dev", True),
        ("camvid:train+dev", "camvid:train", True),
        ("camvid", "camvid:train", True),
        ("nuclei:gate", "nuclei:all", True),
        ("camvid:gate", "camvid:train+dev", False),
        ("camvid:val", "camvid:all", False),
        ("camvid:train", "nuclei:train", False),
        ("folder", "folder", True),
        ("folder:train", "folder:train", True),
        ("folder:train", "folder:val", False),
        ("scenes:4", "scenes:4:3", False),
        ("scenes:4", "scenes:64:0:0.5", True),
    ],
)
def test_data_sets_share_images_where_a_split_is_in_both(
    spec: str, other: str, shared: bool
) -> None:
    assert share_images(spec, other) == share_images(other, spec) == shared


def test_nuclei_s_parts_do_not_depend_on_the_order_in_the_file(tmp_path: Path) -> None:
    _nuclei(tmp_path)
    before = _names(Nuclei(tmp_path, "gate"))
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["splits"]["train"].reverse()
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert _names(Nuclei(tmp_path, "gate")) == before


def test_nuclei_s_groups_are_kinds_and_its_only_class_is_the_nucleus(tmp_path: Path) -> None:
    _nuclei(tmp_path)
    data = Nuclei(tmp_path, "all")
    assert {data[i].group[0] == data[i].name[4] for i in range(len(data))} == {True}
    assert (data.task, data.channels, data.classes) == ("instance", 3, ("nucleus",))


def test_nuclei_refuse_unknown_split_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no meta\.json; expected .*instances/"):
        Nuclei(tmp_path, "train")
    _nuclei(tmp_path)
    with pytest.raises(
        DataError, match=r"nuclei has no split 'test'.*'train', 'gate', 'dev', 'all', 'val'"
    ):
        Nuclei(tmp_path, "test")
    (tmp_path / "instances" / "val" / "v3.png").unlink()
    with pytest.raises(DataError, match=r"instances/val/v3\.png is missing, the labels"):
        Nuclei(tmp_path, "val")


def test_nuclei_themselves_have_their_counts_and_every_nucleus_has_a_core() -> None:
    root = data_at("nuclei")
    parts = {split: Nuclei(root, split) for split in ("train", "gate", "dev", "all", "val")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 320,
        "gate": 92,
        "dev": 40,
        "all": 452,
        "val": 85,
    }
    assert not set(_names(parts["all"])) & set(_names(parts["val"]))
    for index in range(0, 85, 9):
        sample = parts["val"][index]
        assert sample.instances is not None
        ids = np.unique(sample.instances)
        assert len(ids) > 1
        assert np.array_equal(np.unique(sample.instances[sample.mask == 1]), ids[1:])
        assert sample.group in ("fluorescence", "stained", "brightfield")


def test_scenes_are_a_function_of_seed_and_index_and_cover_the_clutter() -> None:
    data, again, other = (
        Scenes(4, 1, height=60, width=80),
        Scenes(9, 1, height=60, width=80),
        Scenes(4, 2),
    )
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


def test_open_dataset_understands_its_five_kinds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    scenes = open_dataset("scenes:5:7", None)
    assert (len(scenes), scenes[0].name) == (5, "scene-7-0")
    bare = open_dataset("scenes:9:7:0.5", None)
    assert isinstance(bare, Scenes)
    assert (len(bare), bare.seed, bare.bare) == (9, 7, 0.5)
    assert len(open_dataset("folder", folder)) == 3
    assert open_dataset("folder", folder).classes == CLASSES
    for part in ("images", "masks"):
        (folder / part).rename(folder / "val")
        (folder / part).mkdir()
        (folder / "val").rename(folder / part / "val")
    assert len(open_dataset("folder:val", folder)) == 3
    (tmp_path / "camvid").mkdir()
    _camvid(tmp_path / "camvid")
    assert len(open_dataset("camvid:val", tmp_path / "camvid")) == 5
    (tmp_path / "nuclei").mkdir()
    _nuclei(tmp_path / "nuclei")
    assert len(open_dataset("nuclei:val", tmp_path / "nuclei")) == 5
    assert len(open_dataset("nuclei", tmp_path / "nuclei")) == len(
        Nuclei(tmp_path / "nuclei", "train")
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cityscapes", "unknown data set 'cityscapes'; choose"),
        ("folder", "'folder' needs --data FOLDER"),
        ("nuclei:val", "'nuclei:val' needs --data FOLDER"),
        ("instances", "'instances' needs --data FOLDER"),
        ("scenes:many", "scenes:COUNT"),
        ("scenes:0", "positive count"),
        ("scenes:4:x", "scenes:COUNT"),
        ("scenes:4:1:1", "share below 1"),
        ("scenes:4:0.5", "scenes:COUNT"),
    ],
)
def test_open_dataset_refuses_what_it_does_not_know(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(spec, None)

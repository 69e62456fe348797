"""COCO's annotation files as data sets, as people have them: polygons, run lengths, crowds,
panoptic PNGs; and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from model_export.data.checks import check
from model_export.data.coco_masks import region_of
from model_export.data.datasets import DataError, absolute, open_dataset, share_images
from model_export.tasks import VOID
from model_export.tasks.panoptic_quality import match_counts, without_void
from model_export.tasks.segments import VOID_SEGMENT, segment_label
from service import bundle
from tests.labelled_folders import save_image
from tests.toy import command, last_json

HEIGHT, WIDTH = 20, 30
Document = dict[str, Any]
CAT, DOG = {"id": 17, "name": "cat"}, {"id": 18, "name": "dog", "color": [9, 8, 7]}


def _box(x: float, y: float, right: float, bottom: float) -> list[float]:
    return [x, y, right, y, right, bottom, x, bottom]


def _rle(mask: np.ndarray) -> Document:
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [*mask.shape], "counts": runs["counts"].decode()}


def _rows(top: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom] = True
    return mask


def _instances() -> Document:
    """A large cat with a small dog on it, a crowd of cats below, one cat within the crowd; and an
    image without anything."""
    size = {"height": HEIGHT, "width": WIDTH}
    counts = [0, 2, *[18, 2] * (WIDTH - 1), 18]  # the two upper rows, down the columns
    shapes = [
        (17, 0, [_box(0, 2, 12, 12)]),
        (18, 0, [_box(3, 4, 6, 7), _box(20, 4, 24, 8), [1, 1, 2, 2]]),
        (17, 1, _rle(_rows(14, 20))),
        (17, 0, [_box(5, 15, 9, 18)]),
        (18, 0, {"size": [HEIGHT, WIDTH], "counts": counts}),
    ]
    return {
        "images": [
            {"id": 1, "file_name": "one.png", **size},
            {"id": 2, "file_name": "b.png", **size},
        ],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": kind, "iscrowd": crowd, "segmentation": shape}
            for i, (kind, crowd, shape) in enumerate(shapes)
        ],
        "categories": [dict(DOG), dict(CAT)],
    }


def _panoptic() -> Document:
    """Rows of sky, a cat, a crowd of cats, a dog, and some void below."""
    document = _instances()
    segments = [(1000, 3, 0), (70000, 17, 0), (256, 17, 1), (5, 18, 0)]
    document["categories"] = [{"id": 3, "name": "sky", "isthing": 0}, dict(CAT), dict(DOG)]
    document["annotations"] = [
        {
            "image_id": 1,
            "file_name": "one.png",
            "segments_info": [
                {"id": key, "category_id": kind, "iscrowd": crowd} for key, kind, crowd in segments
            ],
        }
    ]
    return document


def _ids() -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint32)
    ids[:4], ids[4:8], ids[8:12], ids[12:16] = 1000, 70000, 256, 5
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def _write(root: Path, document: Document, name: str = "instances_val.json") -> str:
    """Laid out as COCO is. Returns the data set's name."""
    for image in ("one.png", "b.png"):
        save_image(root / "val" / image, np.full((HEIGHT, WIDTH, 3), 77, np.uint8))
    file = root / "annotations" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document))
    if name.startswith("panoptic"):
        save_image(file.with_suffix("") / "one.png", _ids())
    return f"coco:{file}"


def test_instances_become_classes_smaller_ones_on_top_and_crowds_void(tmp_path: Path) -> None:
    data = open_dataset(_write(tmp_path, _instances()), None)
    check(data, "coco")
    assert (data.task, data.classes) == ("semantic", ("background", "cat", "dog"))
    assert data.palette[2] == (9, 8, 7)
    mask = data[0].mask
    assert mask[0].tolist() == [2] * WIDTH
    assert mask[3, :15].tolist() == [1] * 12 + [0] * 3
    assert mask[5, :8].tolist() == [1] * 3 + [2] * 3 + [1] * 2
    assert mask[6, 20:25].tolist() == [2] * 4 + [0]
    assert mask[16, :11].tolist() == [255] * 5 + [1] * 4 + [255] * 2
    assert np.unique(data[1].mask).tolist() == [0], "nothing is annotated there"
    alone = open_dataset(_write(tmp_path, _instances()) + "@semantic:dog", None)
    assert alone.classes == ("background", "dog")
    assert np.unique(alone[0].mask).tolist() == [0, 1], "a crowd of others is background"


def test_accents_may_have_another_form_in_the_file_and_on_disk(tmp_path: Path) -> None:
    document = _instances()
    document["images"][0]["file_name"] = "caf\u00e9.png"
    spec = _write(tmp_path, document)
    (tmp_path / "val" / "one.png").rename(tmp_path / "val" / "cafe\u0301.png")
    assert len(open_dataset(spec, None)) == 2


def test_objects_of_one_class_are_told_apart_and_a_crowd_counts_nowhere(tmp_path: Path) -> None:
    spec = _write(tmp_path, _instances())
    data = open_dataset(f"{spec}@instance:cat", None)
    assert (data.task, data.classes, data.channels) == ("instance", ("cat",), 3)
    sample = data[0]
    assert sample.instances is not None
    assert np.unique(sample.instances).tolist() == [0, 1, 2]
    assert (sample.instances[5, :12] == 1).all(), "the dog is another class"
    assert sample.instances[16, 6] == 2
    assert np.unique(sample.mask[14:15]).tolist() == [255]
    assert region_of({"segmentation": [[1, 1, 2, 2]]}, (3, 4)).area == 0
    assert sample.mask[16, 7] in (1, 2)
    with pytest.raises(DataError, match=r"has 2 categories .*cat, dog.*instance:cat"):
        open_dataset(f"{spec}@instance", None)
    document = _instances()
    document["categories"] = [CAT]
    document["annotations"] = [a for a in document["annotations"] if a["category_id"] == 17]
    assert open_dataset(_write(tmp_path, document), None).task == "instance", "it has one class"


def test_panoptic_segments_become_classes_or_objects(tmp_path: Path) -> None:
    spec = _write(tmp_path, _panoptic(), "panoptic_val.json")
    data = open_dataset(spec, None)
    check(data, "coco")
    assert (data.task, data.classes, len(data)) == ("semantic", ("sky", "cat", "dog"), 1)
    assert data[0].mask[::4, 0].tolist() == [0, 1, 255, 2, 255]
    some = open_dataset(f"{spec}@semantic:dog", None)
    assert some.classes == ("background", "dog")
    assert some[0].mask[::4, 0].tolist() == [0, 0, 0, 1, 255]
    cats = open_dataset(f"{spec}@instance:cat", None)[0]
    assert cats.instances is not None
    assert cats.instances[::4, 0].tolist() == [0, 1, 0, 0, 0]
    assert (cats.mask[9, 0], cats.mask[17, 0], cats.mask[13, 0]) == (255, 255, 0)


def test_segments_keep_their_classes(tmp_path: Path) -> None:
    spec = _write(tmp_path, _panoptic(), "panoptic_val.json")
    data = open_dataset(f"{spec}@panoptic", None)
    check(data, "coco")
    assert (data.task, data.classes, data.channels) == ("panoptic", ("sky", "cat", "dog"), 3)
    truth = data[0].truth
    assert truth.dtype == np.uint32
    rows = [segment_label(0, 2), segment_label(1, 3), VOID_SEGMENT, segment_label(2, 1)]
    assert truth[::4, 0].tolist() == [*rows, VOID_SEGMENT]
    assert data[0].mask[::4, 0].tolist() == [0, 1, VOID, 2, VOID]
    things = open_dataset(f"{spec}@instance", None, segments=True)
    assert (things.task, things.classes) == ("instance", ("cat", "dog"))
    rows = [0, segment_label(0, 2), VOID_SEGMENT, segment_label(1, 1), VOID_SEGMENT]
    assert things[0].truth[::4, 0].tolist() == rows
    drawn = open_dataset(_write(tmp_path, _instances()), None, segments=True)
    assert (drawn.task, drawn.classes) == ("instance", ("cat", "dog"))
    found = {*np.unique(drawn[0].truth).tolist()} - {0, VOID_SEGMENT}
    assert sorted(value >> 16 for value in found) == [0, 0, 1, 1]
    assert sorted(value & 0xFFFF for value in found) == [1, 2, 3, 4]
    with pytest.raises(DataError, match="no segments_info"):
        open_dataset(f"{_write(tmp_path, _instances())}@panoptic", None)


def test_gray_panoptic_pngs_have_their_ids_as_values(tmp_path: Path) -> None:
    document = _panoptic()
    for entry, key in zip(document["annotations"][0]["segments_info"], (1, 2, 3, 4), strict=True):
        entry["id"] = key
    spec = _write(tmp_path, document, "panoptic_val.json")
    gray = np.repeat(np.uint8([1, 2, 3, 4, 0]), 4)[:, None].repeat(WIDTH, 1)
    save_image(tmp_path / "annotations/panoptic_val/one.png", gray)
    assert open_dataset(spec, None)[0].mask[::4, 0].tolist() == [0, 1, 255, 2, 255]


def test_images_are_found_beside_the_annotations_or_by_data(tmp_path: Path) -> None:
    spec = _write(tmp_path, _instances())
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError) as raised:
        open_dataset(spec, None)
    assert "has 2 faults" in str(raised.value)
    assert "one.png of" in str(raised.value)
    assert "by --data" in str(raised.value)
    assert len(open_dataset(spec, tmp_path / "elsewhere")) == 2
    document = _instances()
    document["images"][0]["file_name"] = "C:\\photos\\one.png"
    document["images"][1]["file_name"] = "elsewhere/b.png"
    assert len(open_dataset(_write(tmp_path, document), tmp_path)) == 2
    named = f"coco:{Path('annotations') / 'instances_val.json'}"
    assert len(open_dataset(named, tmp_path)) == 2, "the annotations, too, may lie in --data"
    assert absolute(f"{named}@semantic", tmp_path).startswith(f"coco:{tmp_path}")
    assert absolute("folder:a", tmp_path) == "folder:a"


def test_the_same_annotations_are_the_same_images(tmp_path: Path) -> None:
    spec = _write(tmp_path, _instances())
    assert share_images(spec, f"{spec}@instance:cat")
    assert not share_images(spec, spec.replace("val", "train"))
    assert not share_images(spec, "folder")


def test_other_annotations_of_the_same_files_are_the_same_images(tmp_path: Path) -> None:
    document = _instances()
    first, second = document["images"]
    spec = _write(tmp_path, document | {"images": [first]})
    others = _write(tmp_path, document | {"images": [second]}, "others_val.json")
    both = _write(tmp_path, document, "both_val.json")
    assert not share_images(spec, others)
    assert share_images(spec, both)
    assert share_images(both, others)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x").symlink_to(tmp_path / "val")
    assert share_images(spec, "folder:x", tmp_path, tmp_path)


def _change(**changes: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["annotations"][0] |= changes

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(segmentation=[]), "annotation 0 has no segmentation"),
        (_change(segmentation=[[1, 2, 3]]), "a polygon that is no list of x, y"),
        (_change(segmentation=[[1, 2, 3, "4", 5, 6]]), "coordinates that are no numbers"),
        (_change(segmentation=[[1, 2, 3, 1e9, 5, 6]]), "coordinates that are no numbers"),
        (
            _change(segmentation={"size": [30, 20], "counts": [600]}),
            r"of the size \[30, 20\], its image is of \[20, 30\]",
        ),
        (_change(segmentation={"size": [20, 30], "counts": [5, 6]}), "do not add up"),
        (_change(segmentation={"size": [20, 30], "counts": [-1, 601]}), "do not add up"),
        (_change(segmentation={"size": [20, 30], "counts": "0000oooo"}), "do not add up"),
        (_change(segmentation={"size": [20, 30], "counts": "é"}), "do not add up"),
        (_change(segmentation={"size": [20, 30]}), "without counts"),
        (_change(category_id=99), "category_id 99 is none of the categories"),
        (_change(image_id=7), r"annotations are of images \[7\], which it lacks"),
        (_change(image_id=[]), "one of annotations has no image_id"),
        (lambda d: d["images"][0].update(height=21), "in .* it is 30 x 21"),
        (lambda d: d["images"][0].update(height=30, width=20), "turned as its EXIF says"),
        (lambda d: d["images"][0].pop("width"), "image 1 needs file_name, and height and width as"),
        (lambda d: d.pop("categories"), 'it needs "categories"'),
        (lambda d: d["categories"].append(CAT), "needs an id and a name of its own"),
        (lambda d: d["categories"].append({"id": 1, "name": "cat"}), "several categories"),
        (lambda d: d.update(images=[]), "which it lacks"),
        (_change(iscrowd="0"), "iscrowd must be 0 or 1, not '0'"),
        (_change(iscrowd=2), "iscrowd must be 0 or 1, not 2"),
        (lambda d: d["images"][1].update(id=1), "two images have the id 1"),
        (
            lambda d: d["images"][1].update(file_name="one.png"),
            r"images 1 and 2 are both .*one\.png",
        ),
        (lambda d: d["images"][1].update(file_name="x/one.png"), r"images 1 and 2 are both .*one"),
        (lambda d: d["categories"][1].update(isthing="0"), "category 17: isthing must be 0 or 1"),
        (
            lambda d: d["categories"][1].update(name="\ud800"),
            "category 17: its name .* must be one",
        ),
        (lambda d: d["categories"][1].update(name="a\nb"), "category 17: its name .* must be one"),
        (lambda d: d["categories"][1].update(color=[300, -1, 2.5]), "category 17: color must be"),
        (lambda d: d["categories"][1].update(color=["x", None, {}]), "category 17: color must be"),
    ],
)
def test_annotations_that_cannot_be_read_are_refused_by_file(
    tmp_path: Path, change: Callable[[Document], object], message: str
) -> None:
    document = _instances()
    change(document)
    spec = _write(tmp_path, document)
    with pytest.raises(DataError, match=f"(?s){message}") as raised:
        check(open_dataset(spec, None), "coco")
    assert "instances_val.json" in str(raised.value)


def test_a_colour_as_text_is_not_needed(tmp_path: Path) -> None:
    document = _instances()
    document["categories"][1]["color"] = "#ff0000"
    document["annotations"][0]["iscrowd"] = True
    data = open_dataset(_write(tmp_path, document), None)
    assert data.palette == ((0, 0, 0), (128, 0, 0), (9, 8, 7))


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"iscrowd": "0"}, "iscrowd must be 0 or 1"),
        ({"id": 70000}, "segments_info has an id twice"),
        ({"id": -1}, "image one.png"),
    ],
)
def test_segments_that_contradict_are_refused(
    tmp_path: Path, segment: Document, message: str
) -> None:
    document = _panoptic()
    document["annotations"][0]["segments_info"][3] |= segment
    with pytest.raises(DataError, match=message):
        open_dataset(_write(tmp_path, document, "panoptic_val.json"), None)[0]


def test_a_panoptic_image_has_one_annotation(tmp_path: Path) -> None:
    document = _panoptic()
    document["annotations"] *= 2
    with pytest.raises(DataError, match="image 1 has 2 panoptic annotations, not one"):
        open_dataset(_write(tmp_path, document, "panoptic_val.json"), None)


def test_panoptic_pngs_must_fit_their_segments(tmp_path: Path) -> None:
    document = _panoptic()
    document["annotations"][0]["segments_info"].pop()
    spec = _write(tmp_path, document, "panoptic_val.json")
    with pytest.raises(DataError, match=r"one\.png: its PNG has the ids \[5\]"):
        open_dataset(spec, None)[0]
    png = tmp_path / "annotations/panoptic_val/one.png"
    Image.open(png).crop((0, 0, 30, 10)).save(png)
    with pytest.raises(DataError, match="is 30 x 10 pixels"):
        open_dataset(spec, None)[0]
    png.unlink()
    with pytest.raises(DataError, match=r"one\.png of .* is missing; it is expected in"):
        open_dataset(spec, None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coco:", "unknown data set 'coco:'; it is coco:PATH.json"),
        ("coco:a.json@depth", "unknown data set"),
        ("coco:nowhere.json", "nowhere.json is no readable JSON"),
    ],
)
def test_names_that_are_no_annotations_are_refused(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(spec, None)


def test_categories_are_chosen_by_name(tmp_path: Path) -> None:
    spec = _write(tmp_path, _instances())
    with pytest.raises(DataError, match=r"has no category 'bird'; it has cat, dog"):
        open_dataset(f"{spec}@semantic:bird", None)
    assert open_dataset(f"{spec}@semantic: cat , dog", None).classes == ("background", "cat", "dog")
    document = _instances()
    for category in document["categories"]:
        category["name"] = category["name"].replace("cat", "cat, black")
    spec = _write(tmp_path, document)
    names = ("background", "cat, black", "dog")
    assert open_dataset(f"{spec}@semantic:cat, black,dog", None).classes == names
    assert open_dataset(f"{spec}@instance:cat, black", None).classes == names[1:2]


def test_crowds_alone_are_nothing_to_learn_from(tmp_path: Path) -> None:
    document = _instances()
    for entry in document["annotations"]:
        entry["iscrowd"] = 1
    spec = f"{_write(tmp_path, document)}@semantic:cat"
    with pytest.raises(DataError) as raised:
        check(open_dataset(spec, None), f"--train {spec}")
    assert str(raised.value) == (
        f"--train {spec}: every pixel is of 'background' or void, so that there is nothing to learn"
    )


@pytest.mark.timeout(900)  # it may wait for the export
def test_a_bundle_is_measured_on_annotations_of_its_classes(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _instances()
    names = [entry.name for entry in bundle.load(toy_bundle).manifest.head.classes]
    document["categories"] = [{"id": 1 + i, "name": name} for i, name in enumerate(names)]
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0] = 1 + np.arange(HEIGHT)[:, None] // 2
    segments = [{"id": 1 + i, "category_id": 1 + i, "iscrowd": 0} for i in range(11)]
    document["annotations"] = [
        {"image_id": image, "file_name": "one.png", "segments_info": segments} for image in (1, 2)
    ]
    spec = _write(tmp_path, document, "panoptic_val.json")
    save_image(tmp_path / "annotations/panoptic_val/one.png", pixels)
    words = ("evaluate", toy_bundle, "--threads", "1", "--draws", "9")
    assert command(*words, "--on", spec) == 0
    result = last_json(capsys.readouterr().out)
    assert (result["data"], result["images"]) == (spec, 2)
    assert command(*words, "--on", _write(tmp_path, _instances())) == 1
    assert "has other classes than the bundle: 3 (background, cat" in capsys.readouterr().err
    assert command(*words, "--on", spec, "--below", "val") == 1
    assert "--below is for a folder" in capsys.readouterr().err
    assert command(*words, "--on", "scenes:3") == 1
    assert "or --on coco:PATH.json" in capsys.readouterr().err


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = rng.random((37, 53)) < share
        region = region_of({"segmentation": _rle(mask)}, (37, 53))
        assert np.array_equal(region.pixels(), mask)


def test_predictions_in_void_count_nowhere() -> None:
    predicted = np.zeros((6, 12), np.uint16)
    predicted[:, :4], predicted[:, 5:8], predicted[:, 9:] = 1, 2, 3
    void = np.zeros((6, 12), bool)
    void[:, 3:7] = True
    judged = without_void(predicted, void)
    assert judged[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 3, 3, 3]
    truth = np.where(void | (predicted == 2), 0, predicted)
    assert match_counts(judged, truth).tolist() == [2, 2, 0, 0]
    assert without_void(predicted, np.zeros_like(void)) is predicted

"""The forms of an answer that other tools read, over HTTP and from the bundles that ship."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.api.forms import FORMS
from service.segmenting import open_bundle
from tests.api.server import Server, labels
from tests.pictures import encoded, quarters

ROOT = Path(__file__).resolve().parents[2]
PANOPTIC, GEOJSON = "application/vnd.coco.panoptic+json", "application/geo+json"
OVERLAY, NPZ = "image/png;profile=overlay", "application/x-npz"
BINARY = {"type": "string", "format": "binary"}
Ids = NDArray[np.integer]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode


def rings(width: int = 64, height: int = 48) -> bytes:
    """A bright frame with a hole, and a bright block in the hole: two objects."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 12 : -height // 12, width // 16 : -width // 16] = 250
    pixels[height * 3 // 12 : -height * 3 // 12, width * 4 // 16 : -width * 4 // 16] = 0
    pixels[height * 5 // 12 : -height * 5 // 12, width * 6 // 16 : -width * 6 // 16] = 250
    return encoded(Image.fromarray(pixels))


def asked(server: Server, picture: bytes, media_type: str) -> bytes:
    response = server.post(picture, {"Accept": media_type})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert "mask;dur=" in response.headers["server-timing"]
    assert response.headers["compute-used"]
    return response.content


def ids_of(png: bytes) -> Ids:
    """As panopticapi.utils.rgb2id reads them."""
    color = np.array(Image.open(io.BytesIO(png)), dtype=np.uint32)
    assert color.ndim == 3
    return color[:, :, 0] + 256 * color[:, :, 1] + 256 * 256 * color[:, :, 2]


def drawn(geometry: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres lie inside a GeoJSON geometry, by the rule of even and odd."""
    several = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
    inside = np.zeros(shape, np.bool_)
    for part in several[geometry["type"]]:
        for ring in part:
            for (x, y), (to_x, to_y) in pairwise(ring):
                if x == to_x:
                    inside[min(y, to_y) : max(y, to_y), x:] ^= True
    return inside


@pytest.mark.parametrize("size", [(64, 48), (100, 75), (31, 77)])
@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_panoptic_is_read_as_panopticapi_does(
    server: Server, instance_server: Server, kind: str, size: tuple[int, int]
) -> None:
    service = {"semantic": server, "instance": instance_server}[kind]
    picture = rings(*size)
    plain = service.post(picture).json()
    answer = json.loads(asked(service, picture, PANOPTIC))
    ids = ids_of(base64.b64decode(answer["png"]))
    assert ids.shape == size[::-1]
    categories = {category["id"]: category for category in answer["categories"]}
    left = set(np.unique(ids).tolist()) - {0}
    for segment in answer["segments_info"]:
        left.remove(segment["id"])
        inside = ids == segment["id"]
        assert segment["area"] == inside.sum()
        y, x = np.nonzero(inside)
        assert segment["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert segment["category_id"] in categories
        assert segment["iscrowd"] == 0
    assert not left
    for segment in plain["segments"]:
        inside = coco.decode(segment["rle"]).astype(bool)
        assert (ids[inside] == segment["id"]).all()
        assert categories[segment["class_id"]]["name"] == segment["label"]
    assert all(category["isthing"] in (0, 1) for category in categories.values())
    for key in ("image", "task", "usage"):
        assert answer[key] == plain[key]


@pytest.mark.parametrize("size", [(64, 48), (100, 75), (31, 77)])
@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_geojson_has_a_feature_per_segment_with_its_parts_and_holes(
    server: Server, instance_server: Server, kind: str, size: tuple[int, int]
) -> None:
    service = {"semantic": server, "instance": instance_server}[kind]
    picture = rings(*size)
    plain = service.post(picture).json()
    answer = json.loads(asked(service, picture, GEOJSON))
    assert answer["type"] == "FeatureCollection"
    for key in ("image", "task", "usage"):
        assert answer[key] == plain[key]
    assert len(answer["features"]) == len(plain["segments"]) > 0
    for feature, segment in zip(answer["features"], plain["segments"], strict=True):
        keys = ("id", "class_id", "label", "score", "area")
        assert feature["type"] == "Feature"
        assert feature["properties"] == {key: segment[key] for key in keys}
        assert feature["id"] == segment["id"]
        inside = coco.decode(segment["rle"]).astype(bool)
        assert np.array_equal(drawn(feature["geometry"], inside.shape), inside)


def test_an_object_with_a_hole_has_two_rings(instance_server: Server) -> None:
    pixels = np.zeros((192, 256, 3), np.uint8)
    pixels[16:-16, 16:-16], pixels[80:-80, 112:-112] = 250, 0
    answer = json.loads(asked(instance_server, encoded(Image.fromarray(pixels)), GEOJSON))
    (feature,) = answer["features"]
    assert feature["geometry"]["type"] == "Polygon"
    outline, hole = feature["geometry"]["coordinates"]
    assert outline[0] == outline[-1]
    assert hole[0] == hole[-1]


def test_an_image_without_objects_has_no_features_and_an_empty_panoptic(
    instance_server: Server,
) -> None:
    black = encoded(Image.new("RGB", (64, 48)))
    assert json.loads(asked(instance_server, black, GEOJSON))["features"] == []
    answer = json.loads(asked(instance_server, black, PANOPTIC))
    assert answer["segments_info"] == []
    assert not ids_of(base64.b64decode(answer["png"])).any()
    overlay = Image.open(io.BytesIO(asked(instance_server, black, OVERLAY)))
    assert overlay.convert("RGBA").getchannel("A").getextrema() == (0, 0)


def test_the_overlay_has_the_classes_colours_half_transparent(server: Server) -> None:
    picture = quarters(80, 60)
    colors = [entry["color"] for entry in server.http.get("/plans").json()["classes"]]
    overlay = Image.open(io.BytesIO(asked(server, picture, OVERLAY))).convert("RGBA")
    classes = labels(server.post(picture, {"Accept": "image/png"}))
    expected = np.array([[*color, 128] for color in colors], np.uint8)[classes]
    assert np.array_equal(np.asarray(overlay), expected)


def test_the_overlay_gives_objects_their_own_colours_and_leaves_the_rest_clear(
    instance_server: Server,
) -> None:
    picture = rings(128, 96)
    file = io.BytesIO(asked(instance_server, picture, OVERLAY))
    overlay = np.asarray(Image.open(file).convert("RGBA"))
    ids = np.asarray(
        Image.open(io.BytesIO(instance_server.post(picture, {"Accept": "image/png"}).content))
    )
    assert set(overlay[ids == 0][:, 3].tolist()) == {0}
    seen = [np.unique(overlay[ids == k], axis=0).tolist() for k in (1, 2)]
    assert [len(colors) for colors in seen] == [1, 1]
    assert seen[0] != seen[1]
    assert seen[0][0][3] == seen[1][0][3] == 128


@pytest.mark.parametrize("size", [(64, 48), (200, 60), (31, 77)])
def test_the_probabilities_can_be_placed_as_documented(
    server: Server, size: tuple[int, int]
) -> None:
    picture = quarters(*size)
    archive = np.load(io.BytesIO(asked(server, picture, NPZ)), allow_pickle=False)
    planes = archive["probabilities"]
    assert planes.dtype == np.float32
    names = [entry["name"] for entry in server.http.get("/plans").json()["classes"]]
    assert archive["channels"].tolist() == names
    assert archive["image_size"].tolist() == [size[1], size[0]]
    taken = []
    for axis in (0, 1):
        pixels, scaled, canvas = (
            int(archive[f"{name}_size"][axis]) for name in ("image", "scaled", "canvas")
        )
        cell = (np.arange(pixels) + 0.5) * scaled / pixels * planes.shape[1 + axis] / canvas - 0.5
        last = max(1, int(scaled / canvas * planes.shape[1 + axis] + 0.5)) - 1
        taken.append(cell.round().astype(int).clip(0, last))
    nearest = planes[:, taken[0]][:, :, taken[1]].argmax(axis=0)
    found = labels(server.post(picture, {"Accept": "image/png"}))
    assert (nearest == found).mean() > 0.97  # between cells, the nearest one is an approximation


def test_the_probabilities_of_objects_name_core_and_border(instance_server: Server) -> None:
    archive = np.load(io.BytesIO(asked(instance_server, rings(), NPZ)), allow_pickle=False)
    assert archive["channels"].tolist() == ["background", "nucleus core", "nucleus border"]
    assert archive["probabilities"].shape[0] == 3
    assert archive["probabilities"].sum(axis=0) == pytest.approx(1, abs=1e-5)


def test_only_json_takes_include(server: Server) -> None:
    for form in FORMS[1:]:
        query = {"include": "paused"}
        response = server.post(quarters(), {"Accept": form.media_type}, params=query)
        assert response.status_code == 400
        assert form.media_type in response.json()["detail"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_openapi_describes_every_form_and_what_it_refers_to(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    content = document["paths"]["/segment"]["post"]["responses"]["200"]["content"]
    for form in FORMS:
        schema = content[form.media_type]["schema"]
        name = form.model.__name__ if form.model else ""
        assert schema == ({"$ref": f"#/components/schemas/{name}"} if name else BINARY)
    parts = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} <= set(parts)
    checks = jsonschema.Draft202012Validator
    for media_type in (PANOPTIC, GEOJSON, "application/json"):
        answer = json.loads(asked(server, quarters(), media_type))
        checks({**content[media_type]["schema"], "components": {"schemas": parts}}).validate(answer)


def test_the_reference_lists_every_form() -> None:
    reference = (ROOT / "docs/reference.md").read_text("utf-8")
    assert [form.media_type for form in FORMS if f"| `{form.media_type}` |" not in reference] == []


@pytest.mark.parametrize("bundle", ["camvid-tiny", "nuclei-tiny"])
def test_every_form_of_a_bundle_that_ships_says_the_same(bundle: str) -> None:
    with open_bundle(ROOT / "trained_weights" / bundle, threads=1) as segmenter:
        answer = segmenter.segment((ROOT / "docs/scene-cluttered.jpg").read_bytes(), depth=1)
    names = [answer.name]
    bodies = {form.media_type: form.render(answer, names, set()).body for form in FORMS}
    assert len(answer.segments) > 1
    masks = {segment.id: answer.mask(segment) for segment in answer.segments}
    panoptic = json.loads(bodies[PANOPTIC])
    ids = ids_of(base64.b64decode(panoptic["png"]))
    for feature in json.loads(bodies[GEOJSON])["features"]:
        inside = masks[feature["id"]]
        assert np.array_equal(drawn(feature["geometry"], inside.shape), inside)
        assert np.array_equal(ids == feature["id"], inside)
    for segment in json.loads(bodies["application/json"])["segments"]:
        assert np.array_equal(coco.decode(segment["rle"]).astype(bool), masks[segment["id"]])
    assert np.load(io.BytesIO(bodies[NPZ]))["probabilities"].shape == answer.probabilities.shape
    overlay = np.asarray(Image.open(io.BytesIO(bodies[OVERLAY])).convert("RGBA"))
    assert np.array_equal(overlay[..., 3] > 0, np.any(list(masks.values()), axis=0))

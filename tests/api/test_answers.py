"""Over real HTTP, on the fake backend: what an answer holds."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from service.api.fields import parse_value_range
from service.bundle import Manifest
from tests.api.server import Server, corners, labels, running
from tests.pictures import encoded, quarters

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools.mask.decode


def test_json_is_the_default_and_holds_what_is_documented(server: Server) -> None:
    response = server.post(quarters(), {"Compute-Budget": "depth=2", "X-Request-Id": "my-id.1"})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["image"] == {
        "width": 64,
        "height": 48,
        "orientation_applied": False,
        "damaged": False,
        "hint": None,
    }
    assert answer["task"] == "semantic"
    assert [segment["label"] for segment in answer["segments"]] == [
        "Road",
        "Building",
        "Car",
        "Sky",
    ]
    assert sum(segment["area"] for segment in answer["segments"]) == 64 * 48
    usage = answer["usage"]
    assert (usage["plan"], usage["depth"], usage["of"], usage["gflops"], usage["reason"]) == (
        "d2",
        2,
        4,
        3.0,
        "request",
    )
    assert 0 <= usage["predicted_quality"] <= 1
    assert set(answer["timing_ms"]) == {"decode", "queue", "front", "encoder", "decoder", "mask"}
    assert response.headers["compute-used"] == "depth=2, of=4, gflops=3.0, reason=request"
    assert response.headers["x-request-id"] == "my-id.1"
    assert response.headers["vary"] == "Accept, Compute-Budget, Task-Preference, Value-Range"
    stages = re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    assert {name: float(ms) for name, ms in stages} == answer["timing_ms"]


def blobs(width: int = 64, height: int = 48) -> bytes:
    """Two bright rectangles on black; between them a sixteenth of the width."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 6 : height // 2, width // 8 : width // 2 - width // 32] = 250
    pixels[height // 6 : -height // 6, width // 2 + width // 32 : -width // 8] = 250
    return encoded(Image.fromarray(pixels))


@pytest.mark.parametrize("size", [(64, 48), (200, 60), (320, 240)])
def test_an_instance_bundle_answers_one_segment_per_object_and_their_ids_in_16_bits(
    instance_server: Server, size: tuple[int, int]
) -> None:
    answer = instance_server.post(blobs(*size)).json()
    assert answer["task"] == "instance"
    assert [segment["id"] for segment in answer["segments"]] == [1, 2]
    assert {(segment["class_id"], segment["label"]) for segment in answer["segments"]} == {
        (0, "nucleus")
    }
    assert all(0 < segment["score"] <= 1 for segment in answer["segments"])
    response = instance_server.post(blobs(*size), {"Accept": "image/png"})
    image = Image.open(io.BytesIO(response.content))
    assert (image.mode, image.size) == ("I;16", size)
    ids = np.asarray(image)
    assert np.unique(ids).tolist() == [0, 1, 2]
    for segment in answer["segments"]:
        inside = ids == segment["id"]
        assert (coco.decode(segment["rle"]).astype(bool) == inside).all()
        assert segment["area"] == inside.sum()
        y, x = np.nonzero(inside)
        assert segment["box"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def test_an_image_without_objects_has_no_segments(instance_server: Server) -> None:
    black = encoded(Image.new("RGB", (64, 48)))
    assert instance_server.post(black).json()["segments"] == []
    image = Image.open(io.BytesIO(instance_server.post(black, {"Accept": "image/png"}).content))
    assert (image.mode, image.getextrema()) == ("I;16", (0, 0))


def test_paused_tokens_are_told_to_those_who_ask_where_the_plan_paused_any(
    instance_server: Server,
) -> None:
    paused = instance_server.post(
        blobs(), {"Compute-Budget": "gflops=4, max-loss=0"}, params={"include": "paused"}
    )
    assert (
        paused.headers["compute-used"]
        == "depth=4, of=4, keep=0.25, width=0.5, gflops=4.0, reason=request"
    )
    found = paused.json()["paused"]
    mask = coco.decode(found["rle"]).astype(bool)
    assert mask.shape == (48, 64)
    assert found["share"] == mask.mean() == 0.75
    assert mask[:8].all()  # the darkest
    full = instance_server.post(
        blobs(), {"Compute-Budget": "max-loss=0"}, params={"include": "paused"}
    )
    assert full.json()["paused"] is None
    assert "paused" not in instance_server.post(blobs()).json()


@pytest.mark.parametrize("size", [(64, 48), (100, 30), (31, 77)])
def test_png_has_the_images_own_size_and_the_rle_of_the_json_is_the_same_mask(
    server: Server, size: tuple[int, int]
) -> None:
    found = labels(server.post(quarters(*size), {"Accept": "image/png"}))
    assert found.shape == (size[1], size[0])
    assert corners(found) == [[0, 1], [2, 3]]
    drawn = np.full(found.shape, 255)
    for segment in server.post(quarters(*size)).json()["segments"]:
        drawn[coco.decode(segment["rle"]).astype(bool)] = segment["class_id"]
    assert (drawn == found).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_taken_raw_and_as_the_file_of_a_form(
    server: Server, kind: str
) -> None:
    content_type, data = f"image/{kind.lower()}", quarters(kind=kind, quality=95)
    raw = server.post(data, {"Content-Type": content_type, "Accept": "image/png"})
    form = server.http.post(
        "/segment", files={"file": ("x", data, content_type)}, headers={"Accept": "image/png"}
    )
    assert corners(labels(raw)) == [[0, 1], [2, 3]]
    assert (labels(raw) == labels(form)).all()


SHOWN = {
    1: [[0, 1], [2, 3]],
    2: [[1, 0], [3, 2]],
    3: [[3, 2], [1, 0]],
    4: [[2, 3], [0, 1]],
    5: [[0, 2], [1, 3]],
    6: [[2, 0], [3, 1]],
    7: [[3, 1], [2, 0]],
    8: [[1, 3], [0, 2]],
}


@pytest.mark.parametrize("orientation", SHOWN)
def test_masks_lie_on_the_image_as_shown_for_every_exif_orientation(
    server: Server, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = quarters(kind="JPEG", quality=95, exif=exif.tobytes())
    found = labels(server.post(data, {"Content-Type": "image/jpeg", "Accept": "image/png"}))
    assert corners(found) == SHOWN[orientation]
    answer = server.post(data, {"Content-Type": "image/jpeg"}).json()
    width, height = (48, 64) if orientation >= 5 else (64, 48)
    assert answer["image"] == {
        "width": width,
        "height": height,
        "orientation_applied": orientation != 1,
        "damaged": False,
        "hint": None,
    }
    assert found.shape == (height, width)


def test_requests_at_the_same_time_each_get_their_own_budget(fake_manifest: Manifest) -> None:
    def depth(url: str, wanted: int) -> str:
        response = httpx.post(
            f"{url}/segment",
            content=quarters(),
            headers={"Content-Type": "image/png", "Compute-Budget": f"depth={wanted}, max-loss=0"},
            timeout=20,
        )
        return str(response.headers["compute-used"])

    wanted = [1, 2, 3, 4] * 6
    # With so many places, eight images are no load.
    with running(fake_manifest, queue_size=1000) as server, ThreadPoolExecutor(8) as pool:
        used = list(pool.map(partial(depth, server.url), wanted))
    expected = {
        depth: f"depth={depth}, of=4, gflops={depth + 1}.0, reason=request" for depth in (1, 2, 3)
    }
    expected[4] = "depth=4, of=4, gflops=5.0, reason=gate"
    assert used == [expected[depth] for depth in wanted]


def test_lines_of_the_budget_are_joined(server: Server) -> None:
    fields = [
        ("Content-Type", "image/png"),
        ("Compute-Budget", "depth=3"),
        ("Compute-Budget", "gflops=2.5"),
    ]
    response = server.http.post("/segment", content=quarters(), headers=fields)
    assert response.headers["compute-used"].startswith("depth=1,")


def test_the_page_the_docs_and_the_files_that_they_name_are_served(server: Server) -> None:
    for path in ("/", "/docs"):
        page = server.http.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        for name in re.findall(r"(?:src|href)=\"(static/[^\"]+)\"", page.text):
            assert server.http.get(f"/{name}").status_code == 200, name


def test_every_answer_is_counted_by_its_outcome(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        server.post(quarters(), {"Compute-Budget": "depth=2"})
        server.post(b"no image")
        server.post(quarters(), {"Accept": "x/y"})
        text = server.http.get("/metrics").text
    for outcome in ("ok", "undecodable-image", "not-acceptable"):
        assert f'fathom_requests_total{{outcome="{outcome}"}} 1.0' in text
    assert 'fathom_exit_depth_layers_bucket{canvas="c64",le="2.0",reason="request"} 1.0' in text
    assert 'fathom_stage_duration_seconds_count{stage="mask"} 1.0' in text


def test_plans_are_priced_in_milliseconds_once_the_engine_is_warm(server: Server) -> None:
    assert all(plan["ms"] > 0 for plan in json.loads(server.http.get("/plans").text)["plans"])


def narrow() -> bytes:
    return encoded(Image.fromarray(np.linspace(0, 4095, 48 * 64).astype(np.uint16).reshape(48, 64)))


def test_a_narrow_range_is_hinted_at_and_auto_scales_it(server: Server) -> None:
    hint = server.post(narrow()).json()["image"]["hint"]
    assert "Value-Range: auto" in hint
    answer = server.post(narrow(), {"Value-Range": "auto"}).json()
    assert answer["image"]["hint"] is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "full"),
        (["", " \t"], "full"),
        (["", "full"], "full"),
        (["AUTO"], "auto"),
        (["auto", "auto"], "auto"),
        (["auto, auto"], "auto"),  # as a proxy joins them
        (["auto,", " , auto"], "auto"),
    ],
)
def test_lines_of_value_range_may_be_empty_or_repeated(lines: list[str], expected: str) -> None:
    assert parse_value_range(lines) == expected


@pytest.mark.parametrize("value", ["percentile", "auto auto", "auto, full", "1"])
def test_another_value_range_is_400_and_named(server: Server, value: str) -> None:
    response = server.post(quarters(), {"Value-Range": value})
    assert response.status_code == 400
    assert response.json()["header"] == "Value-Range"


def test_a_damaged_image_is_answered_and_said(server: Server) -> None:
    data = quarters(480, 360)
    answer = server.post(data[: len(data) * 2 // 3])
    assert answer.status_code == 200
    assert answer.json()["image"]["damaged"] is True

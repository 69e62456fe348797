"""Over real HTTP, on the fake backend: what is told of the canvas that an image was seen on, where
a bundle has several."""

from __future__ import annotations

import base64
import json
from typing import Any

import http_sf
import pytest

from tests.api.server import Server, corners, labels
from tests.pictures import quarters

# Budget -> plan, GFLOPs and reason.
ASKED = {
    "gflops=1.5, max-loss=0": ("c32-d1", 1.5, "request"),
    "gflops=2.5, max-loss=0": ("c64-d1", 2.5, "request"),
    "max-loss=0": ("c64-d4", 5.5, "gate"),
}
# Canvas and size of the image -> the shape that it gets: height and width.
LANDSCAPE, PORTRAIT = (96, 72), (36, 48)
FITTING = {
    ("c32", LANDSCAPE): (24, 32),
    ("c32", PORTRAIT): (24, 32),
    ("c64", LANDSCAPE): (48, 64),
    ("c64", PORTRAIT): (64, 48),
}


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT])
@pytest.mark.parametrize("budget", ASKED)
def test_an_answer_tells_the_canvas_and_the_shape_that_its_image_got(
    canvases_server: Server, budget: str, size: tuple[int, int]
) -> None:
    plan, gflops, reason = ASKED[budget]
    canvas, depth = plan.split("-d")
    response = canvases_server.post(quarters(*size), {"Compute-Budget": budget})
    height, width = FITTING[canvas, size]
    usage = response.json()["usage"]
    assert list(usage)[:2] == ["plan", "canvas"]
    assert (usage["plan"], usage["gflops"], usage["reason"]) == (plan, gflops, reason)
    assert usage["canvas"] == {"name": canvas, "height": height, "width": width}
    used = f"canvas={canvas}, depth={depth}, of=4, gflops={gflops}, reason={reason}"
    assert response.headers["compute-used"] == used
    fields = dict(http_sf.parse(used.encode(), tltype="dictionary"))
    assert isinstance(fields["canvas"][0], http_sf.Token)


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT])
@pytest.mark.parametrize("budget", ASKED)
def test_masks_lie_on_the_image_whatever_the_canvas_and_its_shape(
    canvases_server: Server, budget: str, size: tuple[int, int]
) -> None:
    headers = {"Compute-Budget": budget, "Accept": "image/png"}
    found = labels(canvases_server.post(quarters(*size), headers))
    assert found.shape == size[::-1]
    assert corners(found) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("form", ["application/vnd.coco.panoptic+json", "application/geo+json"])
def test_other_forms_in_json_tell_the_same_usage(canvases_server: Server, form: str) -> None:
    plain = canvases_server.post(quarters()).json()["usage"]
    assert canvases_server.post(quarters(), {"Accept": form}).json()["usage"] == plain


def test_an_answer_tells_the_canvas_also_where_there_is_only_one(server: Server) -> None:
    response = server.post(quarters(100, 50))
    assert response.json()["usage"]["canvas"] == {"name": "c64", "height": 48, "width": 64}
    assert response.headers["compute-used"].startswith("depth=")


def test_plans_name_their_canvas_and_the_canvases_have_their_shapes(
    canvases_server: Server, server: Server
) -> None:
    found = canvases_server.http.get("/plans").json()
    assert {plan["name"]: plan["canvas"] for plan in found["plans"]} == {
        "c32-d1": "c32",
        "c64-d1": "c64",
        "c64-d4": "c64",
    }
    small, large, tall = ({"height": h, "width": w} for h, w in ((24, 32), (48, 64), (64, 48)))
    assert found["canvases"] == [
        {"name": "c32", "shapes": [small], "tiles": None},
        {"name": "c64", "shapes": [large, tall], "tiles": None},
    ]
    assert found["glance"] == "c32"
    single = server.http.get("/plans").json()
    assert (single["canvases"], single["glance"]) == (
        [{"name": "c64", "shapes": [large], "tiles": None}],
        "c64",
    )


def test_stages_have_a_glance_where_the_plan_has_a_larger_canvas(canvases_server: Server) -> None:
    for budget, stages in (
        ("gflops=1.5", ["decode", "queue", "front", "encoder", "decoder", "mask"]),
        ("max-loss=0", ["decode", "queue", "glance", "front", "encoder", "decoder", "mask"]),
    ):
        response = canvases_server.post(quarters(), {"Compute-Budget": budget})
        assert list(response.json()["timing_ms"]) == stages
        told = response.headers["server-timing"].split(", ")
        assert [entry.partition(";")[0] for entry in told] == stages


def infer(server: Server, data: list[bytes], **parameters: Any) -> dict[str, Any]:
    encoded = [base64.b64encode(each).decode() for each in data]
    image = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": encoded}
    outputs = [{"name": "segments"}]
    sent = {"inputs": [image], "outputs": outputs, "parameters": parameters}
    response = server.http.post("/v2/models/fake/infer", json=sent)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["parameters"]
    return found


def test_the_inference_protocol_tells_the_canvas_of_each_image(canvases_server: Server) -> None:
    found = infer(canvases_server, [quarters(*LANDSCAPE)], max_loss=0)
    assert (found["plan"], found["canvas"]) == ("c64-d4", "c64")
    (usage,) = json.loads(found["usage"])
    assert usage["canvas"] == {"name": "c64", "height": 48, "width": 64}
    both = infer(canvases_server, [quarters(*LANDSCAPE), quarters(*PORTRAIT)], max_loss=0)
    assert "canvas" not in both
    shapes = [entry["canvas"] for entry in json.loads(both["usage"])]
    assert [(shape["height"], shape["width"]) for shape in shapes] == [(48, 64), (64, 48)]


def test_inference_statistics_count_the_glance_as_inference(canvases_server: Server) -> None:
    def ns() -> int:
        (found,) = canvases_server.http.get("/v2/models/stats").json()["model_stats"]
        return int(found["inference_stats"]["compute_infer"]["ns"])

    def engine_s() -> float:
        name = "fathom_stage_duration_seconds_sum"
        stages = ("glance", "front", "encoder", "decoder")
        return sum(canvases_server.value(name, stage=stage) for stage in stages)

    canvases_server.post(quarters(), {"Compute-Budget": "max-loss=0"})
    assert canvases_server.value("fathom_stage_duration_seconds_sum", stage="glance") > 0
    assert ns() == pytest.approx(engine_s() * 1e9, rel=1e-6)


def test_images_are_counted_by_canvas(canvases_server: Server) -> None:
    def count(canvas: str, reason: str) -> float:
        name = "fathom_exit_depth_layers_count"
        return canvases_server.value(name, canvas=canvas, reason=reason)

    series = [(canvas, reason) for canvas in ("c32", "c64") for reason in ("gate", "request")]
    before = [count(*each) for each in series]
    for budget in ASKED:
        canvases_server.post(quarters(), {"Compute-Budget": budget})
    after = [count(*each) for each in series]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 1, 1, 1]

"""Over real HTTP, with a real bundle whose largest canvas is tiled, beside one with a canvas as
large that is not: objects, ceilings, max-loss, /plans and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.bundle import load
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.settings import Settings
from tests.api.server import labels
from tests.live_app import live_app
from tests.pictures import encoded
from tests.small_bundle import CELL
from tests.tiled_bundle import PLAIN, PLANS, WHOLE, write_tiled_bundle

AS_LARGE = tuple((name.replace("t", "c"), *rest) for name, *rest in PLANS)


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    opened = load(folder)

    def open_backend() -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(opened, threads=1)

    settings = Settings(target_ms=60_000)
    with (
        live_app(opened.manifest, open_backend, settings) as app,
        httpx.Client(base_url=app.url, timeout=20) as http,
    ):
        yield http


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(write_tiled_bundle(tmp_path_factory.mktemp("tiled") / "tiles")) as http:
        yield http


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("whole") / "whole"
    with served(write_tiled_bundle(folder, (PLAIN, WHOLE), AS_LARGE)) as http:
        yield http


def nuclei(rows: int, columns: int) -> bytes:
    """A PNG of so many cells: a long object over all tiles' borders, one in the middle, where four
    tiles meet, and one in a corner, each a core in a border of one cell."""
    kinds = np.zeros((rows, columns), np.intp)  # red, green and blue: background, core, border
    middle = (rows // 2 - 3, rows // 2 + 3, columns // 2 - 3, columns // 2 + 3)
    for top, bottom, left, right in ((2, 6, 1, columns - 1), middle, (rows - 5, rows - 1, 1, 5)):
        kinds[top:bottom, left:right] = 2
        kinds[top + 1 : bottom - 1, left + 1 : right - 1] = 1
    colours = np.eye(3, dtype=np.uint8)[kinds] * 255
    return encoded(Image.fromarray(colours.repeat(CELL, 0).repeat(CELL, 1)))


LARGE = {"square": nuclei(24, 24), "landscape": nuclei(24, 40)}
SMALL = nuclei(16, 16)


def segment(http: httpx.Client, image: bytes, budget: str, accept: str = "application/json") -> Any:
    headers = {"Content-Type": "image/png", "Compute-Budget": budget, "Accept": accept}
    response = http.post("/segment", content=image, headers=headers)
    assert response.status_code == 200, response.text
    return response


def usage(http: httpx.Client, image: bytes, budget: str) -> dict[str, Any]:
    found: dict[str, Any] = segment(http, image, budget).json()["usage"]
    return found


@pytest.mark.parametrize("image", LARGE)
def test_objects_are_whole_across_the_borders_of_tiles(
    tiled: httpx.Client, whole: httpx.Client, image: str
) -> None:
    """As on a canvas as large: none is cut in two, none is counted twice."""
    answers = [segment(http, LARGE[image], "max-loss=0").json() for http in (tiled, whole)]
    assert [answer["usage"]["plan"] for answer in answers] == ["t96-d2", "c96-d2"]
    assert len(answers[0]["segments"]) == 3
    assert answers[0]["segments"] == answers[1]["segments"]
    maps = [
        labels(segment(http, LARGE[image], "max-loss=0", "image/png")) for http in (tiled, whole)
    ]
    assert np.array_equal(*maps)


def test_the_tiled_canvas_is_told_as_any_other(tiled: httpx.Client) -> None:
    response = segment(tiled, LARGE["landscape"], "max-loss=0")
    told = response.json()["usage"]
    assert told["canvas"] == {"name": "t96", "height": 96, "width": 160}
    used = "canvas=t96, depth=2, of=2, gflops=24.0, reason=gate"
    assert response.headers["compute-used"] == used
    assert list(response.json()["timing_ms"])[2:6] == ["glance", "front", "encoder", "decoder"]
    metrics = tiled.get("/metrics").text
    assert 'fathom_exit_depth_layers_count{canvas="t96",reason="gate"}' in metrics
    body = {
        "inputs": [
            {"name": "pixels", "datatype": "UINT8", "shape": [1, 100, 100, 3], "data": [0] * 30000}
        ],
        "parameters": {"max_loss": 0},
        "outputs": [{"name": "segments"}],
    }
    answer = tiled.post("/v2/models/tiles/infer", content=json.dumps(body)).json()
    assert answer["parameters"]["canvas"] == "t96"


@pytest.mark.parametrize(
    ("budget", "large", "small"),
    [
        ("max-loss=0", "t96-d2", "c64-d2"),
        ("gflops=23.9, max-loss=0", "c64-d2", "c64-d2"),
        ("gflops=5.9, max-loss=0", "t96-d1", "c64-d1"),
        ("gflops=4.9, max-loss=0", "c64-d1", "c64-d1"),
        ("depth=1, max-loss=0", "t96-d1", "c64-d1"),
        # Against the image's own full plan: 0.90 - 0.75, and 0.80 - 0.70.
        ("max-loss=0.15", "t96-d1", "c64-d1"),
        ("max-loss=0.01", "t96-d2", "c64-d2"),
        ("max-loss=0.15, strict", "t96-d1", "c64-d1"),
    ],
)
def test_only_larger_images_take_tiled_plans(
    tiled: httpx.Client, budget: str, large: str, small: str
) -> None:
    assert usage(tiled, LARGE["square"], budget)["plan"] == large
    assert usage(tiled, SMALL, budget)["plan"] == small


def test_a_strict_request_is_refused_by_the_plans_of_its_image(tiled: httpx.Client) -> None:
    """Under 20 GFLOPs the full plan of a small image is in reach, and that of a large one is
    not."""
    budget = "gflops=20, max-loss=0, strict"
    assert usage(tiled, SMALL, budget)["plan"] == "c64-d2"
    headers = {"Content-Type": "image/png", "Compute-Budget": budget}
    response = tiled.post("/segment", content=LARGE["square"], headers=headers)
    assert response.status_code == 422
    assert response.json()["cheapest"] == {"plan": "t96-d2", "depth": 2, "gflops": 24.0}


def test_plans_tell_which_are_tiled_and_into_what(tiled: httpx.Client) -> None:
    found = tiled.get("/plans").json()
    assert [(plan["name"], plan["tiled"]) for plan in found["plans"]] == [
        (name, name.startswith("t")) for name, *_ in PLANS
    ]
    assert [canvas["tiles"] for canvas in found["canvases"]] == [
        None,
        {"of": "c64", "rows": 2, "columns": 2, "overlap": 32},
    ]
    assert found["canvases"][1]["shapes"] == [
        {"height": 96, "width": 96},
        {"height": 96, "width": 160},
    ]
    assert all(plan["ms"] > 0 for plan in found["plans"])

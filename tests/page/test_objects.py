"""The page of an instance bundle: objects, and areas that a plan paused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco

from tests.page.visits import CONTRAST, Visit, answer, set_limit
from tests.pictures import encoded, flat

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
]


def blobs(height: int = 72, width: int = 96) -> bytes:
    """Three bright squares on black, row by row: two above, one below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for top, left in ((6, 12), (6, 54), (42, 54)):
        pixels[top : top + 24, left : left + 30] = 250
    return encoded(Image.fromarray(pixels))


def ids_of(found: dict[str, Any]) -> NDArray[np.int64]:
    """Object per pixel, (height, width); 0 where there is none."""
    ids = np.zeros((found["image"]["height"], found["image"]["width"]), np.int64)
    for segment in found["segments"]:
        ids[coco.decode(segment["rle"]) > 0] = segment["id"]
    return ids


def test_each_object_has_a_colour_of_its_own_that_is_opaque_along_its_outline(
    objects: Visit,
) -> None:
    objects.open(blobs())
    objects.segmented()
    overlay, ids = objects.pixels("#overlay").astype(int), ids_of(answer(objects.url, blobs()))
    assert np.unique(ids).tolist() == [0, 1, 2, 3]
    alpha = overlay[..., 3]
    assert np.array_equal(alpha > 0, ids > 0)
    padded = np.pad(ids, 1, mode="edge")
    around = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    edge = (ids > 0) & np.any([each != ids for each in around], axis=0)
    assert np.array_equal(alpha == 255, edge)
    colors = [np.unique(overlay[edge & (ids == k), :3], axis=0) for k in (1, 2, 3)]
    assert [len(each) for each in colors] == [1, 1, 1]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(colors[a] - colors[b]).max() > 80


def test_objects_are_counted_and_the_probe_tells_an_objects_number_and_score(
    objects: Visit,
) -> None:
    page = objects.page
    expect(page.locator("#bundle")).to_have_text("fake · instance · 1 class · 4 plans")
    objects.open(blobs())
    objects.segmented()
    found = answer(objects.url, blobs())
    expect(page.locator("#legend-title")).to_have_text("Objects")
    expect(page.locator("#legend-facts")).to_have_text("3 found")
    share = sum(segment["area"] for segment in found["segments"]) / (72 * 96)
    count, _, shown = (page.locator("#legend li").text_content() or "").partition(" · ")
    assert count == "nucleus3"
    assert float(shown.removesuffix(" %")) == pytest.approx(100 * share, abs=0.051)
    expect(page.locator("#absent")).to_have_text("")
    last = found["segments"][-1]
    x, y, width, height = last["box"]
    box = page.locator("#frame").bounding_box()
    assert box is not None
    page.mouse.move(
        box["x"] + (x + width / 2) / 96 * box["width"],
        box["y"] + (y + height / 2) / 72 * box["height"],
    )
    expect(page.locator("#probe")).to_have_text(f"nucleus {last['id']}{last['score']:.2f}")
    page.mouse.move(box["x"] + 3, box["y"] + box["height"] - 3)
    expect(page.locator("#probe")).to_have_text("background")


def test_an_image_without_objects_says_so(objects: Visit) -> None:
    objects.open(flat((0, 0, 0), 80, 60))
    expect(objects.page.locator("#legend-facts")).to_have_text("0 found")
    expect(objects.page.locator("#absent")).to_have_text("Not found: nucleus.")
    assert not objects.pixels("#overlay").any()


def test_plans_show_their_depth_and_the_knobs_that_are_not_full(objects: Visit) -> None:
    page = objects.page
    expect(page.locator("#gauge tbody th")).to_have_text(["1", "2", "4k25 w50", "4"])
    expect(page.locator("#knobs")).to_be_visible()
    objects.open(blobs())
    objects.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(4)
    expect(page.locator(".card .sounding")).to_have_text(["1", "2", "4k25 w50", "4"])
    for card, gflops in zip(page.locator(".card .numbers").all(), (2, 3, 4, 5), strict=True):
        expect(card).to_contain_text(f"{gflops}.00 GFLOPs")
        expect(card).to_contain_text("3 objects")
        expect(card).not_to_contain_text("ran")  # the plan that was asked for
    page.locator(".card").nth(2).click()
    expect(page.locator("#depth-taken")).to_have_text("depth 4 of 4k25 w50request")
    expect(page.locator("#gauge tr[aria-current]")).to_have_attribute("data-plan", "d4-k25-w50")


def test_paused_areas_can_be_shown_where_the_plan_paused_any(objects: Visit) -> None:
    page, switch, hatched = (
        objects.page,
        objects.page.locator("#paused-switch"),
        objects.page.locator("#paused"),
    )
    expect(switch).to_be_hidden()
    expect(page.locator("#curl")).to_contain_text("/segment?include=paused'")
    with page.expect_response("**/segment*") as got:
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": blobs()})
    objects.segmented()
    assert "keep=0.25" in got.value.headers["compute-used"]
    paused = json.loads(got.value.body())["paused"]
    expect(page.locator("#paused-share")).to_have_text(f"{100 * paused['share']:.1f} %")
    expect(hatched).to_be_hidden()
    page.get_by_label("paused areas").check()
    expect(hatched).to_be_visible()
    assert np.array_equal(objects.pixels("#paused")[..., 3] > 0, coco.decode(paused["rle"]) > 0)
    assert page.locator("#photo").bounding_box() == hatched.bounding_box()
    set_limit(page, "max-loss", "Home")  # the full plan pauses nothing
    expect(page.locator("#gauge tr[aria-current]")).to_have_attribute("data-plan", "d4")
    expect(switch).to_be_hidden()
    expect(hatched).to_be_hidden()
    page.locator(".limit[data-key=max-loss] input[type=checkbox]").uncheck()
    expect(hatched).to_be_visible()  # as chosen before


def test_nothing_of_an_instance_page_is_wider_than_the_window_and_all_text_has_contrast(
    objects: Visit,
) -> None:
    page = objects.page
    objects.open(blobs())
    objects.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(4)
    page.locator(".card").nth(2).click()
    for width in (320, 360, 700, 1120):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        name = page.locator("#legend .name")
        assert name.evaluate("node => node.scrollWidth <= node.clientWidth"), "it is cut"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found: Sequence[tuple[str, float]] = page.eval_on_selector_all("body *", CONTRAST)
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []

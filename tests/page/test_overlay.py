"""What the page shows of an answer: masks, legend, probe, figures, in every orientation."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco

from service.bundle import Manifest
from tests.page.visits import DEPTHS, Visit, answer, classes_of, painted, picture
from tests.pictures import encoded, flat

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
]


def test_run_lengths_decode_as_the_reference_decodes_them(visit: Visit) -> None:
    random = np.random.default_rng(5)
    masks = [random.random((17, 23)) < share for share in (0.0, 0.02, 0.5, 0.98, 1.0)]
    # Runs of more than one digit, both signs.
    blocks = np.kron(random.random((3, 5)) < 0.5, np.ones((70, 40)))
    for mask in (*masks, blocks > 0):
        encoded = coco.encode(np.asfortranarray(mask, np.uint8))
        rle = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        flat = visit.page.evaluate(
            """async (rle) => {
                const { paintRle } = await import("/static/rle.js");
                const map = new Uint8Array(rle.size[0] * rle.size[1]);
                paintRle(rle, map, 7);
                return btoa(String.fromCharCode(...map));
            }""",
            rle,
        )
        found = np.frombuffer(base64.b64decode(flat), np.uint8).reshape(mask.shape, order="F")
        assert np.array_equal(found, mask * 7)


def test_run_lengths_that_do_not_fit_the_image_are_refused(visit: Visit) -> None:
    # Too few, too many, cut off, no digit, negative.
    wrong = [
        "",
        "0",
        "3",
        "5",
        "4~",
        "l",
        "d",
        "\x7f",
        "4O",
    ]
    said = visit.page.evaluate(
        """async (all) => {
            const { paintRle } = await import("/static/rle.js");
            return all.map((counts) => {
                try { paintRle({ size: [2, 2], counts }, new Uint8Array(4), 1); return "accepted"; }
                catch (error) { return error.name; }
            });
        }""",
        [*wrong, "4"],
    )
    assert said == ["RangeError"] * len(wrong) + ["accepted"]


def test_the_overlay_shows_every_pixel_of_the_answer_in_its_class_colour(
    visit: Visit, fake_manifest: Manifest
) -> None:
    visit.open(picture())
    visit.segmented()
    expected = classes_of(answer(visit.url, picture()))
    assert sorted(np.unique(expected)) == [0, 1, 2, 3]
    assert np.array_equal(visit.pixels("#overlay"), painted(expected, fake_manifest))
    photo, overlay = (visit.page.locator(which).bounding_box() for which in ("#photo", "#overlay"))
    assert photo == overlay
    assert visit.budgets() == [None]


def test_the_legend_lists_the_classes_with_their_share_and_singles_one_out(
    visit: Visit, fake_manifest: Manifest
) -> None:
    key = visit.page.locator("#legend li")
    # Before: what the bundle tells apart.
    expect(key).to_have_text(["Road", "Building", "Car", "Sky"])
    visit.open(picture())
    visit.segmented()
    found = {
        segment["label"]: segment["area"] for segment in answer(visit.url, picture())["segments"]
    }
    by_area = sorted(found, key=lambda name: -found[name])
    expect(key).to_have_text([f"{name}{100 * found[name] / (96 * 72):.1f} %" for name in by_area])
    visit.page.get_by_role("button", name="Car").click()
    expect(visit.page.get_by_role("button", name="Car")).to_have_attribute("aria-pressed", "true")
    alpha = visit.pixels("#overlay")[..., 3]
    assert np.array_equal(alpha == 255, classes_of(answer(visit.url, picture())) == 2)


def test_a_class_that_was_not_found_is_named_as_such(visit: Visit) -> None:
    visit.open(flat((250, 250, 250), 80, 60))
    visit.segmented()
    # A gate that sees nothing to gain stops early, and there the fake engine calls a column Road.
    expect(visit.page.locator("#absent")).to_have_text("Not found: Building, Car.")
    expect(visit.page.locator("#why")).to_contain_text("would gain too little")
    expect(visit.page.locator("#depth-taken")).to_have_text("depth 1 of 4gate")


def test_figures_and_stage_times_are_those_of_the_answer(visit: Visit) -> None:
    page = visit.page
    with page.expect_response("**/segment") as got:
        page.set_input_files(
            "#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()}
        )
    visit.segmented()
    found = json.loads(got.value.body())
    expect(page.locator("#gflops")).to_have_text(f"{found['usage']['gflops']:.2f}")
    expect(page.locator("#quality")).to_have_text(f"{found['usage']['predicted_quality']:.3f}")
    expect(page.locator("#stage-list li span")).to_have_text(list(found["timing_ms"]))
    shown = [float(text) for text in page.locator("#stage-list li b").all_text_contents()]
    assert shown == pytest.approx(list(found["timing_ms"].values()), rel=0.06, abs=0.001)
    widths = page.eval_on_selector_all(
        "#stages i", "(all) => all.map((one) => one.getBoundingClientRect().width)"
    )
    assert int(np.argmax(widths)) == int(np.argmax(list(found["timing_ms"].values())))


def test_the_probe_names_the_class_under_the_pointer_and_follows_the_arrow_keys(
    visit: Visit,
) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    score = {
        segment["label"]: f"{segment['score']:.2f}"
        for segment in answer(visit.url, picture())["segments"]
    }
    box = page.locator("#frame").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    expect(page.locator("#probe")).to_have_text(f"Building{score['Building']}")
    page.mouse.move(2, 2)
    expect(page.locator("#probe")).to_be_hidden()
    for _ in range(5):
        page.locator("#frame").press("Shift+ArrowDown")
    expect(page.locator("#probe")).to_have_text(f"Sky{score['Sky']}")
    for _ in range(4):
        page.locator("#frame").press("Shift+ArrowLeft")
    expect(page.locator("#probe")).to_have_text(f"Car{score['Car']}")


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(96, 64, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))


@pytest.mark.parametrize(("kind", "mime"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_masks_lie_where_the_browser_shows_the_photo_in_every_orientation(
    visit: Visit, fake_manifest: Manifest, kind: str, mime: str
) -> None:
    for orientation in range(1, 9):
        visit.open(turned(kind, orientation), f"photo.{kind.lower()}", mime)
        visit.segmented()
        photo, overlay = visit.pixels("#photo"), visit.pixels("#overlay")
        assert photo.shape == overlay.shape
        assert photo.shape[:2] == ((64, 96) if orientation < 5 else (96, 64))
        height, width, _ = photo.shape
        for y in (height // 4, height * 3 // 4):
            for x in (width // 4, width * 3 // 4):
                shown = fake_manifest.head.classes[int(photo[y, x, 0]) * 4 // 256]
                assert tuple(overlay[y, x, :3]) == shown.color
        expect(visit.page.locator("#notes")).to_be_empty()


def test_a_photo_that_the_browser_may_not_have_turned_is_pointed_out(visit: Visit) -> None:
    for orientation in (3, 6):
        visit.open(turned("WEBP", orientation), "photo.webp", "image/webp")
        visit.segmented()
        expect(visit.page.locator("#notes")).to_contain_text("masks are in the wrong place")


def test_a_narrow_range_and_damage_are_said_and_the_range_can_be_scaled(visit: Visit) -> None:
    page, notes = visit.page, visit.page.locator("#notes")
    dim = np.asarray(Image.open(io.BytesIO(picture())).convert("L")).astype(np.uint16) * 16
    file = encoded(Image.fromarray(dim))
    visit.open(file)
    expect(notes).to_contain_text("Value-Range: auto")
    dark = visit.pixels("#overlay")
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    with page.expect_response("**/segment") as got:
        page.get_by_label("scale 16-bit values").check()
    assert got.value.request.headers["value-range"] == "auto"
    expect(page.locator("#header-sent")).to_contain_text("Value-Range: auto")
    expect(page.locator("#curl")).to_contain_text("-H 'Value-Range: auto'")
    expect(page.locator(".card")).to_have_count(0)  # they show the values as they were
    expect(page.locator("#legend button")).to_have_count(4)
    assert not np.array_equal(visit.pixels("#overlay"), dark)
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    sent = [request.headers.get("value-range") for request in visit.requests[-DEPTHS:]]
    assert sent == ["auto"] * DEPTHS
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise))
    visit.open(whole[: len(whole) // 2], "cut.png")
    expect(notes).to_contain_text("Pixels of this file are missing or wrong")
    visit.open(picture())
    expect(notes).to_be_empty()

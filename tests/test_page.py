"""The page at /, in a real browser, on the real app with the fake backend."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import ConsoleMessage, Error, Page, Request, Route, expect
from pycocotools import mask as coco

from service.api.app import create_app
from service.bundle import Manifest
from service.core import Plan
from service.engines.base import Features
from service.engines.fake import FakeBackend, FakeFeatures
from service.inference.engine import Scheduler
from service.metrics import Metrics
from service.settings import Settings
from tests.browser import chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
]
LEVELS = (0, 96, 160, 250)  # brightness of the four quarters: classes 0 to 3 of the fake backend
DEPTHS = 4


class Shallow(FakeBackend):
    """The shallower the plan, the more columns at the left are wrong: by one channel, one column
    per missing layer."""

    gate = threading.Event()  # closed, the engine stands still

    def front(self, images: NDArray[np.uint8]) -> tuple[FakeFeatures, NDArray[np.float32]]:
        assert self.gate.wait(20)
        return super().front(images)

    def decode(self, features: Features) -> NDArray[np.float32]:
        probabilities = super().decode(features)
        assert isinstance(features, FakeFeatures)
        assert isinstance(features.plan, Plan)
        wrong = DEPTHS - features.plan.depth
        probabilities[..., :wrong] = np.roll(probabilities[..., :wrong], 1, axis=1)
        return probabilities


@contextmanager
def serving(manifest: Manifest, **changes: Any) -> Iterator[str]:
    """The service's address. Every plan takes 5 ms a layer, so that deadlines and prices differ.
    changes: settings."""
    Shallow.gate.set()
    settings = Settings(max_body_bytes=100_000, **changes)
    metrics = Metrics(layers=manifest.layers, max_batch=settings.max_batch)
    delays = {plan.name: plan.depth * 0.005 for plan in manifest.plans}
    engine = Shallow if manifest.task == "semantic" else FakeBackend
    scheduler = Scheduler(lambda: engine(manifest, delay_s=delays), manifest, settings, metrics)
    app = create_app(settings, manifest, scheduler, metrics)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            end = time.monotonic() + 10
            while httpx.get(f"{url}/readyz").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    """One tab for all tests: a fresh one costs more than most of them."""
    expect.set_options(
        timeout=10_000
    )  # the machine may be busy; what holds at once still passes at once
    with chromium() as browser:
        page = browser.new_page(reduced_motion="reduce")
        page.set_default_timeout(10_000)
        yield page


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, Any]]:
    """The module's services by task, each started by its first test: manifests come from fixtures
    of narrower scope."""
    with ExitStack() as stack:
        yield {"stack": stack}


class Visit:
    """A page that was opened. refused: how many answers of the service are expected to be
    errors."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url, self.refused = page, url, 0
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self._listeners = {"request": self._asked, "pageerror": self._threw, "console": self._said}
        for event, listener in self._listeners.items():
            page.on(event, listener)  # type: ignore[call-overload]

    def _asked(self, request: Request) -> None:
        self.requests.append(request)

    def _threw(self, error: Error) -> None:
        self.complaints.append(str(error))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def end(self) -> None:
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)

    def open(self, data: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
        """Choose a file and wait until the service has answered."""
        with self.page.expect_response("**/segment*"):
            self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})

    def segmented(self) -> None:
        expect(self.page.locator("#legend button").first).to_be_visible()

    def budgets(self) -> list[str | None]:
        """Compute-Budget of every image that was sent so far."""
        return [
            request.headers.get("compute-budget")
            for request in self.requests
            if request.method == "POST"
        ]

    def pixels(self, selector: str) -> NDArray[np.uint8]:
        """What a canvas or image shows: (height, width, 4) uint8 RGBA."""
        png = self.page.eval_on_selector(
            selector,
            """(shown) => {
                const canvas = document.createElement("canvas");
                canvas.width = shown.naturalWidth ?? shown.width;
                canvas.height = shown.naturalHeight ?? shown.height;
                canvas.getContext("2d").drawImage(shown, 0, 0);
                return canvas.toDataURL("image/png").split(",")[1];
            }""",
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"))


@pytest.fixture
def visit(tab: Page, services: dict[str, Any], fake_manifest: Manifest) -> Iterator[Visit]:
    """The page, ready."""
    with visiting(tab, services, fake_manifest) as started:
        yield started


@pytest.fixture
def objects(tab: Page, services: dict[str, Any], instance_manifest: Manifest) -> Iterator[Visit]:
    """The page of an instance bundle, one plan of which pauses tokens."""
    with visiting(tab, services, instance_manifest) as started:
        yield started


@contextmanager
def visiting(tab: Page, services: dict[str, Any], manifest: Manifest) -> Iterator[Visit]:
    """The page of the task's service, ready."""
    if manifest.task not in services:
        services[manifest.task] = services["stack"].enter_context(serving(manifest))
    with opened(tab, services[manifest.task]) as started:
        expect(started.page.locator("html")).to_have_attribute("data-ready", "yes")
        yield started


@contextmanager
def opened(tab: Page, url: str) -> Iterator[Visit]:
    """Afterwards: nothing was asked of another host, nothing complained, only /segment got data."""
    tab.set_viewport_size({"width": 1280, "height": 860})
    tab.emulate_media(color_scheme="light")
    started = Visit(tab, url)
    tab.goto(started.url)
    yield started
    Shallow.gate.set()
    tab.unroute_all()
    tab.goto("about:blank")
    started.end()
    hosts = {
        request.url.split("/", 3)[2]
        for request in started.requests
        if request.url.startswith("http")
    }
    assert hosts == {started.url.removeprefix("http://")}
    posted = {
        request.url.partition("?")[0] for request in started.requests if request.method != "GET"
    }
    assert posted <= {f"{started.url}/segment"}
    refusals = [text for text in started.complaints if text.startswith("Failed to load resource")]
    assert len(refusals) == started.refused
    assert [text for text in started.complaints if text not in refusals] == []


def picture(width: int = 96, height: int = 72, kind: str = "PNG", **options: Any) -> bytes:
    """Four quarters of different brightness, row by row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, width // 2 :] = LEVELS[1]
    pixels[height // 2 :, : width // 2] = LEVELS[2]
    pixels[height // 2 :, width // 2 :] = LEVELS[3]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def answer(url: str, data: bytes, budget: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "image/png"} | ({"Compute-Budget": budget} if budget else {})
    response = httpx.post(f"{url}/segment", content=data, headers=headers)
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def classes_of(found: dict[str, Any]) -> NDArray[np.int64]:
    """Class per pixel, (height, width); -1 where there is none."""
    labels = np.full((found["image"]["height"], found["image"]["width"]), -1)
    for segment in found["segments"]:
        labels[coco.decode(segment["rle"]) > 0] = segment["class_id"]
    return labels


def painted(classes: NDArray[np.int64], manifest: Manifest) -> NDArray[np.uint8]:
    """The opaque class colours, (height, width, 4) RGBA."""
    colors = np.array([(*entry.color, 255) for entry in manifest.classes], np.uint8)
    return colors[classes]


def set_limit(page: Page, key: str, presses: str, times: int = 1) -> None:
    """Move a limit's slider with the keyboard."""
    for _ in range(times):
        page.locator(f"#limit-{key}").press(presses)


def test_run_lengths_decode_as_the_reference_decodes_them(visit: Visit) -> None:
    random = np.random.default_rng(5)
    masks = [random.random((17, 23)) < share for share in (0.0, 0.02, 0.5, 0.98, 1.0)]
    blocks = np.kron(
        random.random((3, 5)) < 0.5, np.ones((70, 40))
    )  # runs of more than one digit, both signs
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
    ]  # too few, too many, cut off, no digit, negative
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
    expect(key).to_have_text(
        ["Road", "Building", "Car", "Sky"]
    )  # before: what the bundle tells apart
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
    stream = io.BytesIO()
    Image.new("RGB", (80, 60), (250, 250, 250)).save(stream, "PNG")
    visit.open(stream.getvalue())
    visit.segmented()
    # A gate that sees nothing to gain stops early, and there the fake engine calls a column Road.
    expect(visit.page.locator("#absent")).to_have_text("Not found: Building, Car.")
    expect(visit.page.locator("#why")).to_contain_text("would gain too little")
    expect(visit.page.locator("#depth-taken")).to_have_text("depth 1 of 4gate")


def test_the_depth_slider_changes_the_header_that_is_sent_and_the_depth_that_is_used(
    visit: Visit,
) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    expect(page.locator("#depth-taken")).to_have_text("depth 4 of 4gate")
    with page.expect_response("**/segment") as got:
        set_limit(page, "depth", "ArrowLeft", 2)
    assert got.value.request.headers["compute-budget"] == "depth=2"
    assert "depth=2, of=4" in got.value.headers["compute-used"]
    expect(page.locator("#depth-taken")).to_have_text("depth 2 of 4request")
    expect(page.locator("#why")).to_contain_text("limit on depth")
    expect(page.locator("#header-sent")).to_have_text("Compute-Budget: depth=2")
    expect(page.locator("#header-used")).to_have_text(
        f"Compute-Used: {got.value.headers['compute-used']}"
    )
    expect(page.locator("#request-id")).to_have_text(got.value.headers["x-request-id"])
    expect(page.locator("#curl")).to_contain_text("-H 'Compute-Budget: depth=2'")
    expect(page.locator("#gauge tr[aria-current]")).to_have_attribute("data-plan", "d2")
    assert visit.budgets() == [None, "depth=2"]  # one request for a burst of key presses


def test_every_limit_says_which_plans_it_leaves_and_can_be_taken_away(visit: Visit) -> None:
    page = visit.page
    fits, over = page.locator("#fits"), page.locator("#gauge tr.over")
    expect(fits).to_have_text("4 of 4 plans fit the budget.")
    for key, presses, left in (("depth", "ArrowLeft", 3), ("gflops", "Home", 0), ("ms", "Home", 0)):
        set_limit(page, key, presses)
        expect(over).to_have_count(4 - left)
        expect(page.locator(f".limit[data-key={key}] .marks .over")).to_have_count(4 - left)
        expect(page.locator("#header-sent")).to_contain_text(f"{key}=")
        page.locator(f".limit[data-key={key}] input[type=checkbox]").uncheck()
        expect(over).to_have_count(0)
        expect(page.locator(f".limit[data-key={key}] output")).to_have_text("no limit")
    set_limit(page, "max-loss", "Home")
    expect(page.locator("#header-sent")).to_have_text("Compute-Budget: max-loss=0")
    expect(fits).to_have_text("4 of 4 plans fit the budget.")
    assert visit.budgets() == []  # no photo yet, nothing to ask


def test_all_positions_of_the_sliders_make_a_header_that_the_service_accepts(visit: Visit) -> None:
    headers = visit.page.evaluate(
        """() => ["depth", "gflops", "ms", "max-loss"].flatMap((key) => {
            const range = document.getElementById(`limit-${key}`);
            const box = range.closest(".limit").querySelector("input[type=checkbox]");
            const made = [...Array(Number(range.max) + 1).keys()].map((position) => {
                range.value = position;
                range.dispatchEvent(new Event("input"));
                return document.getElementById("header-sent").textContent;
            });
            box.checked = false;
            box.dispatchEvent(new Event("change"));
            return made;
        })"""
    )
    budgets = sorted({text.removeprefix("Compute-Budget: ") for text in headers})
    assert len(budgets) > 150
    with httpx.Client(base_url=visit.url) as client:
        for budget in budgets[:: len(budgets) // 25]:
            sent = {"Content-Type": "image/png", "Compute-Budget": budget}
            status = client.post("/segment", content=picture(32, 24), headers=sent).status_code
            assert status in (200, 422, 429, 504), (
                budget
            )  # understood: 400 is for a header that is not


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


def test_every_plan_has_a_card_that_shows_what_differs_from_the_full_plan(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    assert visit.budgets()[1:] == [f"gflops={gflops}, max-loss=0" for gflops in (5, 2, 3, 4)]
    results = [
        answer(visit.url, picture(), f"depth={depth}, max-loss=0") for depth in range(1, DEPTHS + 1)
    ]
    classes = [classes_of(found) for found in results]
    for card, found, labels in zip(page.locator(".card").all(), results, classes, strict=True):
        share = float(np.mean(labels != classes[-1]))
        expect(card.locator(".sounding")).to_have_text(str(found["usage"]["depth"]))
        expect(card.locator(".numbers")).to_contain_text(f"{found['usage']['gflops']:.2f} GFLOPs")
        shown = (card.locator(".numbers > span").nth(2).text_content() or "").split(" % ")
        assert shown[-1] == ("differs" if share else "reference for the others")
        assert not share or float(shown[0]) == pytest.approx(100 * share, abs=0.051)
    assert [np.mean(labels != classes[-1]) > 0 for labels in classes] == [True, True, True, False]
    page.get_by_label("mark pixels that differ").check()
    marked = visit.pixels("li:first-child .card canvas")[..., :3]
    assert np.array_equal((marked == (255, 46, 154)).all(axis=2), classes[0] != classes[-1])
    page.locator(".card").first.click()
    expect(page.locator("#depth-taken")).to_have_text("depth 1 of 4request")
    expect(page.locator("#why")).to_contain_text("limit on gflops")


def test_every_plan_can_be_cancelled_and_asks_for_nothing_more(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    Shallow.gate.clear()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.running")).to_have_count(1)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#strip-status")).to_have_text("Cancelled.")
    expect(page.locator(".card.idle")).to_have_count(DEPTHS)
    Shallow.gate.set()
    page.wait_for_timeout(100)
    assert len(visit.budgets()) == 2
    expect(page.locator("#problem")).to_be_hidden()


def test_a_text_file_shows_the_problem_in_the_words_of_the_service(visit: Visit) -> None:
    visit.open(picture())
    visit.segmented()
    visit.refused = 1
    visit.open(b"not a photo", "notes.txt", "text/plain")
    problem = visit.page.locator("#problem")
    expect(problem).to_contain_text("The media type is not supported")
    sent = httpx.post(
        f"{visit.url}/segment", content=b"not a photo", headers={"Content-Type": "text/plain"}
    )
    expect(visit.page.locator("#problem-detail")).to_have_text(sent.json()["detail"])
    assert visit.pixels("#overlay").shape == (1, 1, 4)  # no mask of the photo before
    expect(visit.page.locator("#header-used")).to_contain_text("415")
    expect(visit.page.locator("#problem-retry")).to_be_hidden()  # trying again would not help
    visit.page.get_by_role("button", name="Dismiss").click()
    expect(problem).to_be_hidden()


def test_a_file_over_the_limit_is_refused_before_it_is_sent(visit: Visit) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    visit.page.set_input_files(
        "#file", {"name": "big.png", "mimeType": "image/png", "buffer": stream.getvalue()}
    )
    expect(visit.page.locator("#problem")).to_contain_text("this service takes up to 100 kB")
    assert visit.budgets() == []


def refuse_once(page: Page, path: str, status: int, title: str) -> None:
    """The next request for the path is answered with a problem and Retry-After: 1, all others by
    the service."""

    def handle(route: Route) -> None:
        body = json.dumps({"title": title, "detail": "Seven images are waiting.", "status": status})
        headers = {"Retry-After": "1", "Content-Type": "application/problem+json"}
        route.fulfill(status=status, headers=headers, body=body)

    page.route(path, handle, times=1)


def test_a_saturated_service_is_tried_again_when_it_said_so(visit: Visit) -> None:
    page = visit.page
    refuse_once(page, "**/segment", 429, "The service is saturated")
    visit.refused = 1
    visit.open(picture())
    expect(page.locator("#problem")).to_contain_text("The service is saturated")
    expect(page.locator("#problem")).to_contain_text("Seven images are waiting.")
    retry = page.locator("#problem-retry")
    expect(retry).to_have_text("Try again in 1 s")
    expect(retry).to_be_disabled()
    expect(retry).to_have_text("Try again")
    retry.click()
    visit.segmented()
    expect(page.locator("#problem")).to_be_hidden()


def test_a_page_that_opens_while_the_engine_warms_up_starts_by_itself(visit: Visit) -> None:
    page = visit.page
    refuse_once(page, "**/readyz", 503, "The service is starting or draining")
    visit.refused = 1
    page.reload()
    expect(page.locator("#problem")).to_contain_text("The service is starting or draining")
    expect(page.locator("html")).to_have_attribute("data-ready", "yes")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#gauge tbody tr")).to_have_count(DEPTHS)


def test_a_service_that_is_gone_is_said_to_be_gone(visit: Visit) -> None:
    visit.page.route("**/segment", lambda route: route.abort())
    visit.refused = 1
    visit.page.set_input_files(
        "#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()}
    )
    expect(visit.page.locator("#problem")).to_contain_text("The service cannot be reached")
    expect(visit.page.locator("#problem-retry")).to_be_enabled()


def test_a_photo_can_be_dropped_and_pasted(visit: Visit) -> None:
    for event, data in (("drop", picture()), ("paste", picture(64, 64))):
        with visit.page.expect_response("**/segment") as got:
            visit.page.evaluate(
                """([event, bytes]) => {
                    const data = new DataTransfer();
                    const file = new File([new Uint8Array(bytes)], "a.png", { type: "image/png" });
                    data.items.add(file);
                    const made = event === "drop"
                        ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
                        : new ClipboardEvent("paste", { clipboardData: data });
                    document.dispatchEvent(made);
                }""",
                [event, list(data)],
            )
        assert got.value.status == 200
        visit.segmented()
        expect(visit.page.locator("#photo-facts")).to_contain_text(
            "96 × 72" if event == "drop" else "64 × 64"
        )


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
                shown = fake_manifest.classes[int(photo[y, x, 0]) * 4 // 256]
                assert tuple(overlay[y, x, :3]) == shown.color
        expect(visit.page.locator("#size-note")).to_be_hidden()


def test_a_photo_that_the_browser_may_not_have_turned_is_pointed_out(visit: Visit) -> None:
    for orientation in (3, 6):
        visit.open(turned("WEBP", orientation), "photo.webp", "image/webp")
        visit.segmented()
        expect(visit.page.locator("#size-note")).to_contain_text("masks lie wrong")


def test_names_from_outside_stay_text(visit: Visit) -> None:
    name = "<img src=x onerror=alert(1)>'; rm.png"
    visit.open(picture(), name)
    visit.segmented()
    expect(visit.page.locator("#photo-facts")).to_contain_text(name)
    expect(visit.page.locator("#curl")).to_contain_text(
        "'@<img src=x onerror=alert(1)>'\\''; rm.png'"
    )
    assert visit.page.locator("#tools img").count() == 0


def test_the_page_works_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )
    wanted = [
        "API",
        "Plans",
        "Metrics",
        "file",
        "limit-depth",
        "limit-gflops",
        "limit-ms",
        "limit-max-loss",
        "copy",
    ]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit.page
    names = (
        "Depth: Most encoder layers",
        "Compute: Most GFLOPs",
        "Deadline: Milliseconds",
        "Max loss: Largest",
        "Masks",
    )
    visit.open(picture())
    visit.segmented()
    for name in names:
        assert page.get_by_role("slider", name=name).count() == 1
    for name in ("Depth", "Compute", "Deadline", "Max loss"):
        assert page.get_by_role("checkbox", name=name, exact=True).count() == 1
    nameless = page.eval_on_selector_all(
        "button, input, canvas, img",
        """(all) => all.filter((one) => !(one.labels?.length || one.ariaLabel
            || one.textContent.trim()
            || one.hasAttribute("alt")) && one.checkVisibility()).map((one) => one.outerHTML)""",
    )
    assert nameless == []


def test_nothing_is_wider_than_the_window(visit: Visit) -> None:
    page, widths = visit.page, (360, 390, 700, 768, 1120, 1280)

    def too_wide() -> list[int]:
        found = []
        for width in widths:
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(width)
        return found

    assert too_wide() == []
    visit.open(picture(), "a-photo-with-quite-a-long-name-that-no-line-of-a-phone-can-hold.png")
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    assert too_wide() == []
    page.set_viewport_size({"width": 360, "height": 800})
    box = page.locator("#opacity").bounding_box()
    assert box is not None
    assert box["width"] >= 60


# -- objects and paused areas
# ------------------------------------------------------------------------------------------


def blobs(height: int = 72, width: int = 96) -> bytes:
    """Three bright squares on black, row by row: two above, one below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for top, left in ((6, 12), (6, 54), (42, 54)):
        pixels[top : top + 24, left : left + 30] = 250
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


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
    stream = io.BytesIO()
    Image.new("RGB", (80, 60)).save(stream, "PNG")
    objects.open(stream.getvalue())
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
    for width in (360, 700, 1120):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found: Sequence[tuple[str, float]] = page.eval_on_selector_all("body *", CONTRAST)
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []


# Luminance contrast as WCAG 2 defines it, of every piece of text against the colour that lies under
# it.
CONTRAST = """(all) => {
    const spot = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const pen = spot.getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = color;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    };
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (color) => {
        const [r, g, b] = rgba(color).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const under = (one) => {
        for (let at = one; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (rgba(color)[3] > 230) return color;
        }
        return "white";
    };
    const says = (one) =>
        [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return all.filter((one) => one.checkVisibility() && says(one))
        .map((one) => {
            const [a, b] = [light(getComputedStyle(one).color), light(under(one))];
            return [one.outerHTML.slice(0, 90), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });
}"""


def test_text_has_contrast_by_day_and_by_night(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    papers = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found: Sequence[tuple[str, float]] = page.eval_on_selector_all("body *", CONTRAST)
        assert len(found) > 60
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []
    assert len(papers) == 2


def test_the_page_has_no_script_or_style_in_its_text() -> None:
    text = (Path(__file__).parent.parent / "service" / "web" / "index.html").read_text("utf-8")
    for forbidden in (" style=", "<style", " onclick=", "javascript:", "<script>"):
        assert forbidden not in text

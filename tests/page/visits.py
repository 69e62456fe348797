"""The page at / in a real browser, on the real app with the fake backend."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import ConsoleMessage, Error, Page, Request, expect
from pycocotools import mask as coco

from service.bundle import Manifest
from service.engines.base import Arrays, HostTensors, Tensors
from service.engines.fake import FakeBackend
from service.settings import Settings
from tests.live_app import live_app
from tests.pictures import quarters

DEPTHS = 4


class Shallow(FakeBackend):
    """The shallower the plan, the more columns at the left are wrong: by one channel, one column
    per missing layer."""

    gate = threading.Event()  # closed, the engine stands still

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        if stage.startswith("front"):
            assert self.gate.wait(20)
        made = super().run(stage, tensors)
        if stage.startswith("encoder"):
            missing = DEPTHS - self._plans[stage].depth
            return HostTensors({**made.arrays, "missing": np.full(len(made["image"]), missing)})
        if stage.startswith("decoder"):
            for planes, wrong in zip(made["probabilities"], made["missing"], strict=True):
                planes[..., :wrong] = np.roll(planes[..., :wrong], 1, axis=0)
        return made


@contextmanager
def serving(manifest: Manifest, **changes: Any) -> Iterator[str]:
    """The service's address. Every plan takes 5 ms a layer, so that deadlines and prices differ.
    changes: settings. No photo is late for a machine that stalls: that would change its plan."""
    Shallow.gate.set()
    depths = {plan.name: plan.depth for plan in manifest.encoder_plans}
    delays = {
        stage: depths[plan] * 0.005
        for graphs in manifest.graphs.values()
        for plan, stage in graphs.encoders.items()
    }
    plain = len(manifest.heads) == 1 and manifest.head.task == "semantic"
    engine = Shallow if plain else FakeBackend
    settings = Settings(max_body_bytes=100_000, target_ms=60_000, **changes)
    with live_app(manifest, lambda: engine(manifest, delay_s=delays), settings) as app:
        yield app.url


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
    """Four quarters of different brightness: one of each class."""
    return quarters(width, height, kind, **options)


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
    colors = np.array([(*entry.color, 255) for entry in manifest.head.classes], np.uint8)
    return colors[classes]


def set_limit(page: Page, key: str, presses: str, times: int = 1) -> None:
    """Move a limit's slider with the keyboard."""
    for _ in range(times):
        page.locator(f"#limit-{key}").press(presses)


# Luminance contrast as WCAG 2 defines it, of every piece of text against the colour that lies under
# it, through which it shows as far as it is not opaque. Controls that are off may be pale.
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
        const [r, g, b] = color.map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const opacity = (one) =>
        one ? getComputedStyle(one).opacity * opacity(one.parentElement) : 1;
    const under = (one) => {
        for (let at = one; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (rgba(color)[3] > 230) return color;
        }
        return "white";
    };
    const says = (one) =>
        [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return all.filter((one) => one.checkVisibility() && says(one) && !one.closest(":disabled"))
        .map((one) => {
            const paper = rgba(under(one));
            const ink = rgba(getComputedStyle(one).color);
            const share = opacity(one);
            const shown = ink.map((v, i) => share * v + (1 - share) * paper[i]);
            const [a, b] = [light(shown), light(paper)];
            return [one.outerHTML.slice(0, 90), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });
}"""

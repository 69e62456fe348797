"""Over real HTTP: every rejection that is promised, and what an answer holds. uvicorn on loopback,
the fake backend."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.api.app import create_app
from service.bundle import Manifest
from service.engines.fake import FakeBackend
from service.inference.engine import Scheduler
from service.metrics import Metrics
from service.settings import Settings

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),  # as outside of tests
]


class Gated(FakeBackend):
    """A fake engine that stands still while its gate is closed."""

    gate: threading.Event

    def front(self, images: NDArray[np.uint8]) -> Any:
        assert self.gate.wait(20)
        return super().front(images)


class Server:
    """A running service. gate: closed, the engine stands still."""

    def __init__(
        self, url: str, metrics: Metrics, scheduler: Scheduler, gate: threading.Event
    ) -> None:
        self.url, self.metrics, self.scheduler, self.gate = url, metrics, scheduler, gate
        self.http = httpx.Client(base_url=url, timeout=20)
        self.loop: asyncio.AbstractEventLoop

    def post(
        self, content: Any, headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        return self.http.post(
            "/segment",
            content=content,
            headers={"Content-Type": "image/png"} | (headers or {}),
            **options,
        )

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def until(self, name: str, value: float, **labels: str) -> None:
        end = time.monotonic() + 10
        while self.value(name, **labels) != value:
            assert time.monotonic() < end, f"{name} stayed {self.value(name, **labels)}"
            time.sleep(0.005)


@contextmanager
def running(
    manifest: Manifest,
    *,
    closed: bool = False,
    delay_s: dict[str, float] | None = None,
    **options: Any,
) -> Iterator[Server]:
    """closed: the gate is closed from the start, so that the engine never gets warm."""
    settings = Settings(**options)
    metrics = Metrics(layers=manifest.layers, max_batch=settings.max_batch)
    gate = threading.Event()

    def open_backend() -> Gated:
        backend = Gated(manifest, delay_s=delay_s)
        backend.gate = gate
        return backend

    scheduler = Scheduler(open_backend, manifest, settings, metrics)
    app = create_app(settings, manifest, scheduler, metrics)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
    # With its protocol named, asyncio switches Nagle's algorithm off: it can hold back a body for
    # 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    started = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", metrics, scheduler, gate)

    async def serve() -> None:
        started.loop = asyncio.get_running_loop()
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        if not closed:
            gate.set()
            end = time.monotonic() + 10
            while started.http.get("/readyz").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.005)
        yield started
    finally:
        gate.set()
        started.http.close()
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    found: dict[str, Server] = {}
    with ExitStack() as stack:
        found["stack"] = stack  # type: ignore[assignment]
        yield found


@pytest.fixture
def server(servers: dict[str, Any], fake_manifest: Manifest) -> Server:
    """One server for all tests that leave it as it was."""
    if "common" not in servers:
        servers["common"] = servers["stack"].enter_context(
            running(fake_manifest, max_body_bytes=200_000)
        )
    common: Server = servers["common"]
    return common


@pytest.fixture
def instance_server(servers: dict[str, Any], instance_manifest: Manifest) -> Server:
    """The same for an instance bundle; its plan d4-k25-w50 pauses tokens."""
    if "instance" not in servers:
        servers["instance"] = servers["stack"].enter_context(running(instance_manifest))
    instance: Server = servers["instance"]
    return instance


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(width: int = 64, height: int = 48, kind: str = "PNG", **options: Any) -> bytes:
    """Four quarters of different brightness: top left 0 (Road), top right 1, bottom left 2, bottom
    right 3 (Sky)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, width // 2 :] = 96
    pixels[height // 2 :, : width // 2] = 160
    pixels[height // 2 :, width // 2 :] = 250
    return encoded(Image.fromarray(pixels), kind, **options)


def bomb() -> bytes:
    """22 KB for 177 megapixels of one bit."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 13300, 13300, 1, 0, 0, 0, 0))
    data = zlib.compress(bytes(1 + 1663) * 13300)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def labels(response: httpx.Response) -> NDArray[np.uint8]:
    assert response.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(response.content)))


def corners(found: NDArray[np.uint8]) -> list[list[int]]:
    """Labels in the middle of each quarter."""
    height, width = found.shape
    rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    return [[int(found[y, x]) for x in columns] for y in rows]


def rejected(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document, after the checks that hold for every one."""
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (response.status_code, document["type"]) == (status, f"urn:fathom:problem:{slug}")
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == f"urn:fathom:request:{response.headers['x-request-id']}"
    assert "Traceback" not in response.text
    if status in (429, 503):
        assert re.fullmatch(r"[1-9]\d*", response.headers["retry-after"])
    return document


# -- answers ---------------------------------------------------------------------------------------


def test_json_is_the_default_and_holds_what_is_documented(server: Server) -> None:
    response = server.post(picture(), {"Compute-Budget": "depth=2", "X-Request-Id": "my-id.1"})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["image"] == {"width": 64, "height": 48, "orientation_applied": False}
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
    assert response.headers["vary"] == "Accept, Compute-Budget"
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
    found = labels(server.post(picture(*size), {"Accept": "image/png"}))
    assert found.shape == (size[1], size[0])
    assert corners(found) == [[0, 1], [2, 3]]
    drawn = np.full(found.shape, 255)
    for segment in server.post(picture(*size)).json()["segments"]:
        drawn[coco.decode(segment["rle"]).astype(bool)] = segment["class_id"]
    assert (drawn == found).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_taken_raw_and_as_the_file_of_a_form(
    server: Server, kind: str
) -> None:
    content_type, data = f"image/{kind.lower()}", picture(kind=kind, quality=95)
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
    data = picture(kind="JPEG", quality=95, exif=exif.tobytes())
    found = labels(server.post(data, {"Content-Type": "image/jpeg", "Accept": "image/png"}))
    assert corners(found) == SHOWN[orientation]
    answer = server.post(data, {"Content-Type": "image/jpeg"}).json()
    width, height = (48, 64) if orientation >= 5 else (64, 48)
    assert answer["image"] == {
        "width": width,
        "height": height,
        "orientation_applied": orientation != 1,
    }
    assert found.shape == (height, width)


def test_requests_at_the_same_time_each_get_their_own_budget(server: Server) -> None:
    def depth(wanted: int) -> str:
        response = httpx.post(
            f"{server.url}/segment",
            content=picture(),
            headers={"Content-Type": "image/png", "Compute-Budget": f"depth={wanted}, max-loss=0"},
            timeout=20,
        )
        return str(response.headers["compute-used"])

    wanted = [1, 2, 3, 4] * 6
    with ThreadPoolExecutor(8) as pool:
        used = list(pool.map(depth, wanted))
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
    response = server.http.post("/segment", content=picture(), headers=fields)
    assert response.headers["compute-used"].startswith("depth=1,")


def test_the_page_the_docs_and_the_files_that_they_name_are_served(server: Server) -> None:
    for path in ("/", "/docs"):
        page = server.http.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        for name in re.findall(r"(?:src|href)=\"(static/[^\"]+)\"", page.text):
            assert server.http.get(f"/{name}").status_code == 200, name


# -- rejections, in the order of their status
# --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("depth=9", "depth"),
        ("depth=1.5", "depth"),
        ("gflops=0", "gflops"),
        ("gflops=?1", "gflops"),
        ("ms=0", "ms"),
        ("ms=fast", "ms"),
        ("max-loss=1.5", "max-loss"),
        ("max-loss=0.0001", "max-loss"),
        ("strict=1", "strict"),
        ("layers=3", "layers"),
        ("Depth=3", "Depth"),
    ],
)
def test_400_budget_names_the_key(server: Server, field: str, key: str) -> None:
    document = rejected(server.post(picture(), {"Compute-Budget": field}), 400, "bad-header")
    assert (document["header"], document["key"]) == ("Compute-Budget", key)
    assert f"'{key}'" in document["detail"]


def test_400_weight_in_accept(server: Server) -> None:
    rejected(server.post(picture(), {"Accept": "image/png;q=7"}), 400, "bad-header")


def test_400_query(server: Server) -> None:
    assert rejected(server.post(picture(), params={"depth": 2}), 400, "bad-query")["key"] == "depth"


def test_404_and_405_are_problem_documents(server: Server) -> None:
    rejected(server.http.get("/segments"), 404, "not-found")
    response = server.http.get("/segment")
    rejected(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "image/png;q=0"])
def test_406_form(server: Server, accept: str) -> None:
    document = rejected(server.post(picture(), {"Accept": accept}), 406, "not-acceptable")
    assert document["offered"] == ["application/json", "image/png"]


def test_408_slow_body_and_the_connection_is_closed(fake_manifest: Manifest) -> None:
    with running(fake_manifest, body_timeout_s=0.1) as server:
        with raw(
            server,
            b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99\r\n\r\nabc",
        ) as slow:
            answer = everything(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"urn:fathom:problem:request-timeout" in answer
        assert server.value("fathom_requests_total", outcome="request-timeout") == 1


def test_413_bytes_by_content_length(server: Server) -> None:
    rejected(server.post(bytes(200_001)), 413, "too-large")


def test_413_bytes_of_a_chunked_body_that_has_no_length(server: Server) -> None:
    chunks: Iterator[bytes] = (bytes(50_000) for _ in range(8))
    rejected(server.post(chunks), 413, "too-large")


def test_413_bytes_of_a_form(server: Server) -> None:
    rejected(
        server.http.post("/segment", files={"file": ("x", bytes(200_000), "image/png")}),
        413,
        "too-large",
    )


def test_413_pixels_of_a_small_file(server: Server) -> None:
    began = time.monotonic()
    document = rejected(server.post(bomb()), 413, "too-large")
    assert "13300 x 13300" in document["detail"]
    assert time.monotonic() - began < 1  # decoding it takes seconds


def test_413_side(server: Server) -> None:
    stream = io.BytesIO()
    Image.new("1", (8193, 16)).save(stream, "PNG")
    rejected(server.post(stream.getvalue()), 413, "too-large")


@pytest.mark.parametrize("content_type", ["image/gif", "application/json", "text/plain", ""])
def test_415_type(server: Server, content_type: str) -> None:
    rejected(server.post(picture(), {"Content-Type": content_type}), 415, "unsupported-media-type")


def test_415_bytes_of_another_format_than_the_type_says(server: Server) -> None:
    document = rejected(server.post(picture(kind="WEBP")), 415, "unsupported-media-type")
    assert "WEBP" in document["detail"]


def test_415_encoded_body(server: Server) -> None:
    rejected(server.post(picture(), {"Content-Encoding": "gzip"}), 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "data", [b"", b"no image", picture()[:60], b"GIF89a" + bytes(50), b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_422_undecodable(server: Server, data: bytes) -> None:
    rejected(server.post(data), 422, "undecodable-image")


def test_422_smaller_than_the_smallest_side(server: Server) -> None:
    rejected(server.post(picture(15, 64)), 422, "undecodable-image")


@pytest.mark.parametrize("files", [[("a", picture()), ("b", picture())], []])
def test_422_form_without_exactly_one_file(
    server: Server, files: Sequence[tuple[str, bytes]]
) -> None:
    parts = [(name, ("x", data, "image/png")) for name, data in files] or [
        ("note", (None, "hello"))
    ]
    rejected(server.http.post("/segment", files=parts), 422, "undecodable-image")


def test_422_budget_under_the_cheapest_plan_says_what_that_costs(server: Server) -> None:
    document = rejected(
        server.post(picture(), {"Compute-Budget": "gflops=1.5"}), 422, "unsatisfiable-budget"
    )
    assert document["cheapest"] == {"plan": "d1", "depth": 1, "gflops": 2.0}


def test_422_strict_floor_out_of_reach(server: Server) -> None:
    budget = {"Compute-Budget": "depth=1, max-loss=0, strict"}
    rejected(server.post(picture(), budget), 422, "unsatisfiable-budget")


def test_429_full_queue_503_draining_and_admitted_work_is_finished(fake_manifest: Manifest) -> None:
    with running(fake_manifest, queue_size=1, max_batch=1) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        runs = pool.submit(server.post, picture())
        server.until("fathom_inflight", 1)
        waits = pool.submit(server.post, picture())
        server.until("fathom_queue_depth", 1)
        rejected(server.post(picture()), 429, "overloaded")
        assert server.value("fathom_shed_total", reason="full") == 1

        drained = asyncio.run_coroutine_threadsafe(server.scheduler.drain(10), server.loop)
        end = time.monotonic() + 10
        while server.scheduler.state != "draining":
            assert time.monotonic() < end
            time.sleep(0.005)
        assert "draining" in rejected(server.post(picture()), 503, "not-ready")["detail"]
        assert server.value("fathom_shed_total", reason="draining") == 1
        rejected(server.http.get("/readyz"), 503, "not-ready")
        assert server.http.get("/healthz").status_code == 200

        server.gate.set()
        assert runs.result().status_code == waits.result().status_code == 200
        drained.result(10)


def test_429_deadline_that_cannot_be_met(fake_manifest: Manifest) -> None:
    with running(fake_manifest, delay_s={"front": 0.03}) as server:
        rejected(server.post(picture(), {"Compute-Budget": "ms=15"}), 429, "overloaded")
        assert server.value("fathom_shed_total", reason="predicted") == 1


def test_503_starting_while_the_process_already_lives(fake_manifest: Manifest) -> None:
    with running(fake_manifest, closed=True) as server:
        assert "starting" in rejected(server.post(picture()), 503, "not-ready")["detail"]
        for path in ("/readyz", "/v2/health/ready", "/v2/models/fake/ready"):
            rejected(server.http.get(path), 503, "not-ready")
        assert server.http.get("/healthz").status_code == 200


def test_504_deadline_that_passes_while_running(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        server.gate.clear()
        rejected(server.post(picture(), {"Compute-Budget": "ms=300"}), 504, "deadline-exceeded")
        assert server.value("fathom_deadline_missed_total") == 1
        assert server.value("fathom_requests_total", outcome="deadline-exceeded") == 1


# -- connections -----------------------------------------------------------------------------------


def raw(server: Server, request: bytes) -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", httpx.URL(server.url).port or 0), timeout=10
    )
    connection.sendall(request)
    return connection


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_client_that_leaves_takes_its_job_out_of_the_queue(fake_manifest: Manifest) -> None:
    with running(fake_manifest, max_batch=1) as server, ThreadPoolExecutor(1) as pool:
        server.gate.clear()
        runs = pool.submit(server.post, picture())
        server.until("fathom_inflight", 1)
        data = picture()
        head = (
            "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        leaves = raw(server, head.encode() + data)
        server.until("fathom_queue_depth", 1)
        leaves.close()
        server.until("fathom_queue_depth", 0)
        server.until("fathom_requests_total", 1, outcome="cancelled")
        server.gate.set()
        assert runs.result().status_code == 200


def test_a_connection_survives_a_rejection_with_an_unread_body(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        headers = {"Content-Type": "image/png"}
        assert (
            client.post(
                "/segment", content=bytes(150_000), headers=headers | {"Accept": "x/y"}
            ).status_code
            == 406
        )
        assert client.post("/segment", content=bytes(900_000), headers=headers).status_code == 413
        assert client.post("/segment", content=picture(), headers=headers).status_code == 200


def test_every_answer_is_counted_by_its_outcome(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        server.post(picture(), {"Compute-Budget": "depth=2"})
        server.post(b"no image")
        server.post(picture(), {"Accept": "x/y"})
        text = server.http.get("/metrics").text
    for outcome in ("ok", "undecodable-image", "not-acceptable"):
        assert f'fathom_requests_total{{outcome="{outcome}"}} 1.0' in text
    assert 'fathom_exit_depth_layers_bucket{le="2.0",reason="request"} 1.0' in text
    assert 'fathom_stage_duration_seconds_count{stage="mask"} 1.0' in text


def test_plans_are_priced_in_milliseconds_once_the_engine_is_warm(server: Server) -> None:
    assert all(plan["ms"] > 0 for plan in json.loads(server.http.get("/plans").text)["plans"])

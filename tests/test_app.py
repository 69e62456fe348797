"""The rim without a network: negotiation, the edge, bodies, errors, documentation. Messages go
straight to the app."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import ClientDisconnect, Request

from service.api.app import create_app
from service.api.body import HELD_BODIES, Intake
from service.api.forms import FORMS, choose
from service.api.middleware import Edge, problem
from service.api.operations import WEB
from service.bundle import Manifest
from service.core import Budget, Decision, Outcome, Reason
from service.engines.fake import FakeBackend
from service.errors import (
    BadHeader,
    DeadlineExceeded,
    FathomError,
    NotAcceptable,
    Overloaded,
    RequestTimeout,
    SettingsError,
    TooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)
from service.inference.engine import Scheduler
from service.metrics import Metrics
from service.settings import Settings

Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]
GONE = {"type": "http.disconnect"}


def image_bytes() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 200, 200)).save(stream, "PNG")
    return stream.getvalue()


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def scope(
    method: str = "GET", path: str = "/", headers: Headers | None = None, query: str = ""
) -> dict[str, Any]:
    fields = [
        (name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"test"), *fields],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


async def call(
    app: Any,
    given: dict[str, Any],
    *messages: dict[str, Any],
    then: Awaitable[object] | None = None,
) -> Any:
    """Send messages and collect the answer; None when the app gave none. then: what to await before
    disconnecting."""
    pending, sent = list(messages) or [body(b"")], []

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop(0)
        await (then or asyncio.Event().wait())
        return GONE

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(given, receive, send)
    if not sent:
        return None
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


class Stub(Scheduler):
    """A scheduler without an engine: `run` decides what happens to an image."""

    run: Callable[[Any], Awaitable[Outcome]]

    def start(self) -> None:
        self.state = "ready"

    async def drain(self, timeout_s: float) -> None:
        self.state = "draining"

    async def submit(self, frame: Any, budget: Any, trace: Any, arrived: float) -> Outcome:
        return await self.run(trace)


def stubbed(
    manifest: Manifest, run: Callable[[Any], Awaitable[Outcome]] | None = None
) -> tuple[FastAPI, Stub, Metrics]:
    metrics = Metrics(layers=4, max_batch=4)
    scheduler = Stub(lambda: FakeBackend(manifest), manifest, Settings(), metrics)
    if run is not None:
        scheduler.run = run
    return create_app(Settings(), manifest, scheduler, metrics), scheduler, metrics


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[FastAPI]:
    async with app.router.lifespan_context(app):
        yield app


def ask(app: FastAPI, given: dict[str, Any], *messages: dict[str, Any]) -> Answer:
    async def run() -> Any:
        async with started(app):
            return await call(app, given, *messages)

    answer: Answer = asyncio.run(run())
    return answer


def post(**headers: str) -> dict[str, Any]:
    return scope(
        "POST",
        "/segment",
        {"content-type": "image/png"} | {k.replace("_", "-"): v for k, v in headers.items()},
    )


def counted(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("fathom_requests_total", {"outcome": outcome})


# -- negotiation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "application/json"),
        ([""], "application/json"),
        (["*/*"], "application/json"),
        (["application/json"], "application/json"),
        (["image/png"], "image/png"),
        (["IMAGE/PNG"], "image/png"),
        (["image/*"], "image/png"),
        (["image/webp, image/png"], "image/png"),
        (["image/webp", "image/png"], "image/png"),  # two lines
        (["application/json;q=0.5, image/png"], "image/png"),
        (["application/json; q=0.5 , image/png;q=0.4"], "application/json"),
        (["image/png, application/json"], "application/json"),  # equal: the order of the table
        (["*/*;q=0.1, image/png"], "image/png"),
        (["application/json;q=0, */*"], "image/png"),  # the most specific range counts
        (["image/*;q=0.9, image/png;q=0.1, application/json;q=0.5"], "application/json"),
        (["text/html, application/xhtml+xml, */*;q=0.8"], "application/json"),
        (["image/png;level=1;q=0.7"], "image/png"),
    ],
)
def test_accept_chooses_the_form_of_the_highest_weight(lines: list[str], expected: str) -> None:
    assert choose(lines).media_type == expected


@pytest.mark.parametrize(
    "line", ["text/html", "image/webp", "image/png;q=0", "*/*;q=0", "application/*;q=0, text/*"]
)
def test_accept_without_an_offered_form_is_406_and_names_what_is_offered(line: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        choose([line])
    assert caught.value.extra == {"offered": [form.media_type for form in FORMS]}


@pytest.mark.parametrize("weight", ["2", "-1", "x", "nan", "inf", ""])
def test_a_weight_that_is_no_number_from_0_to_1_is_400(weight: str) -> None:
    with pytest.raises(BadHeader, match="Accept"):
        choose([f"image/png;q={weight}"])


@given(st.lists(st.text(), max_size=3))
def test_hostile_accept_raises_nothing_but_400_and_406(lines: list[str]) -> None:
    with suppress(BadHeader, NotAcceptable):
        assert choose(lines) in FORMS


# -- bodies ----------------------------------------------------------------------------------------


def intake(**changes: Any) -> Intake:
    return Intake(
        **{"max_bytes": 1000, "timeout_s": 0.1, "max_waiting": 2, "on_refusal": lambda: None}
        | changes
    )


def request(headers: Headers, *messages: dict[str, Any]) -> Request:
    pending = list(messages)

    async def receive() -> dict[str, Any]:
        if not pending:
            await asyncio.Event().wait()
        return pending.pop(0)

    return Request(scope("POST", "/segment", headers), receive)


def receive(source: Intake, headers: Headers, *messages: dict[str, Any]) -> tuple[bytes, str]:
    async def run() -> tuple[bytes, str]:
        async with source.receive(request(headers, *messages)) as upload:
            return upload.data, upload.content_type

    return asyncio.run(run())


PNG = {"content-type": "image/png"}
FORM = {"content-type": "multipart/form-data; boundary=b"}


def part(
    name: str, data: bytes, filename: str | None = "x", kind: str | None = "image/png"
) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'
    head += f"Content-Type: {kind}\r\n" if kind else ""
    return head.encode() + b"\r\n" + data + b"\r\n"


OPENED = part("file", b"x").removesuffix(b"\r\n")  # a form that goes on
END = b"--b--\r\n"


def test_a_raw_body_is_joined_from_its_chunks() -> None:
    assert receive(intake(), PNG, body(b"ab", True), body(b"", True), body(b"c")) == (
        b"abc",
        "image/png",
    )


@pytest.mark.parametrize("kind", ["IMAGE/PNG", "image/png; charset=x", " image/png "])
def test_the_content_type_is_compared_without_case_and_parameters(kind: str) -> None:
    assert receive(intake(), {"content-type": kind}, body(b"a")) == (b"a", "image/png")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("image/png", "image/png"), ("application/octet-stream", ""), (None, ""), ("a/b", "a/b")],
)
def test_the_file_of_a_form_has_the_type_of_its_part(kind: str | None, expected: str) -> None:
    data = part("any", b"data", kind=kind) + END
    assert receive(intake(), FORM, *(body(bytes([byte]), True) for byte in data), body(b"")) == (
        b"data",
        expected,
    )


def test_fields_beside_the_file_of_a_form_are_ignored() -> None:
    data = part("note", b"hello", None, None) + part("file", b"data") + END
    assert receive(intake(), FORM, body(data)) == (b"data", "image/png")


@pytest.mark.parametrize(
    "data",
    [
        END,
        part("note", b"hello", None, None) + END,
        part("a", b"1") + part("b", b"2") + END,
        b"".join(part("note", b"", None, None) for _ in range(9)) + part("file", b"data") + END,
        b"no form at all",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        b"",
    ],
)
def test_a_form_without_exactly_one_file_is_422(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        receive(intake(), FORM, body(data))


def test_a_form_without_a_boundary_is_422() -> None:
    with pytest.raises(UndecodableImage, match="boundary"):
        receive(intake(), {"content-type": "multipart/form-data"}, body(END))


@settings(deadline=None)
@given(
    data=st.binary(max_size=300),
    parameters=st.text("abc=;\"'\\ -*%/é", max_size=30),
    framed=st.booleans(),
)
def test_hostile_forms_raise_nothing_but_our_own_errors(
    data: bytes, parameters: str, framed: bool
) -> None:
    kind = (
        f"multipart/form-data; boundary=b; {parameters}"
        if framed
        else f"multipart/form-data;{parameters}"
    )
    content = part("file", data) + data + END if framed else data
    try:
        receive(intake(), {"content-type": kind}, body(content))
    except FathomError as error:
        caught = error.status
    else:
        caught = 200
    assert caught in (200, 422)


@pytest.mark.parametrize(
    "kind", ["", "image/gif", "text/plain", "application/json", "multipart/mixed", "image/pngx"]
)
def test_another_content_type_is_415(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        receive(intake(), {"content-type": kind}, body(b"x"))


def test_an_encoded_body_is_415() -> None:
    with pytest.raises(UnsupportedMediaType):
        receive(intake(), PNG | {"content-encoding": "gzip"}, body(b"x"))


def test_a_declared_length_over_the_limit_is_refused_without_reading() -> None:
    with pytest.raises(TooLarge, match="1000"):
        receive(intake(), PNG | {"content-length": "1001"})  # a read would wait for ever


@pytest.mark.parametrize(
    "headers", [PNG, PNG | {"content-length": "5"}, PNG | {"content-length": "-5"}, FORM]
)
def test_bytes_are_counted_whatever_the_length_says_and_read_to_the_end(headers: Headers) -> None:
    with pytest.raises(TooLarge):
        receive(
            intake(),
            headers,
            body(OPENED, True),
            *(body(b"x" * 400, True) for _ in range(5)),
            body(b""),
        )


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    assert len(receive(intake(), PNG | {"content-length": "1000"}, body(b"x" * 1000))[0]) == 1000


@pytest.mark.parametrize("headers", [PNG, FORM])
def test_a_body_that_does_not_arrive_in_time_is_408(headers: Headers) -> None:
    with pytest.raises(RequestTimeout):
        receive(intake(timeout_s=0.02), headers, body(OPENED, True))


@pytest.mark.parametrize("headers", [PNG, FORM])
def test_a_client_that_leaves_while_sending_is_no_error_of_ours(headers: Headers) -> None:
    with pytest.raises(ClientDisconnect):
        receive(intake(), headers, body(OPENED, True), GONE)


def test_bytes_in_memory_are_bounded_over_all_requests_and_given_back() -> None:
    refused: list[None] = []

    async def run() -> None:
        source = intake(timeout_s=5, max_waiting=100, on_refusal=lambda: refused.append(None))
        full = [asyncio.Event() for _ in range(HELD_BODIES)]
        release = asyncio.Event()

        async def hold(arrived: asyncio.Event) -> None:
            async with source.receive(request(PNG, body(b"x" * 1000))):
                arrived.set()
                await release.wait()

        tasks = [asyncio.create_task(hold(event)) for event in full]
        for event in full:
            await event.wait()
        with pytest.raises(Overloaded):
            async with source.receive(request(PNG, body(b"x"))):
                pass
        release.set()
        await asyncio.gather(*tasks)
        async with source.receive(request(PNG, body(b"x"))) as upload:
            assert upload.data == b"x"

    asyncio.run(run())
    assert len(refused) == 1


def test_bodies_that_wait_for_a_thread_are_bounded() -> None:
    async def run() -> None:
        source = intake(max_waiting=1)
        async with source.receive(request(PNG, body(b"x"))):
            with pytest.raises(Overloaded):
                async with source.receive(request(PNG, body(b"x"))):
                    pass
        async with source.receive(request(PNG, body(b"x"))):
            pass

    asyncio.run(run())


# -- the edge --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_id", ["a", "A-b_c.9", "x" * 64])
def test_a_sound_request_id_is_echoed(fake_manifest: Manifest, given_id: str) -> None:
    app, _, _ = stubbed(fake_manifest)
    assert (
        ask(app, scope(path="/healthz", headers={"X-Request-Id": given_id}))[1]["x-request-id"]
        == given_id
    )


@pytest.mark.parametrize("given_id", [None, "", "x" * 65, "a b", 'a"b', "é", "a\tb"])
def test_another_request_id_is_replaced(fake_manifest: Manifest, given_id: str | None) -> None:
    app, _, _ = stubbed(fake_manifest)
    headers = {} if given_id is None else {"X-Request-Id": given_id}
    assert re.fullmatch(
        r"[0-9a-f]{32}", ask(app, scope(path="/healthz", headers=headers))[1]["x-request-id"]
    )


def test_every_error_class_becomes_the_problem_document_of_its_status() -> None:
    for kind in (FathomError, *FathomError.__subclasses__()):
        response = problem(kind("what to change", retry_after=0.2, key="depth"), "id")
        document = json.loads(bytes(response.body))
        assert response.status_code == document["status"] == kind.status
        assert response.media_type == "application/problem+json"
        assert response.headers["retry-after"] == "1"
        assert document["type"] == f"urn:fathom:problem:{kind.problem}"
        assert (document["title"], document["detail"]) == (kind.title, "what to change")
        assert (document["instance"], document["key"]) == ("urn:fathom:request:id", "depth")


@pytest.mark.parametrize(("seconds", "field"), [(0.0, "1"), (1.0, "1"), (1.2, "2"), (59.01, "60")])
def test_retry_after_is_whole_seconds_and_at_least_one(seconds: float, field: str) -> None:
    assert problem(Overloaded("x", retry_after=seconds), "id").headers["retry-after"] == field


def test_further_members_never_hide_the_standard_ones() -> None:
    assert (
        json.loads(bytes(problem(FathomError("x", status=200, type="y"), "id").body))["status"]
        == 500
    )


def test_an_unforeseen_error_is_a_500_that_tells_nothing_and_is_logged(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(trace: Any) -> Outcome:
        raise RuntimeError("secret of the engine room")

    app, _, metrics = stubbed(fake_manifest, run)
    status, headers, content = ask(app, post(x_request_id="r1"), body(image_bytes()))
    assert (status, headers["content-type"]) == (500, "application/problem+json")
    assert headers["x-request-id"] == "r1"
    assert b"secret" not in content
    assert b"Traceback" not in content
    assert "secret of the engine room" in caplog.text
    assert "r1" in caplog.text
    assert counted(metrics, "internal") == 1


def test_an_error_after_the_answer_began_breaks_the_connection_instead_of_adding_to_it() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        asyncio.run(call(Edge(broken, 4), scope()))


def test_what_is_no_request_passes_through() -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Edge(inner, 4)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_an_error_carries_the_stages_and_the_plan_that_were_known(fake_manifest: Manifest) -> None:
    async def run(trace: Any) -> Outcome:
        trace.stages["queue"] = 0.0015
        trace.decision = Decision(fake_manifest.plans[1], Reason.DEADLINE, 0.5)
        raise DeadlineExceeded("too late")

    app, _, metrics = stubbed(fake_manifest, run)
    status, headers, _ = ask(app, post(), body(image_bytes()))
    assert status == 504
    assert headers["compute-used"] == "depth=2, of=4, gflops=3.0, reason=deadline"
    assert re.fullmatch(r"decode;dur=\d+\.\d{3}, queue;dur=1\.500", headers["server-timing"])
    assert headers["vary"] == "Accept, Compute-Budget"
    assert counted(metrics, "deadline-exceeded") == 1


def test_validation_errors_of_the_framework_are_problem_documents(fake_manifest: Manifest) -> None:
    app, _, _ = stubbed(fake_manifest)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    status, headers, content = ask(app, scope(path="/number/x"))
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(content)["type"] == "urn:fathom:problem:bad-query"


# -- the way of an image
# -----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_cancels_its_job(fake_manifest: Manifest) -> None:
    waits, cancelled = asyncio.Event(), []

    async def run(trace: Any) -> Outcome:
        waits.set()
        try:
            return await asyncio.Event().wait()  # type: ignore[return-value]
        except asyncio.CancelledError:
            cancelled.append(trace.request_id)
            raise

    app, _, metrics = stubbed(fake_manifest, run)

    async def session() -> Any:
        async with started(app), asyncio.timeout(5):
            return await call(app, post(x_request_id="r2"), body(image_bytes()), then=waits.wait())

    assert asyncio.run(session()) is None  # nobody is there to be answered
    assert cancelled == ["r2"]
    assert counted(metrics, "cancelled") == 1


def test_a_client_that_leaves_while_it_sends_is_counted_as_cancelled(
    fake_manifest: Manifest,
) -> None:
    app, _, metrics = stubbed(fake_manifest)
    assert ask(app, post(), body(b"x", True), GONE) is None
    assert counted(metrics, "cancelled") == 1


def test_what_can_be_refused_is_refused_before_the_body_is_read(fake_manifest: Manifest) -> None:
    app, scheduler, _ = stubbed(fake_manifest)

    async def session() -> list[int]:
        async with started(app), asyncio.timeout(5):
            found = [
                (await call(app, given, body(b"x", True)))[0]
                for given in (
                    post(accept="text/html"),
                    post(compute_budget="depth=9"),
                    post() | {"query_string": b"depth=2"},
                    post(content_type="image/gif"),
                )
            ]
            scheduler.state = "draining"
            return [*found, (await call(app, post(), body(b"x", True)))[0]]

    assert asyncio.run(session()) == [406, 400, 400, 415, 503]


def test_a_query_is_refused_by_name_instead_of_ignored(fake_manifest: Manifest) -> None:
    app, _, metrics = stubbed(fake_manifest)
    _, _, content = ask(app, scope("POST", "/segment", PNG, "depth=2"), body(image_bytes()))
    assert json.loads(content)["key"] == "depth"
    assert counted(metrics, "bad-query") == 1


@pytest.mark.parametrize(
    ("query", "accept", "words"),
    [
        ("include=masks", "application/json", "'masks', but it can only be paused"),
        ("include=", "application/json", "''"),
        ("include=paused,masks", "application/json", "'paused,masks'"),
        ("include=paused&include=x", "application/json", "'x'"),
        ("include=paused", "image/png", "the answer is to be image/png"),
        ("Include=paused", "application/json", "'Include'"),
    ],
)
def test_what_cannot_be_included_is_refused_by_name(
    fake_manifest: Manifest, query: str, accept: str, words: str
) -> None:
    app, _, metrics = stubbed(fake_manifest)
    headers = PNG | {"accept": accept}
    status, _, content = ask(app, scope("POST", "/segment", headers, query), body(image_bytes()))
    assert (status, json.loads(content)["type"]) == (400, "urn:fathom:problem:bad-query")
    assert words in json.loads(content)["detail"]
    assert counted(metrics, "bad-query") == 1


def test_the_node_budget_of_the_settings_reaches_the_scheduler(fake_manifest: Manifest) -> None:
    metrics = Metrics(layers=4, max_batch=4)
    options = Settings(node_budget="depth=2, ms=90")
    scheduler = Stub(lambda: FakeBackend(fake_manifest), fake_manifest, options, metrics)
    create_app(options, fake_manifest, scheduler, metrics)
    assert scheduler.node_budget == Budget(depth=2, ms=90.0)
    with pytest.raises(SettingsError, match="depth"):
        create_app(replace(options, node_budget="depth=5"), fake_manifest, scheduler, metrics)


def test_the_node_budget_file_beats_the_setting_while_the_service_runs(
    fake_manifest: Manifest, tmp_path: Any
) -> None:
    (tmp_path / "budget").write_text("depth=1")
    metrics = Metrics(layers=4, max_batch=4)
    options = Settings(node_budget="depth=2", node_budget_file=str(tmp_path / "budget"))
    scheduler = Stub(lambda: FakeBackend(fake_manifest), fake_manifest, options, metrics)
    app = create_app(options, fake_manifest, scheduler, metrics)

    async def session() -> None:
        async with started(app), asyncio.timeout(5):
            while scheduler.node_budget != Budget(depth=1):
                await asyncio.sleep(0.01)

    asyncio.run(session())
    assert scheduler.state == "draining"  # the end of the app drains the scheduler


# -- operations and documentation
# --------------------------------------------------------------------------------------


def get(app: FastAPI, path: str) -> Answer:
    return ask(app, scope(path=path))


def test_plans_tell_a_page_all_that_it_needs(fake_manifest: Manifest) -> None:
    app, _, _ = stubbed(fake_manifest)
    answer = json.loads(get(app, "/plans")[2])
    assert [plan["name"] for plan in answer["plans"]] == ["d1", "d2", "d3", "d4"]
    assert set(answer["plans"][0]) == {"name", "depth", "keep", "width", "gflops", "quality", "ms"}
    assert answer["plans"][0]["ms"] is None  # no engine has measured it
    assert answer["classes"][0] == {"name": "Road", "color": [128, 64, 128]}
    assert answer["bundle"] == {"name": "fake", "revision": "0" * 40}
    assert answer["task"] == "semantic"
    assert answer["limits"] == {
        "max_body_bytes": 20 * 1024 * 1024,
        "max_pixels": 25_000_000,
        "max_side": 8192,
        "min_side": 16,
    }


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready", "/v2/models/fake/ready"])
@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
def test_not_ready_is_503_with_retry_after_on_every_path(
    fake_manifest: Manifest, path: str, state: Any
) -> None:
    app, scheduler, _ = stubbed(fake_manifest)
    scheduler.start = lambda: setattr(scheduler, "state", state)  # type: ignore[method-assign]
    status, headers, content = get(app, path)
    assert (status, json.loads(content)["type"]) == (503, "urn:fathom:problem:not-ready")
    assert int(headers["retry-after"]) >= 1
    assert state in json.loads(content)["detail"]
    assert get(app, "/healthz")[0] == get(app, "/v2/health/live")[0] == 200


def test_open_inference_protocol_paths_describe_the_model(fake_manifest: Manifest) -> None:
    app, _, _ = stubbed(fake_manifest)
    assert json.loads(get(app, "/v2")[2]) == {
        "name": "fathom",
        "version": "unknown",
        "extensions": [],
    }
    assert json.loads(get(app, "/v2/health/ready")[2]) == {"ready": True}
    model = json.loads(get(app, "/v2/models/fake")[2])
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 48, 64, 3]}]
    assert model["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4, 12, 16]}
    ]
    assert json.loads(get(app, "/v2/models/fake/ready")[2]) == {"name": "fake", "ready": True}
    assert get(app, "/v2/models/other")[0] == get(app, "/v2/models/other/ready")[0] == 404


def test_metrics_are_a_plain_route(fake_manifest: Manifest) -> None:
    status, headers, content = get(stubbed(fake_manifest)[0], "/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert b"fathom_requests_total" in content


def test_metrics_come_as_openmetrics_to_whom_asks_for_it(fake_manifest: Manifest) -> None:
    wanted = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    for accept, kind in (
        (wanted, "application/openmetrics-text"),
        ("text/plain;version=x", "text/plain"),
    ):
        app = stubbed(fake_manifest)[0]
        status, headers, content = ask(app, scope(path="/metrics", headers={"Accept": accept}))
        assert (status, headers["content-type"].split(";")[0], headers["vary"]) == (
            200,
            kind,
            "Accept",
        )
        assert b"fathom_requests_total" in content
        assert content.endswith(b"# EOF\n") == (kind != "text/plain")


@pytest.mark.parametrize(
    ("path", "name"), [("/", "index.html"), ("/docs", "docs.html"), ("/static/docs.js", "docs.js")]
)
def test_pages_come_from_the_web_folder_with_a_policy_that_forbids_other_hosts(
    fake_manifest: Manifest, path: str, name: str
) -> None:
    status, headers, content = get(stubbed(fake_manifest)[0], path)
    assert (status, content) == (200, (WEB / name).read_bytes())
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["", "none.js", "..", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd"]
)
def test_files_outside_of_the_web_folder_are_not_there(fake_manifest: Manifest, name: str) -> None:
    status, headers, _ = get(stubbed(fake_manifest)[0], f"/static/{name}")
    assert (status, headers["content-type"]) == (404, "application/problem+json")


def test_pages_load_nothing_from_elsewhere() -> None:
    for path in WEB.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text("utf-8").replace(
                "http://www.w3.org/", ""
            )  # the name of a namespace
            assert not re.search(r"https?://|@import|src=\"//", text), path.name


@pytest.fixture
def api(fake_manifest: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(get(stubbed(fake_manifest)[0], "/openapi.json")[2])
    return content


def test_openapi_describes_bodies_forms_budget_and_every_error(api: dict[str, Any]) -> None:
    segment = api["paths"]["/segment"]["post"]
    assert set(segment["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "multipart/form-data",
    }
    parameters = {parameter["name"]: parameter for parameter in segment["parameters"]}
    assert "Compute-Budget" in parameters
    assert (parameters["include"]["in"], parameters["include"]["schema"]["enum"]) == (
        "query",
        ["paused"],
    )
    assert set(segment["responses"]["200"]["content"]) == {form.media_type for form in FORMS}
    met = {kind.status for kind in FathomError.__subclasses__()} | {500}
    assert {int(status) for status in segment["responses"]} == met | {200}
    for status in met:
        assert list(segment["responses"][str(status)]["content"]) == ["application/problem+json"]


def test_openapi_examples_fit_their_schemas_and_references_resolve(api: dict[str, Any]) -> None:
    from service.api.schemas import Segmentation

    content = api["paths"]["/segment"]["post"]["responses"]["200"]["content"]["application/json"]
    Segmentation.model_validate(content["example"])
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(api)))
    assert "Segmentation" in names
    assert names <= set(api["components"]["schemas"])


def test_openapi_does_not_promise_the_frameworks_own_errors(api: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(api)

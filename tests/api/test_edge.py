"""The edge of the app: request ids, problem documents, errors that nobody foresaw."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from service.api.middleware import Edge
from service.api.problems import problem
from service.bundle import Manifest
from service.core import Decision, Outcome, Reason
from service.errors import (
    DeadlineExceeded,
    FathomError,
    Overloaded,
)
from tests.api.asgi import ask, body, call, counted, post, scope, stubbed
from tests.pictures import flat


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


def test_two_request_ids_are_replaced_and_the_same_one_twice_is_echoed(
    fake_manifest: Manifest,
) -> None:
    app, _, _ = stubbed(fake_manifest)
    for other, echoed in (("a", True), ("b", False)):
        given = scope(path="/healthz", headers={"X-Request-Id": "a", "x-request-id": other})
        assert (ask(app, given)[1]["x-request-id"] == "a") is echoed
        assert ask(app, given)[1]["x-request-id"] != "b"


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
    status, headers, content = ask(app, post(x_request_id="r1"), body(flat()))
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
    status, headers, _ = ask(app, post(), body(flat()))
    assert status == 504
    assert headers["compute-used"] == "depth=2, of=4, gflops=3.0, reason=deadline"
    assert re.fullmatch(r"decode;dur=\d+\.\d{3}, queue;dur=1\.500", headers["server-timing"])
    assert headers["vary"] == "Accept, Compute-Budget, Task-Preference, Value-Range"
    assert counted(metrics, "deadline-exceeded") == 1


def test_validation_errors_of_the_framework_are_problem_documents(fake_manifest: Manifest) -> None:
    app, _, _ = stubbed(fake_manifest)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    status, headers, content = ask(app, scope(path="/number/x"))
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(content)["type"] == "urn:fathom:problem:bad-query"

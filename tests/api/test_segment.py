"""The way of an image: what is refused before it is read, callers that leave, the node's budget."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.api.segment import while_connected
from service.bundle import Manifest
from service.core import Budget, Outcome
from service.errors import (
    SettingsError,
)
from service.settings import Settings
from tests.api.asgi import (
    GONE,
    PNG,
    ask,
    body,
    call,
    counted,
    post,
    scope,
    started,
    stubbed,
)
from tests.pictures import flat


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
            return await call(app, post(x_request_id="r2"), body(flat()), then=waits.wait())

    assert asyncio.run(session()) is None  # nobody is there to be answered
    assert cancelled == ["r2"]
    assert counted(metrics, "cancelled") == 1


@pytest.mark.parametrize("by_client", [True, False])
def test_only_a_client_that_leaves_ends_as_one(*, by_client: bool) -> None:
    async def session() -> None:
        gone = asyncio.Event()

        async def receive() -> Any:
            await gone.wait()
            return GONE

        async def handler() -> None:
            with while_connected(Request(scope("POST", "/segment"), receive)):
                await asyncio.Event().wait()

        task = asyncio.create_task(handler())
        await asyncio.sleep(0.01)
        if by_client:
            gone.set()
        else:
            task.cancel()
        with pytest.raises(ClientDisconnect if by_client else asyncio.CancelledError):
            await task
        assert task.cancelling() == (not by_client)

    asyncio.run(session())


def test_a_client_that_leaves_as_the_work_ends_cancels_nothing_behind_it() -> None:
    async def session() -> None:
        gone, work = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def receive() -> Any:
            await gone.wait()
            return GONE

        async def handler() -> None:
            with while_connected(Request(scope("POST", "/segment"), receive)):
                await work
            await asyncio.sleep(0.01)  # as an answer that is sent

        task = asyncio.create_task(handler())
        await asyncio.sleep(0.01)
        gone.set()
        work.set_result(None)
        await task
        assert not task.cancelling()

    asyncio.run(session())


def test_a_client_that_leaves_while_it_sends_is_counted_as_cancelled(
    fake_manifest: Manifest,
) -> None:
    app, _, metrics = stubbed(fake_manifest)
    assert ask(app, post(), body(b"x", True), GONE) is None
    assert counted(metrics, "cancelled") == 1


def test_what_can_be_refused_is_refused_before_the_body_is_read(fake_manifest: Manifest) -> None:
    app, segmenter, _ = stubbed(fake_manifest)

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
            segmenter.state = "draining"
            return [*found, (await call(app, post(), body(b"x", True)))[0]]

    assert asyncio.run(session()) == [406, 400, 400, 415, 503]


def test_a_query_is_refused_by_name_instead_of_ignored(fake_manifest: Manifest) -> None:
    app, _, metrics = stubbed(fake_manifest)
    _, _, content = ask(app, scope("POST", "/segment", PNG, "depth=2"), body(flat()))
    assert json.loads(content)["key"] == "depth"
    assert counted(metrics, "bad-query") == 1


@pytest.mark.parametrize(
    ("query", "accept", "words"),
    [
        ("include=masks", "application/json", "'masks', but it can only be paused"),
        ("include=", "application/json", "''"),
        ("include=paused,masks", "application/json", "'paused,masks'"),
        ("include=paused&include=x", "application/json", "'x'"),
        ("include=paused", "image/png", "the answer would be image/png"),
        ("Include=paused", "application/json", "'Include'"),
    ],
)
def test_what_cannot_be_included_is_refused_by_name(
    fake_manifest: Manifest, query: str, accept: str, words: str
) -> None:
    app, _, metrics = stubbed(fake_manifest)
    headers = PNG | {"accept": accept}
    status, _, content = ask(app, scope("POST", "/segment", headers, query), body(flat()))
    assert (status, json.loads(content)["type"]) == (400, "urn:fathom:problem:bad-query")
    assert words in json.loads(content)["detail"]
    assert counted(metrics, "bad-query") == 1


def test_the_node_budget_of_the_settings_reaches_the_model(fake_manifest: Manifest) -> None:
    _, segmenter, _ = stubbed(fake_manifest, settings=Settings(node_budget="depth=2, ms=90"))
    assert segmenter.model.node_budget == Budget(depth=2, ms=90.0)
    with pytest.raises(SettingsError, match="depth"):
        stubbed(fake_manifest, settings=Settings(node_budget="depth=5"))


def test_the_node_budget_file_beats_the_setting_while_the_service_runs(
    fake_manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "budget").write_text("depth=1")
    settings = Settings(node_budget="depth=2", node_budget_file=str(tmp_path / "budget"))
    app, segmenter, _ = stubbed(fake_manifest, settings=settings)

    async def session() -> None:
        async with started(app), asyncio.timeout(5):
            while segmenter.model.node_budget != Budget(depth=1):
                await asyncio.sleep(0.01)

    asyncio.run(session())
    assert segmenter.state == "draining"  # the end of the app drains the engine

"""API keys: the file, the comparison, what a caller without a key gets and does not get, and a file
that changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from service.api.auth import MAX_BYTES, ApiKeys, parse_keys
from service.api.watched import Source, watch
from service.bundle import Manifest
from service.core import Decision, Frame, Geometry, Outcome, Reason
from service.engines.fake import FakeBackend
from service.errors import SettingsError
from service.inference.stages import Stages
from service.metrics import Metrics
from service.settings import Settings
from tests.api.asgi import PNG, ask, body, call, counted, get, post, scope, started, stubbed
from tests.api_keys import KEY, OTHER, line
from tests.pictures import flat

PERIOD_S = 0.01


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "api-keys"
    path.write_text(line("camera-7", KEY) + line("ops", OTHER))
    return path


def guarded(manifest: Manifest, file: Path) -> tuple[FastAPI, Metrics]:
    """The app with keys; every image gets the plan d2."""

    async def run(trace: Any) -> Outcome:
        plan, geometry = manifest.plans[1], Geometry(64, 48, 64, 48, (48, 64))
        trace.decision = Decision(plan, Reason.GATE, 0.5)
        stages = Stages(FakeBackend(manifest), manifest)
        features = stages.front([Frame(np.full((48, 64, 3), 200, np.uint8), geometry)])
        tensors = stages.head(geometry.shape, stages.encode(plan, geometry.shape, features))
        own = {name: values[0] for name, values in tensors.items()}
        return Outcome(trace.decision, geometry, {"semantic": own}, {"semantic": 1.0})

    app, _, metrics = stubbed(manifest, run, Settings(api_keys_file=str(file)))
    return app, metrics


# -- the file --------------------------------------------------------------------------------------


def test_a_file_has_names_and_digests_comments_and_blank_lines() -> None:
    text = "# ours\n\n" + line("a.b-c_9", KEY).upper().replace("SHA256", "sha256").replace(
        "A.B-C", "a.b-c"
    )
    ring = parse_keys(
        text
        + "   \r\n  # indented\r\n"
        + line("ops", OTHER).replace(" ", "\t  ").replace("\n", "  \r\n")
    )
    assert (ring.name_of(KEY), ring.name_of(OTHER), ring.name_of("x")) == ("a.b-c_9", "ops", None)


def test_a_name_may_have_several_keys_while_one_replaces_the_other() -> None:
    ring = parse_keys(line("ops", KEY) + line("ops", OTHER))
    assert ring.name_of(KEY) == ring.name_of(OTHER) == "ops"
    assert str(ring) == "keys in force: 2 (ops)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key"),
        ("# nothing\n\n", "no key"),
        (line("ops", KEY) + f"ops {KEY}\n", "line 2"),  # the key itself instead of its digest
        (f"ops:{KEY}", "line 1"),
        (line("ops", KEY).replace("sha256:", ""), "line 1"),  # may be a key of 64 hex digits
        (line("ops", KEY)[:-2], "line 1"),
        (line("ops", KEY).strip() + "0", "line 1"),
        (line("ops", KEY).strip() + " # mine", "line 1"),
        (line("a name", KEY), "line 1"),
        (line("naïve", KEY), "line 1"),
        (line("n" * 65, KEY), "line 1"),
        (line("ops", KEY) + line("other", KEY), "line 2 has the digest of a line before it"),
        (line("ops", ""), "line 1 has the digest of an empty key"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line_and_shows_nothing_of_it(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        parse_keys(text)
    assert KEY not in caught.value.detail
    assert hashlib.sha256(KEY.encode()).hexdigest()[:8] not in caught.value.detail


@pytest.mark.parametrize(
    "content", [None, b"", b"ops secret-key", b"#" * (MAX_BYTES + 1), b"\xff\xfe"]
)
def test_keys_that_cannot_be_used_stop_the_start_and_name_the_flag(
    tmp_path: Path, fake_manifest: Manifest, content: bytes | None
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="--api-keys-file") as caught:
        guarded(fake_manifest, path)
    assert str(path) in caught.value.detail
    assert "secret-key" not in caught.value.detail


def test_a_folder_in_the_place_of_the_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="directory"):
        ApiKeys(tmp_path, lambda request: None)


def test_a_file_of_the_largest_size_is_read(file: Path) -> None:
    text = file.read_text()
    file.write_text(text + "#" * (MAX_BYTES - len(text)))
    ApiKeys(file, lambda request: None)


# -- the comparison --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, "none of them", ""])
def test_every_key_is_compared_whichever_it_is_and_only_as_digests(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    compared: list[tuple[int, int]] = []
    constant_time = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return constant_time(a, b)

    ring = parse_keys(line("first", KEY) + "".join(line(f"n{i}", str(i)) for i in range(4)))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert ring.name_of(key) == ("first" if key == KEY else None)
    assert compared == [(32, 32)] * 5


def test_a_keyring_shows_names_and_neither_keys_nor_digests() -> None:
    ring = parse_keys(line("ops", KEY) + line("camera", OTHER))
    for shown in (str(ring), repr(ring), f"{ring}", f"{[ring]}"):
        assert "ops" in shown
        assert KEY not in shown
        assert hashlib.sha256(KEY.encode()).hexdigest()[:6] not in shown
        assert repr(hashlib.sha256(KEY.encode()).digest())[2:12] not in shown


@given(st.text(st.characters(max_codepoint=255)))
def test_no_other_text_is_a_key(text: str) -> None:
    assert parse_keys(line("ops", KEY)).name_of(text) == ("ops" if text == KEY else None)


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"X-API-Key": KEY.upper()},
        {"X-API-Key": ""},
        {"X-API-Key": "é" * 100},
        {
            "X-API-Key": "wrong",
            "Authorization": f"Bearer {KEY}",
        },  # X-API-Key counts where both are given
        {"X-API-Key": KEY, "x-api-key": "wrong"},
        {"X-API-Key": KEY, "x-api-key": OTHER},
        {"Authorization": f"Bearer {KEY}", "authorization": "Bearer wrong"},
        {"Cookie": f"X-API-Key={KEY}"},
        {"Host": "test/healthz?", "X-Forwarded-Host": "/healthz"},
    ],
)
def test_401_without_a_known_key_before_the_body_is_read(
    fake_manifest: Manifest, file: Path, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    app, metrics = guarded(fake_manifest, file)

    async def session() -> Any:
        async with (
            started(app),
            asyncio.timeout(5),
        ):  # the body never ends: a read would wait for ever
            given = scope("POST", "/segment", PNG | {"X-Request-Id": "r9"} | headers)
            return await call(app, given, body(b"x", True))

    with caplog.at_level(logging.INFO):
        status, fields, content = asyncio.run(session())
    assert (status, fields["content-type"]) == (401, "application/problem+json")
    assert fields["www-authenticate"].startswith("Bearer")
    document = json.loads(content)
    assert (document["type"], document["instance"]) == (
        "urn:fathom:problem:unauthorized",
        "urn:fathom:request:r9",
    )
    assert counted(metrics, "unauthorized") == 1
    assert (
        sum(
            "request_id=r9 status=401 outcome=unauthorized" in message
            for message in caplog.messages
        )
        == 1
    )
    for secret in (KEY, "wrong"):
        assert secret not in caplog.text
        assert secret not in content.decode()


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": f"Bearer {KEY}"}, "camera-7"),
        ({"authorization": f"bearer {KEY}"}, "camera-7"),
        ({"X-API-Key": OTHER}, "ops"),
        (
            {"X-API-Key": OTHER, "Authorization": "Basic dXNlcjpwYXNz"},
            "ops",
        ),  # an ingress has its own
        ({"X-API-Key": KEY, "x-api-key": KEY}, "camera-7"),
        ({"X-API-Key": OTHER, "Authorization": "Basic a", "authorization": f"Bearer {KEY}"}, "ops"),
    ],
)
def test_a_known_key_gets_its_answer_and_its_name_is_logged(
    fake_manifest: Manifest,
    file: Path,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    name: str,
) -> None:
    app, metrics = guarded(fake_manifest, file)
    with caplog.at_level(logging.INFO):
        status, _, _ = ask(app, scope("POST", "/segment", PNG | headers), body(flat()))
    assert (status, counted(metrics, "ok"), counted(metrics, "unauthorized")) == (200, 1, 0)
    assert any(f" key={name}" in message for message in caplog.messages)
    assert KEY not in caplog.text
    assert OTHER not in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/healthz",
            "/readyz",
            "/metrics",
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/fake/ready",
        ),
        *("/", "/docs", "/static/app.js", "/openapi.json"),
    ],
)
def test_health_metrics_and_the_files_of_the_page_ask_for_no_key(
    fake_manifest: Manifest, file: Path, path: str
) -> None:
    assert ask(guarded(fake_manifest, file)[0], scope(path=path))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/plans", "/v2", "/v2/models", "/v2/models/stats", "/v2/models/fake"),
        *("/v2/models/fake/config", "/v2/models/fake/stats", "/v2/models/fake/versions/1"),
    ],
)
def test_what_tells_about_the_model_asks_for_a_key(
    fake_manifest: Manifest, file: Path, path: str
) -> None:
    app, _ = guarded(fake_manifest, file)
    assert ask(app, scope(path=path))[0] == 401
    assert ask(app, scope(path=path, headers={"X-API-Key": KEY}))[0] == 200


def test_a_new_route_must_say_whether_it_asks_for_a_key(
    fake_manifest: Manifest, file: Path
) -> None:
    api = described(fake_manifest, api_keys_file=str(file))
    open_to_all = {
        path
        for path, methods in api["paths"].items()
        if not any("security" in m for m in methods.values())
    }
    assert open_to_all == {
        *(
            "/healthz",
            "/readyz",
            "/metrics",
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/{name}/ready",
            "/v2/models/{name}/versions/{version}/ready",
        ),
    }


def described(manifest: Manifest, **settings: Any) -> dict[str, Any]:
    """The OpenAPI document."""
    app, _, _ = stubbed(manifest, settings=Settings(**settings))
    document: dict[str, Any] = json.loads(get(app, "/openapi.json")[2])
    return document


def test_openapi_says_who_needs_a_key(fake_manifest: Manifest, file: Path) -> None:
    api = described(fake_manifest, api_keys_file=str(file))
    segment = api["paths"]["/segment"]["post"]
    assert "401" in segment["responses"]
    schemes = api["components"]["securitySchemes"]
    assert {name for entry in segment["security"] for name in entry} == set(schemes)
    kinds = {
        (scheme["type"], scheme.get("scheme") or scheme.get("name")) for scheme in schemes.values()
    }
    assert kinds == {("http", "bearer"), ("apiKey", "X-API-Key")}
    assert "security" not in api["paths"]["/healthz"]["get"]
    api = described(fake_manifest)
    assert "401" not in api["paths"]["/segment"]["post"]["responses"]
    assert "securitySchemes" not in api["components"]


# -- a file that changes
# -----------------------------------------------------------------------------------------------


def test_changed_keys_are_in_force_within_five_seconds_and_a_broken_file_keeps_them(
    fake_manifest: Manifest, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, _ = guarded(fake_manifest, file)

    async def status(key: str) -> int:
        answer = await call(app, post(x_api_key=key), body(flat()))
        return int(answer[0])

    async def session() -> list[int]:
        async with started(app), asyncio.timeout(20):
            before = [await status(KEY), await status("new")]
            file.write_text(line("camera-7", "new"))
            async with asyncio.timeout(5):
                while await status("new") != 200:
                    await asyncio.sleep(0.05)
            after = [await status(KEY)]
            file.write_text("")
            while "it has no keys" not in caplog.text:
                await asyncio.sleep(0.05)
            return [*before, *after, await status("new")]

    with caplog.at_level(logging.INFO):
        assert asyncio.run(session()) == [200, 401, 401, 200]
    assert [
        record.levelname for record in caplog.records if "it has no keys" in record.getMessage()
    ] == ["ERROR"]
    assert any("keys in force: 1 (camera-7)" in message for message in caplog.messages)


def test_a_file_that_is_missing_for_a_look_changes_nothing_and_a_mended_one_counts_again(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[str] = []

    async def run() -> None:
        task = asyncio.create_task(
            watch(
                Source(file, parse_keys, MAX_BYTES),
                lambda ring: applied.append(str(ring)),
                PERIOD_S,
            )
        )
        text = file.read_text()
        async with asyncio.timeout(5):
            while len(applied) < 1:
                await asyncio.sleep(PERIOD_S)
            file.unlink()
            while "No such file" not in caplog.text:
                await asyncio.sleep(PERIOD_S)
            file.write_text(text)
            while len(applied) < 2:
                await asyncio.sleep(PERIOD_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert applied == ["keys in force: 2 (camera-7, ops)"] * 2
    assert caplog.text.count("No such file") == 1


def test_every_test_that_the_threat_table_names_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "security.md").read_text("utf-8")))
    known = {
        name
        for path in root.glob("tests/**/test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert named - known == set()

"""Pages of other origins: what they may cause, and what they can read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from service.api.origins import SENT, SHOWN, Origins
from service.bundle import Manifest
from service.core import Decision, Outcome, Reason
from service.errors import Overloaded, SettingsError
from service.settings import Settings
from tests.api.asgi import Answer, ask, body, counted, post, scope, stubbed
from tests.pictures import flat

APP = "https://app.example"


def asked(fake_manifest: Manifest, given: dict[str, Any], origins: str = "") -> Answer:
    async def run(trace: Any) -> Outcome:
        trace.decision = Decision(fake_manifest.plans[1], Reason.GATE, 0.5)
        raise Overloaded("it came to the engine", retry_after=1)

    app, _, metrics = stubbed(fake_manifest, run, Settings(cors_origins=origins))
    answer = ask(app, given, body(flat()))
    assert counted(metrics, "foreign-origin") == float(answer[0] == 403)
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": APP},
        {"origin": "null"},
        {"origin": "http://test.example"},
        {"origin": "http://test:8080"},
        {"origin": "file://"},
        {"origin": "http://[::1"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "https://other.test"},
        {"sec-fetch-site": "cross-site", "origin": "http://test"},
    ],
)
def test_a_post_for_a_page_of_another_origin_is_refused_before_work(
    fake_manifest: Manifest, headers: dict[str, str]
) -> None:
    for path in ("/segment", "/v2/models/fake/infer", "/nothing"):
        given = scope("POST", path, {"content-type": "image/png"} | headers)
        status, fields, content = asked(fake_manifest, given)
        assert (status, json.loads(content)["type"]) == (403, "urn:fathom:problem:foreign-origin")
        assert "access-control-allow-origin" not in fields


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://test"},
        {"origin": "https://TEST"},
        {"origin": "http://page.example", "x-forwarded-host": "page.example"},
        {"sec-fetch-site": "same-origin", "origin": "http://renamed.example"},
        {"sec-fetch-site": "none"},
    ],
)
def test_programs_and_the_services_own_page_are_served(
    fake_manifest: Manifest, headers: dict[str, str]
) -> None:
    given = scope("POST", "/segment", {"content-type": "image/png"} | headers)
    assert asked(fake_manifest, given)[0] == 429


@pytest.mark.parametrize("origins", [APP, f"https://a.example {APP}", "HTTPS://APP.example:443"])
def test_a_page_of_an_allowed_origin_can_ask_and_read_answers_and_errors(
    fake_manifest: Manifest, origins: str
) -> None:
    site = {"sec_fetch_site": "cross-site"}
    status, headers, _ = asked(fake_manifest, post(origin=APP, **site), origins)
    assert status == 429
    assert headers["access-control-allow-origin"] == APP
    assert set(headers["access-control-expose-headers"].split(", ")) == set(SHOWN)
    assert {"compute-used", "retry-after", "x-request-id"} <= set(headers)
    assert headers["vary"].split(", ")[-1] == "Origin"
    status, headers, _ = asked(fake_manifest, post(origin="https://other.example"), origins)
    assert (status, headers["vary"]) == (403, "Origin")
    assert "access-control-allow-origin" not in headers
    status, headers, _ = asked(
        fake_manifest, scope(path="/plans", headers={"origin": APP}), origins
    )
    assert (status, headers["access-control-allow-origin"]) == (200, APP)


def preflight(origin: str, path: str = "/segment") -> dict[str, Any]:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "compute-budget,content-type,x-api-key",
    }
    return scope("OPTIONS", path, headers)


def test_a_browser_that_asks_first_is_told_what_it_may_send(fake_manifest: Manifest) -> None:
    status, headers, content = asked(fake_manifest, preflight(APP), APP)
    assert (status, content) == (204, b"")
    assert headers["access-control-allow-origin"] == APP
    assert set(headers["access-control-allow-methods"].split(", ")) == {"GET", "HEAD", "POST"}
    allowed = {name.lower() for name in headers["access-control-allow-headers"].split(", ")}
    assert allowed == {name.lower() for name in SENT}
    document = json.loads(asked(fake_manifest, scope(path="/openapi.json"))[2])
    described = {
        parameter["name"].lower()
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }
    assert {"compute-budget", "priority", "value-range"} <= described <= allowed
    needed = "x-api-key authorization content-type content-encoding traceparent"
    assert set(needed.split()) <= allowed
    for origin, origins in ((APP, ""), ("https://other.example", APP), ("null", APP)):
        assert asked(fake_manifest, preflight(origin), origins)[0] == 403


def test_a_star_allows_every_origin(fake_manifest: Manifest) -> None:
    status, headers, _ = asked(fake_manifest, post(origin="null"), "*")
    assert (status, headers["access-control-allow-origin"]) == (429, "*")
    assert "Origin" not in headers["vary"]
    assert asked(fake_manifest, preflight(APP), "*")[0] == 204
    assert "access-control-allow-origin" not in asked(fake_manifest, post(), "*")[1]


@pytest.mark.parametrize(
    "word", ["app.example", f"{APP}/", f"{APP}/path", "null", "https://*", "ftp://a", f"{APP}:"]
)
def test_what_is_no_origin_is_a_wrong_setting(word: str) -> None:
    with pytest.raises(SettingsError, match="--cors-origins"):
        Origins(f"{APP} {word}")


def test_off_it_adds_nothing(fake_manifest: Manifest) -> None:
    headers = asked(fake_manifest, scope(path="/plans", headers={"origin": APP}))[1]
    assert not [name for name in headers if name.startswith("access-control")]
    assert headers["vary"] == "Task-Preference"  # of /plans itself
    assert Origins().answer("OPTIONS", Headers({"origin": APP})) is None

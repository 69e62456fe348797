"""Operations and documentation: plans, health, the model's description, metrics, pages, OpenAPI."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from service.api.forms import FORMS
from service.api.pages import WEB
from service.bundle import Manifest
from service.errors import (
    FathomError,
)
from service.pixels.formats import FORMATS
from tests.api.asgi import ask, get, scope, stubbed


def test_plans_tell_a_page_all_that_it_needs(fake_manifest: Manifest) -> None:
    app, _, _ = stubbed(fake_manifest)
    answer = json.loads(get(app, "/plans")[2])
    assert [plan["name"] for plan in answer["plans"]] == ["d1", "d2", "d3", "d4"]
    assert set(answer["plans"][0]) == {
        *("name", "canvas", "tiled", "depth", "keep", "width", "heads", "gflops", "quality", "ms"),
    }
    assert answer["plans"][0]["heads"] == {"semantic": 1.0}
    assert answer["plans"][0]["ms"] is None  # no engine has measured it
    assert answer["classes"][0] == {"name": "Road", "color": [128, 64, 128]}
    assert answer["bundle"] == {"name": "fake", "revision": "0" * 40}
    assert answer["task"] == "semantic"
    (head,) = answer["heads"]
    assert (head.pop("classes"), head) == (
        answer["classes"],
        {
            "name": "semantic",
            "task": "semantic",
            "gives": "masks",
            "objects": False,
            "weight": 1.0,
            "widths": [1.0],
            "unit": None,
            "range": None,
        },
    )
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
    app, segmenter, _ = stubbed(fake_manifest)
    segmenter.start = lambda: setattr(segmenter, "state", state)  # type: ignore[method-assign]
    status, headers, content = get(app, path)
    assert (status, json.loads(content)["type"]) == (503, "urn:fathom:problem:not-ready")
    assert int(headers["retry-after"]) >= 1
    assert state in json.loads(content)["detail"]
    assert get(app, "/healthz")[0] == get(app, "/v2/health/live")[0] == 200


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
        *FORMATS,
        "application/octet-stream",
        "multipart/form-data",
    }
    parameters = {parameter["name"]: parameter for parameter in segment["parameters"]}
    assert "Compute-Budget" in parameters
    assert (parameters["include"]["in"], parameters["include"]["schema"]["enum"]) == (
        "query",
        ["paused", "values"],
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

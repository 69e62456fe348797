"""Several heads over HTTP: which are run, which are answered, and in which form."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import http_sf
import httpx
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from service.api.fields import parse_preference, preference_pattern
from service.bundle import Manifest
from service.errors import BadHeader
from service.structured import MAX_LENGTH
from tests.api.server import Server, rejected, running
from tests.pictures import LEVELS, quarters
from tests.serving import app_of

ALL = "semantic=0.5, boxes=0.3, depth=0.2"
FULL = "max-loss=0"
QUARTERS = quarters()
SHARED = [HealthCheck.function_scoped_fixture]  # nothing changes the service


@pytest.fixture
def server(several_heads: Manifest) -> Iterator[Server]:
    with running(several_heads) as server:
        yield server


def ask(
    server: Server,
    preference: str | None = None,
    accept: str = "application/json",
    budget: str = FULL,
    **query: str,
) -> httpx.Response:
    headers = {"Accept": accept, "Compute-Budget": budget}
    if preference is not None:
        headers["Task-Preference"] = preference
    return server.post(quarters(128, 96), headers, params=query)


def answer(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def used(response: httpx.Response) -> dict[str, Any]:
    fields: Any = http_sf.parse(response.headers["compute-used"].encode(), tltype="dictionary")
    return dict(fields)


# -- JSON ------------------------------------------------------------------------------------------


def test_json_has_every_asked_head_by_name(server: Server) -> None:
    found = answer(ask(server, ALL))
    assert list(found) == ["image", "heads", "usage", "timing_ms"]
    heads = found["heads"]
    assert {name: (head["task"], head["weight"]) for name, head in heads.items()} == {
        "semantic": ("semantic", 0.5),
        "boxes": ("detection", 0.3),
        "depth": ("depth", 0.2),
    }
    segments = heads["semantic"]["segments"]
    assert [segment["label"] for segment in segments] == ["Road", "Building", "Car", "Sky"]
    assert {segment["area"] for segment in segments} == {64 * 48}
    dark, bright = heads["boxes"]["segments"]
    assert (dark["label"], dark["is_thing"]) == ("car", True)
    assert set(bright) == {"id", "class_id", "label", "is_thing", "score", "box"}
    assert bright["box"] == [0, 48, 128, 48]  # the lower half is bright
    values = heads["depth"]["values"]
    assert (values["unit"], values["scale"]) == ("m", 1024)
    assert (values["min"], values["max"]) == (1.0, pytest.approx(1 + 49 * 250 / 255, abs=1e-3))
    assert list(values["percentiles"]) == ["5", "25", "75", "95"]
    assert found["usage"]["heads"] == {"semantic": 1.0, "boxes": 1.0, "depth": 1.0}
    assert found["usage"]["plan"] == "c64-d4+semantic+boxes+depth"


@pytest.mark.parametrize("preference", ["boxes=1", "boxes=0.3, depth=0, semantic=0.0", "boxes=7"])
def test_one_head_is_answered_under_the_keys_of_a_bundle_with_one(
    server: Server, preference: str
) -> None:
    found = answer(ask(server, preference))
    assert list(found) == ["image", "task", "segments", "heads", "usage", "timing_ms"]
    assert found["task"] == "detection"
    assert found["heads"]["boxes"]["segments"] == found["segments"]
    found = answer(ask(server, "depth=1"))
    assert list(found) == ["image", "task", "values", "heads", "usage", "timing_ms"]
    assert found["heads"]["depth"]["values"] == found["values"]


def test_a_bundle_with_one_head_answers_as_ever(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        plain, asked = ask(server), ask(server, "semantic=0.2")
        assert list(answer(plain)) == ["image", "task", "segments", "usage", "timing_ms"]
        assert answer(asked)["segments"] == answer(plain)["segments"]
        assert "heads" not in answer(plain)["usage"]
        assert plain.headers["compute-used"] == "depth=4, of=4, gflops=5.0, reason=gate"
        document = rejected(ask(server, "depth=1"), 400, "bad-header")
        assert (document["header"], document["key"]) == ("Task-Preference", "depth")


def test_who_says_nothing_gets_the_preference_of_the_bundle(server: Server) -> None:
    for preference in (None, ""):
        heads = answer(ask(server, preference))["heads"]
        assert {name: head["weight"] for name, head in heads.items()} == {
            "semantic": 0.5,
            "depth": 0.5,
        }


def test_the_png_of_values_is_in_json_if_it_is_asked_for(server: Server) -> None:
    values = answer(ask(server, "depth=1", include="values"))["values"]
    png = ask(server, "depth=1", "image/png")
    assert base64.b64decode(values["png"]) == png.content
    assert "png" not in answer(ask(server, "depth=1"))["values"]


def test_the_query_can_pick_one_head_of_the_json(server: Server) -> None:
    found = answer(ask(server, ALL, head="depth"))
    assert (found["task"], list(found["heads"])) == ("depth", ["depth"])
    assert set(found["usage"]["heads"]) == {"semantic", "boxes", "depth"}  # they ran all the same


# -- what ran --------------------------------------------------------------------------------------


def test_compute_used_tells_heads_and_widths_and_buys_them_again(server: Server) -> None:
    response = ask(server, "semantic=0.3, depth=0.7", budget="gflops=6.3, max-loss=0")
    text = "canvas=c64, depth=4, of=4, heads=(semantic;width=0.5 depth), gflops=6.3, reason=request"
    assert response.headers["compute-used"] == text
    (heads, _) = used(response)["heads"]
    assert [(str(name), dict(more)) for name, more in heads] == [
        ("semantic", {"width": pytest.approx(0.5)}),
        ("depth", {}),
    ]
    assert answer(response)["heads"]["semantic"]["width"] == 0.5


def test_heads_that_are_not_asked_for_are_not_run(server: Server) -> None:
    ask(server, "boxes=1", budget="gflops=1.3")
    assert server.value("fathom_head_images_total", head="boxes", width="1") == 1
    others = ("semantic", "0.5"), ("semantic", "1"), ("depth", "0.25"), ("depth", "1")
    assert [server.value("fathom_head_images_total", head=h, width=w) for h, w in others] == [0] * 4
    assert server.value("fathom_compute_gflops_total") == 1.3


def test_a_budget_that_no_plan_of_the_asked_heads_keeps_names_the_cheapest(server: Server) -> None:
    document = rejected(ask(server, "boxes=1", budget="gflops=1.2"), 422, "unsatisfiable-budget")
    assert document["cheapest"] == {"plan": "c32-d1+boxes", "depth": 1, "gflops": 1.3}
    assert answer(ask(server, "boxes=1", budget="gflops=1.3"))["usage"]["gflops"] == 1.3


def test_the_log_line_names_the_heads(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "fathom.request"):
        ask(server, "boxes=1, depth=1", budget="gflops=1.5")
        server.settle()
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fathom.request")
    assert "plan=c32-d1+boxes+depth-w25" in line


@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    weights=st.dictionaries(
        st.sampled_from(["semantic", "boxes", "depth"]), st.integers(0, 999), min_size=1
    ).filter(lambda weights: any(weights.values())),
    gflops=st.integers(1000, 8000),
)
def test_the_budget_is_kept_in_every_answer_of_1000_pairs(
    several_heads: Manifest, weights: dict[str, int], gflops: int, client: TestClient
) -> None:
    preference = ", ".join(f"{name}=0.{weight:03d}" for name, weight in weights.items())
    headers = {
        "Content-Type": "image/png",
        "Task-Preference": preference,
        "Compute-Budget": f"gflops={gflops / 1000}",
    }
    response = client.post("/segment", content=QUARTERS, headers=headers)
    asked = {name for name, weight in weights.items() if weight}
    cheapest = {"semantic": 0.5, "boxes": 0.3, "depth": 0.2}
    least = 1 + sum(cheapest[name] for name in asked)
    if gflops / 1000 < round(least, 4):
        assert response.status_code == 422
        return
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["usage"]["gflops"] <= gflops / 1000
    assert set(found["heads"]) == asked
    parts = dict(costs_of(found["usage"]["plan"], several_heads))
    assert sum(parts.values()) == pytest.approx(found["usage"]["gflops"], abs=1e-6)


@pytest.fixture
def client(several_heads: Manifest) -> Iterator[TestClient]:
    with TestClient(app_of(several_heads)) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def costs_of(plan: str, manifest: Manifest) -> Iterator[tuple[str, float]]:
    encoder, *heads = plan.split("+")
    row = next(row for row in manifest.encoder_plans if row.name == encoder)
    yield encoder, row.gflops
    yield from ((head, row.heads[head].gflops) for head in heads)


# -- forms of one head -----------------------------------------------------------------------------


def test_a_png_of_values_has_their_scale_and_unit_in_the_header(server: Server) -> None:
    response = ask(server, "depth=1", "image/png")
    assert response.headers["value-scale"] == '1024.0;unit="m"'
    pixels = np.asarray(Image.open(io.BytesIO(response.content))).astype(float)
    assert pixels.shape == (96, 128)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]] / 1024
    assert corners == pytest.approx([1 + 49 * level / 255 for level in LEVELS], abs=1e-3)


@pytest.mark.parametrize(
    ("preference", "accept", "head"),
    [
        ("semantic=0.2, boxes=0.5, depth=0.3", "image/png", "depth"),  # boxes have no pixels
        ("semantic=0.3, boxes=0.5, depth=0.2", "image/png", "semantic"),
        ("semantic=0.5, depth=0.5", "image/png", "semantic"),  # of equals, the bundle's first
        ("semantic=0.1, depth=0.9", "application/geo+json", "semantic"),
        ("semantic=0.1, depth=0.9", "application/vnd.coco.panoptic+json", "semantic"),
        ("semantic=0.1, depth=0.9", "image/png;profile=overlay", "semantic"),
        ("semantic=0.1, depth=0.9", "application/x-npz", "semantic"),
    ],
)
def test_a_form_of_one_head_has_the_one_that_matters_most_of_those_it_can_hold(
    server: Server, preference: str, accept: str, head: str
) -> None:
    response, named = ask(server, preference, accept), ask(server, preference, accept, head=head)
    assert response.status_code == 200
    if response.headers["content-type"].endswith("json"):
        assert (response.json()["head"], response.json()["task"]) == (head, "semantic")
        assert response.json()["usage"]["heads"].keys() == {"semantic", "depth"}
    elif "npz" not in accept:
        assert response.content == named.content
        assert ("value-scale" in response.headers) == (head == "depth")


def test_the_query_names_the_head_of_a_form(server: Server) -> None:
    assert "value-scale" in ask(server, ALL, "image/png", head="depth").headers
    assert "value-scale" not in ask(server, ALL, "image/png", head="semantic").headers


@pytest.mark.parametrize(
    ("preference", "accept", "query", "able", "way"),
    [
        ("boxes=1", "image/png", {}, ["semantic", "depth"], "name it in Task-Preference"),
        (
            "boxes=1, depth=1",
            "application/geo+json",
            {},
            ["semantic"],
            "name it in Task-Preference",
        ),
        (ALL, "image/png", {"head": "boxes"}, ["semantic", "depth"], "ask for head=semantic"),
        (
            "boxes=1, depth=1",
            "image/png",
            {"head": "boxes"},
            ["semantic", "depth"],
            "ask for head=depth",
        ),
        (
            "boxes=1",
            "image/png",
            {"head": "boxes"},
            ["semantic", "depth"],
            "name it in Task-Preference",
        ),
        (ALL, "application/x-npz", {"head": "depth"}, ["semantic"], "ask for head=semantic"),
        ("depth=1", "image/png;profile=overlay", {}, ["semantic"], "name it in Task-Preference"),
    ],
)
def test_what_a_form_cannot_hold_is_406_that_names_the_heads_that_it_can(
    server: Server,
    preference: str,
    accept: str,
    query: dict[str, str],
    able: list[str],
    way: str,
) -> None:
    document = rejected(ask(server, preference, accept, **query), 406, "not-acceptable")
    assert document["heads"] == able
    assert all(f"'{name}'" in document["detail"] for name in able)
    assert document["detail"].endswith(way)


def test_a_bundle_none_of_whose_heads_fits_says_so(several_heads: Manifest) -> None:
    boxes = several_heads.heads[1]
    rows = tuple(
        replace(plan, heads={"boxes": plan.heads["boxes"]}) for plan in several_heads.encoder_plans
    )
    graphs = {
        shape: replace(own, heads={"boxes": own.heads["boxes"]})
        for shape, own in several_heads.graphs.items()
    }
    stages = dict(several_heads.stages)
    glance = stages["front-24x32"]
    *features, quality = glance.outputs
    quality = replace(quality, dims=("batch", 3))
    stages["front-24x32"] = replace(glance, outputs=(*features, quality))
    manifest = replace(
        several_heads,
        heads=(boxes,),
        default_preference={"boxes": 1.0},
        encoder_plans=rows,
        graphs=graphs,
        stages=stages,
    )
    with running(manifest) as server:
        document = rejected(ask(server, accept="image/png"), 406, "not-acceptable")
        assert "no head of this bundle can be in that form" in document["detail"]
        assert answer(ask(server))["task"] == "detection"


# -- multipart/mixed -------------------------------------------------------------------------------


def parts_of(response: httpx.Response) -> dict[str, Any]:
    """By file name; the parser of Python's email package (RFC 2046)."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(head + response.content)
    assert message.is_multipart()
    assert not message.defects
    return {part.get_filename(): part for part in message.iter_parts()}


def test_multipart_mixed_has_a_part_per_head(server: Server) -> None:
    response = ask(server, ALL, "multipart/mixed")
    assert response.headers["content-type"].startswith("multipart/mixed; boundary=")
    parts = parts_of(response)
    assert list(parts) == ["answer.json", "semantic.png", "boxes.json", "depth.png"]
    whole = json.loads(parts["answer.json"].get_payload(decode=True))
    assert list(whole["heads"]) == ["semantic", "boxes", "depth"]
    boxes = json.loads(parts["boxes.json"].get_payload(decode=True))
    assert boxes["segments"] == whole["heads"]["boxes"]["segments"]
    for name in ("semantic", "depth"):
        part = parts[f"{name}.png"]
        alone = ask(server, ALL, "image/png", head=name)
        assert part.get_payload(decode=True) == alone.content
        assert part.get_content_type() == "image/png"
        assert part["Value-Scale"] == alone.headers.get("value-scale")
        assert int(part["Content-Length"]) == len(alone.content)


def test_multipart_mixed_is_for_a_bundle_with_one_head_too(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        response = ask(server, accept="multipart/*, application/json;q=0.5")
        assert list(parts_of(response)) == ["answer.json", "semantic.png"]
        assert "mask" in response.headers["server-timing"]


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preference", "key", "words"),
    [
        ("sky=1", "sky", "is no head of this bundle: there is 'semantic', 'boxes', 'depth'"),
        ("semantics=1", "semantics", "did you mean 'semantic'?"),
        ("depth=1, sky=0", "sky", "is no head of this bundle"),
        ("depth=-0.1", "depth", "must be from 0"),
        ("depth=-1, semantic=2", "depth", "must be from 0"),
        ("depth=0", "depth", "at least one weight must be over 0"),
        ("semantic=0, depth=0.000", "semantic", "at least one weight must be over 0"),
        ("depth", "depth", "must be a number"),
        ("depth=?1", "depth", "must be a number"),
        ("depth=high", "depth", "must be a number"),
        ('depth="1"', "depth", "must be a number"),
        ("depth=(1 2)", "depth", "must be a single value"),
        ("depth=1;x=2", "depth", "takes no parameters"),
        ("depth=nan", "depth", "must be a number"),
        ("depth=1e-3", "depth", "cannot be understood"),
        ("depth=0.1234", "depth", "cannot be understood"),
        ("depth=1000001", "depth", "must be from 0 to 1000000"),
        ("Depth=1", "Depth", "the key in lower case"),
        ("depth=1 semantic=2", "depth", "cannot be understood"),
    ],
)
def test_a_preference_that_cannot_be_understood_is_400_that_names_the_key(
    server: Server, preference: str, key: str, words: str
) -> None:
    for response in (
        ask(server, preference),
        server.http.get("/plans", headers={"Task-Preference": preference}),
    ):
        document = rejected(response, 400, "bad-header")
        assert (document["header"], document["key"]) == ("Task-Preference", key)
        assert f"Task-Preference: the key '{key}'" in document["detail"]
        assert words in document["detail"]
    assert server.value("fathom_head_images_total", head="depth", width="1") == 0


@pytest.mark.parametrize(
    ("preference", "words"),
    [(",", "a member without a key"), ("a=1," * 300 + "b=2", "more than 1024")],
)
def test_a_preference_without_keys_or_of_great_length_is_400(
    server: Server, preference: str, words: str
) -> None:
    assert words in rejected(ask(server, preference), 400, "bad-header")["detail"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"head": "boxes"}, "is not asked for by Task-Preference: it can be 'semantic' or 'depth'"),
        ({"head": "sky"}, "is no head of this bundle: it can be 'semantic' or 'depth'"),
        ({"head": ""}, "is no head of this bundle"),
        ({"heads": "depth"}, "the keys are 'include' and 'head'"),
        ({"include": "everything"}, "it can only be paused or values"),
    ],
)
def test_a_head_in_the_query_that_is_not_answered_is_400(
    server: Server, query: dict[str, str], words: str
) -> None:
    document = rejected(ask(server, **query), 400, "bad-query")
    assert words in document["detail"]
    assert document["key"] == next(iter(query))


def test_two_heads_in_the_query_are_400(server: Server) -> None:
    response = server.http.post("/segment?head=depth&head=semantic", content=b"")
    assert "head is there twice" in rejected(response, 400, "bad-query")["detail"]


def test_values_are_added_to_json_alone(server: Server) -> None:
    document = rejected(ask(server, "depth=1", "image/png", include="values"), 400, "bad-query")
    assert "include=values adds to JSON" in document["detail"]


TEXTS = st.text(st.characters(max_codepoint=255), max_size=40)
NEAR = st.lists(
    st.sampled_from(
        [
            "semantic",
            "depth",
            "a*",
            "=",
            "0",
            "1",
            "-",
            ".5",
            ",",
            " ",
            ";",
            "(",
            ")",
            '"',
            "?1",
            ":",
        ]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS | NEAR)
def test_whatever_stands_in_the_field_it_is_weights_or_a_400_of_the_field(text: str) -> None:
    try:
        weights = parse_preference([text])
    except BadHeader as error:
        refused = error
    else:
        found = {} if weights is None else weights
        assert all(0 <= weight <= 1e6 for weight in found.values())
        assert weights is None or any(found.values())
        return
    assert refused.extra["header"] == "Task-Preference"
    assert len(refused.detail) < 400


@settings(max_examples=300, deadline=None)
@given(
    text=st.from_regex(preference_pattern(["semantic", "depth"]), fullmatch=True).filter(
        lambda text: len(text) <= MAX_LENGTH
    )
)
def test_what_fits_the_pattern_of_the_document_is_understood(text: str) -> None:
    assert (parse_preference([text]) is None) == (not text)


# -- /plans, CORS, caches --------------------------------------------------------------------------


def test_plans_are_those_of_the_preference(server: Server) -> None:
    found = server.http.get("/plans").json()
    assert {head["name"]: head["weight"] for head in found["heads"]} == {
        "semantic": 0.5,
        "boxes": 0.0,
        "depth": 0.5,
    }
    assert [head["gives"] for head in found["heads"]] == ["masks", "boxes", "values"]
    depth = found["heads"][2]
    assert (depth["unit"], depth["range"], depth["widths"]) == ("m", [1.0, 50.0], [0.25, 1.0])
    assert depth["classes"] == []
    assert (found["task"], found["classes"]) == ("semantic", found["heads"][0]["classes"])
    response = server.http.get("/plans", headers={"Task-Preference": "boxes=1"})
    assert response.headers["vary"] == "Task-Preference"
    plans = response.json()["plans"]
    assert [plan["name"] for plan in plans] == ["c32-d1+boxes", "c64-d1+boxes", "c64-d4+boxes"]
    assert plans[0]["heads"] == {"boxes": 1.0}
    assert all(plan["ms"] > 0 for plan in plans)  # also of those that never ran


def test_caches_know_that_the_field_counts(server: Server) -> None:
    assert "Task-Preference" in ask(server).headers["vary"]
    assert "Task-Preference" in ask(server, "sky=1").headers["vary"]


def test_the_document_has_the_field_the_query_and_every_answer(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    segment = document["paths"]["/segment"]["post"]
    parameters = {parameter["name"]: parameter for parameter in segment["parameters"]}
    assert "semantic, boxes, depth" in parameters["Task-Preference"]["description"]
    assert parameters["head"]["schema"]["enum"] == ["semantic", "boxes", "depth"]
    content = segment["responses"]["200"]["content"]
    assert "multipart/mixed" in content
    schema = {**content["application/json"]["schema"], "components": document["components"]}
    for preference in (ALL, "boxes=1", "depth=1", "semantic=1", "boxes=1, depth=2"):
        found = answer(ask(server, preference, include="values"))
        jsonschema.Draft202012Validator(schema).validate(found)
    panoptic = content["application/vnd.coco.panoptic+json"]["schema"]
    response = ask(server, ALL, "application/vnd.coco.panoptic+json")
    jsonschema.Draft202012Validator({**panoptic, "components": document["components"]}).validate(
        response.json()
    )

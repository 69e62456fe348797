"""What /openapi.json says of names, budgets and errors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.fields import MAX_LENGTH, parse_budget, pattern
from service.api.forms import FORMS
from service.bundle import Manifest
from tests.api.asgi import get, stubbed

LAYERS = 6


@pytest.fixture
def api(fake_manifest: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(get(stubbed(fake_manifest)[0], "/openapi.json")[2])
    return content


@given(st.from_regex(pattern(LAYERS), fullmatch=True).filter(lambda text: len(text) <= MAX_LENGTH))
def test_a_budget_that_fits_the_pattern_is_understood(text: str) -> None:
    budget = parse_budget([text])
    assert budget.depth is None or 1 <= budget.depth <= LAYERS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "depth=6",
        "gflops=4.964",
        "gflops=0.001",
        "gflops=999999.999",
        "ms=80",
        "ms=600000",
        "max-loss=0",
        "max-loss=0.005",
        "max-loss=1",
        "strict",
        "strict=?0",
        "depth=3, gflops=6.5, ms=80, max-loss=0.01, strict",
    ],
)
def test_usual_budgets_fit_the_pattern(text: str) -> None:
    assert re.search(pattern(LAYERS), text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "depth=7",
        "depth=0",
        "gflops=0",
        "ms=0",
        "ms=600001",
        "max-loss=1.1",
        "strict=1",
        "depth",
        ",",
    ],
)
def test_what_is_out_of_range_does_not_fit_the_pattern(text: str) -> None:
    assert re.search(pattern(LAYERS), text) is None


def test_operations_have_short_names_of_their_own(api: dict[str, Any]) -> None:
    names = [
        operation["operationId"]
        for operations in api["paths"].values()
        for operation in operations.values()
    ]
    assert len(names) == len(set(names))
    assert {"segment", "plans", "metrics"} <= set(names)
    assert all(name.isidentifier() for name in names)


def test_the_form_of_the_answer_is_no_parameter(api: dict[str, Any]) -> None:
    """OpenAPI: a parameter with the name Accept shall be ignored."""
    segment = api["paths"]["/segment"]["post"]
    assert "Accept" not in {parameter["name"] for parameter in segment["parameters"]}
    _, forms = segment["description"].split("Accept picks the form:\n\n")
    assert [line.split()[1] for line in forms.split("\n\n")[0].splitlines()] == [
        f"{form.media_type}:" for form in FORMS
    ]

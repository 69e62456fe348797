"""Accept: which form an answer has."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.forms import FORMS
from service.api.selection import negotiate
from service.errors import (
    BadHeader,
    NotAcceptable,
)


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
        (["image/png;profile=overlay"], "image/png;profile=overlay"),
        (['image/png; profile="overlay"; q=0.3, text/html'], "image/png;profile=overlay"),
        (["image/png;q=0.5, image/png;profile=overlay"], "image/png;profile=overlay"),
        (["image/png, image/png;profile=overlay;q=0.5"], "image/png"),
        (["application/geo+json"], "application/geo+json"),
        (["application/vnd.coco.panoptic+json"], "application/vnd.coco.panoptic+json"),
        (["application/x-npz, */*;q=0.1"], "application/x-npz"),
        (["application/*"], "application/json"),
        (['application/json;x="a;q=0"'], "application/json"),
        (['text/html;x="\\", image/png;q=2", image/png;x="y";q=1'], "image/png"),
        (['image/png;x="a,b";q=0.5, application/json;q=0.4'], "image/png"),
        (['image/png;profile="over,lay", application/json;q=0.4'], "application/json"),
        (["image/png;;q=0.5, ;, ,application/json;q=0.4"], "image/png"),
        (["image/png; q=.2, */*; q=.2"], "application/json"),  # Java's HttpURLConnection
    ],
)
def test_accept_chooses_the_form_of_the_highest_weight(lines: list[str], expected: str) -> None:
    assert negotiate(lines).media_type == expected


@pytest.mark.parametrize(
    "line",
    [
        "text/html",
        "image/webp",
        "image/png;q=0",
        "image/png;profile=x",
        "*/*;q=0",
        "application/*;q=0, text/*",
    ],
)
def test_accept_without_an_offered_form_is_406_and_names_what_is_offered(line: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        negotiate([line])
    assert caught.value.extra == {"offered": [form.media_type for form in FORMS]}


@pytest.mark.parametrize("weight", ["2", "-1", "x", "nan", "inf", ""])
def test_a_weight_that_is_no_number_from_0_to_1_is_400(weight: str) -> None:
    with pytest.raises(BadHeader, match="Accept"):
        negotiate([f"image/png;q={weight}"])


@pytest.mark.parametrize("line", ['"', 'image/png;x="y', 'image/png;x="y\\', ";", ";q=1", '";q=2'])
def test_a_string_that_does_not_end_is_the_rest(line: str) -> None:
    with suppress(NotAcceptable):
        assert negotiate([line, "image/png"]).media_type == "image/png"


@given(st.lists(st.text() | st.text('a/*;="\\, q01'), max_size=3))
def test_hostile_accept_raises_nothing_but_400_and_406(lines: list[str]) -> None:
    with suppress(BadHeader, NotAcceptable):
        assert negotiate(lines) in FORMS

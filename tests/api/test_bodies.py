"""Bodies: raw and forms, their limits in bytes and time, and how many are held at once."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from service.api.body import BY_BYTES, HELD_BODIES, Intake
from service.api.multipart import MAX_PARTS
from service.errors import (
    BadHeader,
    FathomError,
    Overloaded,
    RequestTimeout,
    TooLarge,
    UndecodableImage,
    UnsupportedMediaType,
)
from tests.api.asgi import GONE, PNG, Headers, body, scope

_LIMITS: dict[str, Any] = {
    "max_bytes": 1000,
    "timeout_s": 0.1,
    "min_rate": 100_000,
}


def intake(**changes: Any) -> Intake:
    return Intake(**_LIMITS | changes)


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


LONG = part("note", b"x" * 50_000, None, None)
JSON = part("meta", b'{"a": 1}', "blob", "application/json; charset=utf-8")


@pytest.mark.parametrize("size", [1000, 100_000])
@pytest.mark.parametrize(
    "others",
    [
        part("note", b"hello", None, None),
        LONG,
        LONG.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n"),
        JSON,
        part("meta", b'{"a": 1}', "m.json", "application/ld+json"),
        part("note", b"", None, None) * (MAX_PARTS - 1),
    ],
)
def test_parts_beside_the_image_of_a_form_are_ignored(others: bytes, size: int) -> None:
    for form in (others + part("file", b"data") + END, part("file", b"data") + others + END):
        pieces = [form[i : i + size] for i in range(0, len(form), size)]
        messages = [*(body(piece, True) for piece in pieces), body(b"")]
        found = receive(intake(max_bytes=100_000, timeout_s=9), FORM, *messages)
        assert found == (b"data", "image/png")


def test_of_a_long_part_beside_the_image_nothing_is_kept() -> None:
    form = part("note", b"x" * 8_000_000, None, None) + part("file", b"data") + END
    pieces = [form[i : i + 65_536] for i in range(0, len(form), 65_536)]
    messages = [*(body(piece, True) for piece in pieces), body(b"")]
    tracemalloc.start()
    receive(intake(max_bytes=10_000_000, timeout_s=9), FORM, *messages)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    "data",
    [
        END,
        part("note", b"hello", None, None) + END,
        part("file", b"\x89PNG\r\n", None, None) + part("b", b"2") + END,
        part("a", b"1") + part("b", b"2") + END,
        part("note", b"hello", None, None) * 9 + JSON + END,
        b"no form at all",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        b"",
    ],
)
def test_a_form_without_exactly_one_file_is_422(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        receive(intake(), FORM, body(data))


@pytest.mark.parametrize(
    "cut",
    [
        part("file", b"data"),
        part("file", b"data") + b"--b",
        part("file", b"data", None),
        part("note", b"hello", None, None),
        b"--b\r\nContent-Disposition: form-da",
    ],
)
def test_a_form_that_is_cut_is_told_from_an_empty_image(cut: bytes) -> None:
    with pytest.raises(UndecodableImage, match="ends before its closing boundary"):
        receive(intake(), FORM, body(cut))


def test_only_the_part_of_the_image_must_be_whole() -> None:
    data = part("file", b"data") + b"--b\r\nContent-Disp"
    assert receive(intake(), FORM, body(data))[0] == b"data"


NOTHING = part("other", b"", "", "application/octet-stream")  # of a file input without a file


@pytest.mark.parametrize(
    "form",
    [
        NOTHING + part("file", b"data"),
        part("file", b"data") + NOTHING * 8,
        part("file", b"data", "", "image/png") + NOTHING,
    ],
)
def test_file_inputs_without_a_file_are_ignored(form: bytes) -> None:
    assert receive(intake(max_bytes=2000), FORM, body(form + END)) == (b"data", "image/png")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b"a preamble\r\n" + part("file", b"data"), "must begin with the boundary"),
        (part("file", b"data").replace(b"--b", b"--c"), "must begin with the boundary"),
        (part("file", b"data").replace(b"\r\n", b"\n"), "ends with CR LF"),
        (b"--b\r\nContent Disposition: x\r\n\r\n", "the head of a part is malformed"),
        (NOTHING * (MAX_PARTS + 1), "more than 1000 parts"),
    ],
)
def test_a_form_that_cannot_be_read_says_what_to_change(form: bytes, words: str) -> None:
    with pytest.raises(UndecodableImage, match=words):
        receive(intake(max_bytes=200_000), FORM, body(form + END))


PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(3000)


@pytest.mark.parametrize("size", [1, 7, 500, 10_000])
@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (PICTURE, None, (PICTURE, "")),
        (PICTURE, "text/plain", (PICTURE, "text/plain")),
        (PICTURE[:100], None, (PICTURE[:100], "")),
        (b"\xff\xd8\xff\xe0" + PICTURE, "image/jpg", (b"\xff\xd8\xff\xe0" + PICTURE, "")),
        (b"damaged", "image/jpeg", (b"damaged", "image/jpeg")),
    ],
)
def test_a_part_without_a_filename_is_taken_if_it_alone_is_an_image(
    size: int, data: bytes, kind: str | None, expected: tuple[bytes, str]
) -> None:
    form = part("note", b"hello", None, None) + part("photo", data, None, kind) + END
    pieces = [form[i : i + size] for i in range(0, len(form), size)]
    messages = [*(body(piece, True) for piece in pieces), body(b"")]
    assert receive(intake(max_bytes=10_000, timeout_s=5), FORM, *messages) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (part("photo", b"aGVsbG8=" * 400, None, None), ["'photo'", "filename", "not as text"]),
        (part("note", b"hello", None, None) * 20, ["'note'", "and 12 more"]),
        (part("note", b"hello", None, None), ["'note'", "with a filename"]),
        (b"", ["no parts"]),
        (part("a", PICTURE, None, None) + part("b", PICTURE, None, None), ["'b'", "second image"]),
        (part("a", b"1") + part("notes", b"2", "notes.txt", "text/plain"), ["'notes'", "no other"]),
        (part("a", b"", "", "application/octet-stream"), ["'a' (empty)", "with a filename"]),
        (part("x" * 1000, b"y" * 2000, None, None), ["'xxxx"]),
    ],
)
def test_a_form_without_one_image_says_which_part_lacks_what(data: bytes, words: list[str]) -> None:
    with pytest.raises(UndecodableImage) as caught:
        receive(intake(max_bytes=20_000), FORM, body(data + END))
    assert [word for word in words if word not in caught.value.detail] == []
    assert len(caught.value.detail) < 300


MISSPELT = {
    "image/jpg",
    "image/tif",
    "image/x-tiff",
    "image/vnd.mozilla.apng",
    "image/heic-sequence",
}


@pytest.mark.parametrize("kind", sorted(BY_BYTES | MISSPELT))
def test_types_that_say_less_than_the_bytes_are_taken_by_the_bytes(kind: str) -> None:
    assert receive(intake(), {"content-type": kind.upper()}, body(b"a")) == (b"a", "")
    form = part("file", b"data", kind=kind) + END
    assert receive(intake(), FORM, body(form)) == (b"data", "")


@pytest.mark.parametrize("coding", ["identity", "Identity", " IDENTITY ", "identity, identity", ""])
def test_no_encoding_is_none_however_it_is_written(coding: str) -> None:
    headers = PNG | {"content-encoding": coding}
    assert receive(intake(), headers, body(b"a")) == (b"a", "image/png")


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
    "kind",
    [
        "",
        "image/gif",
        "image/tiff-fx",
        "text/plain",
        "application/json",
        "multipart/mixed",
        "image/pngx",
    ],
)
def test_another_content_type_is_415(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        receive(intake(), {"content-type": kind}, body(b"x"))


def test_two_content_types_are_400_and_the_same_one_twice_is_one() -> None:
    data = body(b"a")
    assert receive(intake(), {"content-type": "image/png", "Content-Type": "image/png "}, data)[1]
    assert receive(intake(), {"content-type": "", "Content-Type": "image/png"}, data)[1]
    for other in ("image/jpeg", "image/png; x=y", FORM["content-type"]):
        with pytest.raises(BadHeader, match="Content-Type") as caught:
            receive(intake(), {"content-type": "image/png", "Content-Type": other}, data)
        assert caught.value.extra == {"header": "Content-Type"}


def test_an_encoded_body_is_415() -> None:
    with pytest.raises(UnsupportedMediaType):
        receive(intake(), PNG | {"content-encoding": "gzip"}, body(b"x"))


def test_a_declared_length_over_the_limit_is_refused_without_reading() -> None:
    with pytest.raises(TooLarge, match="1000"):
        receive(intake(), PNG | {"content-length": "1001"})  # a read would wait for ever


@pytest.mark.parametrize(
    "headers", [PNG, PNG | {"content-length": "5"}, PNG | {"content-length": "-5"}, FORM]
)
def test_bytes_are_counted_whatever_the_length_says(headers: Headers) -> None:
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
    async def run() -> None:
        source = intake(timeout_s=5)
        full = [asyncio.Event() for _ in range(HELD_BODIES)]
        release = asyncio.Event()

        async def hold(arrived: asyncio.Event) -> None:
            async with source.receive(request(PNG, body(b"x" * 1000))):
                arrived.set()
                await release.wait()

        tasks = [asyncio.create_task(hold(event)) for event in full]
        for event in full:
            await event.wait()
        with pytest.raises(Overloaded) as caught:
            async with source.receive(request(PNG, body(b"x"))):
                pass
        assert caught.value.shed == "full"
        release.set()
        await asyncio.gather(*tasks)
        async with source.receive(request(PNG, body(b"x"))) as upload:
            assert upload.data == b"x"

    asyncio.run(run())

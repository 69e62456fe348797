"""The trace of a caller: continued where it is sound, and no error where it is not."""

from __future__ import annotations

import pytest

from service.bundle import Manifest
from tests.api.asgi import post
from tests.api.traced import World, parent_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize("sample", [0.0, 1.0])
@pytest.mark.parametrize("flag", ["00", "01"])
def test_a_callers_trace_is_continued_and_its_flag_counts_whatever_our_share_is(
    fake_manifest: Manifest, sample: float, flag: str
) -> None:
    world = World(fake_manifest, sample=sample)
    (answer,) = world.ask(post(traceparent=f"00-{TRACE}-{PARENT}-{flag}", tracestate="vendor=1"))
    assert (parent_of(answer)[0], parent_of(answer)[2]) == (TRACE, flag == "01")
    assert parent_of(answer)[1] != PARENT
    assert len(world.servers) == int(flag)
    for span in world.servers:
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == PARENT
        assert span.parent.is_remote
        assert span.context.trace_state.to_header() == "vendor=1"


def test_a_share_of_none_records_no_new_trace_and_still_names_it(fake_manifest: Manifest) -> None:
    world = World(fake_manifest, sample=0.0)
    (answer,) = world.ask(post())
    assert not parent_of(answer)[2]
    assert world.kept.get_finished_spans() == ()


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-é1",
        f"00-{TRACE}-{PARENT}-01" + "x" * 10_000,
        f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01",
    ],
)
def test_a_malformed_parent_begins_a_new_trace_and_is_no_error(
    world: World, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    (answer,) = world.ask(post(traceparent=given, tracestate="x" * 10_000))
    assert answer[0] == 200
    assert (world.servers[0].parent, parent_of(answer)[2]) == (None, True)
    assert parent_of(answer)[0] != TRACE
    assert "header exceeded" not in caplog.text  # a stranger must not fill the log


def test_two_parents_are_none(world: World) -> None:
    given = post(traceparent=f"00-{TRACE}-{PARENT}-01")
    given["headers"].append((b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()))
    (answer,) = world.ask(given)
    assert (answer[0], world.servers[0].parent) == (200, None)


@pytest.mark.parametrize("state", ["é", "=", "a=1,a=2", "x" * 600, ",,,"])
def test_a_malformed_state_does_not_lose_the_parent(world: World, state: str) -> None:
    (answer,) = world.ask(post(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate=state))
    assert (answer[0], parent_of(answer)[0]) == (200, TRACE)

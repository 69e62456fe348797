"""The protocol over gRPC: the same answers as over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from PIL import Image

from service import __main__ as entry
from service.api.auth import ApiKeys
from service.api.tracing import Tracing
from service.bundle import Bundle, Manifest
from service.errors import SettingsError
from service.labels import STAGES
from service.open_inference.infer import _traces
from service.settings import Settings
from service.trace import Trace
from tests.api.server import Gated, Server, running
from tests.api_keys import line
from tests.needs import missing
from tests.open_inference.asking import document, elements, infer
from tests.open_inference.test_clients import run
from tests.pictures import flat, quarters
from tests.processes import ROOT, STRICT_SERVICE, answers, environment, until

try:
    import grpc

    import service.grpc.server as grpc_server
    from service.grpc.messages import MESSAGES, SERVICE
    from service.grpc.server import GrpcServer
except ImportError:
    missing_grpc = True
else:
    missing_grpc = False

QUARTERS = quarters(64, 48)


@pytest.fixture(autouse=True)
def _needed() -> None:
    if missing_grpc:
        missing("GRPC", "grpcio is not installed (the extra grpc)")


@contextmanager
def beside(server: Server, keys: Any = None, tracing: Any = None, **settings: Any) -> Iterator[str]:
    """The transport in the loop of a running service; its address."""
    segmenter = server.segmenter

    async def start() -> tuple[Any, int]:
        told = {"version": "1.2", "keys": keys, "tracing": tracing}
        made = GrpcServer(Settings(**settings), segmenter, server.metrics, **told)
        return made, await made.start("127.0.0.1:0")

    made, port = asyncio.run_coroutine_threadsafe(start(), server.loop).result(20)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(), server.loop).result(20)


class Caller:
    """Calls by name, with messages as keyword arguments."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1)]
        )

    def method(self, call: str) -> Any:
        return self.channel.unary_unary(
            f"/{SERVICE}/{call}",
            request_serializer=MESSAGES[f"{call}Request"].SerializeToString,
            response_deserializer=MESSAGES[f"{call}Response"].FromString,
        )

    def __call__(self, call: str, /, metadata: Any = (), timeout: float = 20, **fields: Any) -> Any:
        message = MESSAGES[f"{call}Request"](**fields)
        return self.method(call)(message, timeout=timeout, metadata=metadata)

    def raw(self, call: str, data: bytes, metadata: Any = ()) -> tuple[str, str]:
        """The status and the details of bytes that are no message."""
        with pytest.raises(grpc.RpcError) as caught:
            self.channel.unary_unary(f"/{SERVICE}/{call}")(data, timeout=20, metadata=metadata)
        error: Any = caught.value
        return error.code().name, error.details()

    def refused(self, code: str, call: str = "ModelInfer", /, **fields: Any) -> tuple[str, Any]:
        with pytest.raises(grpc.RpcError) as caught:
            self(call, **fields)
        error: Any = caught.value
        assert error.code().name == code, error.details()
        return error.details(), dict(error.trailing_metadata())


@pytest.fixture
def live(server: Server) -> Iterator[SimpleNamespace]:
    with beside(server) as address:
        yield SimpleNamespace(call=Caller(address), server=server, address=address)


def image(*files: bytes) -> dict[str, Any]:
    return {
        "model_name": "fake",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(files)]}],
        "raw_input_contents": [elements(files)],
    }


def parameter(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def test_answers_are_those_of_http(live: SimpleNamespace) -> None:
    found = live.call("ModelInfer", **image(QUARTERS, QUARTERS), id="seven")
    over_http = infer(live.server, document(QUARTERS, QUARTERS)).json()
    assert (found.model_name, found.model_version, found.id) == ("fake", "1", "seven")
    labels, segments = over_http["outputs"]
    assert [(out.name, out.datatype, list(out.shape)) for out in found.outputs] == [
        (out["name"], out["datatype"], out["shape"]) for out in (labels, segments)
    ]
    raw = found.raw_output_contents
    assert np.frombuffer(raw[0], np.uint8).tolist() == labels["data"]
    assert raw[1] == elements([text.encode() for text in segments["data"]])
    used = {entry.key: entry.value.string_param for entry in found.parameters}
    assert json.loads(used["usage"]) == json.loads(over_http["parameters"]["usage"])


def test_contents_may_be_typed_or_raw(live: SimpleNamespace) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(QUARTERS)).convert("RGB"))
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    named = {"model_name": "fake", "model_version": "1"}
    answers = [
        live.call("ModelInfer", **image(QUARTERS)),
        live.call(
            "ModelInfer",
            model_name="fake",
            inputs=[
                {
                    "name": "image",
                    "datatype": "BYTES",
                    "shape": [1],
                    "contents": {"bytes_contents": [QUARTERS]},
                }
            ],
        ),
        live.call("ModelInfer", **named, inputs=[tensor], raw_input_contents=[pixels.tobytes()]),
        live.call(
            "ModelInfer",
            **named,
            inputs=[tensor | {"contents": {"uint_contents": pixels.ravel().tolist()}}],
        ),
    ]
    assert len({answer.raw_output_contents[0] for answer in answers}) == 1


def test_the_ask_stands_in_the_parameters_of_any_kind(live: SimpleNamespace) -> None:
    for given, plan in (
        ([parameter("depth", int64_param=2), parameter("max_loss", double_param=0.0)], "d2"),
        ([parameter("gflops", string_param="3.5"), parameter("max_loss", int64_param=0)], "d2"),
        ([parameter("max_loss", string_param="0"), parameter("strict", bool_param=True)], "d4"),
        ([parameter("depth", uint64_param=1)], "d1"),
    ):
        found = live.call("ModelInfer", **image(flat()), parameters=given)
        used = {entry.key: entry.value for entry in found.parameters}
        assert used["plan"].string_param == plan
        assert used["gflops"].double_param > 0
        assert used["depth"].int64_param == int(plan[1])


def test_the_fields_of_http_are_read_as_metadata(live: SimpleNamespace) -> None:
    few, typo = ("compute-budget", "depth=1, max-loss=0"), ("compute-budget", "dept=1")
    found = live.call("ModelInfer", (few, ("value-range", "auto")), **image(flat()))
    used = {entry.key: entry.value for entry in found.parameters}
    assert (used["plan"].string_param, used["reason"].string_param) == ("d1", "request")
    two = [parameter("depth", int64_param=2)]
    for metadata, given, words in (
        ((few, typo), [], "Compute-Budget: the key 'dept' is unknown"),
        ((("value-range", "wide"),), [], "Value-Range"),
        ((("task-preference", "sky=1"),), [], "Task-Preference: the key 'sky'"),
        ((few,), two, "the key 'depth' and the header field Compute-Budget differ"),
    ):
        details, _ = live.call.refused(
            "INVALID_ARGUMENT", **image(flat()), metadata=metadata, parameters=given
        )
        assert words in details
    assert live.server.value("fathom_requests_total", outcome="bad-header") == 3


def test_a_call_has_the_id_that_its_caller_gave_it(live: SimpleNamespace) -> None:
    method = live.call.method("ServerLive")
    request = MESSAGES["ServerLiveRequest"]()
    ids = []
    for sent in ("seven-7", "x y", ""):
        metadata = (("x-request-id", sent),)
        _, call = method.with_call(request, timeout=20, metadata=metadata)
        ids.append(dict(call.trailing_metadata())["x-request-id"])
        fields = image(b"") | {"metadata": metadata}
        _, trailing = live.call.refused("INVALID_ARGUMENT", **fields)
        ids.append(trailing["x-request-id"])
    assert ids[:2] == ["seven-7"] * 2
    assert [len(each) for each in ids[2:]] == [32] * 4


def test_only_requested_outputs_are_given(live: SimpleNamespace) -> None:
    found = live.call("ModelInfer", **image(flat()), outputs=[{"name": "segments"}])
    assert [out.name for out in found.outputs] == ["segments"]


def test_metadata_and_readiness(live: SimpleNamespace) -> None:
    assert live.call("ServerLive").live
    assert live.call("ServerReady").ready
    assert live.call("ModelReady", name="fake", version="1").ready
    told = live.call("ServerMetadata")
    assert (told.version, list(told.extensions)) == ("1.2", ["parameters"])
    found = live.call("ModelMetadata", name="fake")
    over_http = live.server.http.get("/v2/models/fake").json()
    assert [(out.name, list(out.shape)) for out in found.inputs] == [
        (out["name"], out["shape"]) for out in over_http["inputs"]
    ]
    assert list(found.versions) == over_http["versions"]


def test_health_is_told_as_kubernetes_asks_for_it(fake_manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("me", "secret"))
    keys = ApiKeys(path, lambda _: None)  # probes have none
    with running(fake_manifest) as server, beside(server, keys) as address:
        check = Caller(address).channel.unary_unary("/grpc.health.v1.Health/Check")
        name = SERVICE.encode()
        asked = b"\x0a" + bytes([len(name)]) + name
        assert [check(data, timeout=20) for data in (b"", asked)] == [b"\x08\x01"] * 2
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x01x", timeout=20)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.NOT_FOUND
        asyncio.run_coroutine_threadsafe(server.segmenter.drain(20), server.loop).result(20)
        assert check(b"", timeout=20) == b"\x08\x02"


def test_a_parameter_without_a_value_counts_as_absent(live: SimpleNamespace) -> None:
    answer = live.call("ModelInfer", **image(flat()) | {"parameters": [parameter("depth")]})
    assert answer.outputs


@pytest.mark.parametrize(
    ("fields", "code", "part"),
    [
        (image(flat()) | {"model_name": "other"}, "NOT_FOUND", "only model is fake"),
        (image(flat()) | {"model_version": "7"}, "NOT_FOUND", "versions are 1"),
        (image(b"no image"), "INVALID_ARGUMENT", "image"),
        (image(flat(), b""), "INVALID_ARGUMENT", "Image 1"),
        (image() | {"inputs": []}, "INVALID_ARGUMENT", "0 inputs"),
        (image(flat()) | {"raw_input_contents": [b"x", b"y"]}, "INVALID_ARGUMENT", "contents"),
        (image(flat()) | {"raw_input_contents": [b"\xff"]}, "INVALID_ARGUMENT", "BYTES"),
        (
            image(flat()) | {"parameters": [parameter("dept", int64_param=1)]},
            "INVALID_ARGUMENT",
            "did you mean 'depth'",
        ),
        (image(flat()) | {"outputs": [{"name": "x"}]}, "INVALID_ARGUMENT", "'x'"),
        (
            image(flat())
            | {
                "outputs": [
                    {"name": "labels", "parameters": [parameter("classification", int64_param=1)]}
                ]
            },
            "INVALID_ARGUMENT",
            "'classification'",
        ),
        (
            {
                "model_name": "fake",
                "inputs": [
                    {
                        "name": "pixels",
                        "datatype": "UINT8",
                        "shape": [1, 1, 3],
                        "contents": {"uint_contents": [1, 2, 256]},
                    }
                ],
            },
            "INVALID_ARGUMENT",
            "0 to 255",
        ),
        (
            {
                "model_name": "fake",
                "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, 3]}],
            },
            "INVALID_ARGUMENT",
            "the shape of the input 'pixels' must be a list of up to 8 sizes",
        ),
        (
            {
                "model_name": "fake",
                "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [7] * 100_000}],
            },
            "INVALID_ARGUMENT",
            "the shape of the input 'pixels' must be a list of up to 8 sizes",
        ),
    ],
)
def test_errors_are_named_and_have_their_codes(
    live: SimpleNamespace, fields: dict[str, Any], code: str, part: str
) -> None:
    details, _ = live.call.refused(code, **fields)
    assert part in details


def test_bytes_that_are_no_message_are_the_callers_mistake(
    live: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    text = b"\x0a\x02\xff\xff"  # a name that is not UTF-8
    for call in ("ModelInfer", "ModelMetadata", "ServerLive"):
        for data in (b"\xff" * 3, b"\x0a\xff", text if "Model" in call else b"\x0a"):
            code, details = live.call.raw(call, data)
            assert (code, f"no {call}Request" in details) == ("INVALID_ARGUMENT", True), details
            assert "class" not in details
    assert live.server.value("fathom_requests_total", outcome="bad-inference") == 9
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_full_queue_says_when_to_come_back(fake_manifest: Manifest) -> None:
    with running(fake_manifest, queue_size=1, max_batch=1) as server, beside(server) as address:
        server.gate.clear()
        call = Caller(address)
        method = call.method("ModelInfer")
        request = MESSAGES["ModelInferRequest"](**image(flat()))
        first = method.future(request)
        server.until("fathom_inflight", 1)
        second = method.future(request)
        server.until("fathom_queue_depth", 1)
        details, trailing = call.refused("RESOURCE_EXHAUSTED", **image(flat()))
        assert "queue is full" in details
        assert int(trailing["retry-after"]) >= 1
        second.cancel()
        server.until("fathom_queue_depth", 0)
        server.until("fathom_requests_total", 1, outcome="cancelled")
        server.gate.set()
        assert first.result(20).outputs
        server.until("fathom_requests_total", 1, outcome="ok")


def test_a_flood_of_calls_is_refused_and_counted_as_over_http_and_health_is_told(
    fake_manifest: Manifest,
) -> None:
    few = {"queue_size": 1, "max_batch": 1}
    with running(fake_manifest, **few) as server, beside(server, **few) as address:
        server.gate.clear()
        call = Caller(address)
        method = call.method("ModelInfer")
        request = MESSAGES["ModelInferRequest"](**image(flat()))
        admitted = [method.future(request)]
        server.until("fathom_inflight", 1)
        admitted.append(method.future(request))
        server.until("fathom_queue_depth", 1)
        flood = [method.future(request) for _ in range(20)]
        assert call("ServerReady").ready
        for each in flood:
            assert each.exception(20).code().name == "RESOURCE_EXHAUSTED"
            assert int(dict(each.trailing_metadata())["retry-after"]) >= 1
        server.until("fathom_shed_total", 20, reason="full")
        server.until("fathom_requests_total", 20, outcome="overloaded")
        server.gate.set()
        for each in admitted:
            assert each.result(20).outputs


def test_the_callers_deadline_is_the_images(fake_manifest: Manifest) -> None:
    with (
        running(fake_manifest, delay_s={"front": 0.5}) as server,
        beside(server) as address,
    ):
        details, _ = Caller(address).refused("RESOURCE_EXHAUSTED", **image(flat()), timeout=0.2)
        assert "deadline" in details


def test_messages_are_limited(server: Server) -> None:
    with beside(server, max_body_bytes=10_000) as address:
        Caller(address).refused("RESOURCE_EXHAUSTED", **image(bytes(20_000)))


def test_keys_are_asked_for(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("me", "secret"))
    keys = ApiKeys(path, lambda _: None)
    with beside(server, keys) as address:
        call = Caller(address)
        assert call("ServerReady").ready
        for name, fields in (("ModelMetadata", {"name": "fake"}), ("ModelInfer", image(flat()))):
            for metadata in ((), (("x-api-key", "other"),), (("authorization", "Basic secret"),)):
                call.refused("UNAUTHENTICATED", name, **fields, metadata=metadata)
            assert call.raw(name, b"\xff")[0] == "UNAUTHENTICATED"
            two = (("x-api-key", "other"), ("x-api-key", "secret"))
            assert "several" in call.refused("UNAUTHENTICATED", name, **fields, metadata=two)[0]
            for metadata in ((("x-api-key", "secret"),), (("authorization", "Bearer secret"),)):
                assert call(name, metadata, **fields)
        assert server.value("fathom_requests_total", outcome="unauthorized") == 10


def test_calls_that_segment_are_spans_in_the_traces_of_their_callers(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kept = InMemorySpanExporter()
    tracing = Tracing(kept, sample=1.0, version="1")
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with beside(server, tracing=tracing) as address:
        call = Caller(address)
        assert call("ServerReady").ready
        assert call("ModelInfer", (("traceparent", parent),), **image(flat())).outputs
        _, trailing = call.refused("INVALID_ARGUMENT", **image(b""))
    asyncio.run(tracing.close(5))
    spans = kept.get_finished_spans()
    good, bad = (span for span in spans if span.kind is SpanKind.SERVER)
    assert good.name == f"{SERVICE}/ModelInfer"
    assert f"{good.context.trace_id:032x}" == parent[3:35]
    assert f"trace_id={parent[3:35]}" in caplog.text
    below = [span.name for span in spans if span.parent == good.context]
    assert below == [stage for stage in STAGES if stage != "glance"]
    told = [dict(span.attributes or {}) for span in (good, bad)]
    assert [each["rpc.grpc.status_code"] for each in told] == [0, 3]
    assert told[0]["fathom.plan"]
    assert told[1]["fathom.request_id"] == trailing["x-request-id"]
    assert trailing["traceparent"].startswith(f"00-{bad.context.trace_id:032x}-")


def test_an_address_that_is_taken_is_a_setting_that_is_wrong(live: SimpleNamespace) -> None:
    async def start() -> None:
        made = GrpcServer(
            Settings(), live.server.segmenter, live.server.metrics, version="1", keys=None
        )
        await made.start(live.address)

    future = asyncio.run_coroutine_threadsafe(start(), live.server.loop)
    with pytest.raises(SettingsError, match="--grpc-port"):
        future.result(20)


def test_an_unforeseen_error_tells_nothing_and_is_logged(
    fake_manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret of the inside")

    with running(fake_manifest) as server, beside(server) as address:
        for whose, name in ((Gated, "run"), (grpc_server, "reply"), (grpc_server, "request_of")):
            with monkeypatch.context() as patch:
                patch.setattr(whose, name, broken)
                details, trailing = Caller(address).refused("INTERNAL", **image(flat()))
            assert "secret" not in details
            assert f"request_id={trailing['x-request-id']}" in caplog.text


def test_every_call_of_tritons_grpc_client(live: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(QUARTERS)
    printed = run("triton_grpc_calls.py", "tritonclient.grpc", live.address, str(path))
    assert "calls that the protocol has: 6" in printed


def test_every_call_of_kserves_grpc_client(live: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(QUARTERS)
    printed = run("kserve_grpc_calls.py", "kserve", live.address, str(path))
    assert "all calls: 5" in printed


@contextmanager
def process_with_both_ports(
    served: Bundle, *flags: str
) -> Iterator[tuple[subprocess.Popen[bytes], Caller, int]]:
    """The process, which is ready, its caller, and its port for HTTP."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        http_port, port = one.getsockname()[1], other.getsockname()[1]
    command = [*STRICT_SERVICE, "--port", str(http_port), "--grpc-port", str(port), *flags]
    with subprocess.Popen(
        [*command, "--backend", "fake", "--bundle", str(served.root)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            call = Caller(f"127.0.0.1:{port}")
            grpc.channel_ready_future(call.channel).result(30)
            until(lambda: call("ServerReady").ready, 30)
            yield process, call, http_port
        finally:
            process.kill()


def test_a_process_serves_both_ports_and_ends_on_sigterm(fake_bundle: Bundle) -> None:
    with process_with_both_ports(fake_bundle) as (process, call, _):
        assert call("ModelInfer", **image(flat())).outputs
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_no_call_is_taken_while_open_requests_over_http_drain(fake_bundle: Bundle) -> None:
    def refused() -> bool:
        try:
            call("ServerLive")
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAVAILABLE)
        return False

    drain = ("--drain-timeout-s", "8")
    with (
        process_with_both_ports(fake_bundle, *drain) as (process, call, http_port),
        socket.create_connection(("127.0.0.1", http_port)) as slow,
    ):
        head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        slow.sendall(head + b"Content-Length: 9000\r\n\r\nbegun")
        assert answers(f"http://127.0.0.1:{http_port}/healthz")  # it has read what came before
        process.send_signal(signal.SIGTERM)
        until(refused, 5)
        assert process.poll() is None, "the request over HTTP still has time"
        assert process.wait(30) == 0


def test_without_the_extra_the_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.grpc.server", None)
    wanted: Any = None  # nothing but the settings is looked at
    with pytest.raises(SettingsError, match=r"pip install '\.\[grpc\]'"):
        entry.open_grpc(Settings(grpc_port=8001), wanted, wanted, "1", None)
    assert entry.open_grpc(Settings(), wanted, wanted, "1", None) is None


def test_traces_of_one_request_share_its_id() -> None:
    many = _traces(Trace("seven", caller="me"), 3)
    assert [(trace.request_id, trace.caller) for trace in many] == [("seven", "me")] * 3


def test_several_heads_are_asked_for_and_answered(several_heads: Manifest) -> None:
    with running(several_heads) as server, beside(server) as address:
        call = Caller(address)
        wanted = parameter("task_preference", string_param="boxes=0.25, depth=0.75")
        found = call("ModelInfer", **image(QUARTERS), parameters=[wanted])
        assert [out.name for out in found.outputs] == [
            "boxes.segments",
            "depth.values",
            "depth.statistics",
        ]
        values = np.frombuffer(found.raw_output_contents[1], "<f4").reshape(48, 64)
        assert values.min() == pytest.approx(1.0)
        for text, words in (
            ("sky=1", "the key 'sky' is no head of this bundle"),
            ("depth=0", "the key 'depth' is 0"),
        ):
            wrong = [parameter("task_preference", string_param=text)]
            detail, _ = call.refused("INVALID_ARGUMENT", **image(QUARTERS), parameters=wrong)
            assert words in detail

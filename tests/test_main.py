"""`python -m service`: from flags to a service that answers, ends on SIGTERM, and says why it
cannot start."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

from service import __main__ as entry
from service import release
from service.api.http1.listening import listen
from service.bundle import Bundle
from service.errors import SettingsError
from service.settings import Settings
from tests.faulty_service import BLUE
from tests.pictures import encoded
from tests.processes import ROOT, STRICT_SERVICE, answers, environment, until

WAIT_S = 30.0


@pytest.fixture
def environ(fake_bundle: Bundle) -> dict[str, str]:
    return environment() | {"FATHOM_BUNDLE": str(fake_bundle.root), "FATHOM_BACKEND": "fake"}


@pytest.fixture
def process(environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The service as a process of its own, on a free port, set up by variables and flags."""
    command = [*STRICT_SERVICE, "--drain-timeout-s", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
    ) as started:
        yield started
        started.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    """The address that the service logs; also shows what went wrong before."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
            return found[1]
    raise AssertionError(f"the service ended early:\n{seen}")


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ready_address_of(process: subprocess.Popen[str]) -> str:
    address = address_of(process)
    until(lambda: answers(f"{address}/readyz"), WAIT_S, "a service that is ready")
    return address


def test_it_starts_answers_and_ends_cleanly_on_sigterm(
    process: subprocess.Popen[str], fake_bundle: Bundle
) -> None:
    address = ready_address_of(process)
    assert get(f"{address}/healthz")[0] == 200
    assert [plan["name"] for plan in json.loads(get(f"{address}/plans")[1])["plans"]] == [
        "d1",
        "d2",
        "d3",
        "d4",
    ]
    build = next(
        line
        for line in get(f"{address}/metrics")[1].splitlines()
        if line.startswith("fathom_build_info")
    )
    assert f'bundle="fake@{fake_bundle.digest[:12]}"' in build
    assert 'backend="fake"' in build
    assert 'reason="asked"' in build
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM,),
        (signal.SIGHUP,),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGINT),
    ],
)
def test_requests_that_are_open_at_the_end_of_the_drain_get_503(
    process: subprocess.Popen[str], signals: tuple[signal.Signals, ...]
) -> None:
    address = ready_address_of(process)
    host = address.removeprefix("http://")
    paths = {
        "/segment": "image/png",
        "/v2/models/fake/infer": "application/json",
        "/v2/repository/index": "application/json",
    }
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(HTTPConnection(host, timeout=20))) for _ in paths]
        for client, (path, kind) in zip(clients, paths.items(), strict=True):
            client.putrequest("POST", path)
            client.putheader("Content-Type", kind)
            client.putheader("Content-Length", "9")
            client.endheaders(b"half")
        until(lambda: "fathom_held_bytes 12.0" in get(f"{address}/metrics")[1], WAIT_S)
        for number in signals:
            process.send_signal(number)
            until(lambda: not answers(f"{address}/healthz"), WAIT_S)
        for client in clients:
            answer = client.getresponse()
            assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
            assert "send this again" in json.loads(answer.read())["detail"]
    _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert log.count("status=503 outcome=not-ready") == 2  # the index is no image


HANGING_SERVICE = """
import os, sys
from tests import faulty_service as faulty

faulty.SLOW_S = 60.0
faulty.entry.open_backend = faulty.open_backend
faulty.entry.end(faulty.entry.main(sys.argv[1:], os.environ))
"""


def test_a_drain_ends_in_its_time_though_the_engine_hangs(environ: dict[str, str]) -> None:
    command = [sys.executable, "-c", HANGING_SERVICE, "--port", "0", "--drain-timeout-s", "3"]
    blue = encoded(Image.new("RGB", (64, 48), BLUE))
    with (
        subprocess.Popen(
            command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            address = ready_address_of(process)
            asked = urllib.request.Request(
                f"{address}/segment", blue, {"Content-Type": "image/png"}
            )
            pool.submit(urllib.request.urlopen, asked)
            until(lambda: "fathom_inflight 1" in get(f"{address}/metrics")[1], WAIT_S)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=WAIT_S)
            assert time.monotonic() - began < 6, log
            assert process.returncode == 0, log
            assert "status=503 outcome=not-ready" in log
        finally:
            process.kill()


def test_an_engine_that_is_busy_at_the_end_of_the_drain_does_not_abort_the_process() -> None:
    command = [*STRICT_SERVICE, "--backend", "onnxruntime", "--drain-timeout-s", "0"]
    with (
        subprocess.Popen(
            command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
        ) as process,
        ThreadPoolExecutor(4) as pool,
    ):
        try:
            address = ready_address_of(process)
            photo = (ROOT / "docs" / "scene-cluttered.jpg").read_bytes()
            fields = {"Content-Type": "image/jpeg", "Compute-Budget": "max-loss=0"}
            asked = urllib.request.Request(f"{address}/segment", photo, fields)
            for _ in range(4):
                pool.submit(urllib.request.urlopen, asked)
            until(lambda: "fathom_inflight 0" not in get(f"{address}/metrics")[1], WAIT_S)
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, log
            assert "status=503 outcome=not-ready" in log
        finally:
            process.kill()


def test_variables_that_platforms_set_for_other_programs_mean_nothing(
    environ: dict[str, str], tmp_path: Path
) -> None:
    counters = tmp_path / "counters"
    counters.mkdir()
    others = {
        "OTEL_PROPAGATORS": "tracecontext,b3",  # the latter is not installed
        "WEB_CONCURRENCY": "auto",
        "PROMETHEUS_MULTIPROC_DIR": str(counters),
    }
    with subprocess.Popen(
        STRICT_SERVICE, cwd=ROOT, env=environ | others, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            ready_address_of(started)
            assert not list(counters.iterdir())  # else they outlive the process
        finally:
            started.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts_ends_it_cleanly(
    environ: dict[str, str], number: signal.Signals
) -> None:
    python, *words = STRICT_SERVICE
    command = [python, "-X", "importtime", *words]  # tells how far it has come
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
    ) as starting:
        assert starting.stderr is not None
        next(line for line in starting.stderr if line.split()[-1:] == ["h11"])
        starting.send_signal(number)
        try:
            _, log = starting.communicate(timeout=WAIT_S)
        finally:
            starting.kill()
    assert starting.returncode == 0, log
    assert "Traceback" not in log


def test_without_standard_files_it_serves_and_ends_as_with_them(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *STRICT_SERVICE, "--port", port]
        refused = subprocess.run(shell, cwd=ROOT, env=environ, timeout=WAIT_S, check=False)
        assert refused.returncode == 2  # the port is in use
    with subprocess.Popen(shell, cwd=ROOT, env=environ) as started:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), WAIT_S)
            started.send_signal(signal.SIGTERM)
            assert started.wait(WAIT_S) == 0
        finally:
            started.kill()


def test_a_backend_that_cannot_run_ends_the_process_with_its_text(
    fake_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    # The graphs of this bundle are a few bytes of text.
    assert entry.main(["--bundle", str(fake_bundle.root), "--port", "0"], {}) == 1
    assert re.search(r"^BackendError: front\.onnx: ", capsys.readouterr().err, re.M)


def test_a_bundle_that_is_not_there_ends_the_process_with_the_way_to_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(["--port", "0"], {"FATHOM_BUNDLE": str(tmp_path)}) == 1
    error = capsys.readouterr().err
    assert error.startswith("BundleError: ")
    assert "python -m model_export export" in error


def test_a_wrong_setting_ends_the_process_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--port", "http"], {}) == 2
    assert capsys.readouterr().err == "SettingsError: --port is 'http': it must be an integer\n"


def test_a_port_in_use_ends_the_process_with_its_number(
    fake_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            entry.main(
                ["--bundle", str(fake_bundle.root), "--backend", "fake", "--port", str(port)], {}
            )
            == 2
        )
    assert f"127.0.0.1 port {port}" in capsys.readouterr().err


def test_it_takes_as_many_connections_as_it_may_open_files(environ: dict[str, str]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    shell = ("sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh")
    with subprocess.Popen(
        [*shell, *STRICT_SERVICE], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            address = address_of(process)
            host, port = address.removeprefix("http://").split(":")
            with ExitStack() as stack:
                for _ in range(80):
                    connection = socket.create_connection((host, int(port)), WAIT_S)
                    stack.enter_context(closing(connection))
                assert get(f"{address}/healthz")[0] == 200
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert re.search(rf"open files +{most} +{most}", limits)
        finally:
            process.kill()


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "no name"])
def test_what_can_be_no_name_of_a_host_is_refused_as_a_setting(host: str) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen on {host} port 0: "):
        listen(Settings(host=host, port=0))


@pytest.mark.parametrize("host", ["", "*"])
def test_what_may_mean_every_address_is_refused_and_the_way_to_write_it_named(host: str) -> None:
    text = rf"--host is '{re.escape(host)}': .* 0\.0\.0\.0 is every"
    with pytest.raises(SettingsError, match=text):
        listen(Settings(host=host, port=0))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_every_address_of_ipv6_is_every_one_of_ipv4_too() -> None:
    with closing(listen(Settings(host="::", port=0))) as listener:
        for host in ("::1", "127.0.0.1"):
            socket.create_connection((host, listener.getsockname()[1]), 10).close()


def test_the_interface_of_a_link_local_address_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_server(address: tuple[str | int, ...], **_options: object) -> None:
        raise OSError(str(address))

    monkeypatch.setattr(socket, "create_server", create_server)
    interface = socket.if_nametoindex("lo")
    with pytest.raises(SettingsError, match=rf"\('fe80::1', 0, 0, {interface}\)"):
        listen(Settings(host="fe80::1%lo", port=0))


@pytest.mark.parametrize(
    ("max_loss", "warned"), [(0.0, False), (0.002, True), (0.0025, False), (1.0, False)]
)
def test_a_default_floor_of_which_the_bundle_promises_nothing_is_pointed_out(
    fake_bundle: Bundle, caplog: pytest.LogCaptureFixture, max_loss: float, warned: bool
) -> None:
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as taken:  # the service ends where it would begin to listen
        settings = Settings(backend="fake", port=taken.getsockname()[1], max_loss=max_loss)
        with pytest.raises(SettingsError, match="cannot listen"):
            entry.serve(settings, fake_bundle)
    assert ("every image takes the full plan" in caplog.text) == warned


def test_an_installation_without_metadata_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise release.PackageNotFoundError(name)

    monkeypatch.setattr(release, "version", absent)
    assert release.installed() == "unknown"

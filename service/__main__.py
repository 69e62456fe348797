"""`python -m service`: settings -> bundle -> model -> segmenter -> app -> one uvicorn process.

Exit status: 0 after a drain, or after a signal before there was anything to drain; 1 when the
bundle or the backend cannot be served, 2 for a wrong setting.
"""

from __future__ import annotations

import os
import signal
import sys

# The signals that end the service; what nohup has set to be ignored stays so.
ENDING = [signal.SIGINT, signal.SIGTERM]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    ENDING.append(signal.SIGHUP)
if __name__ == "__main__":
    # Where standard files are closed, a socket would take their place: libraries would write errors
    # into it, and libuv aborts when it closes such a one.
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    # The imports below take a second, and an exception in one of them may get lost.
    for number in ENDING:
        signal.signal(number, lambda _number, _frame: os._exit(0))
    # What platforms set for others, and libraries obey as they are imported: names of propagators
    # that are not installed end the start, and counters in files outlive the process.
    for name in ("OTEL_PROPAGATORS", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from service import bundle, logs
from service.api.app import create_app
from service.api.http1.connection import protocol
from service.api.http1.listening import listen, more_files
from service.bundle import Bundle
from service.command_line import load, log_form, standard_collector
from service.engines.base import Backend
from service.engines.choice import choose_backend, open_backend
from service.errors import FathomError, SettingsError
from service.inference.engine import THREAD
from service.metrics import Metrics
from service.model import Model, metrics_of
from service.release import installed
from service.segmenting import Segmenter
from service.settings import Settings, flag

if TYPE_CHECKING:
    from service.api.tracing import Tracing
    from service.grpc.server import GrpcServer

_log = logging.getLogger("fathom")


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until a signal of ENDING. Returns the exit status; errors go to standard error."""
    try:
        settings = load(argv, environ)
        logs.configure(settings.log_level, settings.log_format)
        serve(settings, bundle.load(settings.bundle), standard_collector(argv, environ))
    except FathomError as error:
        message = f"{type(error).__name__}: {error.detail}"
        if log_form(argv, environ) == "json":
            logs.configure("error", "json")  # does nothing if that was done
            _log.critical(message)
        else:
            with suppress(OSError):  # the disk may be full
                sys.stderr.write(f"{message}\n")
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def serve(settings: Settings, served: Bundle, standard: str = "") -> None:
    """Serve a verified bundle.

    standard: see `open_tracing`. Raises SettingsError, or the error that stopped the engine.
    """
    more_files()
    metrics = metrics_of(served.manifest, settings)
    release = installed()

    def open_engine() -> Backend:
        # Runs on the engine's thread, while the event loop already answers.
        choice = choose_backend(settings, served)
        backend = open_backend(choice, settings, served)
        metrics.build_info(
            version=release, bundle=model.label, backend=backend.name, reason=choice.reason
        )
        return backend

    model = Model(served, settings, metrics, open_engine)
    tracing = open_tracing(settings, release, standard)
    segmenter = Segmenter(model, settings)
    app = create_app(settings, segmenter, metrics, version=release, tracing=tracing)
    beside = open_grpc(settings, segmenter, metrics, release, app.state)
    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's loggers use our handler
        access_log=False,  # metrics.observe writes one line per request
        server_header=False,
        lifespan="on",
        http=protocol(settings),
        ws="none",
        workers=1,  # else it reads WEB_CONCURRENCY
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    with (
        listen(settings) as listener,
        asyncio.Runner(loop_factory=config.get_loop_factory()) as runner,
    ):
        if beside is not None:
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            port = runner.run(beside.start(f"{host}:{settings.grpc_port}"))
            _log.info("listening on %s:%d for gRPC", host, port)
        server = _Server(config, app.state, settings.drain_timeout_s, beside)
        runner.run(_run(server, model, listener))
        if beside is not None:
            runner.run(beside.stop())
    if model.engine.failure is not None:
        raise model.engine.failure


async def _run(server: uvicorn.Server, model: Model, listener: socket.socket) -> None:
    """Listen at once, so that /healthz answers during the warm-up; stop when the engine ends."""
    host, port = listener.getsockname()[:2]
    _log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def stop_with_engine() -> None:
        await asyncio.shield(asyncio.wrap_future(model.engine.ended))
        server.should_exit = True

    watcher = asyncio.create_task(stop_with_engine())
    await server.serve([listener])
    watcher.cancel()


class _Server(uvicorn.Server):
    """uvicorn raises a signal again after its shutdown, so a clean end would look like a crash.

    state: the app's. beside: the transport that ends with this one.
    """

    def __init__(
        self, config: uvicorn.Config, state: Any, drain_timeout_s: float, beside: GrpcServer | None
    ) -> None:
        super().__init__(config)
        self._state, self._drain_timeout_s, self._beside = state, drain_timeout_s, beside

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The engine has as long as the open requests of both transports: all drain at once."""
        self._state.drained_by = time.perf_counter() + self._drain_timeout_s
        if self._beside is not None:
            self._beside.drain(self._drain_timeout_s)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A further SIGINT ends the wait for the requests that are open, which are answered with
        503. uvicorn would leave them, and the end of the app, to the end of the loop."""
        if self.should_exit and sig == signal.SIGINT:
            for task in self.server_state.tasks:
                task.cancel()
        else:
            super().handle_exit(sig, frame)


def open_tracing(settings: Settings, release: str, standard: str = "") -> Tracing | None:
    """The recorder of spans, if the settings ask for one.

    standard: the OTEL_* variable that alone asks for it. Platforms set it for all that they run, so
    without the packages it costs a warning. Raises SettingsError if a setting of our own asks for
    tracing and the packages are not installed, or for a variable that the SDK does not take.
    """
    if not settings.trace_endpoint:
        return None
    asks = standard or flag("trace_endpoint")
    try:
        from service.api.tracing import Tracing, exporter

        if settings.trace_protocol == "grpc":
            from service.api.tracing_grpc import exporter  # type: ignore[assignment]

        to = exporter(settings.trace_endpoint, asks)
        return Tracing(to, sample=settings.trace_sample, version=release)
    except ImportError as error:
        extra = "tracing-grpc" if settings.trace_protocol == "grpc" else "tracing"
        if standard:
            _log.warning(
                "no tracing: %s names a collector, but the extra `%s` is not installed (%s): pip "
                "install '.[%s]' in Fathom's source folder, or set OTEL_SDK_DISABLED=true",
                *(standard, extra, error.name, extra),
            )
            return None
        raise SettingsError(
            f"{asks} needs packages that are not installed ({error.name}): "
            f"pip install '.[{extra}]' in Fathom's source folder, or set OTEL_SDK_DISABLED=true"
        ) from error
    except ValueError as error:  # the SDK reads its variables itself, some as it is imported
        raise SettingsError(f"tracing: an OTEL_* variable is wrong: {error}") from error


def open_grpc(
    settings: Settings, segmenter: Segmenter, metrics: Metrics, release: str, shared: Any
) -> GrpcServer | None:
    """The transport beside HTTP, if the settings want it. shared: the app's state, with keys and
    tracing. Raises SettingsError when its packages are not installed."""
    if not settings.grpc_port:
        return None
    try:
        from service.grpc.server import GrpcServer
    except ImportError as error:
        raise SettingsError(
            f"{flag('grpc_port')} needs packages that are not installed ({error.name}): "
            "pip install '.[grpc]' in Fathom's source folder"
        ) from error
    told = {"version": release, "keys": shared.keys, "tracing": shared.tracing}
    return GrpcServer(settings, segmenter, metrics, **told)


def end(status: int) -> NoReturn:
    """End the process. An engine that was given up may be in the middle of an image, and the end of
    the interpreter aborts a process whose thread comes back from C++ then."""
    if any(thread.name == THREAD for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    end(main(sys.argv[1:], os.environ))

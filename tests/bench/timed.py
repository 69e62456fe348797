"""The service, telling when each step of a request was: `python -m tests.bench.timed [flags]`.

An answer's field `X-Marks` is JSON: in seconds of time.perf_counter, which all processes of a
machine share, when the request arrived, when each stage began, and when the answer's head was
written; and the CPU seconds of this process until then, in all and within the engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders

from service.__main__ import main
from service.api import middleware
from service.inference.stages import Stages
from service.trace import Trace

FIELD = "X-Marks"
_arrived: dict[str, float] = {}
_engine_s = [0.0]  # CPU time so far


def _noted(request_id: str) -> Trace:
    _arrived[request_id] = time.perf_counter()
    return Trace(request_id=request_id)


def _counted(stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage of the engine; while it runs, a process with one request does nothing else."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return stage(*args, **kwargs)
        finally:
            _engine_s[0] += time.process_time() - began

    return run


def _telling(add_fields: Callable[..., None]) -> Callable[..., None]:
    def add(edge: object, headers: MutableHeaders, trace: Trace, vary: str) -> None:
        add_fields(edge, headers, trace, vary)
        headers[FIELD] = json.dumps(
            {
                "arrived": _arrived.pop(trace.request_id),
                "began": trace.began,
                "written": time.perf_counter(),
                "cpu_s": time.process_time(),
                "engine_cpu_s": _engine_s[0],
            }
        )

    return add


if __name__ == "__main__":
    middleware.Trace = _noted  # type: ignore[assignment,misc]
    middleware.Edge._add_fields = _telling(middleware.Edge._add_fields)  # type: ignore[method-assign]
    for name in ("front", "encode", "head"):
        setattr(Stages, name, _counted(getattr(Stages, name)))
    sys.exit(main(sys.argv[1:], os.environ))

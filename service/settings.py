"""One frozen Settings object, built once in `__main__` and passed as an argument.

command_line.py reads it from flags and variables. A field's help, range and choices are in its
metadata and nowhere else: the flags and the table in docs/reference.md are made from them.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from service.errors import SettingsError

PREFIX = "FATHOM_"
_T = TypeVar("_T")

KINDS: dict[type, str] = {int: "an integer", float: "a number", str: "a text"}


def _setting(
    default: _T,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> _T:
    """A field with its help text, its range (inclusive) and its choices."""
    about = {"help": text, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that an operator can choose. Raises SettingsError for a value out of range."""

    bundle: Path = _setting(  # noqa: RUF009  # it is a field
        Path("trained_weights/camvid-tiny"), "folder of the bundle to serve"
    )
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(
        8000, "port to listen on; 0 takes a free one and logs it", low=0, high=65535
    )
    grpc_port: int = _setting(
        0, "gRPC port of the Open Inference Protocol; 0: off", low=0, high=65535
    )
    backend: str = _setting(
        "auto",
        "engine: auto takes the fastest that is ready and says why (docs/backends.md); fake "
        "makes up its masks",
        choices=("auto", "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "fake"),
    )
    engine_cache: Path = _setting(  # noqa: RUF009  # it is a field
        Path("engines"),
        "folder of TensorRT engines, as model_export build-trt writes it, and of OpenVINO's "
        "compiled models, which the service writes",
    )
    threads: int = _setting(
        0,
        "threads of the engine; 0 follows the container's CPU limit, else the available cores",
        low=0,
        high=1024,
    )
    max_batch: int = _setting(4, "most images that run together", low=1, high=64)
    batch_wait_ms: float = _setting(
        0.0,
        "how long a batch that is not full waits for more, if deadlines allow",
        low=0,
        high=1000,
    )
    queue_size: int = _setting(
        32, "most images that wait or come; one more gets a 429", low=1, high=10_000
    )
    max_loss: float = _setting(
        0.01, "expected loss against the full plan that is accepted by default", low=0, high=1
    )
    node_budget: str = _setting("", "ceilings of this node, written as in Compute-Budget")
    node_budget_file: str = _setting(
        "", "file with such ceilings, watched for changes; overrides node-budget"
    )
    target_ms: float = _setting(
        0.0,
        "objective: most milliseconds for 99 % of the answers; plans get cheaper to hold it, "
        "then requests are refused; 0: three times the most expensive plan's time, and that "
        "refuses none",
        low=0,
        high=600_000,
    )
    max_body_bytes: int = _setting(
        20 * 1024 * 1024, "largest request body, in bytes", low=1, high=2**31
    )
    max_pixels: int = _setting(
        25_000_000, "most pixels of an image, read from its header", low=1, high=2**31
    )
    max_side: int = _setting(8192, "longest side of an image, in pixels", low=1, high=65535)
    min_side: int = _setting(16, "shortest side of an image, in pixels", low=1, high=65535)
    head_timeout_s: float = _setting(
        10.0, "seconds within which the head of a request must arrive", low=0.01, high=3600
    )
    body_timeout_s: float = _setting(
        10.0,
        "seconds without progress after which a request's body is given up",
        low=0.01,
        high=3600,
    )
    body_min_rate: int = _setting(
        4096,
        "bytes per second that a body must bring if it takes longer than that",
        low=1,
        high=2**31,
    )
    keep_alive_s: float = _setting(
        125.0,
        "seconds that a connection may be idle; more than in the proxy in front",
        low=0.01,
        high=86_400,
    )
    cors_origins: str = _setting(
        "",
        "origins whose pages may send requests, as https://HOST[:PORT], separated by spaces; * "
        "is all",
    )
    response_cache_mb: int = _setting(
        0,
        "megabytes of answers that are kept for the same image and ask; 0: none",
        low=0,
        high=1_000_000,
    )
    drain_timeout_s: float = _setting(
        25.0, "seconds to finish admitted work after SIGTERM", low=0, high=3600
    )
    image_threads: int = _setting(2, "threads that decode images and encode masks", low=1, high=64)
    api_keys_file: str = _setting(
        "", "file of API keys, watched for changes; without one, no key is required"
    )
    trace_endpoint: str = _setting(
        "",
        "OTLP collector for OpenTelemetry spans, as http://HOST:4318; without one, that of "
        "OTEL_EXPORTER_OTLP_ENDPOINT, or off",
    )
    trace_protocol: str = _setting(
        "http/protobuf",
        "how spans are sent; grpc needs the extra tracing-grpc",
        choices=("http/protobuf", "grpc"),
    )
    trace_sample: float = _setting(
        1.0, "share of requests that are traced if the caller has not decided", low=0, high=1
    )
    log_level: str = _setting(
        "info",
        "least severe log level; info has a line per request",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = _setting(
        "logfmt", "form of the log lines; json is one object per line", choices=("logfmt", "json")
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            check(entry, getattr(self, entry.name), flag(entry.name))
        if self.min_side > self.max_side:
            raise SettingsError(
                f"--min-side is {self.min_side}: it must not be over --max-side ({self.max_side})"
            )


def flag(name: str) -> str:
    """The flag of a field: max_batch -> --max-batch."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a field: max_batch -> FATHOM_MAX_BATCH."""
    return PREFIX + name.upper()


def check(entry: Field[object], value: object, name: str) -> None:
    """Raises SettingsError, which tells the name that was given, for a value that the field cannot
    have."""
    low, high = entry.metadata["low"], entry.metadata["high"]
    choices = entry.metadata["choices"]
    kind = type(entry.default)
    if not isinstance(value, (float, int) if kind is float else kind) or isinstance(value, bool):
        raise SettingsError(f"{name} is {value!r}: it must be {KINDS.get(kind, 'a path')}")
    if choices and value not in choices:
        raise SettingsError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")
    # This form also refuses NaN.
    if isinstance(value, (int, float)) and low is not None and not low <= value <= high:
        raise SettingsError(f"{name} is {value}: it must be from {low} to {high}")

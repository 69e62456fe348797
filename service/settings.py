"""One frozen Settings object, built once in `__main__` and passed as an argument.

It is read from flags and FATHOM_* variables; flags take precedence. An unknown FATHOM_* variable is
refused, with the nearest name. A field's help, range and choices are in its metadata and nowhere
else: the flags and the table in docs/reference.md are made from them.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import NoReturn

from service.errors import SettingsError

PREFIX = "FATHOM_"


def _about(
    text: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> dict[str, object]:
    """A field's metadata: its help text, its range (inclusive) and its choices."""
    return {"help": text, "low": low, "high": high, "choices": choices}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that an operator can choose. Raises SettingsError for a value out of range."""

    bundle: Path = field(
        default=Path("trained_weights/camvid-tiny"),
        metadata=_about("folder of the bundle to serve"),
    )
    host: str = field(default="127.0.0.1", metadata=_about("address to listen on"))
    port: int = field(
        default=8000,
        metadata=_about("port to listen on; 0 takes a free one and logs it", low=0, high=65535),
    )
    grpc_port: int = field(
        default=0,
        metadata=_about("gRPC port of the Open Inference Protocol; 0: off", low=0, high=65535),
    )
    backend: str = field(
        default="auto",
        metadata=_about(
            "engine: auto takes the fastest that is ready and says why (docs/backends.md); fake "
            "makes up its masks",
            choices=("auto", "onnxruntime", "onnxruntime-cuda", "tensorrt", "fake"),
        ),
    )
    engine_cache: Path = field(
        default=Path("engines"),
        metadata=_about("folder of TensorRT engines, as model_export build-trt writes it"),
    )
    threads: int = field(
        default=0,
        metadata=_about(
            "threads of the engine; 0 follows the container's CPU limit, else the available cores",
            low=0,
            high=1024,
        ),
    )
    max_batch: int = field(
        default=4, metadata=_about("most images that run together", low=1, high=64)
    )
    batch_wait_ms: float = field(
        default=0.0,
        metadata=_about(
            "how long a batch that is not full waits for more images", low=0, high=1000
        ),
    )
    queue_size: int = field(
        default=32,
        metadata=_about("most images that wait; one more gets a 429", low=1, high=10_000),
    )
    max_loss: float = field(
        default=0.005,
        metadata=_about(
            "expected loss against the full plan that is accepted by default", low=0, high=1
        ),
    )
    node_budget: str = field(
        default="", metadata=_about("ceilings of this node, written as in Compute-Budget")
    )
    node_budget_file: str = field(
        default="",
        metadata=_about("file with such ceilings, watched for changes; overrides node-budget"),
    )
    load_start: float = field(
        default=0.5,
        metadata=_about("filled share of the queue above which plans get cheaper", low=0, high=1),
    )
    max_body_bytes: int = field(
        default=20 * 1024 * 1024,
        metadata=_about("largest request body, in bytes", low=1, high=2**31),
    )
    max_pixels: int = field(
        default=25_000_000,
        metadata=_about("most pixels of an image, read from its header", low=1, high=2**31),
    )
    max_side: int = field(
        default=8192, metadata=_about("longest side of an image, in pixels", low=1, high=65535)
    )
    min_side: int = field(
        default=16, metadata=_about("shortest side of an image, in pixels", low=1, high=65535)
    )
    body_timeout_s: float = field(
        default=10.0,
        metadata=_about("seconds within which a request's body must arrive", low=0.01, high=3600),
    )
    drain_timeout_s: float = field(
        default=25.0,
        metadata=_about("seconds to finish admitted work after SIGTERM", low=0, high=3600),
    )
    image_threads: int = field(
        default=2, metadata=_about("threads that decode images and encode masks", low=1, high=64)
    )
    api_keys_file: str = field(
        default="",
        metadata=_about("file of API keys, watched for changes; without one, no key is required"),
    )
    trace_endpoint: str = field(
        default="",
        metadata=_about(
            "OTLP/HTTP collector for OpenTelemetry spans, as http://HOST:4318; without one: off"
        ),
    )
    trace_sample: float = field(
        default=1.0,
        metadata=_about(
            "share of requests that are traced if the caller has not decided", low=0, high=1
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about(
            "least severe log level; info has a line per request",
            choices=("debug", "info", "warning", "error"),
        ),
    )
    log_format: str = field(
        default="logfmt",
        metadata=_about(
            "form of the log lines; json is one object per line", choices=("logfmt", "json")
        ),
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry, getattr(self, entry.name))
        if self.min_side > self.max_side:
            raise SettingsError(
                f"--min-side is {self.min_side}: it must not be over --max-side ({self.max_side})"
            )


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from flags (without the program's name) and FATHOM_* variables; flags win.

    Raises SettingsError that names the flag or variable. `--help` prints and exits, as in argparse.
    """
    known = {variable(entry.name): entry for entry in fields(Settings)}
    values: dict[str, object] = {}
    for key, text in environ.items():
        if not key.startswith(PREFIX):
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise SettingsError(f"{key} is not a setting: the nearest is {near[0]}")
        values[known[key].name] = _convert(known[key], text, key)
    for name, text in vars(_parser().parse_args(argv)).items():
        if text is not None:
            values[name] = _convert(known[variable(name)], text, flag(name))
    return Settings(**values)  # type: ignore[arg-type]  # _convert gave each value its field's type


def flag(name: str) -> str:
    """The flag of a field: max_batch -> --max-batch."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a field: max_batch -> FATHOM_MAX_BATCH."""
    return PREFIX + name.upper()


def table() -> str:
    """The settings as a Markdown table, for docs/reference.md."""
    rows = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for entry in fields(Settings):
        default = f"`{entry.default}`" if str(entry.default) else "none"
        rows.append(
            f"| `{flag(entry.name)}` | `{variable(entry.name)}` | {default} | {_help(entry)} |"
        )
    return "\n".join(rows) + "\n"


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are SettingsErrors, as for every other wrong setting."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m service", description="Serve a bundle over HTTP.", allow_abbrev=False
    )
    for entry in fields(Settings):
        # Text only: flags and variables go through the same conversion and give the same messages.
        text = f"{_help(entry)} [{entry.default}]".replace("%", "%%")
        parser.add_argument(flag(entry.name), metavar=entry.name.upper(), help=text)
    return parser


def _help(entry: Field[object]) -> str:
    text, choices = str(entry.metadata["help"]), entry.metadata["choices"]
    return f"{text} ({', '.join(choices)})" if choices else text


def _convert(entry: Field[object], text: str, source: str) -> object:
    kind = type(entry.default)
    try:
        return kind(text)  # type: ignore[call-arg]
    except ValueError as error:
        raise SettingsError(
            f"{source} is {text!r}: it must be {'a number' if kind is float else 'an integer'}"
        ) from error


def _check(entry: Field[object], value: object) -> None:
    name, low, high = flag(entry.name), entry.metadata["low"], entry.metadata["high"]
    choices = entry.metadata["choices"]
    if choices and value not in choices:
        raise SettingsError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")
    # This form also refuses NaN.
    if isinstance(value, (int, float)) and low is not None and not low <= value <= high:
        raise SettingsError(f"{name} is {value}: it must be from {low} to {high}")

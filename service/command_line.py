"""Settings from flags and environment variables, and their table for docs/reference.md.

Flags beat variables, and both beat the standard OTEL_* ones. A FATHOM_* variable that no field has
is refused with the nearest name.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import NoReturn

from service.errors import SettingsError
from service.settings import KINDS, PREFIX, Settings, check, flag, variable

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("http/protobuf", "grpc")


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from flags (without the program's name) and FATHOM_* variables; flags win.

    Raises SettingsError that names the flag or variable. `--help` prints and exits, as in argparse.
    """
    known = {variable(entry.name): entry for entry in fields(Settings)}
    values = _standard(environ)
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
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        values["trace_endpoint"] = ""
    return Settings(**values)  # type: ignore[arg-type]  # _convert gave each value its field's type


def log_form(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The log format that is asked for, whatever else may be wrong; empty if none is."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag("log_format"))
    try:
        told = parser.parse_known_args(argv)[0].log_format
    except SettingsError:  # it has no value
        told = None
    return told or environ.get(variable("log_format"), "")


def standard_collector(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The OTEL_* variable that alone asks for tracing.

    Empty if a flag or a FATHOM_* variable names a collector, or nothing does. Raises SettingsError.
    """
    own = {key: text for key, text in environ.items() if not key.startswith("OTEL_")}
    if load(argv, own).trace_endpoint:
        return ""
    return next((name for name in _ENDPOINTS if environ.get(name, "").strip()), "")


def table() -> str:
    """The settings as a Markdown table, for docs/reference.md."""
    rows = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for entry in fields(Settings):
        default = f"`{entry.default}`" if str(entry.default) else "none"
        rows.append(
            f"| `{flag(entry.name)}` | `{variable(entry.name)}` | {default} | {_help(entry)} |"
        )
    return "\n".join(rows) + "\n"


def _standard(environ: Mapping[str, str]) -> dict[str, object]:
    """What the standard OTEL_* variables say about our settings; the SDK reads others itself.

    OpenTelemetry, "OTLP exporter configuration" and "environment variable specification".
    """

    def said(*names: str) -> str:
        texts = (environ.get(f"OTEL_{name}", "").strip() for name in names)
        return next((text for text in texts if text), "")

    values: dict[str, object] = {}
    protocol = said("EXPORTER_OTLP_TRACES_PROTOCOL", "EXPORTER_OTLP_PROTOCOL")
    endpoint = said("EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint and (base := said("EXPORTER_OTLP_ENDPOINT")):
        endpoint = base if protocol == "grpc" else f"{base.rstrip('/')}/v1/traces"
    if endpoint and "otlp" in (said("TRACES_EXPORTER") or "otlp"):
        values["trace_endpoint"] = endpoint
    if protocol in _PROTOCOLS:
        values["trace_protocol"] = protocol
    sampler = said("TRACES_SAMPLER").removeprefix("parentbased_")
    if sampler in ("always_on", "always_off"):
        values["trace_sample"] = float(sampler == "always_on")
    elif sampler == "traceidratio":
        entry = next(entry for entry in fields(Settings) if entry.name == "trace_sample")
        argument = said("TRACES_SAMPLER_ARG") or "1"
        values["trace_sample"] = _convert(entry, argument, "OTEL_TRACES_SAMPLER_ARG")
    return values


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
    """The value of a flag or a variable, the source. Raises SettingsError that names it."""
    kind = type(entry.default)
    try:
        value: object = kind(text)  # type: ignore[call-arg]
    except ValueError as error:
        raise SettingsError(f"{source} is {text!r}: it must be {KINDS[kind]}") from error
    check(entry, value, source)
    return value

"""Settings: flags over variables, refusals that name what to change, and the threads that a
container allows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from service.command_line import load, log_form, table
from service.engines.cpu_limit import resolve_threads
from service.errors import SettingsError
from service.settings import Settings, flag, variable

# A value that is not the default for every field, as text and as the object that it must become.
OTHER: dict[str, tuple[str, object]] = {
    "bundle": ("some/where", Path("some/where")),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "grpc_port": ("9000", 9000),
    "backend": ("fake", "fake"),
    "engine_cache": ("/var/cache/fathom", Path("/var/cache/fathom")),
    "threads": ("3", 3),
    "max_batch": ("1", 1),
    "batch_wait_ms": ("2.5", 2.5),
    "queue_size": ("7", 7),
    "max_loss": ("0", 0.0),
    "node_budget": ("gflops=6.5", "gflops=6.5"),
    "node_budget_file": ("budget.txt", "budget.txt"),
    "target_ms": ("500", 500.0),
    "max_body_bytes": ("1000", 1000),
    "max_pixels": ("4096", 4096),
    "max_side": ("640", 640),
    "min_side": ("1", 1),
    "head_timeout_s": ("0.5", 0.5),
    "body_timeout_s": ("0.5", 0.5),
    "body_min_rate": ("1000", 1000),
    "keep_alive_s": ("700", 700.0),
    "cors_origins": ("https://app.example", "https://app.example"),
    "response_cache_mb": ("64", 64),
    "drain_timeout_s": ("1", 1.0),
    "image_threads": ("1", 1),
    "api_keys_file": ("keys", "keys"),
    "trace_endpoint": ("http://collector:4318", "http://collector:4318"),
    "trace_protocol": ("grpc", "grpc"),
    "trace_sample": ("0.01", 0.01),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


def test_other_values_are_there_for_every_field() -> None:
    assert OTHER.keys() == {entry.name for entry in dataclasses.fields(Settings)}
    assert all(getattr(Settings(), name) != value for name, (_, value) in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_every_field_has_a_flag_and_a_variable_of_the_same_meaning(name: str) -> None:
    text, value = OTHER[name]
    expected = dataclasses.replace(Settings(), **{name: value})  # type: ignore[arg-type]
    assert load([flag(name), text], {}) == load([f"{flag(name)}={text}"], {}) == expected
    assert load([], {variable(name): text}) == expected
    assert type(getattr(load([flag(name), text], {}), name)) is type(value)


def test_nothing_given_is_the_defaults_and_other_variables_do_not_matter() -> None:
    assert load([], {"PATH": "/bin", "PORT": "1", "fathom_port": "1"}) == Settings()


def test_a_flag_beats_its_variable_and_a_wrong_variable_is_still_an_error() -> None:
    assert load(["--port", "1"], {"FATHOM_PORT": "2", "FATHOM_HOST": "h"}) == Settings(
        port=1, host="h"
    )
    with pytest.raises(SettingsError, match="FATHOM_PORT"):
        load(["--port", "1"], {"FATHOM_PORT": "two"})
    with pytest.raises(SettingsError, match="FATHOM_PORT"):
        load(["--port", "1"], {"FATHOM_PORT": "-2"})


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        ([], {"FATHOM_QUEUESIZE": "3"}, ["FATHOM_QUEUESIZE", "FATHOM_QUEUE_SIZE"]),
        ([], {"FATHOM_": ""}, ["FATHOM_ ", "nearest"]),
        (
            ["--queue", "3"],
            {},
            ["--queue"],
        ),  # no abbreviations: a new flag must not change what an old one means
        (["--port"], {}, ["--port"]),
        (["extra"], {}, ["extra"]),
        (["--port", "80a"], {}, ["--port", "80a", "an integer"]),
        (["--port", "8.5"], {}, ["--port", "an integer"]),
        (["--port", "65536"], {}, ["--port", "65536", "65535"]),
        (["--port", "-1"], {}, ["--port"]),
        ([], {"FATHOM_MAX_LOSS": "low"}, ["FATHOM_MAX_LOSS", "a number"]),
        ([], {"FATHOM_MAX_LOSS": "2"}, ["FATHOM_MAX_LOSS is 2.0", "from 0 to 1"]),
        ([], {"FATHOM_LOG_LEVEL": ""}, ["FATHOM_LOG_LEVEL is ''", "one of debug, info"]),
        (["--max-loss", "nan"], {}, ["--max-loss", "nan"]),
        (["--body-timeout-s", "inf"], {}, ["--body-timeout-s", "inf"]),
        (["--max-batch", "0"], {}, ["--max-batch", "from 1 to 64"]),
        (["--backend", "trt"], {}, ["--backend", "trt", "onnxruntime"]),
        (["--log-level", "INFO"], {}, ["--log-level", "info"]),
        (["--log-format", "text"], {}, ["--log-format", "logfmt", "json"]),
        (["--trace-sample", "1.01"], {}, ["--trace-sample", "from 0 to 1"]),
        (["--min-side", "100", "--max-side", "99"], {}, ["--min-side", "--max-side"]),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(
    argv: list[str], environ: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(argv, environ)
    assert [word for word in words if word not in caught.value.detail] == []


@pytest.mark.parametrize(
    ("argv", "environ", "form"),
    [
        (["--port", "http", "--log-format", "json"], {"FATHOM_LOG_FORMAT": "logfmt"}, "json"),
        (["--nothing", "--log-format=json"], {}, "json"),
        (["--log-format", "json", "--port"], {}, "json"),
        (["--log-format"], {"FATHOM_LOG_FORMAT": "json"}, "json"),
        (["--port", "http"], {}, ""),
    ],
)
def test_the_log_format_is_known_though_settings_are_wrong(
    argv: list[str], environ: dict[str, str], form: str
) -> None:
    assert log_form(argv, environ) == form


OTLP = "OTEL_EXPORTER_OTLP_"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({f"{OTLP}ENDPOINT": "http://c:4318"}, {"trace_endpoint": "http://c:4318/v1/traces"}),
        ({f"{OTLP}ENDPOINT": "http://c/otel/"}, {"trace_endpoint": "http://c/otel/v1/traces"}),
        (
            {f"{OTLP}ENDPOINT": "http://c:4317", f"{OTLP}PROTOCOL": "grpc"},
            {"trace_endpoint": "http://c:4317", "trace_protocol": "grpc"},
        ),
        (
            {f"{OTLP}ENDPOINT": "http://a", f"{OTLP}TRACES_ENDPOINT": "http://b/traces"},
            {"trace_endpoint": "http://b/traces"},
        ),
        (
            {f"{OTLP}ENDPOINT": "http://a", "FATHOM_TRACE_ENDPOINT": "http://b"},
            {"trace_endpoint": "http://b"},
        ),
        ({f"{OTLP}ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, {}),
        ({"FATHOM_TRACE_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, {}),
        ({f"{OTLP}PROTOCOL": "http/json"}, {}),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, {"trace_sample": 0.0}),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, {"trace_sample": 1.0}),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            {"trace_sample": 0.25},
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "FATHOM_TRACE_SAMPLE": "0.5"},
            {"trace_sample": 0.5},
        ),
    ],
)
def test_the_standard_variables_of_opentelemetry_are_settings_that_others_beat(
    environ: dict[str, str], expected: dict[str, object]
) -> None:
    assert load([], environ) == dataclasses.replace(Settings(), **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", ["half", "1.5"])
def test_a_wrong_standard_variable_is_refused_by_its_name(share: str) -> None:
    with pytest.raises(SettingsError, match="OTEL_TRACES_SAMPLER_ARG"):
        load([], {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": share})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_help_and_table_name_every_setting_with_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # or argparse breaks lines at hyphens
    with pytest.raises(SystemExit, match="0"):
        load(["--help"], {})
    shown = " ".join(capsys.readouterr().out.split())
    for entry in dataclasses.fields(Settings):
        assert flag(entry.name) in shown
        assert f"`{variable(entry.name)}`" in table()
        assert entry.metadata["help"] in table()
        assert entry.metadata["help"] in shown


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 8),
        (None, 8),
    ],
)
def test_threads_follow_the_containers_limit_and_never_exceed_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert resolve_threads(0, tmp_path / "cpu.max") == threads
    assert resolve_threads(5, tmp_path / "cpu.max") == 5


@pytest.mark.parametrize("content", ["", "100000", "some 100000", "100000 0", "1 2 3"])
def test_a_limit_that_cannot_be_understood_is_an_error_and_no_guess(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "cpu.max").write_text(content)
    with pytest.raises(SettingsError, match="--threads"):
        resolve_threads(0, tmp_path / "cpu.max")

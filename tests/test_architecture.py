"""Imports point one way. The tables below are the architecture: an arrow they do not allow fails.

Found by walking the syntax tree, so imports inside functions and under TYPE_CHECKING count, too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = {"service": 250, "model_export": 350}

# From low to high: a module imports what stands before its own row, and its own package.
LAYERS = {
    "service": [
        *(
            "errors",
            "core",
            "trace",
            "ask",
            "structured",
            "settings",
            "command_line",
            "logs",
            "request_line",
            "release",
        ),
        *("labels", "metrics", "outcomes", "threads", "native"),
        *("bundle", "pixels", "tasks", "answer", "engines", "inference"),
        *("model", "segmenting", "open_inference", "api", "grpc", "__main__"),
    ],
    "model_export": [
        *("option_types", "files", "kernels", "network", "tasks", "data", "training"),
        *("export", "gating", "importing", "evaluation", "__main__"),
    ],
}
# Modules that stay pure: all that they may import of the service.
PURE = {
    "service.core": set[str](),
    "service.trace": {"service.core", "service.errors"},
    "service.ask": {"service.core", "service.errors"},
    "service.errors": set[str](),
    "service.logs": set[str](),
    "service.bundle.canvases": set[str](),
    "service.bundle.kernel": set[str](),
    "service.inference.policy": {"service.ask", "service.core", "service.errors"},
    "service.inference.place": {"service.errors"},
    "service.inference.tiles": {"service.bundle"},
    "service.inference.schedule": set[str](),
    "service.inference.admission": {"service.inference.place"},
    "service.inference.queue": {
        *("service.errors", "service.inference.admission", "service.inference.place"),
        "service.inference.schedule",
    },
}
# One engine is as good as another: from outside, only these modules of engines/ are known.
ENGINES_FOR = {
    "inference": {"engines.base"},
    "model": {"engines.base"},
    "segmenting": {"engines.choice"},
    "__main__": {"engines.base", "engines.choice"},
}
# What model_export may import of the service; of network and kernels, less.
SHARED = {"bundle", "core", "errors", "inference", "engines", "pixels", "tasks"}
SHARED_BY = {"network": set[str](), "kernels": {"bundle.kernel", "engines.cuda"}}

# Third-party package -> the modules or packages of the service that may import it.
THIRD_PARTY: dict[str, set[str]] = {
    "numpy": {"core", "pixels", "tasks", "answer", "engines", "inference", "open_inference"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "pydantic": {"api"},
    "http_sf": {"api.fields", "structured"},
    "h11": {"api.http1"},
    "opentelemetry": {"api.tracing", "api.tracing_grpc"},
    "grpc": {"grpc"},
    "google": {"grpc"},
    "PIL": {"pixels"},
    "pillow_heif": {"pixels.readers"},
    "pycocotools": {"pixels.rle"},
    "prometheus_client": {"metrics"},
    "onnxruntime": {"engines.choice", "engines.onnxruntime", "engines.onnxruntime_cuda"},
    "openvino": {"engines.openvino"},
    "tensorrt": {"engines.tensorrt_runtime"},
    "tensorrt_rtx": {"engines.tensorrt_runtime"},
    "uvicorn": {"__main__"},
}
# Never in model_export: what belongs to HTTP.
HTTP = {"fastapi", "starlette", "pydantic", "uvicorn", "http_sf", "prometheus_client"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file; a package has the name of its folder."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in paths
    }


SOURCES = {**modules("service"), **modules("model_export")}


def imported(name: str, source: str, is_package: bool = False) -> Iterator[str]:
    """Every module that `source`, being the module `name`, imports.

    `from package import module` names the module.
    """
    home = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*home[: len(home) + 1 - node.level], node.module or ""]).strip(".")
            module = base if node.level else node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in SOURCES else module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in {"import_module", "__import__"}:
                yield str(node.args[0].value)


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def row_of(package: str, inner: str) -> int:
    """The index of the most specific layer that a module belongs to; -1: of none."""
    rows = [row for row, place in enumerate(LAYERS[package]) if within(inner, {place})]
    return max(rows, key=lambda row: len(LAYERS[package][row]), default=-1)


def allowed(name: str, target: str) -> bool:
    package, _, inner = name.partition(".")
    top, _, rest = target.partition(".")
    if top == "service" and package == "service":
        if name in PURE and target not in PURE[name]:
            return False
        layer = inner.partition(".")[0]
        if within(rest, {"engines"}) and layer != "engines":
            return within(rest, ENGINES_FOR.get(layer, set()))
        own, other = row_of(package, inner), row_of(top, rest)
        return own >= 0 and 0 <= other <= own
    if top == "model_export" and package == "model_export":
        own, other = row_of(package, inner), row_of(top, rest)
        return own >= 0 and 0 <= other <= own
    if package == "service":
        return within(inner, THIRD_PARTY.get(top, set()))
    if top == "service":
        layer = LAYERS[package][row_of(package, inner)]
        return within(rest, SHARED_BY.get(layer, SHARED))
    return top not in HTTP


def forbidden(name: str, source: str, is_package: bool = False) -> list[str]:
    """The arrows out of this module that no table has, as "a -> b"."""
    return [
        f"{name} -> {target}"
        for target in imported(name, source, is_package)
        if target.partition(".")[0] not in sys.stdlib_module_names and not allowed(name, target)
    ]


def arrows() -> dict[str, set[str]]:
    """Every module of ours -> the modules of ours that it imports."""
    return {
        name: {
            target
            for target in imported(name, path.read_text("utf-8"), path.name == "__init__.py")
            if target in SOURCES
        }
        for name, path in SOURCES.items()
    }


@pytest.mark.parametrize("name", SOURCES)
def test_module_imports_only_what_the_tables_allow(name: str) -> None:
    path = SOURCES[name]
    source = path.read_text("utf-8")
    assert forbidden(name, source, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_belongs_to_a_layer(package: str) -> None:
    inner = {name.removeprefix(f"{package}.") for name in modules(package) if name != package}
    assert {name for name in inner if row_of(package, name) < 0} == set()


def test_no_modules_import_each_other() -> None:
    try:
        order = list(TopologicalSorter(arrows()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) == set(arrows())


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        list(TopologicalSorter(arrows() | {"service.core": {"service.__main__"}}).static_order())


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.inference.policy", "import torch"),
        ("service.inference.policy", "from service.engines.base import Backend"),
        ("service.inference.pipeline", "from ..engines import onnxruntime"),
        ("service.engines.onnxruntime", "from service.inference import pipeline"),
        ("service.engines.fake", "import onnxruntime as ort"),
        ("service.core", "from . import settings"),
        ("service.bundle", "import numpy"),
        ("service.api.app", "import uvicorn"),
        ("service.pixels.decode", "from service.api.app import create_app"),
        ("service.inference.engine", "def f():\n    from fastapi import FastAPI"),
        ("service.settings", "from pydantic import BaseModel"),
        ("service.metrics", "from opentelemetry import trace"),
        ("service.api.app", "import importlib\nimportlib.import_module('model_export.network')"),
        ("service.not_in_the_table", "import service.core"),
        ("model_export.network.encoder", "from model_export.training import train_exits"),
        ("model_export.network.encoder", "import service.core"),
        ("model_export.evaluation.evaluate", "from service.api.app import create_app"),
        ("model_export.evaluation.evaluate", "from service.settings import Settings"),
        ("model_export.training.runs", "from ..export import flops"),
        ("model_export.export.write_bundle", "import fastapi"),
        ("model_export.network.encoder", "from model_export.export import onnx"),
        ("model_export.kernels.launch", "from model_export.network import config"),
        ("model_export.kernels.launch", "import service.bundle"),
    ],
)
def test_forbidden_arrow_is_found(name: str, source: str) -> None:
    assert len(forbidden(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.inference.pipeline", "import time\nfrom service.inference.policy import Policy"),
        ("service.inference.pipeline", "from ..engines.base import Backend"),
        ("service.api.tracing", "from opentelemetry.sdk.trace import TracerProvider"),
        ("service.engines.onnxruntime", "import numpy as np\nimport onnxruntime"),
        ("service.__main__", "import uvicorn\nfrom service.api.app import create_app"),
        (
            "model_export.export.write_bundle",
            "import torch\nfrom model_export.network.config import tiny\nimport service.bundle",
        ),
        ("model_export.gating.calibrate", "from service.engines.onnxruntime import OnnxBackend"),
        ("model_export.network.encoder", "from model_export.kernels import launch"),
    ],
)
def test_allowed_arrow_is_not_reported(name: str, source: str) -> None:
    assert forbidden(name, source) == []


@pytest.mark.parametrize("package", MAX_LINES)
def test_no_file_is_longer_than_its_limit(package: str) -> None:
    lengths = {
        name: len(path.read_text("utf-8").splitlines()) for name, path in modules(package).items()
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES[package]} == {}


def our_text_files() -> Iterator[Path]:
    """Every text file of the repository; caches, environments and training output are not in it."""
    ours = {".ci", ".gitattributes", ".gitignore", ".dockerignore", ".github"}
    texts = {
        "",
        ".py",
        ".md",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
        ".json",
        ".js",
        ".css",
        ".html",
        ".sh",
        ".cu",
        ".cuh",
        ".cpp",
        ".h",
    }
    for entry in ROOT.iterdir():
        if entry.name == "runs" or (entry.name.startswith(".") and entry.name not in ours):
            continue
        for path in [entry] if entry.is_file() else entry.rglob("*"):
            if path.is_file() and path.suffix in texts and "__pycache__" not in path.parts:
                yield path


def test_no_file_names_a_place_of_one_machine_or_a_package_registry() -> None:
    # Put together here, so that this file does not name them itself.
    words = ["/" + "work/", "/" + "root/", "py" + "pi.org", "python" + "hosted", "index" + "-url"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in our_text_files()
        for word in words
        if word in path.read_text("utf-8", errors="replace")
    ]
    assert found == []


def test_starting_the_service_loads_no_training_package() -> None:
    heavy = "{'torch', 'model_export', 'onnx', 'onnxscript', 'scipy', 'matplotlib', 'transformers'}"
    code = (
        "import sys, service.__main__, service.api.app; "
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "[]", "")


def test_an_engine_takes_at_most_sixty_lines() -> None:
    """The fake one is whole: a new engine is one such file, and a row in engines/choice.py."""
    fake = (ROOT / "service" / "engines" / "fake.py").read_text("utf-8")
    assert len(fake.splitlines()) <= 60
